"""The swap test: can a relation's units make a model answer another question than the one asked?

Ablation shows at most that units are needed. Here the units of a relation r are amplified while
its sibling r' is asked about a subject that both relations know (the capital of a country while
its currency is asked; relation_neurons.md, sections 6.4 and 11.8). If the units stand for the
relation and the model reads facts through them, the answer of r should take over:

    lead = log p(o_r) - log p(o_r')        shift = lead amplified - lead as it is

with length-normalised log-probabilities in nats. A unit that only calls for the *type* of r's
answers lifts every object of r alike, so the answer is compared with other objects of r too. Both
numbers stand beside those of control sets that write as much in the same layers.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from jaxtyping import Float

from ..data.facts.answers import confusable, leaks
from ..data.facts.designs import Prompt
from ..data.facts.items import Fact, Relation
from ..data.facts.wordings import Wording
from ..interventions.neuron_ablation import neuron_edits, values_at
from ..models.edits import Edit
from ..models.errors import MnemoscopeError, PromptError
from ..models.hooked import HookedModel
from ..models.types import NeuronId, Site
from ..results.run import Run
from ..results.statistics import Interval, bootstrap_mean
from .asked_facts import CANDIDATES, Asked, answer_tokens, asked_facts
from .elicitation import Progress, silent
from .neuron_doses import AgainstControls, against_controls
from .neuron_margins import ROWS, MarginRows, Margins, kept_margins, margin_rows, measure_margins
from .pooled_activations import Pooling, pooled_activations


@dataclass(frozen=True)
class SwapFacts:
    """Prompts that ask one relation, with the answers of both.

    In `pairs` the right answer is that of the amplified relation and the only candidate that of
    the asked one, so that the margin is the lead. In `others` the candidates are other objects of
    the amplified relation.
    """

    amplified: str
    asked: str
    pairs: tuple[Asked, ...]
    others: tuple[Asked, ...]


@dataclass(frozen=True, eq=False)
class Swap:
    """Leads of the same facts as the model is, with the units amplified, and with each control set
    amplified in the same way. `own` are the margins against other objects of the relation."""

    amplified: str
    asked: str
    subjects: tuple[str, ...]
    clean: Float[np.ndarray, " fact"]
    lead: Float[np.ndarray, " fact"]
    controls: Float[np.ndarray, "draw fact"]
    own_clean: Float[np.ndarray, " fact"]
    own: Float[np.ndarray, " fact"]
    own_controls: Float[np.ndarray, "draw fact"]

    @property
    def shift(self) -> AgainstControls:
        """Mean shift of the lead, nats; `p_loss` is the share of sets that shift as much."""
        return _against(self.clean, self.lead, self.controls)

    @property
    def own_shift(self) -> AgainstControls:
        """Mean gain of the right object over other objects of the relation: near 0 when units lift
        the type of answer only."""
        return _against(self.own_clean, self.own, self.own_controls)

    @property
    def n_open(self) -> int:
        """Facts that can swap: the model as it is prefers the answer that was asked for."""
        return int((self.clean < 0).sum())

    @property
    def rate(self) -> AgainstControls:
        """Share of those facts whose answer the amplified relation's takes over.

        Raises `MnemoscopeError` when there is none.
        """
        open_ = self.clean < 0
        if not open_.any():
            raise MnemoscopeError(
                f"{self.asked} is not what the model answers to any prompt: ask facts it knows."
            )
        swapped = (self.lead[open_] > 0).mean()
        return against_controls(float(swapped), (self.controls[:, open_] > 0).mean(1))

    def interval(self, *, draws: int = 1000, seed: int) -> Interval:
        """The mean shift with its bootstrap interval over subjects."""
        return bootstrap_mean(self.lead - self.clean, self.subjects, draws=draws, seed=seed)


def swap_facts(
    model: HookedModel,
    amplified: Relation,
    asked: Relation,
    wording: Wording,
    *,
    subjects: Sequence[str] | None = None,
    n_candidates: int = CANDIDATES,
    seed: int = 0,
) -> SwapFacts:
    """The subjects that both relations have (or those named, as `asked` spells them), asked in a
    wording of `asked`.

    Give subjects whose facts the model knows in both relations: nothing else can swap. Left out:
    subjects whose two answers contain one another, whose prompt tells an answer, and those that
    `asked_facts` leaves out. Raises `MnemoscopeError` when none is left.
    """
    wanted = None if subjects is None else set(subjects)
    facts = {f.subject: f for f in asked.facts if wanted is None or f.subject in wanted}
    siblings = _siblings(amplified, facts)
    if not siblings:
        raise MnemoscopeError(
            f"{amplified.name!r} and {asked.name!r} share none of the subjects: choose two "
            "relations over the same things."
        )
    # The wording asks for the one relation, answers and candidates are of the other.
    others = asked_facts(model, amplified, siblings, wording, n_candidates=n_candidates, seed=seed)
    both = [
        (_pair(one, facts[one.subject]), one)
        for one in others
        if _scorable(model, one, facts[one.subject])
    ]
    if not both:
        raise MnemoscopeError(
            f"no prompt of {asked.name!r} can be swapped to {amplified.name!r}: the answers stand "
            "in the prompt, contain one another or merge with the prompt. Try another wording."
        )
    return SwapFacts(
        amplified.name, asked.name, tuple(pair for pair, _ in both), tuple(one for _, one in both)
    )


def usual_values(
    model: HookedModel,
    prompts: Sequence[Prompt],
    *,
    site: Site = Site.NEURON,
    pooling: Pooling = "mean_nobos",
    rows: int = 32,
    progress: Progress = silent,
) -> Float[torch.Tensor, "layer unit"]:
    """Median over a relation's own prompts of every unit's pooled activation ("on_p50" of Cuadros
    et al. 2022), the value to set amplified units to.

    A mean over tokens is below what a unit has where it fires; pooling "last" gives the value at
    the place that answers. Memory: all units for all prompts, float32.
    """
    layers = range(model.anatomy.n_layers)
    pooled = pooled_activations(
        model, prompts, site=site, pooling=pooling, layers=layers, rows=rows, progress=progress
    )
    return pooled.median(dim=-1).values


def swap_test(
    model: HookedModel,
    facts: SwapFacts,
    neurons: Sequence[NeuronId],
    controls: Sequence[Sequence[NeuronId]],
    *,
    values: Float[torch.Tensor, "layer unit"] | None = None,
    factor: float | None = None,
    rows: int = ROWS,
    run: Run | None = None,
    label: str = "swap",
    progress: Progress = silent,
) -> Swap:
    """Amplify the units at every token but the first and compare the two answers, then do the same
    with each control set (`results.neuron_controls.matched_random_neurons`, 20 or more).

    Either `values`, a table of all layers from which units and controls are set to their own entry
    (`usual_values`, or a multiple of it), or a `factor` that multiplies them. With a `run`, every
    set is one unit of it under `label`. Raises `MnemoscopeError` unless exactly one is given.
    """
    if (values is None) == (factor is None):
        raise MnemoscopeError("amplify units either to values or by a factor: give one of them.")
    plan = margin_rows(model, (*facts.pairs, *facts.others))
    sets: dict[str, Sequence[Edit]] = {"clean": ()}
    sets["amplified"] = _amplified(neurons, values, factor)
    for i, control in enumerate(controls):
        sets[f"control {i}"] = _amplified(control, values, factor)
    found = []
    for name, edits in sets.items():
        found.append(_kept(run, f"{label}: {name}", model, plan, edits, rows).margin)
        progress(len(found), len(sets))
    lead, own = np.split(np.stack(found), 2, axis=1)
    subjects = tuple(one.subject for one in facts.pairs)
    names = facts.amplified, facts.asked, subjects
    return Swap(*names, lead[0], lead[1], lead[2:], own[0], own[1], own[2:])


def _siblings(amplified: Relation, facts: Mapping[str, Fact]) -> list[Fact]:
    """Facts of the amplified relation about the same subjects, each subject once and spelt as in
    the asked relation."""
    by_name = {name: fact.subject for fact in facts.values() for name in fact.subject_aliases}
    by_name |= {subject: subject for subject in facts}
    found: dict[str, Fact] = {}
    for fact in amplified.facts:
        names = (fact.subject, *fact.subject_aliases)
        subject = next((by_name[name] for name in names if name in by_name), None)
        if subject is not None:
            found.setdefault(subject, replace(fact, subject=subject))
    return list(found.values())


def _pair(one: Asked, fact: Fact) -> Asked:
    return replace(one, candidates=(fact.object,), others=fact.answers)


def _scorable(model: HookedModel, one: Asked, fact: Fact) -> bool:
    """Whether the asked relation's answer is another one, is not in the prompt and has tokens of
    its own."""
    if confusable(fact.object, one.answers) or leaks(one.prompt, fact.answers):
        return False
    try:
        answer_tokens(model, one.prompt, fact.object)
    except PromptError:
        return False
    return True


def _amplified(
    neurons: Sequence[NeuronId],
    values: Float[torch.Tensor, "layer unit"] | None,
    factor: float | None,
) -> Sequence[Edit]:
    if values is not None:
        return neuron_edits(neurons, "set", values=values_at(values, neurons))
    assert factor is not None
    return neuron_edits(neurons, "scale", factor=factor)


def _kept(
    run: Run | None,
    key: str,
    model: HookedModel,
    plan: MarginRows,
    edits: Sequence[Edit],
    rows: int,
) -> Margins:
    (found,) = kept_margins(
        run, key, plan, lambda: (measure_margins(model, plan, edits, rows=rows),)
    )
    return found


def _against(
    clean: Float[np.ndarray, " fact"],
    lead: Float[np.ndarray, " fact"],
    controls: Float[np.ndarray, "draw fact"],
) -> AgainstControls:
    return against_controls(float((lead - clean).mean()), (controls - clean).mean(1))
