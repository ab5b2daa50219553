"""What happens to the answer when heads, or what they read, are switched off or changed.

Heads are zeroed, set to their mean, scaled, or blinded for some tokens (edges off); beside each
change stands the same change of random heads, or of other tokens.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from ..interventions.head_ablation import AnyEdit, ablation_edits
from ..models.edits import scale
from ..models.errors import MnemoscopeError
from ..models.hooked import HookedModel
from ..models.types import HeadId, Site, TokenSpan
from ..results.controls import MatchedHeads, matched_random_heads
from ..results.errors import StatisticsError
from .answers import NEW_TOKENS, Answers, Question, first_ids

Op = Literal["zero", "mean", "scale", "hide tokens"]
OPS: tuple[Op, ...] = ("zero", "mean", "scale", "hide tokens")
CONTROL_DRAWS = 20
FEWER_DRAWS = 5
"""Where 20 draws would take too long to wait for."""


@dataclass(frozen=True)
class HeadChange:
    """What becomes of heads. zero: they put out nothing; mean: their mean on neutral text; scale:
    `factor` times what they do; hide tokens: they cannot see the tokens at the positions `hidden`
    of the question's text number `text`, all else is as it was."""

    op: Op = "zero"
    factor: float = 0.0
    hidden: tuple[int, ...] = ()
    text: int = 0


OFF = HeadChange()


@dataclass(frozen=True)
class Reading:
    """One text under one edit: `said` greedily, each role's first-token probability, and the
    `contrast` in natural logs: log P(memory) - log P(context), or log P of the only answer."""

    said: str
    probability: dict[str, float]
    contrast: float | None


@dataclass(frozen=True)
class Control:
    """The same change of random heads, or of other tokens: the contrasts of each text, one a draw,
    and probabilities by role; `different` counts the different sets among the draws, `note`
    says where matching fell short."""

    contrast: tuple[tuple[float, ...], ...]
    probability: tuple[dict[str, tuple[float, ...]], ...]
    different: int
    note: str

    @property
    def chance_outside(self) -> float:
        """How often one more such set would fall outside the range of these: 2 / (n + 1)."""
        return 2 / (self.different + 1)


def edits_of(
    change: HeadChange,
    heads: Sequence[HeadId],
    means: Mapping[HeadId, Float[Tensor, " d_v"]] | None = None,
) -> tuple[AnyEdit, ...]:
    """The change as edits; prompt and answer alike. `means` are what "mean" writes.

    Raises `MnemoscopeError` where a change lacks what it needs.
    """
    if change.op == "scale":
        return (scale(heads, change.factor),)
    if change.op == "hide tokens":
        if not change.hidden:
            raise MnemoscopeError("no token is hidden yet: choose at least one.")
        spans = [TokenSpan(key, key + 1) for key in change.hidden]
        return ablation_edits("knock_out", heads, spans=spans)
    return ablation_edits(change.op, heads, values=means if change.op == "mean" else None)


def readings(
    model: HookedModel,
    question: Question,
    answers: Answers,
    edits: Sequence[AnyEdit] = (),
    *,
    only: int | None = None,
) -> tuple[Reading, ...]:
    """Answer and probabilities for each text of the question, with the edits in force; with `only`
    they hold in the text of this number."""
    if only is None:
        with _in_force(model, edits):
            said = model.continuations(question.texts, NEW_TOKENS)
    else:
        said = []
        for i, text in enumerate(question.texts):
            with _in_force(model, edits if i == only else ()):
                said += model.continuations([text], NEW_TOKENS)
    log_p = _end_log_probs(model, question, edits, only)
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
    change: HeadChange = OFF,
    means: Mapping[HeadId, Float[Tensor, " d_v"]] | None = None,
    *,
    draws: int = CONTROL_DRAWS,
    seed: int = 0,
) -> Control:
    """The same change of what should not matter: of random heads of the same layers with similar
    output norms on these texts, or, where tokens are hidden, of as many other tokens.

    Raises `StatisticsError` when too few heads or tokens are left to draw from.
    """
    if change.op == "hide tokens":
        hidden = other_tokens(model, question, change, draws=draws, seed=seed)
        sets = [edits_of(replace(change, hidden=keys), heads) for keys in hidden]
        different, note, only = len(set(hidden)), "", change.text
    else:
        matched = _matched(model, question, heads, draws, seed)
        sets = [edits_of(change, chosen, means) for chosen in matched.draws]
        different = len({frozenset(chosen) for chosen in matched.draws})
        note, only = matched.note, None
    drawn = [
        _measured(model, question, answers, _end_log_probs(model, question, edits, only))
        for edits in sets
    ]
    texts = range(len(question.texts))
    return Control(
        tuple(tuple(d[i][1] or 0.0 for d in drawn) for i in texts),
        tuple(
            {role: tuple(d[i][0][role] for d in drawn) for role in drawn[0][i][0]} for i in texts
        ),
        different,
        note,
    )


def other_tokens(
    model: HookedModel, question: Question, change: HeadChange, *, draws: int, seed: int
) -> list[tuple[int, ...]]:
    """Sets of as many tokens of the same text as are hidden, none of these and not the first.

    Raises `StatisticsError` where the text has too few others.
    """
    tokens = model.tokens(question.texts[change.text]).ids.shape[1]
    pool = [key for key in range(1, tokens) if key not in change.hidden]
    if len(pool) < len(change.hidden):
        raise StatisticsError(
            f"{len(change.hidden)} of {tokens} tokens are hidden, which leaves no others to "
            "compare with: choose fewer."
        )
    generator = np.random.default_rng(seed)
    size = len(change.hidden)
    return [
        tuple(sorted(generator.choice(pool, size, replace=False).tolist())) for _ in range(draws)
    ]


def no_better_than_random(before: Reading, after: Reading, drawn: Sequence[float]) -> bool:
    """Whether the change of the contrast lies inside the range of the random heads' changes."""
    if before.contrast is None or after.contrast is None or not drawn:
        return False
    change = after.contrast - before.contrast
    changes = [contrast - before.contrast for contrast in drawn]
    return min(changes) <= change <= max(changes)


def _in_force(model: HookedModel, edits: Sequence[AnyEdit]) -> AbstractContextManager[Any]:
    return model.intervene(edits) if edits else nullcontext()


def _end_log_probs(
    model: HookedModel, question: Question, edits: Sequence[AnyEdit], only: int | None
) -> Float[Tensor, "text d_vocab"]:
    """One pass a text: the closed prompt is much shorter than a long context."""
    ends = []
    for i, text in enumerate(question.texts):
        with _in_force(model, edits if only in (None, i) else ()):
            ends.append(model.logits(model.tokens(text), at="end")[0, 0])
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


def _matched(
    model: HookedModel, question: Question, heads: Sequence[HeadId], draws: int, seed: int
) -> MatchedHeads:
    """Random heads of the same layers that put out as much on these texts."""
    shape, norms = model.anatomy, _norms(model, question)
    return matched_random_heads(
        heads, shape.n_layers, shape.n_heads, draws=draws, seed=seed, norms=norms
    )


def _norms(model: HookedModel, question: Question) -> Any:
    """Root mean square over positions of each head's output, averaged over the texts."""
    kept = model.capture(model.tokens(question.texts), (Site.Z,), at="all", reduce="norm")
    return kept.stack(Site.Z).float().norm(dim=-1).mean(1).cpu().numpy()
