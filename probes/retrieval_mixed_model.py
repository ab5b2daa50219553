"""How much of a head's score is the head, the needle, the length, the depth?

For each head `score = intercept + length + depth + (1 | needle) + error`, fitted in closed form for
all heads at once: variance components by Henderson's method 3 (fitting constants; Searle, Casella
and McCulloch 1992, section 5.5), then generalised least squares, whose weight matrix is known for
random intercepts. All heads share the design, so that nothing loops over them.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

from ..results.errors import StatisticsError
from ..results.sampled_units import unit_index

TERMS = ("intercept", "length", "depth")


@dataclass(frozen=True, eq=False)
class MixedModel:
    """Fixed effects of each head `[term, layer, head]` in the order of `TERMS`, and variances.

    The intercept is the score at the mean log length and mean depth; `length` the change when the
    length doubles; `depth` that from the beginning of the haystack to its end. `error` holds their
    standard errors, `needle_variance` and `rest_variance` the components `[layer, head]`. NaN for a
    term that the trials do not vary, and throughout where a head lacks trials.
    """

    effect: Float[np.ndarray, "term layer head"]
    error: Float[np.ndarray, "term layer head"]
    needle_variance: Float[np.ndarray, "layer head"]
    rest_variance: Float[np.ndarray, "layer head"]

    @property
    def needle_share(self) -> Float[np.ndarray, "layer head"]:
        """Share of the variance, length and depth apart, that lies between needles; NaN for a head
        that always scores the same."""
        total = self.needle_variance + self.rest_variance
        empty = np.full(total.shape, np.nan)
        return np.divide(self.needle_variance, total, out=empty, where=total > 1e-15)


def fit_mixed_model(
    values: Float[np.ndarray, "trial layer head"],
    needles: Sequence[Hashable],
    lengths: Sequence[int],
    depths: Sequence[float],
) -> MixedModel:
    """Fit every head that all trials apply to; a head with a NaN gets NaN.

    `lengths` in tokens, `depths` from 0 to 1. Raises `StatisticsError` when they do not fit the
    trials, a length is not positive, or no needle was asked about twice (needles and errors cannot
    be told apart then).
    """
    values = np.asarray(values, dtype=np.float64)
    n = len(values)
    if values.ndim != 3 or {len(needles), len(lengths), len(depths)} != {n}:
        raise StatisticsError(
            f"scores {values.shape} need {n} needles, lengths and depths, got {len(needles)}, "
            f"{len(lengths)} and {len(depths)}."
        )
    if min(lengths) < 1:
        raise StatisticsError("lengths are numbers of tokens: they start at 1.")
    columns = np.stack([np.ones(n), np.log2(np.asarray(lengths)), np.asarray(depths)], axis=1)
    columns[:, 1:] -= columns[:, 1:].mean(axis=0)
    varied = [0, *(i for i in (1, 2) if np.ptp(columns[:, i]) > 1e-12)]
    flat = values.reshape(n, -1)
    known = np.isfinite(flat).all(axis=0)
    effect, error = (np.full((len(TERMS), flat.shape[1]), np.nan) for _ in range(2))
    variances = np.full((2, flat.shape[1]), np.nan)
    if known.any():
        fit = _fit(flat[:, known], columns[:, varied], unit_index(needles))
        effect[np.ix_(varied, known)], error[np.ix_(varied, known)] = fit[:2]
        variances[:, known] = fit[2]
    shape = values.shape[1:]
    return MixedModel(
        effect.reshape(-1, *shape), error.reshape(-1, *shape), *variances.reshape(2, *shape)
    )


def _fit(
    y: Float[np.ndarray, "trial cell"], x: Float[np.ndarray, "trial term"], index: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Effects and errors `[term, cell]`, variances of needles and of the rest `[2, cell]`."""
    members = (index[:, None] == np.arange(index.max() + 1)).astype(np.float64)
    needle_variance, rest = _components(y, x, members)
    rest = np.maximum(rest, 1e-9 * needle_variance)  # V must have an inverse
    total = rest[:, None] + members.sum(axis=0) * needle_variance[:, None]
    # V^-1 = (I - sum over needles of share * ones ones') / rest, so that only sums are needed.
    share = needle_variance[:, None] / np.maximum(total, 1e-300)
    x_sums, y_sums = members.T @ x, members.T @ y
    gram = x.T @ x - np.einsum("cu,up,uq->cpq", share, x_sums, x_sums)
    moment = (x.T @ y).T - np.einsum("cu,up,uc->cp", share, x_sums, y_sums)
    inverse = np.linalg.pinv(gram)
    effect = np.einsum("cpq,cq->pc", inverse, moment)
    error = np.sqrt(np.einsum("cpp->pc", inverse).clip(min=0) * rest)
    return effect, error, np.stack([needle_variance, rest])


def _components(y: np.ndarray, x: np.ndarray, members: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Variance between needles, cut at 0, and of the rest."""
    whole = np.concatenate([x, members], axis=1)
    rank_x, rank_whole = (int(np.linalg.matrix_rank(m)) for m in (x, whole))
    if rank_whole >= len(y):
        raise StatisticsError(
            "the mixed model needs more trials than needles: ask about each needle twice or more."
        )
    left_x, left_whole = _left(x, y), _left(whole, y)
    rest = (left_whole**2).sum(axis=0) / (len(y) - rank_whole)
    explained = (left_x**2).sum(axis=0) - (left_whole**2).sum(axis=0)
    trace = float((_left(x, members) ** 2).sum())
    between = (explained - (rank_whole - rank_x) * rest) / trace
    return between.clip(min=0), rest


def _left(basis: np.ndarray, y: np.ndarray) -> np.ndarray:
    """What of `y` the columns of `basis` leave over."""
    left: np.ndarray = y - basis @ (np.linalg.pinv(basis) @ y)
    return left
