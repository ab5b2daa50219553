"""What happens to the answer when heads are switched off or scaled, beside matched random heads."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from ..models.edits import Edit, scale, zero
from ..models.hooked import HookedModel
from ..models.types import HeadId, Site
from ..results.controls import matched_random_heads
from .answers import NEW_TOKENS, Answers, Question, first_ids

CONTROL_DRAWS = 20
FEWER_DRAWS = 5
"""Where 20 draws would take too long to wait for."""


@dataclass(frozen=True)
class Reading:
    """One text under one edit: `said` greedily, each role's first-token probability, and the
    `contrast` in natural logs: log P(memory) - log P(context), or log P of the only answer."""

    said: str
    probability: dict[str, float]
    contrast: float | None


@dataclass(frozen=True)
class Control:
    """The same edit on matched random heads: the contrasts of each text, one a draw, and
    probabilities by role; `different` counts the different sets among the draws, `note` says where
    matching fell short."""

    contrast: tuple[tuple[float, ...], ...]
    probability: tuple[dict[str, tuple[float, ...]], ...]
    different: int
    note: str

    @property
    def chance_outside(self) -> float:
        """How often one more such set would fall outside the range of these: 2 / (n + 1)."""
        return 2 / (self.different + 1)


def edit_of(heads: Sequence[HeadId], factor: float) -> Edit:
    """Zero the heads, or multiply what they put out by the factor; prompt and answer alike."""
    return zero(heads) if factor == 0 else scale(heads, factor)


def readings(
    model: HookedModel, question: Question, answers: Answers, edit: Edit | None = None
) -> tuple[Reading, ...]:
    """Answer and probabilities for each text of the question, with the edit in force."""
    with _in_force(model, edit):
        said = model.continuations(question.texts, NEW_TOKENS)
        log_p = _end_log_probs(model, question)
    per_text = _measured(model, question, answers, log_p)
    return tuple(
        Reading(text, probability, contrast)
        for text, (probability, contrast) in zip(said, per_text, strict=True)
    )


def control(
    model: HookedModel,
    question: Question,
    answers: Answers,
    heads: Sequence[HeadId],
    factor: float,
    *,
    draws: int = CONTROL_DRAWS,
    seed: int = 0,
) -> Control:
    """The same edit on random heads of the same layers with similar output norms on these texts.

    Raises `StatisticsError` when too few heads are left to draw from.
    """
    anatomy = model.anatomy
    norms = _norms(model, question)
    matched = matched_random_heads(
        heads, anatomy.n_layers, anatomy.n_heads, draws=draws, seed=seed, norms=norms
    )
    drawn = []
    for chosen in matched.draws:
        with model.intervene([edit_of(chosen, factor)]):
            log_p = _end_log_probs(model, question)
        drawn.append(_measured(model, question, answers, log_p))
    texts = range(len(question.texts))
    return Control(
        tuple(tuple(d[i][1] or 0.0 for d in drawn) for i in texts),
        tuple(
            {role: tuple(d[i][0][role] for d in drawn) for role in drawn[0][i][0]} for i in texts
        ),
        len({frozenset(chosen) for chosen in matched.draws}),
        matched.note,
    )


def no_better_than_random(before: Reading, after: Reading, drawn: Sequence[float]) -> bool:
    """Whether the change of the contrast lies inside the range of the random heads' changes."""
    if before.contrast is None or after.contrast is None or not drawn:
        return False
    change = after.contrast - before.contrast
    changes = [contrast - before.contrast for contrast in drawn]
    return min(changes) <= change <= max(changes)


def _in_force(model: HookedModel, edit: Edit | None) -> Any:
    return nullcontext() if edit is None else model.intervene([edit])


def _end_log_probs(model: HookedModel, question: Question) -> Float[Tensor, "text d_vocab"]:
    """One pass a text: the closed prompt is much shorter than a long context."""
    ends = [model.logits(model.tokens(text), at="end")[0, 0] for text in question.texts]
    return torch.stack(ends).float().log_softmax(-1).cpu()


def _measured(
    model: HookedModel, question: Question, answers: Answers, log_p: Tensor
) -> list[tuple[dict[str, float], float | None]]:
    found = []
    for text, row in zip(question.texts, log_p, strict=True):
        logs = {role: float(row[i]) for role, i in first_ids(model, text, answers).items()}
        probability = {role: float(torch.tensor(x).exp()) for role, x in logs.items()}
        found.append((probability, _contrast(logs)))
    return found


def _contrast(logs: dict[str, float]) -> float | None:
    if len(logs) == 2:
        return logs["memory"] - logs["context"]
    return next(iter(logs.values()), None)


def _norms(model: HookedModel, question: Question) -> Any:
    """Root mean square over positions of each head's output, averaged over the texts."""
    kept = model.capture(model.tokens(question.texts), (Site.Z,), at="all", reduce="norm")
    return kept.stack(Site.Z).float().norm(dim=-1).mean(1).cpu().numpy()
