"""One needle trial with heads, edges or units changed, beside random changes: no page here.

The change holds from the first token of the haystack to the last of the answer, as it would in a
checkpoint that was pruned so.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import polars

from ..data.facts.needles import NeedleDesign, Trial, Verdict, judge
from ..interventions.head_ablation import AnyEdit, run_answer
from ..models.hooked import HookedModel
from .background import Tell, silent
from .needle_trial import NEW_TOKENS, Asked, NeedleTrial, spans_of, trial_design
from .neuron_switched import OfDraws
from .own_haystack import DEPTHS
from .switched_off import NOTHING, Means, Switched, edits_in
from .switched_readings import Draws, in_force, other_tokens

SEEDS = 2
"""Needles at each depth that a rate is taken over."""


@dataclass(frozen=True)
class NeedleReading:
    """A trial under one change: what is said greedily, how that is judged, the probability of the
    gold answer's first token, and log P (natural) of all its tokens, each after those before it."""

    said: str
    verdict: Verdict
    first: float
    log_p: float


@dataclass(frozen=True)
class NeedleControl(OfDraws):
    """The same change of what should not matter: probability and log P in each draw."""

    first: tuple[float, ...]
    log_p: tuple[float, ...]
    different: int
    note: str


def needle_reading(
    model: HookedModel,
    design: NeedleDesign,
    trial: Trial,
    edits: Sequence[AnyEdit] = (),
    *,
    said: bool = True,
) -> NeedleReading:
    """Prefill, ask and score the gold answer with the edits in force; `said=False` spares the
    greedy answer. Raises `EditNeverFiredError` for edits that change nothing."""
    ids = design.haystacks[trial.haystack].ids
    with in_force(model, edits):
        haystack = model.prefill(ids)
        new = model.greedy_from(haystack, trial.question_ids, NEW_TOKENS) if said else []
        asked = trial.question_ids, trial.answer_ids
        # The edits are in force all along: this call makes none of its own.
        gold = run_answer(model, ids, *asked, where="question+decode", cached=haystack)
    text = model.text_tokenizer.decode(new)
    verdict = judge(text, design.needle(trial.needle_id), design.rivals(trial))
    logs = gold.log_probs[0].double().cpu().numpy()
    return NeedleReading(text, verdict, float(np.exp(logs[0])), float(logs.sum()))


def needle_pair(
    model: HookedModel, found: NeedleTrial, switched: Switched, means: Means, tell: Tell = silent
) -> tuple[NeedleReading, NeedleReading]:
    """The trial as it is, and changed."""
    readings = []
    for number, one in enumerate((NOTHING, switched)):
        tell(number / 2, "changed" if number else "unchanged")
        edits = edits_in(one, 0, means)
        readings.append(needle_reading(model, found.design, found.trial, edits))
    return readings[0], readings[1]


def needle_control(
    model: HookedModel, found: NeedleTrial, drawn: Draws, means: Means, tell: Tell = silent
) -> NeedleControl:
    """The gold answer under changes that should not matter."""
    readings = []
    for number, one in enumerate(drawn.sets):
        tell(number / len(drawn.sets), f"set {number + 1} of {len(drawn.sets)}")
        edits = edits_in(one, 0, means)
        readings.append(needle_reading(model, found.design, found.trial, edits, said=False))
    return NeedleControl(
        tuple(one.first for one in readings),
        tuple(one.log_p for one in readings),
        drawn.different,
        drawn.note,
    )


def needle_verdicts(
    model: HookedModel,
    asked: Asked,
    switched: Switched,
    drawn: Sequence[Switched],
    means: Means,
    tell: Tell = silent,
) -> tuple[tuple[Verdict, ...], ...]:
    """How `SEEDS` needles at each depth are answered unchanged, changed and under random changes:
    the asked number first."""
    seeds = range(asked.seed, asked.seed + SEEDS)
    needles = [replace(asked, depth=d, seed=seed) for d in range(DEPTHS) for seed in seeds]
    rows: list[tuple[Verdict, ...]] = []
    for number, one in enumerate(needles):
        tell(number / len(needles), f"needle {number + 1} of {len(needles)}")
        design, trial = trial_design(model, one)
        sets = (NOTHING, *placed((switched, *drawn), spans_of(design, trial), number))
        edits = [edits_in(some, 0, means) for some in sets]
        rows.append(tuple(needle_reading(model, design, trial, e).verdict for e in edits))
    return tuple(zip(*rows, strict=True))


def placed(
    sets: Sequence[Switched], spans: Mapping[str, tuple[int, int]], seed: int
) -> tuple[Switched, ...]:
    """The changes in a text with these spans: the first loses its edges to the tokens that its span
    has here, the others to as many random ones of the haystack."""
    first = sets[0]
    if not first.of_tokens:
        return tuple(sets)
    hidden = tuple(range(*spans[first.change.span]))
    others = other_tokens(hidden, spans["question"][0], draws=len(sets) - 1, seed=seed)
    return tuple(
        replace(one, change=replace(one.change, hidden=keys))
        for one, keys in zip(sets, (hidden, *others), strict=True)
    )


def verdict_table(
    before: Sequence[Verdict], after: Sequence[Verdict], drawn: Sequence[Sequence[Verdict]]
) -> polars.DataFrame:
    """Shares of needles by `answered`: `unchanged`, `changed`, and the range of random changes."""
    words: dict[Verdict, str] = {
        "needle": "from the needle",
        "rival": "with the rival's words",
        "other": "not answered",
    }
    rows = []
    for verdict, told in words.items():
        was, now, *others = (
            sum(one == verdict for one in some) / len(some) for some in (before, after, *drawn)
        )
        rows.append(
            {
                "answered": told,
                "unchanged": was,
                "changed": now,
                "random, low": min(others) if others else None,
                "random, high": max(others) if others else None,
            }
        )
    return polars.DataFrame(rows)
