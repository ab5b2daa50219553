"""Intervals and p-values over the unit that was sampled (subject, needle), not over table cells.

`values` is always `[n, ...]`: one row an observation, any number of cells (heads, layers by heads,
neurons) behind it. `units` names for each row the sampled unit it belongs to; all rows of a unit
are drawn, or flipped, together. Resampling is one matrix product of multiplicity weights
`[draws, units]` with the units' sums `[units, cells]`. Reliability, rank stability and matched
controls live in `stability` and `controls` and can be imported from here too.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float, Int, Shaped
from scipy import stats

from .controls import MatchedHeads, matched_random_heads
from .errors import StatisticsError
from .sampled_units import unit_index, unit_sums
from .stability import (
    RankStability,
    SplitHalf,
    TopKJaccard,
    rank_stability,
    split_half_reliability,
    top_k_jaccard,
)

__all__ = [
    "Interval",
    "MatchedHeads",
    "McNemar",
    "PairedDifference",
    "Proportion",
    "RankStability",
    "SplitHalf",
    "TopKJaccard",
    "benjamini_hochberg",
    "bootstrap_mean",
    "bootstrap_p",
    "bootstrap_weights",
    "chance_mrr",
    "matched_random_heads",
    "mcnemar",
    "paired_difference",
    "rank_stability",
    "sign_flip_p",
    "split_half_reliability",
    "top_k_jaccard",
    "wilson",
]

# Cells times draws held at once: 32 MB of float64.
_BLOCK = 4_000_000


@dataclass(frozen=True)
class Interval:
    """A mean with its interval; each array has the shape of one row of `values` (`()` for a plain
    list of numbers, so that `float(interval.low)` works). `n_units` were resampled."""

    mean: Float[np.ndarray, "*cells"]
    low: Float[np.ndarray, "*cells"]
    high: Float[np.ndarray, "*cells"]
    level: float
    n_units: int


@dataclass(frozen=True)
class PairedDifference:
    """Interval of the mean of `a - b` and its two-sided sign-flip p, both `[*cells]`."""

    interval: Interval
    p: Float[np.ndarray, "*cells"]


@dataclass(frozen=True)
class McNemar:
    """Items that only `a`, or only `b`, gets right, and the exact two-sided p."""

    only_a: int
    only_b: int
    p: float


@dataclass(frozen=True)
class Proportion:
    """`k / n` with its Wilson score interval."""

    rate: float
    low: float
    high: float
    n: int


def bootstrap_mean(
    values: Float[np.ndarray, "n ..."],
    units: Sequence[Hashable],
    *,
    draws: int = 1000,
    level: float = 0.95,
    seed: int,
) -> Interval:
    """Mean over rows with a percentile interval of the cluster bootstrap (Davison and Hinkley
    1997, section 3.8).

    In a draw a row counts as often as its unit was drawn, and the mean divides by the rows drawn.
    Percentile intervals are somewhat too short below some 20 units. Raises `StatisticsError` for
    values that are not finite, fewer than two units, or `units` of another length.
    """
    if not 0 < level < 1:
        raise StatisticsError(f"level must lie between 0 and 1, got {level}.")
    tail = (1 - level) / 2

    def ends(means: np.ndarray) -> np.ndarray:
        return np.quantile(means, [tail, 1 - tail], axis=0)

    low, high = _over_draws(values, units, draws, seed, ends)
    mean = np.asarray(values, dtype=np.float64).mean(axis=0)
    return Interval(np.asarray(mean), low, high, level, int(unit_index(units).max()) + 1)


def bootstrap_p(
    values: Float[np.ndarray, "n ..."],
    units: Sequence[Hashable],
    *,
    null: float = 0.0,
    draws: int = 1000,
    seed: int,
) -> Float[np.ndarray, "*cells"]:
    """Two-sided p `[*cells]`: twice the share of bootstrap means on the far side of `null`.

    The same resamples as `bootstrap_mean` with the same seed; never below `2 / (draws + 1)`.
    Raises `StatisticsError` as `bootstrap_mean` does.
    """

    def tails(means: np.ndarray) -> np.ndarray:
        far = np.minimum((means <= null).sum(axis=0), (means >= null).sum(axis=0))
        return np.minimum(2 * (far + 1) / (draws + 1), 1.0)[None]

    return _over_draws(values, units, draws, seed, tails)[0]


def bootstrap_weights(
    units: Sequence[Hashable], *, draws: int, seed: int
) -> Int[np.ndarray, "draws n"]:
    """How often each row counts in each draw `[draws, n]`, for statistics other than the mean.

    The same resamples as `bootstrap_mean` with the same seed.
    """
    index = unit_index(units)
    return _unit_weights(int(index.max()) + 1, draws, seed)[:, index]


def sign_flip_p(
    values: Float[np.ndarray, "n ..."],
    units: Sequence[Hashable],
    *,
    draws: int = 10_000,
    seed: int,
    family_wise: bool = False,
) -> Float[np.ndarray, "*cells"]:
    """Two-sided p `[*cells]` that the mean is zero, by flipping the sign of whole units.

    Exact under values that are symmetric about zero by unit, such as paired differences. All sign
    patterns are enumerated when there are no more than `draws`. `family_wise` compares each cell
    with the largest statistic of all cells in each flip (Westfall and Young 1993): the chance of
    any false alarm stays below the threshold. Raises `StatisticsError` as `bootstrap_mean` does.
    """
    sums, _ = unit_sums(values, units)
    # Flips leave a cell's sum of squares alone, so this puts all cells on one scale, as a t does.
    scale = np.sqrt((sums**2).sum(axis=0))
    scaled = np.divide(sums, scale, out=np.zeros_like(sums), where=scale > 0)
    observed = np.abs(scaled.sum(axis=0))
    signs, exact = _sign_patterns(len(sums), draws, seed)
    largest = np.zeros(len(signs))
    count = np.zeros(scaled.shape[1])
    for cells in _blocks(scaled.shape[1], len(signs)):
        flipped = np.abs(signs @ scaled[:, cells])
        largest = np.maximum(largest, flipped.max(axis=1))
        count[cells] = (flipped >= observed[cells] - 1e-9).sum(axis=0)
    if family_wise:
        count = len(signs) - np.searchsorted(np.sort(largest), observed - 1e-9, side="left")
    p = count / len(signs) if exact else (count + 1) / (len(signs) + 1)
    return np.asarray(p, dtype=np.float64).reshape(np.shape(values)[1:])


def benjamini_hochberg(p: Float[np.ndarray, "*cells"]) -> Float[np.ndarray, "*cells"]:
    """Adjusted p of every cell: those below 0.05 form a set with 5 % false discoveries at most.

    Benjamini and Hochberg 1995. Raises `StatisticsError` for a p outside 0 to 1.
    """
    p = np.asarray(p, dtype=np.float64)
    if p.size == 0 or not ((p >= 0) & (p <= 1)).all():
        raise StatisticsError("p-values must lie between 0 and 1, and there must be one at least.")
    return np.asarray(stats.false_discovery_control(p, axis=None)).reshape(p.shape)


def paired_difference(
    a: Float[np.ndarray, "n ..."],
    b: Float[np.ndarray, "n ..."],
    units: Sequence[Hashable],
    *,
    draws: int = 1000,
    level: float = 0.95,
    seed: int,
) -> PairedDifference:
    """Mean of `a - b` over the same rows: bootstrap interval and sign-flip p.

    Raises `StatisticsError` when the shapes differ, and as `bootstrap_mean` does.
    """
    if np.shape(a) != np.shape(b):
        raise StatisticsError(f"paired values need one shape, got {np.shape(a)} and {np.shape(b)}.")
    gap = np.asarray(a, dtype=np.float64) - np.asarray(b, dtype=np.float64)
    interval = bootstrap_mean(gap, units, draws=draws, level=level, seed=seed)
    return PairedDifference(interval, sign_flip_p(gap, units, draws=draws, seed=seed))


def mcnemar(a_correct: Bool[np.ndarray, " n"], b_correct: Bool[np.ndarray, " n"]) -> McNemar:
    """Exact McNemar test that two conditions are right equally often on the same items.

    Raises `StatisticsError` when the lengths differ.
    """
    a, b = np.asarray(a_correct, dtype=bool), np.asarray(b_correct, dtype=bool)
    if a.shape != b.shape or a.ndim != 1:
        raise StatisticsError(f"paired outcomes need one length, got {a.shape} and {b.shape}.")
    only_a, only_b = int((a & ~b).sum()), int((b & ~a).sum())
    if only_a + only_b == 0:
        return McNemar(0, 0, 1.0)
    return McNemar(only_a, only_b, float(stats.binomtest(only_a, only_a + only_b).pvalue))


def chance_mrr(n: int) -> float:
    """Expected reciprocal rank of a random order of `n` candidates: the harmonic number `H_n / n`.

    Raises `StatisticsError` for no candidate.
    """
    if n < 1:
        raise StatisticsError("a rank needs at least one candidate.")
    return float((1 / np.arange(1, n + 1)).mean())


def wilson(k: int, n: int, *, level: float = 0.95) -> Proportion:
    """Wilson score interval of `k` successes in `n` independent trials.

    Where several trials belong to one subject, use `bootstrap_mean`. Raises `StatisticsError`
    unless `0 <= k <= n` and `n >= 1`.
    """
    if not 0 <= k <= n or n < 1:
        raise StatisticsError(f"{k} successes in {n} trials are no proportion.")
    interval = stats.binomtest(k, n).proportion_ci(level, method="wilson")
    return Proportion(k / n, float(interval.low), float(interval.high), n)


def _over_draws(
    values: np.ndarray,
    units: Sequence[Hashable],
    draws: int,
    seed: int,
    reduce: Callable[[np.ndarray], np.ndarray],
) -> Float[np.ndarray, "k ..."]:
    """`reduce` maps the bootstrap means `[draws, some cells]` to `[k, some cells]`."""
    sums, rows = unit_sums(values, units)
    weights = _unit_weights(len(sums), draws, seed).astype(np.float64)
    drawn = (weights @ rows)[:, None]
    parts = [reduce(weights @ sums[:, cells] / drawn) for cells in _blocks(sums.shape[1], draws)]
    reduced = np.concatenate(parts, axis=1)
    return reduced.reshape(len(reduced), *np.shape(values)[1:])


def _unit_weights(n_units: int, draws: int, seed: int) -> Int[np.ndarray, "draws units"]:
    if draws < 1:
        raise StatisticsError(f"cannot resample {draws} times: draws starts at 1.")
    even = np.full(n_units, 1 / n_units)
    return np.random.default_rng(seed).multinomial(n_units, even, size=draws)


def _sign_patterns(n_units: int, draws: int, seed: int) -> tuple[Shaped[np.ndarray, "d u"], bool]:
    """Rows of plus and minus one, and whether they are all there are."""
    if draws < 1:
        raise StatisticsError(f"cannot resample {draws} times: draws starts at 1.")
    if n_units < 63 and 2**n_units <= draws:
        bits = (np.arange(2**n_units)[:, None] >> np.arange(n_units)) & 1
        return 1.0 - 2.0 * bits, True
    bits = np.random.default_rng(seed).integers(0, 2, size=(draws, n_units))
    return 1.0 - 2.0 * bits, False


def _blocks(n_cells: int, draws: int) -> list[slice]:
    step = max(1, _BLOCK // draws)
    return [slice(start, start + step) for start in range(0, n_cells, step)]
