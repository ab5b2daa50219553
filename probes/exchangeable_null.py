"""AP of a unit that knows nothing of the labels: if they are exchangeable, its law depends on the
numbers of positives and prompts alone (relation_neurons.md 3.2).

One table therefore serves every unit. This null is very easy to reject, so it removes noise and no
more; structured nulls (pseudo-relations, wordings, lengths) decide what a unit stands for.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from math import comb

import numpy as np
from jaxtyping import Float, Int
from numpy.typing import ArrayLike
from scipy import stats

from ..results.errors import StatisticsError

_TAIL_SHARE = 0.01
# Fewer distinct draws beyond the threshold carry no fit: the null is then a few large atoms.
_FEWEST_IN_TAIL = 100
# Bits of the table that are drawn at once: they stay in the cache.
_BITS = 2**21
# AP that is equal up to rounding counts as equal.
_ROUNDING = 1e-9


@dataclass(frozen=True, eq=False)
class NullTable:
    """Draws of AP for `positives` among `prompts`, sorted, and the tail fitted to their top.

    Beyond `threshold`, which a share `tail_share` of the draws exceeds, the tail is a generalised
    Pareto distribution with `shape` and `scale`. `tail_share` is 0 where no tail could be fitted.
    """

    positives: int
    prompts: int
    draws: Float[np.ndarray, " draw"]
    threshold: float
    tail_share: float
    shape: float
    scale: float


def expected_ap(positives: int, prompts: int) -> float:
    """Mean AP under exchangeable labels without ties.

    Raises `StatisticsError` unless `1 <= positives <= prompts`.
    """
    _check(positives, prompts)
    if prompts == 1:
        return 1.0
    harmonic = float((1 / np.arange(1, prompts + 1)).sum())
    rest = (prompts - harmonic) * (positives - 1) / (prompts - 1)
    return (harmonic + rest) / prompts


@lru_cache(maxsize=64)
def null_table(positives: int, prompts: int, draws: int = 200_000, seed: int = 0) -> NullTable:
    """Draw the null of AP by Monte Carlo and fit its upper tail (Coles 2001, chapter 4).

    The shape is kept from falling below 0 (an exponential tail): with a negative one the fit would
    end at some AP and call everything beyond impossible. Raises `StatisticsError` unless
    `1 <= positives <= prompts`, or for fewer than 1,000 draws.
    """
    _check(positives, prompts)
    if draws < 1000:
        raise StatisticsError(f"{draws} draws carry no tail: draw at least 1,000.")
    rng = np.random.default_rng((seed, positives, prompts))
    rows = max(1, _BITS // prompts)
    sizes = [min(rows, draws - start) for start in range(0, draws, rows)]
    drawn = np.concatenate([_draw(rng, positives, prompts, n) for n in sizes])
    drawn.sort()
    drawn.setflags(write=False)
    return NullTable(positives, prompts, drawn, *_tail(drawn))


def p_value(table: NullTable, ap: ArrayLike) -> Float[np.ndarray, "*cells"]:
    """Chance of an AP at least as high, float64 in the shape of `ap`.

    From the draws up to the threshold, from the fitted tail beyond it, and never below that of the
    one best order, `1 / C(prompts, positives)`. One-sided: double it for the better of both signs.
    Raises `StatisticsError` for an AP that is not between 0 and 1.
    """
    ap = np.asarray(ap, dtype=np.float64)
    if not ((ap >= 0) & (ap <= 1 + _ROUNDING)).all():
        raise StatisticsError("an AP lies between 0 and 1: pass what average_precision returned.")
    n = len(table.draws)
    reached = n - np.searchsorted(table.draws, ap - _ROUNDING, side="left")
    p = (reached + 1) / (n + 1)
    if table.tail_share:
        beyond = stats.genpareto.sf(ap - table.threshold, table.shape, scale=table.scale)
        p = np.where(ap > table.threshold, table.tail_share * beyond, p)
    return np.maximum(p, _best_order(table.positives, table.prompts))


def _draw(
    rng: np.random.Generator, positives: int, prompts: int, rows: int
) -> Float[np.ndarray, " row"]:
    """AP of random orders."""
    ranks = 1 + _places(rng, positives, prompts, rows)
    return np.asarray((np.arange(1, positives + 1) / ranks).mean(axis=1))


def _places(
    rng: np.random.Generator, positives: int, prompts: int, rows: int
) -> Int[np.ndarray, "row p"]:
    """Random sets of places, each upwards, by Floyd's method (Bentley and Floyd 1987) on bits."""
    bits = np.zeros((rows, prompts), dtype=bool)
    row = np.arange(rows)
    for last in range(prompts - positives, prompts):
        place = rng.integers(0, last + 1, size=rows)
        place = np.where(bits[row, place], last, place)
        bits[row, place] = True
    return (np.flatnonzero(bits) % prompts).reshape(rows, positives)


def _tail(drawn: Float[np.ndarray, " draw"]) -> tuple[float, float, float, float]:
    """Threshold, share beyond it, shape and scale; a share of 0 if there is nothing to fit."""
    threshold = float(np.quantile(drawn, 1 - _TAIL_SHARE))
    beyond = drawn[drawn > threshold] - threshold
    if len(np.unique(beyond)) < min(_FEWEST_IN_TAIL, len(drawn) * _TAIL_SHARE / 2):
        return threshold, 0.0, 0.0, 0.0
    share = (len(beyond) + 1) / (len(drawn) + 1)
    shape, _, scale = stats.genpareto.fit(beyond, floc=0)
    if shape < 0:
        shape, scale = 0.0, beyond.mean()
    return threshold, share, float(shape), float(scale)


def _best_order(positives: int, prompts: int) -> float:
    """One over the number of label orders; the smallest float where that underflows."""
    orders = comb(prompts, positives)
    smallest = float(np.finfo(np.float64).tiny)
    return max(smallest, 1 / orders) if orders.bit_length() < 1000 else smallest


def _check(positives: int, prompts: int) -> None:
    if not 1 <= positives <= prompts:
        raise StatisticsError(
            f"{positives} positives among {prompts} prompts have no AP: give at least one positive "
            "and no more than there are prompts."
        )
