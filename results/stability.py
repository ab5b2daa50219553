"""Would the same ranking come out again? Split halves, ranks over repeats, overlap of the top."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Shaped
from scipy import stats

from .errors import StatisticsError
from .sampled_units import unit_sums


@dataclass(frozen=True)
class SplitHalf:
    """`reliability` of the mean score vector over all units (Spearman-Brown), and the correlation
    of the two halves in each split `[splits]`. NaN where a half has the same score everywhere."""

    reliability: float
    half_correlations: Float[np.ndarray, " splits"]


@dataclass(frozen=True)
class RankStability:
    """Spearman correlation of each pair of score vectors `[k, k]` and the mean over pairs. NaN
    where a vector has the same score everywhere."""

    mean: float
    matrix: Float[np.ndarray, "k k"]


@dataclass(frozen=True)
class TopKJaccard:
    """Jaccard overlap of two top-k sets, what unrelated rankings give on average, and the chance
    `p` that they overlap as much."""

    value: float
    null_mean: float
    p: float
    k: int


def split_half_reliability(
    values: Float[np.ndarray, "n ..."],
    units: Sequence[Hashable],
    *,
    splits: int = 20,
    seed: int,
) -> SplitHalf:
    """How well half of the units reproduce the cell scores of the other half.

    In each split the units are halved at random, scores are averaged over the rows of each half,
    and the two cell vectors are correlated (Pearson); `2 r / (1 + r)` of the mean `r` speaks for
    all units (Spearman 1910, Brown 1910). Raises `StatisticsError` for fewer than two units or
    two cells, and for values that are not finite.
    """
    sums, rows = unit_sums(values, units)
    if sums.shape[1] < 2:
        raise StatisticsError("reliability compares cells: there must be two at least.")
    rng = np.random.default_rng(seed)
    order = rng.permuted(np.tile(np.arange(len(sums)), (splits, 1)), axis=1)
    first = (order < len(sums) // 2).astype(np.float64)
    r = np.array([_correlation(*_half_means(half, sums, rows)) for half in first])
    mean = float(r.mean())
    return SplitHalf(-np.inf if mean == -1 else 2 * mean / (1 + mean), r)


def rank_stability(vectors: Sequence[Shaped[np.ndarray, " cells"]]) -> RankStability:
    """Pairwise Spearman correlation of score vectors from repeats (seeds, templates, sizes).

    Raises `StatisticsError` for fewer than two vectors or vectors of different lengths.
    """
    flat = [np.asarray(vector, dtype=np.float64).ravel() for vector in vectors]
    if len(flat) < 2 or len({len(vector) for vector in flat}) != 1 or len(flat[0]) < 2:
        raise StatisticsError("rank stability needs two or more score vectors of one length.")
    ranks = [stats.rankdata(vector) for vector in flat]
    matrix = np.array([[_correlation(a, b) for b in ranks] for a in ranks])
    return RankStability(float(matrix[np.triu_indices(len(ranks), 1)].mean()), matrix)


def top_k_jaccard(
    a: Shaped[np.ndarray, " cells"], b: Shaped[np.ndarray, " cells"], k: int, *, seed: int
) -> TopKJaccard:
    """Overlap of the `k` highest cells of `a` and of `b` against the permutation null.

    Under permuted cells the size of the overlap is hypergeometric, so that the null is exact and
    needs no draws. Cells that tie are ordered at random, separately in `a` and `b` (`seed`):
    a fixed order would make two rankings full of zeros agree. Raises `StatisticsError` unless
    `1 <= k <= cells` and the lengths agree.
    """
    a, b = np.asarray(a, dtype=np.float64).ravel(), np.asarray(b, dtype=np.float64).ravel()
    if len(a) != len(b) or not 1 <= k <= len(a):
        raise StatisticsError(f"no top {k} of {len(a)} and {len(b)} cells to compare.")
    rng = np.random.default_rng(seed)
    shared = len(_top(a, k, rng) & _top(b, k, rng))
    null = stats.hypergeom(len(a), k, k)
    sizes = np.arange(k + 1)
    null_mean = float(np.sum(null.pmf(sizes) * sizes / (2 * k - sizes)))
    return TopKJaccard(shared / (2 * k - shared), null_mean, float(null.sf(shared - 1)), k)


def _half_means(half: np.ndarray, sums: np.ndarray, rows: np.ndarray) -> tuple[np.ndarray, ...]:
    return half @ sums / (half @ rows), (1 - half) @ sums / ((1 - half) @ rows)


def _correlation(a: np.ndarray, b: np.ndarray) -> float:
    # Summing the same numbers in another order differs in the last digits: that is no spread.
    if any(np.ptp(vector) <= 1e-12 * np.abs(vector).max() for vector in (a, b)):
        return float("nan")
    return float(np.corrcoef(a, b)[0, 1])


def _top(scores: np.ndarray, k: int, rng: np.random.Generator) -> set[int]:
    order = np.lexsort((rng.permutation(len(scores)), -scores))
    return set(order[:k].tolist())
