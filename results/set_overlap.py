"""Do two sets of heads overlap more than sets of the same layers would by chance?

Heads of one role sit in few layers, so that any two roles overlap in them; chance is therefore that
of sets with as many heads in each layer, drawn at random. The size of the overlap is then a sum of
independent hypergeometric numbers, one a layer, and its distribution is exact.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float
from scipy import stats

from .errors import StatisticsError


@dataclass(frozen=True)
class SetOverlap:
    """Jaccard overlap of two sets: what it is, its mean by chance, and the middle 95 % of chance.

    `p` is the chance to share as many heads or more, `p_fewer` as many or fewer.
    """

    a: int
    b: int
    shared: int
    jaccard: float
    chance: float
    low: float
    high: float
    p: float
    p_fewer: float


def set_overlap(a: Bool[np.ndarray, "layer head"], b: Bool[np.ndarray, "layer head"]) -> SetOverlap:
    """Overlap of two sets given as masks over the same heads.

    Raises `StatisticsError` for masks of different sizes and for an empty set.
    """
    a, b = np.asarray(a, dtype=bool), np.asarray(b, dtype=bool)
    if a.shape != b.shape or a.ndim != 2:
        raise StatisticsError(f"sets over {a.shape} and {b.shape} heads cannot be compared.")
    if not a.any() or not b.any():
        raise StatisticsError("one of the two sets is empty: loosen its threshold.")
    chance = shared_distribution(a, b)
    shared, total = int((a & b).sum()), int(a.sum() + b.sum())
    sizes = np.arange(len(chance))
    jaccard = sizes / (total - sizes)
    upto = np.cumsum(chance)
    low, high = np.searchsorted(upto, [0.025, 0.975])
    return SetOverlap(
        a=int(a.sum()),
        b=int(b.sum()),
        shared=shared,
        jaccard=float(jaccard[shared]),
        chance=float((chance * jaccard).sum()),
        low=float(jaccard[min(low, len(jaccard) - 1)]),
        high=float(jaccard[min(high, len(jaccard) - 1)]),
        p=float(min(1.0, chance[shared:].sum())),
        p_fewer=float(min(1.0, upto[shared])),
    )


def shared_distribution(
    a: Bool[np.ndarray, "layer head"], b: Bool[np.ndarray, "layer head"]
) -> Float[np.ndarray, " size"]:
    """Probability of each number of shared heads, from 0 on, when both are drawn within layers."""
    found = np.ones(1)
    for in_a, in_b in zip(a.sum(axis=1).tolist(), b.sum(axis=1).tolist(), strict=True):
        most = min(in_a, in_b)
        layer = stats.hypergeom(a.shape[1], in_a, in_b).pmf(np.arange(most + 1))
        found = np.convolve(found, layer)
    return np.asarray(found / found.sum())
