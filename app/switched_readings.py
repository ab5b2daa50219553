"""What happens to the answers when heads, edges or units are changed; controls beside it.

Beside each change stands the same change of what should not matter: of random heads and units that
put out as much in the same layers, or of other tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from jaxtyping import Float

from ..interventions.head_ablation import AnyEdit
from ..models.hooked import HookedModel
from ..models.types import HeadId, NeuronId, Site
from ..results.controls import MatchedHeads, matched_random_heads
from ..results.errors import StatisticsError
from ..results.neuron_controls import matched_random_neurons
from .answers import NEW_TOKENS, Answers, Question, first_ids
from .neuron_switched import Neutral, OfDraws
from .switched_off import NOTHING, Means, Switched, edits_in

CONTROL_DRAWS = 20
FEWER_DRAWS = 5
"""Where 20 draws would take too long to wait for."""
NO_MEANS = Means()


@dataclass(frozen=True)
class Reading:
    """One text under one change: `said` greedily, each role's first-token probability, and the
    `contrast` in natural logs: log P(memory) - log P(context), or log P of the only answer."""

    said: str
    probability: dict[str, float]
    contrast: float | None


@dataclass(frozen=True)
class Control(OfDraws):
    """The same change of what should not matter: the contrasts of each text, one a draw, and
    probabilities by role; `different` counts the different sets among the draws, `note` says where
    matching fell short."""

    contrast: tuple[tuple[float, ...], ...]
    probability: tuple[dict[str, tuple[float, ...]], ...]
    different: int
    note: str


@dataclass(frozen=True)
class Draws:
    """What a change is held against: other changes of the same kind and size."""

    sets: tuple[Switched, ...]
    different: int
    note: str


def readings(
    model: HookedModel,
    question: Question,
    answers: Answers,
    switched: Switched = NOTHING,
    means: Means = NO_MEANS,
) -> tuple[Reading, ...]:
    """Answer and probabilities for each text of the question, with the change in force."""
    found = []
    for i, text in enumerate(question.texts):
        edits = edits_in(switched, i, means)
        with in_force(model, edits):
            (said,) = model.continuations([text], NEW_TOKENS)
        probability, contrast = _measured(model, answers, text, edits)
        found.append(Reading(said, probability, contrast))
    return tuple(found)


def control(
    model: HookedModel,
    question: Question,
    answers: Answers,
    switched: Switched,
    means: Means = NO_MEANS,
    *,
    neutral: Neutral | None = None,
    draws: int = CONTROL_DRAWS,
    seed: int = 0,
) -> Control:
    """The answers under `draws` changes that should not matter, see `random_changes`.

    Raises `StatisticsError` when too few heads, units or tokens are left to draw from.
    """
    by_norm = bool(switched.heads) and not switched.of_tokens
    norms = output_norms(model, question.texts) if by_norm else None
    tokens = model.tokens(question.texts[switched.change.text]).ids.shape[1]
    drawn = random_changes(
        model, switched, norms=norms, tokens=tokens, neutral=neutral, draws=draws, seed=seed
    )
    texts = list(enumerate(question.texts))
    found = [
        [_measured(model, answers, text, edits_in(one, i, means)) for i, text in texts]
        for one in drawn.sets
    ]
    return Control(
        tuple(tuple(one[i][1] or 0.0 for one in found) for i, _ in texts),
        tuple(
            {role: tuple(one[i][0][role] for one in found) for role in found[0][i][0]}
            for i, _ in texts
        ),
        drawn.different,
        drawn.note,
    )


def random_changes(
    model: HookedModel,
    switched: Switched,
    *,
    norms: Float[np.ndarray, "layer head"] | None,
    tokens: int,
    neutral: Neutral | None,
    draws: int,
    seed: int = 0,
) -> Draws:
    """The same change of random heads of the same layers with similar output norms, or of as many
    other of the text's `tokens` where it is about these; and of random units of the same layers
    that write as much on `neutral` text, where units are changed.

    Raises `StatisticsError` when too few are left to draw from.
    """
    sets, notes = [switched] * draws, []
    if switched.of_tokens:
        others = other_tokens(switched.change.hidden, tokens, draws=draws, seed=seed)
        sets = [
            replace(one, change=replace(one.change, hidden=keys))
            for one, keys in zip(sets, others, strict=True)
        ]
    elif switched.heads:
        heads = _matched(model, switched.heads, norms, draws, seed)
        notes.append(heads.note)
        sets = [replace(one, heads=some) for one, some in zip(sets, heads.draws, strict=True)]
    if switched.units:
        units, note = _random_units(switched.units, neutral, draws, seed)
        notes.append(note)
        sets = [replace(one, units=some) for one, some in zip(sets, units, strict=True)]
    different = {(frozenset(one.heads), one.change.hidden, frozenset(one.units)) for one in sets}
    return Draws(tuple(sets), len(different), "; ".join(note for note in notes if note))


def other_tokens(
    hidden: Sequence[int], tokens: int, *, draws: int, seed: int
) -> list[tuple[int, ...]]:
    """Sets of as many tokens of a text as are hidden, none of these and not the first.

    Raises `StatisticsError` where the text has too few others.
    """
    pool = sorted({*range(1, tokens)} - {*hidden})
    if len(pool) < len(hidden):
        raise StatisticsError(
            f"{len(hidden)} of {tokens} tokens are chosen, which leaves no others to compare "
            "with: choose fewer."
        )
    generator = np.random.default_rng(seed)
    return [
        tuple(sorted(generator.choice(pool, len(hidden), replace=False).tolist()))
        for _ in range(draws)
    ]


def output_norms(model: HookedModel, texts: Sequence[str]) -> Float[np.ndarray, "layer head"]:
    """Root mean square over positions of each head's output, averaged over the texts."""
    kept = model.capture(model.tokens(list(texts)), (Site.Z,), at="all", reduce="norm")
    norms: np.ndarray = kept.stack(Site.Z).float().norm(dim=-1).mean(1).cpu().numpy()
    return norms


def no_better_than_random(before: Reading, after: Reading, drawn: Sequence[float]) -> bool:
    """Whether the change of the contrast lies inside the range of the random sets' changes."""
    if before.contrast is None or after.contrast is None or not drawn:
        return False
    change = after.contrast - before.contrast
    changes = [contrast - before.contrast for contrast in drawn]
    return min(changes) <= change <= max(changes)


def in_force(model: HookedModel, edits: Sequence[AnyEdit]) -> AbstractContextManager[Any]:
    """The edits of a block; none for none, since an edit that does nothing raises."""
    return model.intervene(edits) if edits else nullcontext()


def _measured(
    model: HookedModel, answers: Answers, text: str, edits: Sequence[AnyEdit]
) -> tuple[dict[str, float], float | None]:
    """Probabilities by role, and the contrast, after one text with the edits in force."""
    with in_force(model, edits):
        log_p = model.logits(model.tokens(text), at="end")[0, 0].float().log_softmax(-1).cpu()
    logs = {role: float(log_p[i]) for role, i in first_ids(model, text, answers).items()}
    return {role: float(torch.tensor(x).exp()) for role, x in logs.items()}, _contrast(logs)


def _contrast(logs: dict[str, float]) -> float | None:
    if len(logs) == 2:
        return logs["memory"] - logs["context"]
    return next(iter(logs.values()), None)


def _matched(
    model: HookedModel,
    heads: Sequence[HeadId],
    norms: Float[np.ndarray, "layer head"] | None,
    draws: int,
    seed: int,
) -> MatchedHeads:
    """Random heads of the same layers that put out as much."""
    shape = model.anatomy
    return matched_random_heads(
        heads, shape.n_layers, shape.n_heads, draws=draws, seed=seed, norms=norms
    )


def _random_units(
    units: Sequence[NeuronId], neutral: Neutral | None, draws: int, seed: int
) -> tuple[Sequence[tuple[NeuronId, ...]], str]:
    if neutral is None:
        raise StatisticsError("units are matched by what they write on neutral text: measure it.")
    writes = {Site.NEURON: neutral.writes}
    barred = dict.fromkeys(neutral.massive)
    drawn = matched_random_neurons(units, writes, draws=draws, seed=seed, exclude=barred)
    return drawn.draws, drawn.note
