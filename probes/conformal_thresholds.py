"""Thresholds for a stated rate of false refusals, from scores of harmless texts (split conformal).

With scores of `n` harmless texts, the threshold is the `ceil((n + 1)(1 - r))`-th smallest of them.
A new harmless text that is exchangeable with these exceeds it with probability at most `r`,
whatever the score means (Vovk et al. 2005; Lei et al. 2018). It says nothing about harmful texts,
and nothing once harmless ones are of another kind than those it was set on.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float
from scipy import stats

from ..results.errors import StatisticsError

Scores = Sequence[float] | Float[np.ndarray, " n"]


@dataclass(frozen=True)
class ConformalThreshold:
    """Refuse above `threshold`: at most a share `false_refusal` of harmless texts is refused.

    That is the mean over the draws of the `n_texts`. With the ones drawn the rate is below `upper`
    in 95 of 100 draws.
    """

    threshold: float
    false_refusal: float
    n_texts: int
    upper: float


def conformal_threshold(scores: Scores, false_refusal: float = 0.01) -> ConformalThreshold:
    """The threshold for one score a harmless text (`-inf` where a text has nothing to score).

    Raises `StatisticsError` for NaN, a rate outside 0 to 1, or too few texts for the rate.
    """
    values = np.sort(np.asarray(scores, dtype=np.float64))
    if not 0 < false_refusal < 1:
        raise StatisticsError(f"false_refusal must lie between 0 and 1, got {false_refusal}.")
    if np.isnan(values).any():
        raise StatisticsError("a score is NaN: give -inf for texts without anything to score.")
    n = len(values)
    # Rounded, so that 0.99 * 100 is 99 and not a hair more.
    rank = math.ceil(round((n + 1) * (1 - false_refusal), 9))
    if rank > n:
        needed = math.ceil(round(1 / false_refusal, 9)) - 1
        raise StatisticsError(
            f"{n} harmless texts cannot promise a false-refusal rate of {false_refusal:g}: give at "
            f"least {needed}, or allow a higher rate."
        )
    upper = float(stats.beta.ppf(0.95, n + 1 - rank, rank))
    return ConformalThreshold(float(values[rank - 1]), false_refusal, n, upper)


def conformal_p(scores: Scores, score: float) -> float:
    """The conformal p of a text: the share of harmless texts, itself included, that score as high.

    At most `r` with probability at most `r` for a harmless text.
    """
    values = np.asarray(scores, dtype=np.float64)
    return float((1 + (values >= score).sum()) / (len(values) + 1))
