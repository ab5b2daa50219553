"""Binding IDs: does a model bind names to attributes through vectors that can be moved?

The hypothesis (Feng and Steinhardt 2024, 2310.17191; reversal_binding, section 3.1): the state of
the name in slot k is f(name) + b(k), that of its attribute g(attribute) + b'(k), and a question
finds the attribute whose b' fits the name's b. It predicts three things, each measured here:

- *factorizability*: with the states of slot k of another context in place of its name, questions
  about the *other* name are answered by slot k's attribute, and the old name is unknown;
- *position independence*: names (or attributes) that claim each other's positions change nothing;
- *mean interventions*: adding the mean difference of two slots swaps the binding; adding it to
  names and attributes both restores it; random directions of the same length do nothing.

States are those of a word's tokens at the input of every block. All other tokens of the context
stay as the un-intervened run has them (`binding_states`); the question runs freely. Small models
may show none of it: the accuracy without intervention stands in every table.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from ..models.batching import adaptive
from ..models.errors import MnemoscopeError, UnsupportedModelError
from ..models.hooked import HookedModel
from ..results.kept_units import kept_arrays
from ..results.run import Run
from .binding_prompts import BindingPrompts, SlotColumns
from .binding_readings import CLEAN, BindingReadings
from .binding_states import (
    ROWS,
    Change,
    HeldContexts,
    answer_log_probs,
    changed,
    hold,
    kept_states,
)
from .elicitation import Progress, silent

SHIFTS = 9
Part = Literal["entities", "attributes"]
States = Float[Tensor, "layer token d_model"]

_Read = Callable[[list[int]], list[Float[Tensor, "context query answer"]]]


@dataclass(frozen=True, eq=False)
class MeanDifferences:
    """Mean state of slot 1 less that of slot 0, at every layer and token of a word; `n` contexts
    were averaged."""

    entities: States
    attributes: States
    n: int

    def of(self, part: Part) -> States:
        """The difference between names, or between attributes."""
        return self.entities if part == "entities" else self.attributes


def factorizability(
    model: HookedModel,
    target: BindingPrompts,
    source: BindingPrompts,
    *,
    rows: int = ROWS,
    run: Run | None = None,
    progress: Progress = silent,
) -> BindingReadings:
    """Replace names, then attributes, of each slot and of all slots by those of the source context.

    Queries e_k, then e'_k (of the source); answers a_k, then a'_k. Raises `MnemoscopeError` for
    contexts that do not fit each other (`source_and_target`).
    """
    _check_fit(target, source)
    conditions = _patches(target.columns)

    def read(batch: list[int]) -> list[Tensor]:
        here, there = target.part(batch), source.part(batch)
        held, other = (hold(model, p.ids, target.columns.all) for p in (here, there))
        questions = torch.cat([here.questions, there.questions], 1)
        answers = torch.cat([here.answers, there.answers], 1)
        contexts = [
            changed(model, held, Change(columns, other.at(columns))) if columns else held
            for columns in conditions.values()
        ]
        return [answer_log_probs(model, context, questions, answers) for context in contexts]

    log_prob = _in_batches(len(target), rows, read, run, "factorizability", progress)
    slots = target.columns.slots
    predicted = np.array([_predicted_of_patch(name, slots) for name in conditions])
    return BindingReadings(
        tuple(conditions),
        (*_words("e", slots), *_words("e'", slots)),
        (*_words("a", slots), *_words("a'", slots)),
        log_prob,
        predicted,
        predicted[0].copy(),
    )


def mean_differences(
    model: HookedModel, prompts: BindingPrompts, *, rows: int = ROWS, progress: Progress = silent
) -> MeanDifferences:
    """Delta_E and Delta_A over contexts of random words (100 or more for figures to report)."""
    columns = prompts.columns
    states = kept_states(model, prompts, columns.all, rows=rows, progress=progress)
    means = states.double().mean(1)

    def difference(spans: tuple[tuple[int, ...], ...]) -> States:
        first, second = ([columns.all.index(c) for c in span] for span in spans[:2])
        return means[:, second] - means[:, first]

    return MeanDifferences(
        difference(columns.entities), difference(columns.attributes), len(prompts)
    )


def mean_swaps(
    model: HookedModel,
    prompts: BindingPrompts,
    differences: MeanDifferences,
    *,
    seed: int = 0,
    rows: int = ROWS,
    run: Run | None = None,
    progress: Progress = silent,
) -> BindingReadings:
    """Add +Delta at slot 0 and -Delta at slot 1, to names, to attributes and to both; then the same
    with random directions of equal length at every layer and token, drawn anew for each context.

    Take other contexts than the differences come from.
    """
    parts: dict[str, tuple[Part, ...]] = {
        "entities": ("entities",),
        "attributes": ("attributes",),
        "both": ("entities", "attributes"),
    }
    slots, columns = prompts.columns.slots, prompts.columns

    def read(batch: list[int]) -> list[Tensor]:
        here = prompts.part(batch)
        held = hold(model, here.ids, columns.all)
        contexts = [held]
        for random in (False, True):
            draw = torch.Generator().manual_seed(seed * 1_000_003 + batch[0]) if random else None
            for chosen in parts.values():
                contexts.append(
                    changed(model, held, _shifted(held, columns, differences, chosen, draw))
                )
        return [answer_log_probs(model, c, here.questions, here.answers) for c in contexts]

    log_prob = _in_batches(len(prompts), rows, read, run, "mean swaps", progress)
    told = np.arange(slots)
    swapped = np.array([1, 0, *range(2, slots)])
    predicted = np.stack([told, swapped, swapped, told, told, told, told])
    names = (CLEAN, *parts, *(f"random {part}" for part in parts))
    return BindingReadings(
        names, tuple(_words("e", slots)), tuple(_words("a", slots)), log_prob, predicted, told
    )


def position_shifts(
    model: HookedModel,
    prompts: BindingPrompts,
    part: Part,
    *,
    shifts: Sequence[int] | None = None,
    rows: int = ROWS,
    run: Run | None = None,
    progress: Progress = silent,
) -> BindingReadings:
    """Let slot 0's word claim positions `shift` further on and slot 1's as many further back.

    At the last default shift the two have changed places; they cross half-way. Binding IDs predict
    that the gap (`gap_table`) stays what it is. Rotary keys turn with the positions claimed; what
    the states themselves hold of a position moves along with them. Raises `UnsupportedModelError`
    for a model whose attention sees no positions, so that nothing is shifted.
    """
    spans = prompts.columns.entities if part == "entities" else prompts.columns.attributes
    columns, distance = (*spans[0], *spans[1]), spans[1][0] - spans[0][0]
    if shifts is None:
        shifts = sorted({round(s) for s in np.linspace(0, distance, SHIFTS)})
    steps = [0, *(s for s in shifts if s)]

    def read(batch: list[int]) -> list[Tensor]:
        here = prompts.part(batch)
        held = hold(model, here.ids, prompts.columns.all)
        contexts = [held]
        for step in steps[1:]:
            stand = (*(c + step for c in spans[0]), *(c - step for c in spans[1]))
            contexts.append(changed(model, held, Change(columns, held.at(columns), stand)))
        return [answer_log_probs(model, c, here.questions, here.answers) for c in contexts]

    label = f"positions of {part} {steps}"
    log_prob = _in_batches(len(prompts), rows, read, run, label, progress)
    if len(steps) > 1 and np.abs(log_prob[1:] - log_prob[0]).max() < 1e-9:
        raise UnsupportedModelError(
            f"{model.name} puts positions into its embeddings, so that a state keeps its own "
            "wherever it stands: position independence can be asked of rotary models only."
        )
    told = np.arange(prompts.columns.slots)
    return BindingReadings(
        (CLEAN, *(f"shift {step}" for step in steps[1:])),
        tuple(_words("e", len(told))),
        tuple(_words("a", len(told))),
        log_prob,
        np.tile(told, (len(steps), 1)),
        told,
    )


def _patches(columns: SlotColumns) -> Mapping[str, tuple[int, ...]]:
    """Which columns each condition replaces."""
    found: dict[str, tuple[int, ...]] = {CLEAN: ()}
    for word, spans in (("entity", columns.entities), ("attribute", columns.attributes)):
        found |= {f"{word} {slot}": span for slot, span in enumerate(spans)}
        found[f"every {word}"] = tuple(c for span in spans for c in span)
    return found


def _predicted_of_patch(condition: str, slots: int) -> list[int]:
    """The answer of e_0 ... e'_0 ... under a condition; -1 for a name that is unknown then."""
    own, new = list(range(slots)), [-1] * slots
    kind, _, slot = condition.rpartition(" ")
    patched = range(slots) if kind == "every" else [int(slot)] if kind else []
    word = slot if kind == "every" else kind
    for k in patched:
        if word == "entity":
            own[k], new[k] = -1, k
        else:
            own[k] = slots + k
    return own + new


def _shifted(
    held: HeldContexts,
    columns: SlotColumns,
    differences: MeanDifferences,
    parts: Sequence[Part],
    draw: torch.Generator | None,
) -> Change:
    """The held states with +Delta at slot 0 and -Delta at slot 1 of each part."""
    where: list[int] = []
    added = []
    for part in parts:
        spans = columns.entities if part == "entities" else columns.attributes
        for span, sign in ((spans[0], 1.0), (spans[1], -1.0)):
            where += span
            step = differences.of(part)[:, None].expand(-1, held.states.shape[1], -1, -1)
            added.append(sign * (step if draw is None else _as_long(step, draw)))
    states = held.at(where)
    return Change(tuple(where), states + torch.cat(added, 2).to(states))


def _as_long(
    step: Float[Tensor, "layer context token d_model"], draw: torch.Generator
) -> Float[Tensor, "layer context token d_model"]:
    """Random directions of the same lengths."""
    noise = torch.randn(step.shape, generator=draw, dtype=step.dtype).to(step.device)
    return noise / noise.norm(dim=-1, keepdim=True) * step.norm(dim=-1, keepdim=True)


def _in_batches(
    n: int, rows: int, read: _Read, run: Run | None, label: str, progress: Progress
) -> Float[np.ndarray, "condition context query answer"]:
    """All contexts, batch by batch; each batch is a unit of the run."""
    done, found = 0, []
    for start in range(0, n, rows):
        batch = list(range(start, min(start + rows, n)))

        def compute(batch: list[int] = batch) -> Mapping[str, np.ndarray]:
            pieces = [torch.stack(part) for _, part in adaptive([batch], lambda b: read(list(b)))]
            return {"log_prob": torch.cat(pieces, dim=1).numpy()}

        key = f"{label}: contexts {start} to {batch[-1]}"
        found.append(kept_arrays(run, key, compute)["log_prob"])
        done += len(batch)
        progress(done, n)
    return np.concatenate(found, axis=1)


def _check_fit(target: BindingPrompts, source: BindingPrompts) -> None:
    same = target.columns == source.columns and target.questions.shape == source.questions.shape
    shared = any(
        {*a.entities, *a.attributes} & {*b.entities, *b.attributes}
        for a, b in zip(target.contexts, source.contexts, strict=False)
    )
    if not same or shared or len(target) != len(source):
        raise MnemoscopeError(
            "target and source contexts must be as many, equally wide and share no word: draw them "
            "with source_and_target."
        )


def _words(letter: str, slots: int) -> list[str]:
    return [f"{letter}{slot}" for slot in range(slots)]
