"""Do the same heads copy every token of an answer, or do they take turns?

A mean over an answer cannot tell a head that always copies from ten that take turns. Here the set
of copying heads is taken step by step (forced rows; step 0 predicts the answer's first token):
how many heads share the work at a step, how alike the sets of neighbouring steps are, and how much
of all copying a fixed list of heads would have caught (after arXiv 2602.11162).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import polars
from jaxtyping import Bool, Float, Int

from ..models.errors import MnemoscopeError
from ..models.types import HeadId
from ..results.statistics import Interval, bootstrap_mean
from .answer_steps import StepReadings


@dataclass(frozen=True, eq=False)
class DynamicSets:
    """Copying heads step by step; intervals are over needles.

    `rate[step]` is the share of trials with such a step in which the head copied there, `trials`
    how many have it. `head_entropy` is that of a head's rate over steps, in bits: 0 for one that
    copies at one step only, `log2(steps)` for one that copies at all; NaN for one that never does.
    """

    rate: Float[np.ndarray, "step layer head"]
    trials: Int[np.ndarray, " step"]
    head_entropy: Float[np.ndarray, "layer head"]
    effective: Float[np.ndarray, " step"]
    """How many heads share the copying at a step: 2 to the entropy of the rates over heads."""
    alike: Interval | None
    """Jaccard overlap of the sets of a trial's neighbouring steps, 0 to 1; None where no trial has
    two steps with copying heads in one of them."""
    fixed: Interval
    """Share of a trial's copying (head and step) that the `k` best heads of *other* needles do."""
    k: int

    def heads_at(self, step: int, least: float = 0.1) -> tuple[HeadId, ...]:
        """Heads that copied in at least this share of a step's trials, most often first."""
        rate = np.nan_to_num(self.rate[step])
        cells = sorted(np.argwhere(rate >= least).tolist(), key=lambda at: (-rate[tuple(at)], at))
        return tuple(HeadId(layer, head) for layer, head in cells)

    @property
    def table(self) -> polars.DataFrame:
        """One row a step: trials, effective number of heads, and the heads that copied most."""
        return polars.DataFrame(
            {
                "step": range(len(self.trials)),
                "trials": self.trials,
                "effective_heads": self.effective,
                "most": [" ".join(map(str, self.heads_at(i)[:8])) for i in range(len(self.trials))],
            }
        ).fill_nan(None)


def dynamic_sets(
    steps: StepReadings,
    needles: Sequence[str],
    *,
    kept: Bool[np.ndarray, " trial"] | None = None,
    k: int = 10,
    draws: int = 1000,
    seed: int = 0,
) -> DynamicSets:
    """The sets of the `kept` trials (all by default), one needle name a trial.

    Raises `MnemoscopeError` where no head copies in the trials of two needles.
    """
    chosen = np.ones(len(needles), bool) if kept is None else kept
    copied = steps.copied[chosen] == 1  # NaN is no copy
    there = np.isfinite(steps.copied[chosen]).any((2, 3))
    units = [needle for needle, keep in zip(needles, chosen, strict=True) if keep]
    some = copied.any((1, 2, 3))
    named = [unit for unit, one in zip(units, some, strict=True) if one]
    if len(set(named)) < 2:
        raise MnemoscopeError(
            f"heads copy in the trials of {len(set(named))} needles: two are needed to compare "
            "their steps."
        )
    last = int(np.flatnonzero(there.any(0)).max()) + 1
    copied, there = copied[:, :last], there[:, :last]
    n = there.sum(0)
    rate = np.divide(
        copied.sum(0), n[:, None, None], out=np.zeros(copied.shape[1:]), where=n[:, None, None] > 0
    )
    return DynamicSets(
        rate=rate,
        trials=n,
        head_entropy=_entropy(rate, 0),
        effective=2 ** _entropy(rate.reshape(last, -1), 1),
        alike=_alike(copied, there, units, draws, seed),
        fixed=bootstrap_mean(
            _done_by_others_best(copied[some], named, k), named, draws=draws, seed=seed
        ),
        k=k,
    )


def _entropy(rates: np.ndarray, axis: int) -> np.ndarray:
    """Bits, of rates scaled to sum to one along the axis; NaN where all are 0."""
    total = rates.sum(axis, keepdims=True)
    p = np.divide(rates, total, out=np.full_like(rates, np.nan), where=total > 0)
    bits = np.log2(p, out=np.zeros_like(p), where=p > 0)
    return np.asarray(-(p * bits).sum(axis) + 0.0)


def _alike(
    copied: Bool[np.ndarray, "trial step layer head"],
    there: Bool[np.ndarray, "trial step"],
    units: Sequence[str],
    draws: int,
    seed: int,
) -> Interval | None:
    """Mean over a trial's pairs of neighbouring steps, of those where a head copies at all."""
    both = (copied[:, 1:] & copied[:, :-1]).sum((2, 3))
    either = (copied[:, 1:] | copied[:, :-1]).sum((2, 3))
    pairs = there[:, 1:] & there[:, :-1] & (either > 0)
    overlap = np.where(pairs, both / np.maximum(either, 1), 0)
    some = pairs.any(1)
    named = [unit for unit, one in zip(units, some, strict=True) if one]
    if len(set(named)) < 2:
        return None
    values = overlap[some].sum(1) / pairs[some].sum(1)
    return bootstrap_mean(values, named, draws=draws, seed=seed)


def _done_by_others_best(
    copied: Bool[np.ndarray, "trial step layer head"], needles: Sequence[str], k: int
) -> Float[np.ndarray, " trial"]:
    """Share of each trial's copies by the k heads that copy most in the trials of other needles."""
    copies = copied.sum(1).reshape(len(copied), -1).astype(np.float64)
    names, unit = np.unique(np.asarray(needles), return_inverse=True)
    own = np.eye(len(names))[unit]
    others = copies.sum(0) - own @ (own.T @ copies)
    best = np.argsort(-others, axis=1, kind="stable")[:, :k]
    return np.asarray(np.take_along_axis(copies, best, 1).sum(1) / copies.sum(1))
