"""Statistics of numbers that belong to pairs of entities: what was sampled are the entities.

A table of N x N pairs holds N independent things, not N squared. Intervals draw entities with
replacement and count a pair as often as both of its entities were drawn (Snijders and Borgatti
1999); tests rename the entities, rows and columns alike (Mantel 1967). `values` are
`[cell, row, entity]`, any number of cells (layers) over the same pairs; rows are entities too,
`rows` says which (all of them by default). A pair of an entity with itself never counts.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float, Int

from .errors import StatisticsError
from .gram_matrices import ROUNDING
from .statistics import Interval, bootstrap_weights

# Numbers of one block of renamed tables: 64 MB of float64.
_BLOCK = 8_000_000


@dataclass(frozen=True, eq=False)
class PairCorrelation:
    """How one table of pairs goes with another, for every cell of the first; arrays `[cell]`.

    `low` and `high` bound `r`, the correlation over pairs; `r2` is the share of variance explained
    by a straight line. `null` is the 95th percentile of `r2` when entities are renamed, `p` the
    two-sided share of renamings with as large an `r`, `p_any` the same for the largest of all
    cells.
    """

    r: Float[np.ndarray, " cell"]
    low: Float[np.ndarray, " cell"]
    high: Float[np.ndarray, " cell"]
    null: Float[np.ndarray, " cell"]
    p: Float[np.ndarray, " cell"]
    p_any: float
    n_pairs: int

    @property
    def r2(self) -> Float[np.ndarray, " cell"]:
        """Share of the outcome's variance over pairs that a straight line explains."""
        return self.r**2


def pair_mean(
    values: Float[np.ndarray, "cell row entity"],
    counted: Bool[np.ndarray, "row entity"],
    *,
    rows: Int[np.ndarray, " row"] | None = None,
    draws: int = 1000,
    level: float = 0.95,
    seed: int,
) -> Interval:
    """Mean over the counted pairs with its interval over entities, `[cell]`.

    Raises `StatisticsError` when no pair is counted or a counted value is not finite.
    """
    values, counted, rows = _checked(values, counted, rows)
    n = counted.shape[1]
    drawn = bootstrap_weights(range(n), draws=draws, seed=seed).astype(np.float64)
    both = np.concatenate([np.where(counted, values, 0), counted[None].astype(np.float64)])
    *sums, weight = _weighted_sums(both, drawn[:, rows], drawn).T
    with np.errstate(invalid="ignore"):
        means = np.stack(sums, axis=1) / weight[:, None]
    tail = (1 - level) / 2
    low, high = np.nanquantile(means, [tail, 1 - tail], axis=0)
    return Interval(values[:, counted].mean(1), low, high, level, n)


def pair_gap_p(
    values: Float[np.ndarray, "cell entity entity"],
    first: Bool[np.ndarray, "entity entity"],
    second: Bool[np.ndarray, "entity entity"],
    *,
    draws: int = 1000,
    seed: int,
) -> Float[np.ndarray, " cell"]:
    """Two-sided p that the pairs of `first` and of `second` have one mean, by renaming entities.

    Never below `1 / (draws + 1)`. Raises `StatisticsError` as `pair_mean` does.
    """
    values, first, _ = _checked(values, first, None)
    _, second, _ = _checked(values, second, None)
    gap = (first / first.sum() - second / second.sum())[None]
    observed = np.abs((np.where(first | second, values, 0) * gap).sum((1, 2)))
    null = np.abs(renamed_sums(values, gap, draws=draws, seed=seed)[:, 0])
    far = (null >= observed - 1e-12 * np.abs(observed)).sum(0)
    return np.asarray((far + 1) / (draws + 1))


def pair_correlation(
    predictor: Float[np.ndarray, "cell entity entity"],
    outcome: Float[np.ndarray, "row entity"],
    *,
    rows: Int[np.ndarray, " row"] | None = None,
    draws: int = 1000,
    level: float = 0.95,
    seed: int,
) -> PairCorrelation:
    """Correlate an outcome of pairs with a predictor of the same pairs, cell by cell.

    Raises `StatisticsError` for values that are not finite, fewer than four pairs, or an outcome
    that is the same for all pairs. A constant predictor has an `r` of 0.
    """
    outcome = np.asarray(outcome, dtype=np.float64)
    _, counted, rows = _checked(outcome[None], np.ones(outcome.shape, bool), rows)
    predictor, _, _ = _checked(predictor, np.ones(np.shape(predictor)[1:], bool), None)
    if counted.sum() < 4 or np.ptp(outcome[counted]) == 0:
        raise StatisticsError("a correlation needs four pairs at least, and outcomes that differ.")
    row, column = np.nonzero(counted)
    row = rows[row]
    drawn = bootstrap_weights(range(counted.shape[1]), draws=draws, seed=seed).astype(np.float64)
    spread = _weighted_correlations(predictor[:, rows], outcome, counted, drawn[:, rows], drawn)
    tail = (1 - level) / 2
    low, high = np.quantile(spread, [tail, 1 - tail], axis=0)
    told = _away(outcome[counted])
    r = _correlations(predictor[:, row, column], told)
    generator = np.random.default_rng(seed)
    renamed = (generator.permutation(counted.shape[1]) for _ in range(draws))
    null = np.abs([_correlations(predictor[:, new[row], new[column]], told) for new in renamed])
    p = ((null >= np.abs(r) - 1e-12).sum(0) + 1) / (draws + 1)
    p_any = ((null.max(1) >= np.abs(r).max() - 1e-12).sum() + 1) / (draws + 1)
    highest = np.quantile(null**2, 0.95, axis=0)
    return PairCorrelation(r, low, high, highest, p, float(p_any), int(counted.sum()))


def renamed_sums(
    values: Float[np.ndarray, "cell entity entity"],
    weights: Float[np.ndarray, "k entity entity"],
    *,
    draws: int,
    seed: int,
) -> Float[np.ndarray, "draws k cell"]:
    """Sums over all pairs of weight times value after random renamings of the weights' entities."""
    n = weights.shape[-1]
    generator = np.random.default_rng(seed)
    names = np.stack([generator.permutation(n) for _ in range(draws)])
    flat = np.asarray(values, dtype=np.float64).reshape(len(values), -1).T
    step = max(1, _BLOCK // weights.size)
    parts = [
        weights[:, new[:, :, None], new[:, None, :]].swapaxes(0, 1).reshape(-1, n * n) @ flat
        for new in (names[start : start + step] for start in range(0, draws, step))
    ]
    return np.concatenate(parts).reshape(draws, len(weights), len(values))


def _checked(
    values: np.ndarray, counted: np.ndarray, rows: np.ndarray | None
) -> tuple[Float[np.ndarray, "c r n"], Bool[np.ndarray, "r n"], Int[np.ndarray, " r"]]:
    values, counted = np.asarray(values, dtype=np.float64), np.asarray(counted, dtype=bool)
    rows = np.arange(counted.shape[0]) if rows is None else np.asarray(rows)
    if values.ndim != 3 or values.shape[1:] != counted.shape or len(rows) != len(counted):
        raise StatisticsError(
            f"values of pairs {values.shape} do not fit {counted.shape} pairs and {len(rows)} rows."
        )
    counted = counted & (rows[:, None] != np.arange(counted.shape[1]))
    if not counted.any() or not np.isfinite(values[:, counted]).all():
        raise StatisticsError("pairs that count must be finite numbers, and there must be one.")
    return values, counted, rows


def _weighted_sums(
    tables: Float[np.ndarray, "k r n"], left: Float[np.ndarray, "d r"], right: np.ndarray
) -> Float[np.ndarray, "d k"]:
    """Sum over pairs of table times left weight of the row times right weight of the column."""
    return np.stack([((left @ table) * right).sum(1) for table in tables], axis=1)


def _weighted_correlations(
    x: Float[np.ndarray, "c r n"],
    y: Float[np.ndarray, "r n"],
    counted: Bool[np.ndarray, "r n"],
    left: Float[np.ndarray, "d r"],
    right: Float[np.ndarray, "d n"],
) -> Float[np.ndarray, "d c"]:
    away_x, away_y = np.zeros_like(x), np.zeros_like(y)
    away_x[:, counted], away_y[counted] = _away(x[:, counted]), _away(y[counted])
    plain = np.stack([counted.astype(np.float64), away_y, away_y**2])
    n, sy, syy = _weighted_sums(plain, left, right).T[:, :, None]
    products = (away_x, away_x**2, away_x * away_y)
    sx, sxx, sxy = (_weighted_sums(table, left, right) for table in products)
    n = np.maximum(n, 1)  # draws that hold no pair have sums of 0
    squared = (sxx - sx**2 / n) * (syy - sy**2 / n)
    scale = np.sqrt(np.maximum(squared, 0))
    return np.divide(sxy - sx * sy / n, scale, out=np.zeros_like(sxy), where=scale > 0)


def _correlations(
    x: Float[np.ndarray, "c pair"], told: Float[np.ndarray, " pair"]
) -> Float[np.ndarray, " c"]:
    """`told` has a mean of 0 already."""
    given = _away(x)
    scale = np.sqrt((given**2).sum(1) * (told**2).sum())
    return np.divide(given @ told, scale, out=np.zeros(len(given)), where=scale > 0)


def _away(x: Float[np.ndarray, "*c pair"]) -> Float[np.ndarray, "*c pair"]:
    """Values less their mean over pairs; exactly 0 where they do not vary."""
    away = x - x.mean(-1, keepdims=True)
    varies = (away**2).sum(-1, keepdims=True) > ROUNDING * (x**2).sum(-1, keepdims=True)
    return np.asarray(away * varies)
