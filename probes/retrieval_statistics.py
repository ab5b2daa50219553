"""Scores of heads over trials, with errors that treat the needle as the sampled unit.

Between needles a head's scores vary far more than between lengths and depths of one needle: naive
standard errors of the released score files are 7 to 12 times too small (retrieval_heads.md 1.9).
So rows are trials, clusters are needles, and many heads are tested at once. All functions take
arrays `[trial, layer, head]` and know no model. NaN means not applicable (a windowed head that
cannot see the needle): such a trial counts for nothing in that head, and never as a zero.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from jaxtyping import Bool, Float, Int
from scipy import stats

from ..results.errors import StatisticsError
from ..results.sampled_units import unit_sums
from ..results.statistics import (
    Interval,
    benjamini_hochberg,
    bootstrap_mean,
    sign_flip_p,
    split_half_reliability,
)

HeadRole = Literal["locate", "emit", "both", ""]
Grid = Float[np.ndarray, "layer head"]


@dataclass(frozen=True, eq=False)
class HeadStatistics:
    """A score of every head with its uncertainty over needles. Grids are `[layer, head]`, NaN where
    fewer than two needles can be seen.

    `p` is one-sided, that the mean exceeds the `null` (named in `null_name`), by flipping the sign
    of whole needles; `q` is `p` adjusted over all heads (Benjamini and Hochberg 1995). `se` is the
    cluster-robust standard error, `shrunk` the empirical-Bayes mean: the score pulled towards the
    mean of all heads as far as its own error asks for. `reliability` is split-half over needles
    (Spearman-Brown), of the heads that every needle can be seen by.
    """

    interval: Interval
    p: Grid
    q: Grid
    se: Grid
    shrunk: Grid
    n_trials: Int[np.ndarray, "layer head"]
    n_needles: Int[np.ndarray, "layer head"]
    reliability: float
    null_name: str

    @property
    def mean(self) -> Grid:
        """Mean over the trials in which the head can see the needle."""
        return self.interval.mean


@dataclass(frozen=True)
class PartialCorrelation:
    """Rank correlations over heads of two scores, with a third removed from both.

    `raw` is Spearman's of the two, `partial` the same with the ranks of the third held fixed;
    `n_heads` have all three. NaN where a score is the same in all heads, or a function of the
    third.
    """

    raw: float
    with_first: float
    with_second: float
    partial: float
    n_heads: int


def summarise_scores(
    values: Float[np.ndarray, "trial layer head"],
    needles: Sequence[Hashable],
    *,
    null: Float[np.ndarray, "trial layer head"] | float = 0.0,
    null_name: str = "0",
    draws: int = 2000,
    level: float = 0.95,
    seed: int = 0,
) -> HeadStatistics:
    """Means, intervals, p, q, shrunk means and reliability of every head, clustered by needle.

    `null` is what each head scores by chance in the same trials: its score on control spans such
    as the rivals, or one number. Where nothing plays that part, 0 is a fair null only for scores
    that may be negative, such as contrasts. The interval is the expanded percentile interval of
    the cluster bootstrap (Hesterberg 2015, section 4.3), which keeps its level for few needles.

    Raises `StatisticsError` for values of another shape than the needles and the null, and when
    no head can be seen in the trials of two needles.
    """
    values = np.asarray(values, dtype=np.float64)
    gaps = values - np.asarray(null, dtype=np.float64)
    if values.ndim != 3 or len(values) != len(needles) or gaps.shape != values.shape:
        raise StatisticsError(
            f"scores {values.shape} do not fit {len(needles)} needle names and a null of shape "
            f"{np.shape(null)}: give [trial, layer, head], one name a trial."
        )
    applies = np.isfinite(gaps)
    grids = {name: np.full(values.shape[1:], np.nan) for name in ("mean", "low", "high", "p", "se")}
    n_needles = np.zeros(values.shape[1:], dtype=np.int64)
    for rows, cells in _alike(applies):
        units = [needles[int(i)] for i in np.flatnonzero(rows)]
        n_needles[cells] = len(set(units))
        if len(set(units)) < 2:
            continue
        here, gap = values[rows][:, cells], gaps[rows][:, cells]
        wide = _expanded_level(level, len(set(units)))
        interval = bootstrap_mean(here, units, draws=draws, level=wide, seed=seed)
        found = (interval.mean, interval.low, interval.high, one_sided_p(gap, units, seed=seed))
        for name, grid in zip(grids, (*found, cluster_error(here, units)), strict=True):
            grids[name][cells] = grid
    if not np.isfinite(grids["mean"]).any():
        raise StatisticsError("no head sees two needles: run trials of more needles.")
    most = int(n_needles.max())
    return HeadStatistics(
        interval=Interval(grids["mean"], grids["low"], grids["high"], level, most),
        p=grids["p"],
        q=adjusted(grids["p"]),
        se=grids["se"],
        shrunk=shrunken(grids["mean"], grids["se"]),
        n_trials=applies.sum(axis=0),
        n_needles=n_needles,
        reliability=needle_reliability(values, needles, seed=seed),
        null_name=null_name,
    )


def one_sided_p(
    gaps: Float[np.ndarray, "trial ..."], units: Sequence[Hashable], *, seed: int
) -> Float[np.ndarray, "*cells"]:
    """Chance of a mean at least as large if whole units could as well have the other sign.

    The flips are symmetric about zero, so that half the two-sided p of `sign_flip_p` lies in each
    tail. Raises `StatisticsError` as it does.
    """
    two_sided = sign_flip_p(gaps, units, draws=4000, seed=seed)
    mean = np.asarray(gaps, dtype=np.float64).mean(axis=0)
    return np.where(mean > 0, two_sided / 2, np.where(mean < 0, 1 - two_sided / 2, 1.0))


def cluster_error(
    values: Float[np.ndarray, "trial ..."], units: Sequence[Hashable]
) -> Float[np.ndarray, "*cells"]:
    """Cluster-robust standard error of the mean over trials, `n / (n - 1)` for `n` clusters (Liang
    and Zeger 1986). Raises `StatisticsError` for fewer than two units."""
    values = np.asarray(values, dtype=np.float64)
    sums, _ = unit_sums(values - values.mean(axis=0), units)
    n = len(sums)
    spread = np.sqrt(n / (n - 1) * (sums**2).sum(axis=0)) / len(values)
    return spread.reshape(values.shape[1:])


def adjusted(p: Grid) -> Grid:
    """Benjamini-Hochberg over the heads that have a p."""
    q = np.full(p.shape, np.nan)
    known = np.isfinite(p)
    if known.any():
        q[known] = benjamini_hochberg(p[known])
    return q


def shrunken(mean: Grid, se: Grid) -> Grid:
    """Empirical-Bayes means: `m + B (mean - m)`, `B = t2 / (t2 + se^2)` (Efron and Morris 1975).

    `m` is the mean over heads, `t2` the variance between heads beyond the errors, by moments. A
    head with no error keeps its score.
    """
    known = np.isfinite(mean) & np.isfinite(se)
    if known.sum() < 2:
        return mean.copy()
    centre = mean[known].mean()
    between = max(float(mean[known].var(ddof=1) - (se[known] ** 2).mean()), 0.0)
    total = between + se**2
    weight = np.divide(between, total, out=np.ones_like(total), where=total > 0)
    return np.where(known, centre + weight * (mean - centre), np.nan)


def needle_reliability(
    values: Float[np.ndarray, "trial layer head"], needles: Sequence[Hashable], *, seed: int
) -> float:
    """Split-half reliability of the heads' scores over needles, each needle counting once.

    Over the heads that see every needle; NaN for fewer than two of them.
    """
    means = needle_means(values, needles)
    flat = means.reshape(len(means), -1)
    flat = flat[:, np.isfinite(flat).all(axis=0)]
    if flat.shape[1] < 2 or len(flat) < 2:
        return float("nan")
    return split_half_reliability(flat, range(len(flat)), seed=seed).reliability


def needle_means(
    values: Float[np.ndarray, "trial layer head"], needles: Sequence[Hashable]
) -> Float[np.ndarray, "needle layer head"]:
    """Mean of each needle's trials, needles in the order of first appearance; NaN where none
    applies. Raises `StatisticsError` for fewer than two needles."""
    values = np.asarray(values, dtype=np.float64)
    sums, _ = unit_sums(np.nan_to_num(values), needles)
    counts, _ = unit_sums(np.isfinite(values), needles)
    means = np.divide(sums, counts, out=np.full_like(sums, np.nan), where=counts > 0)
    return means.reshape(-1, *values.shape[1:])


def locate_emit(
    locate: HeadStatistics, emit: HeadStatistics, *, max_q: float = 0.05, floor: float = 0.1
) -> np.ndarray:
    """Role of each head `[layer, head]`: "locate", "emit", "both" or "" (neither).

    A head locates where its score on question rows exceeds its null with `q <= max_q` and is at
    least `floor` of the best head's; it emits where its score on answer rows does (10.4). Scores
    are taken relative to the best head, since the two are on different scales.
    """
    names = np.array(["", "locate", "emit", "both"])
    return names[does(locate, max_q, floor) + 2 * does(emit, max_q, floor)]


def does(found: HeadStatistics, max_q: float, floor: float) -> Bool[np.ndarray, "layer head"]:
    """Heads whose score is significant and at least `floor` of the best one."""
    best = max(float(np.nanmax(found.mean)), 1e-12)
    with np.errstate(invalid="ignore"):
        return (found.q <= max_q) & (found.mean >= floor * best) & (found.mean > 0)


def partial_correlation(first: Grid, other: Grid, induction: Grid) -> PartialCorrelation:
    """Do heads that retrieve the first answer token also continue it, induction apart?

    From the second answer token on, a plain induction head satisfies the copy test: only what
    remains of the agreement when the induction score is held fixed speaks for retrieval (10.2).
    Raises `StatisticsError` for grids of different shapes or fewer than four heads with all three.
    """
    grids = [np.asarray(grid, dtype=np.float64) for grid in (first, other, induction)]
    if len({grid.shape for grid in grids}) != 1:
        raise StatisticsError(
            f"three scores of the same heads are needed, got {[grid.shape for grid in grids]}."
        )
    flat = np.stack([grid.ravel() for grid in grids])
    flat = flat[:, np.isfinite(flat).all(axis=0)]
    if flat.shape[1] < 4:
        raise StatisticsError(f"{flat.shape[1]} heads have all three scores: four are needed.")
    ranks = stats.rankdata(flat, axis=1)
    with np.errstate(invalid="ignore", divide="ignore"):
        r = np.corrcoef(ranks)
        rest = (1 - r[0, 2] ** 2) * (1 - r[1, 2] ** 2)
        partial = (r[0, 1] - r[0, 2] * r[1, 2]) / np.sqrt(rest) if rest > 1e-12 else np.nan
    return PartialCorrelation(
        float(r[0, 1]), float(r[0, 2]), float(r[1, 2]), float(partial), flat.shape[1]
    )


def _alike(
    applies: Bool[np.ndarray, "trial layer head"],
) -> Iterator[tuple[Bool[np.ndarray, " trial"], Bool[np.ndarray, "layer head"]]]:
    """Heads that the same trials apply to, together: those trials, and those heads. There are as
    many groups as different windows."""
    flat = applies.reshape(len(applies), -1)
    patterns, group = np.unique(flat, axis=1, return_inverse=True)
    group = group.reshape(applies.shape[1:])
    for i, rows in enumerate(patterns.T):
        if rows.any():
            yield rows, group == i


def _expanded_level(level: float, n_units: int) -> float:
    """Level whose percentile interval is as wide as a t interval of `level` would be."""
    t = stats.t.ppf((1 + level) / 2, n_units - 1) * np.sqrt(n_units / (n_units - 1))
    return float(min(2 * stats.norm.cdf(t) - 1, 1 - 1e-6))
