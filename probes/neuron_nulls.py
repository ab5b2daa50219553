"""What a unit's score has to beat: chance, relations that are none, and its own repetition.

The exchangeable null only removes noise: a fifth of all units of a small model passes it
(relation_neurons.md 7). The bar is the same statistic of pseudo-relations, glued from halves of two
real ones; overlaps of sets are read against chance and against how well a set repeats itself.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float, Int

from ..results.statistics import benjamini_hochberg, rank_stability
from .exchangeable_null import null_table, p_value

NOTHING_FOUND = "no relation-specific set found"
FOUND = "relation-specific set found"
NOT_TESTED = "not tested: the design has no pseudo-relations"
LEVEL = 95.0
"""Percentile of the pseudo-relations that a relation has to exceed."""
CORE_SHARE = 0.8
"""Share of the resamples that have to select a unit of the stable core."""


@dataclass(frozen=True)
class Verdict:
    """Does a relation's set beat relations that are none?

    `score` is the relation's score at rank k, `limit` the 95th percentile of the pseudo-relations'
    scores at the same rank (the next one of theirs, no interpolation), `p` the share of those, and
    of the relation itself, that reach it. `ap_new` is the mean AP of the relation's top k on new
    subjects in new wordings: a set may pass and be one of wordings even so. `text` is `FOUND`,
    `NOTHING_FOUND` or `NOT_TESTED`.
    """

    relation: str
    score: float
    limit: float
    p: float
    ap_new: float
    n_pseudo: int
    found: bool
    text: str


def verdict(
    relation: str, score: float, pseudo: Float[np.ndarray, " pseudo"], ap_new: float
) -> Verdict:
    """Compare a relation's score at rank k with the pseudo-relations'."""
    n, unknown = len(pseudo), float("nan")
    if not n:
        return Verdict(relation, score, unknown, unknown, ap_new, n, False, NOT_TESTED)
    limit = float(np.percentile(pseudo, LEVEL, method="higher"))
    p = (1 + int((pseudo >= score).sum())) / (1 + n)
    text = FOUND if score > limit else NOTHING_FOUND
    return Verdict(relation, score, limit, p, ap_new, n, score > limit, text)


def exchangeable_p(
    ap: Float[np.ndarray, "relation wording layer unit"],
    sizes: Int[np.ndarray, "relation wording two"],
) -> Float[np.ndarray, "relation layer unit"]:
    """p of the worst wording under exchangeable labels: the largest over wordings, doubled because
    the better of two signs was taken (Bonferroni), at most 1; float32.

    `sizes` are positives and all members; a wording without positives counts not at all.
    """
    p = np.zeros((len(ap), *ap.shape[2:]), np.float32)
    for relation, wording in zip(*np.nonzero(sizes[..., 0]), strict=True):
        positives, members = (int(n) for n in sizes[relation, wording])
        tail = p_value(null_table(positives, members), ap[relation, wording])
        p[relation] = np.maximum(p[relation], np.asarray(tail, np.float32))
    return np.minimum(2 * p, 1)


def adjusted_by_relation(
    p: Float[np.ndarray, "relation layer unit"],
) -> Float[np.ndarray, "relation layer unit"]:
    """Benjamini-Hochberg over the units of each relation; float32."""
    return np.stack([benjamini_hochberg(row) for row in p]).astype(np.float32)


def best_units(
    values: Float[np.ndarray, "row unit"], k: int
) -> tuple[Float[np.ndarray, "row k"], Int[np.ndarray, "row k"]]:
    """The `k` highest values of each row (fewer if there are fewer) and where they stand, highest
    first, ties and NaN in the order of the units, NaN last."""
    order = np.argsort(-values, axis=1, kind="stable")[:, :k]
    return np.take_along_axis(values, order, axis=1), order.astype(np.int32)


def merged_tops(
    layers: Sequence[Mapping[str, np.ndarray]], k: int
) -> tuple[Float[np.ndarray, "row k"], Int[np.ndarray, "row k"]]:
    """The best `k` of all layers, from each layer's best: values, and ids
    `layer * n_units + unit` (-1 where the value is NaN)."""
    n_units = layers[0]["score"].shape[-1]
    values = np.concatenate([layer["top_values"] for layer in layers], axis=1)
    ids = [layer["top_units"] + i * n_units for i, layer in enumerate(layers)]
    best, at = best_units(values, k)
    found = np.take_along_axis(np.concatenate(ids, axis=1), at, axis=1)
    return best, np.where(np.isnan(best), -1, found)


def times_selected(
    tops: Int[np.ndarray, "draw_of_relation k"], n_relations: int, shape: tuple[int, int]
) -> Int[np.ndarray, "relation layer unit"]:
    """In how many of a relation's draws each unit is among the best; draws go relation by
    relation; int16."""
    by_relation = tops.reshape(n_relations, -1)
    counts = [np.bincount(ids, minlength=shape[0] * shape[1]) for ids in by_relation]
    return np.stack(counts).reshape(n_relations, *shape).astype(np.int16)


def in_top(values: Float[np.ndarray, "layer unit"], k: int) -> Bool[np.ndarray, " n_total"]:
    """Which units are the `k` best of all layers; no unit where the values are NaN."""
    flat = values.reshape(1, -1)
    chosen = np.zeros(flat.size, dtype=bool)
    best, at = best_units(flat, k)
    chosen[at[0][~np.isnan(best[0])]] = True
    return chosen


@dataclass(frozen=True)
class SplitHalf:
    """How well one half of the subjects repeats the other: units that both top-k sets share, and
    the Spearman correlation of the scores over all units. NaN without halves."""

    shared: float
    spearman: float


def split_half(half: Float[np.ndarray, "two layer unit"], k: int) -> SplitHalf:
    """Compare the scores from two halves of the subjects."""
    if np.isnan(half).any():
        return SplitHalf(float("nan"), float("nan"))
    shared = in_top(half[0], k) & in_top(half[1], k)
    return SplitHalf(float(shared.sum()), rank_stability([one.ravel() for one in half]).mean)
