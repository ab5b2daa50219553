"""How many heads to prune: the best use of the wanted source that does no harm elsewhere.

Pruning context heads should raise RM, pruning memory heads RC. For each size `k` the top heads are
edited on the tuning subjects; the largest target rate wins among the sizes that keep closed-book
and agreeing accuracy and neutral perplexity within the limits (ph3.md section 6.3).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from jaxtyping import Float

from ..data.facts.conflicts import Condition, ConflictItem
from ..models.edits import Edit, mean, scale, zero
from ..models.errors import MnemoscopeError
from ..models.hooked import HookedModel
from ..models.perplexity import perplexity
from ..models.types import HeadId, Site
from ..results.run import Run
from .elicitation import Progress, silent
from .knowledge_conflict import Answer, answer_items, kept_answers, usage

Mode = Literal["zero", "mean", "scale"]
Wanted = Literal["memory", "context"]


@dataclass(frozen=True)
class HarmLimits:
    """Largest tolerated loss: points of closed-book and agreeing accuracy, relative perplexity."""

    accuracy: float = 0.05
    perplexity: float = 0.10


@dataclass(frozen=True)
class Effect:
    """What one edit does: rates under conflict, side effects, and whether they stay in limits."""

    k: int
    target: float
    closed: float
    agree: float
    perplexity: float
    harmless: bool


@dataclass(frozen=True)
class Selection:
    """Effects of every size tried (k = 0 is the unedited model) and the size that was chosen.

    `chosen` is 0 when no size raises the target without harm.
    """

    wanted: Wanted
    condition: Condition
    effects: tuple[Effect, ...]
    chosen: int


def head_edits(
    heads: Sequence[HeadId],
    mode: Mode = "zero",
    *,
    factor: float = 0.5,
    means: Float[torch.Tensor, "layer head d_v"] | None = None,
) -> tuple[Edit, ...]:
    """The edits that prune, mean-ablate or rescale heads; none for no heads."""
    if not heads:
        return ()
    if mode == "zero":
        return (zero(heads),)
    if mode == "scale":
        return (scale(heads, factor),)
    if means is None:
        raise MnemoscopeError("mean ablation needs the heads' mean outputs: see mean_outputs.")
    return (mean(heads, torch.stack([means[head.layer, head.head] for head in heads])),)


def mean_outputs(
    model: HookedModel, prompts: Sequence[str], *, rows: int = 32
) -> Float[torch.Tensor, "layer head d_v"]:
    """Mean `z` of every head over all tokens of the prompts (each prompt counts the same)."""
    total = None
    for start in range(0, len(prompts), rows):
        batch = model.tokens(prompts[start : start + rows])
        z = model.capture(batch, (Site.Z,), at="all", reduce="mean").stack(Site.Z).sum(1)
        total = z if total is None else total + z
    if total is None:
        raise MnemoscopeError("no prompts to average over.")
    return total / len(prompts)


def head_norms(
    model: HookedModel, prompts: Sequence[str], *, rows: int = 32
) -> Float[np.ndarray, "layer head"]:
    """Root mean square length of each head's `z` over the tokens, to match controls by."""
    batches = [prompts[start : start + rows] for start in range(0, len(prompts), rows)]
    squares = [
        model.capture(model.tokens(batch), (Site.Z,), reduce="norm").stack(Site.Z).pow(2).sum(1)
        for batch in batches
    ]
    return (torch.stack(squares).sum((0, -1)) / len(prompts)).sqrt().double().cpu().numpy()


def size_grid(model: HookedModel, percents: Sequence[float] = (1, 3, 5, 7, 9, 15)) -> list[int]:
    """Head counts `round(percent / 100 * layers * heads)`, at least 1, without repeats."""
    n = model.anatomy.n_layers * model.anatomy.n_heads
    return sorted({max(1, round(percent / 100 * n)) for percent in percents})


def select_size(
    model: HookedModel,
    ranking: Sequence[HeadId],
    items: Sequence[ConflictItem],
    passages: Sequence[str],
    *,
    wanted: Wanted,
    condition: Condition = "substitution",
    sizes: Sequence[int],
    mode: Mode = "zero",
    factor: float = 0.5,
    limits: HarmLimits = HarmLimits(),
    run: Run | None = None,
    progress: Progress = silent,
) -> Selection:
    """Try the top `k` of a ranking for each size and choose by target rate under the limits.

    Ties go to the smaller set. `items` must not be the ones that made the ranking. With a `run`
    the answers of each size are kept, so that an interrupted selection continues.
    """
    means = mean_outputs(model, [i.prompt(condition) for i in items]) if mode == "mean" else None
    effects: list[Effect] = []
    steps = [0, *[k for k in sizes if k <= len(ranking)]]
    for number, k in enumerate(steps):
        edits = head_edits(ranking[:k], mode, factor=factor, means=means)
        base = effects[0] if effects else None
        conditions: tuple[Condition, ...] = ("closed", "agree", condition)
        if run is None:
            answers = answer_items(model, items, conditions, edits)
        else:
            label = f"tune: raise {wanted}, {mode}, top {k}"
            answers = kept_answers(run, label, model, items, conditions, edits)
        ppl = perplexity(model, passages, edits)
        effects.append(_effect(answers, ppl, k, wanted, condition, base, limits))
        progress(number + 1, len(steps))
    best = max(
        (e for e in effects if e.harmless and (e.k == 0 or e.target > effects[0].target)),
        key=lambda e: (e.target, -e.k),
    )
    return Selection(wanted, condition, tuple(effects), best.k)


def accuracy(answers: Sequence[Answer], condition: Condition) -> float:
    """Share of right (memory) answers under a condition without conflict."""
    return usage(answers, condition).rm.value


def _effect(
    answers: Sequence[Answer],
    ppl: float,
    k: int,
    wanted: Wanted,
    condition: Condition,
    base: Effect | None,
    limits: HarmLimits,
) -> Effect:
    used = usage(answers, condition)
    closed, agree = accuracy(answers, "closed"), accuracy(answers, "agree")
    harmless = base is None or (
        base.closed - closed <= limits.accuracy + 1e-9
        and base.agree - agree <= limits.accuracy + 1e-9
        and ppl <= base.perplexity * (1 + limits.perplexity)
    )
    target = used.rm.value if wanted == "memory" else used.rc.value
    return Effect(k, target, closed, agree, ppl, harmless)


def ranked(scores: Float[np.ndarray, "layer head"]) -> tuple[HeadId, ...]:
    """Heads by falling score, only those above zero; ties in the order of layer and head."""
    order = np.argsort(-scores, axis=None, kind="stable")
    cells = [np.unravel_index(i, scores.shape) for i in order]
    return tuple(HeadId(int(i), int(h)) for i, h in cells if scores[i, h] > 0)
