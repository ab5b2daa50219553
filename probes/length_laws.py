"""How long may a haystack become before a head's needle drowns in the rest?

A head's *lead* in a trial is the needle's highest score minus the logsumexp of all scores outside
it: where it is above 0 one key of the needle takes more weight than everything else together. Keys
that matter little add up, so the lead falls with the logarithm of the length:

    lead(T) = at_one - decay * ln T     decay 1: all other keys count alike; 0: a few (a sink)

and crosses 0 at the *retrieval horizon* exp(at_one / decay). That is an extrapolation, and of the
scores alone: positions never seen in training, or a needle's score that itself falls with distance
beyond the lengths measured, are not in it (retrieval_heads, section 10.7).
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float, Int

from ..results.errors import StatisticsError
from ..results.statistics import bootstrap_weights

Grid = Float[np.ndarray, "layer head"]


@dataclass(frozen=True, eq=False)
class LengthLaw:
    """The law of every head, grids `[layer, head]`, NaN where a head cannot see the needle in all
    trials; `*_low` and `*_high` are ends of percentile intervals over needles.

    `horizon` is in tokens, `FARTHEST` at most. A lead that does not fall with the length has none:
    `FARTHEST` stands for one above 0, 0 for one below.
    """

    lead: Grid
    """Mean lead over all trials, natural log."""
    decay: Grid
    decay_low: Grid
    decay_high: Grid
    horizon: Grid
    horizon_low: Grid
    horizon_high: Grid
    shortest: int
    longest: int

    @property
    def extrapolated(self) -> Bool[np.ndarray, "layer head"]:
        """Whether the horizon lies outside the lengths measured."""
        return (self.horizon < self.shortest) | (self.horizon > self.longest)

    @property
    def sees_beyond(self) -> Bool[np.ndarray, "layer head"]:
        """Heads whose horizon lies, whole interval, beyond the longest haystack measured."""
        return self.horizon_low > self.longest


FARTHEST = 1e9
"""Tokens; a horizon of so many is as good as none."""


def fit_length_law(
    lead: Float[np.ndarray, "trial layer head"],
    needles: Sequence[Hashable],
    lengths: Int[np.ndarray, " trial"],
    *,
    draws: int = 1000,
    level: float = 0.95,
    seed: int = 0,
) -> LengthLaw:
    """Least squares of the lead on the logarithm of the length in every head, needles resampled.

    Take scores "lead" (answer rows) or "locate_lead" (question rows) of `score_trials`, forced, so
    that longer haystacks are not those of easier trials. Memory: `draws` times heads.

    Raises `StatisticsError` for fewer than two lengths or two needles, and arrays that do not fit.
    """
    lead, lengths = np.asarray(lead, dtype=np.float64), np.asarray(lengths)
    if lead.ndim != 3 or not len(lead) == len(needles) == len(lengths):
        raise StatisticsError(
            f"leads {lead.shape} do not fit {len(needles)} needle names and {len(lengths)} lengths."
        )
    if len(np.unique(lengths)) < 2:
        raise StatisticsError("a law of length needs trials of two lengths: give --lengths two.")
    known = np.isfinite(lead).all(0)
    drawn = bootstrap_weights(needles, draws=draws, seed=seed).astype(np.float64)
    log_length = np.log(lengths)
    # A draw that has one length only tells nothing about a slope.
    spread = drawn @ log_length**2 - (drawn @ log_length) ** 2 / drawn.sum(1)
    drawn = np.concatenate([np.ones((1, len(lead))), drawn[spread > 1e-9]])
    middle, at_one, decay = _fitted(lead[:, known], log_length, drawn)
    horizon = _horizon(middle, at_one, decay)
    tails = [(1 - level) / 2, (1 + level) / 2]
    (decay_low, decay_high), (low, high) = (_ends(x[1:], tails) for x in (decay, horizon))

    def grid(values: Float[np.ndarray, " cell"]) -> Grid:
        whole = np.full(known.shape, np.nan)
        whole[known] = values
        return whole

    return LengthLaw(
        lead=grid(lead[:, known].mean(0)),
        decay=grid(decay[0]),
        decay_low=grid(decay_low),
        decay_high=grid(decay_high),
        horizon=grid(horizon[0]),
        horizon_low=grid(low),
        horizon_high=grid(high),
        shortest=int(lengths.min()),
        longest=int(lengths.max()),
    )


def _fitted(
    lead: Float[np.ndarray, "trial cell"],
    log_length: Float[np.ndarray, " trial"],
    weights: Float[np.ndarray, "draw trial"],
) -> tuple[Float[np.ndarray, "draw cell"], ...]:
    """With each row of weights: mean lead, lead at a length of one token, fall a unit of ln T."""
    total = weights.sum(1, keepdims=True)
    mean_x, mean_y = weights @ log_length[:, None] / total, weights @ lead / total
    covariance = (weights * log_length) @ lead / total - mean_x * mean_y
    variance = (weights @ log_length[:, None] ** 2) / total - mean_x**2
    slope = covariance / variance
    return mean_y, mean_y - slope * mean_x, -slope


def _horizon(
    middle: Float[np.ndarray, "draw cell"],
    at_one: Float[np.ndarray, "draw cell"],
    decay: Float[np.ndarray, "draw cell"],
) -> Float[np.ndarray, "draw cell"]:
    """Where the lead falls to 0. One that does not fall stays where it is: above 0, or below."""
    falls = decay > 1e-6
    log_horizon = np.divide(at_one, decay, out=np.zeros_like(decay), where=falls)
    crossed = np.exp(np.minimum(log_horizon, np.log(FARTHEST)))
    return np.where(falls, crossed, np.where(middle > 0, FARTHEST, 0.0))


def _ends(
    values: Float[np.ndarray, "draw cell"], tails: Sequence[float]
) -> Float[np.ndarray, "end cell"]:
    """Quantiles that are draws themselves: halfway between a horizon and none there is nothing."""
    return np.quantile(values, tails, axis=0, method="inverted_cdf")
