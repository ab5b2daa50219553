"""Matched random heads: what would any heads of these layers have done?"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

from ..models.types import HeadId, unique_heads
from .errors import StatisticsError


@dataclass(frozen=True)
class MatchedHeads:
    """Control sets: in each, head `i` stands for target `i`.

    `note` is empty, or says in words where matching fell short (a layer with too few other heads,
    or fewer different sets than draws), to be shown beside the comparison.
    """

    draws: tuple[tuple[HeadId, ...], ...]
    note: str


def matched_random_heads(
    target: Sequence[HeadId],
    n_layers: int,
    n_heads: int,
    *,
    draws: int = 20,
    seed: int,
    norms: Float[np.ndarray, "layers heads"] | None = None,
    exclude: Iterable[HeadId] = (),
) -> MatchedHeads:
    """Random control sets of the same size and layers as `target`, never a target itself.

    With `norms` (for example mean norms of the head outputs) a control is drawn with weight
    `1 / (1 + rank)`, rank 0 being the nearest in norm to its target. A layer with too few other
    heads borrows from the nearest layers, and the note says so. `exclude` bars further heads.

    Raises `StatisticsError` when the model has fewer other heads than targets, a target does not
    exist, or `norms` has another shape.
    """
    target = unique_heads(target)
    _check(target, n_layers, n_heads, draws, norms)
    barred = set(target) | set(exclude)
    pool = [
        head
        for layer in range(n_layers)
        for index in range(n_heads)
        if (head := HeadId(layer, index)) not in barred
    ]
    if len(pool) < len(target):
        raise StatisticsError(
            f"{len(target)} targets leave only {len(pool)} heads to compare with: choose fewer."
        )
    rng = np.random.default_rng(seed)
    sets = tuple(_one_draw(target, pool, norms, rng) for _ in range(draws))
    return MatchedHeads(sets, _note(target, sets))


def _one_draw(
    target: tuple[HeadId, ...],
    pool: list[HeadId],
    norms: np.ndarray | None,
    rng: np.random.Generator,
) -> tuple[HeadId, ...]:
    """Controls in the order of the targets. Targets choose in random order, so that none is
    always left with the rest; all choose in their own layer before any borrows."""
    free = set(pool)
    chosen: dict[HeadId, HeadId] = {}
    order = [target[i] for i in rng.permutation(len(target))]
    for borrow in (False, True):
        for head in order:
            if head in chosen:
                continue
            candidates = _nearest_layer(head, free) if borrow else _same_layer(head, free)
            if candidates:
                chosen[head] = candidates[
                    rng.choice(len(candidates), p=_weights(head, candidates, norms))
                ]
                free.remove(chosen[head])
    return tuple(chosen[head] for head in target)


def _same_layer(head: HeadId, free: set[HeadId]) -> list[HeadId]:
    return sorted(other for other in free if other.layer == head.layer)


def _nearest_layer(head: HeadId, free: set[HeadId]) -> list[HeadId]:
    gap = min(abs(other.layer - head.layer) for other in free)
    return sorted(other for other in free if abs(other.layer - head.layer) == gap)


def _weights(
    head: HeadId, candidates: list[HeadId], norms: np.ndarray | None
) -> Float[np.ndarray, " candidates"]:
    if norms is None:
        return np.full(len(candidates), 1 / len(candidates))
    gaps = [abs(norms[c.layer, c.head] - norms[head.layer, head.head]) for c in candidates]
    weights = 1 / (1 + np.argsort(np.argsort(gaps, kind="stable")))
    return np.asarray(weights / weights.sum())


def _note(target: tuple[HeadId, ...], sets: tuple[tuple[HeadId, ...], ...]) -> str:
    notes = []
    moved = {
        head.layer
        for controls in sets
        for head, control in zip(target, controls, strict=True)
        if control.layer != head.layer
    }
    if moved:
        layers = ", ".join(map(str, sorted(moved)))
        notes.append(f"too few other heads in layer {layers}: some controls are from near layers")
    different = len({frozenset(controls) for controls in sets})
    if different < len(sets):
        notes.append(f"{different} different control sets in {len(sets)} draws")
    return "; ".join(notes)


def _check(
    target: tuple[HeadId, ...], n_layers: int, n_heads: int, draws: int, norms: np.ndarray | None
) -> None:
    if not target or draws < 1:
        raise StatisticsError("matched controls need a target head and a draw at least.")
    for head in target:
        if not (0 <= head.layer < n_layers and 0 <= head.head < n_heads):
            raise StatisticsError(
                f"{head} does not exist in {n_layers} layers of {n_heads} heads: check the target."
            )
    if norms is not None and (
        np.shape(norms) != (n_layers, n_heads) or not np.isfinite(norms).all()
    ):
        raise StatisticsError(f"norms must be {n_layers} by {n_heads} finite numbers.")
