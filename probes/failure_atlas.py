"""What do retrieval heads look at when an answer fails?

Wu et al. 2024 name three kinds of failure by eye: the needle is found in part, heads fall back on
the sink (the model makes something up), or they read something else. Here each trial's first free
steps are counted: mass on needle, rival statements and sink, and where the highest key stands,
over the heads that copy. Verdicts are the classes: "needle" (right), "rival" (the answer of another
statement), "other" (`retrieval_trials`).

The heads of a trial are those that copy most in forced rows of *other* needles' trials (a cross-fit
by needle), so that no trial is described by heads that it helped to choose.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import get_args

import numpy as np
import polars
from jaxtyping import Float, Int

from ..data.facts.needles import Verdict
from ..models.errors import MnemoscopeError
from ..results.statistics import Interval, bootstrap_mean
from .answer_steps import PLACES, StepReadings
from .retrieval_trials import RetrievalTrials

FIRST_STEPS = 2
"""Steps that are read: few, since behind a short answer heads go on to other things."""


@dataclass(frozen=True, eq=False)
class FailureAtlas:
    """Means over the trials of each verdict, with intervals over needles where there are two.

    `rows[verdict]` maps what was measured to its interval: "needle", "rivals", "sink" masses, and
    "top PLACE", the share of heads and steps whose highest key stands there. `counts` are trials.
    """

    rows: dict[Verdict, dict[str, Interval]]
    counts: dict[Verdict, int]
    heads: int
    steps: int

    @property
    def table(self) -> polars.DataFrame:
        """One row for each verdict and measure."""
        rows = [
            {
                "verdict": verdict,
                "trials": self.counts[verdict],
                "measure": name,
                "mean": float(one.mean),
                "low": float(one.low),
                "high": float(one.high),
            }
            for verdict, told in self.rows.items()
            for name, one in told.items()
        ]
        return polars.DataFrame(rows).fill_nan(None)


@dataclass(frozen=True, eq=False)
class TrialReadings:
    """What the copying heads did in the first free steps of each trial that says anything."""

    numbers: Int[np.ndarray, " trial"]
    """Places in the design."""
    needles: tuple[str, ...]
    values: dict[str, Float[np.ndarray, " trial"]]
    """Means over heads and steps; "rivals" is NaN in a haystack of one statement."""
    heads: int
    steps: int


def failure_atlas(trials: RetrievalTrials, *, heads: int = 8, seed: int = 0) -> FailureAtlas:
    """The atlas of all trials whose answer is not known without the haystack.

    A class with trials of one needle has a mean and no interval (NaN). Raises `MnemoscopeError`
    where the trials are about one needle.
    """
    read = read_copying_heads(trials, heads=heads)
    verdicts = np.array(trials.verdicts)[read.numbers]
    rows: dict[Verdict, dict[str, Interval]] = {}
    for verdict in get_args(Verdict):
        own = verdicts == verdict
        if own.any():
            needles = [needle for needle, one in zip(read.needles, own, strict=True) if one]
            rows[verdict] = {
                name: _interval(values[own], needles, seed)
                for name, values in read.values.items()
                if np.isfinite(values[own]).all()
            }
    counts = {verdict: int((verdicts == verdict).sum()) for verdict in rows}
    return FailureAtlas(rows, counts, read.heads, read.steps)


def read_copying_heads(
    trials: RetrievalTrials, *, heads: int = 8, steps: int = FIRST_STEPS
) -> TrialReadings:
    """Each trial's first free steps in the heads that copy most for other needles.

    "confidence" is the mean log-probability of the tokens said there, which reads no head at all.
    Raises `MnemoscopeError` where the trials are about one needle.
    """
    said = np.isfinite(trials.free_steps.log_prob[:, 0])
    numbers = np.flatnonzero(said & ~trials.known)
    needles = tuple(trials.design.trials[i].needle_id for i in numbers)
    if len(set(needles)) < 2:
        raise MnemoscopeError(
            f"{len(numbers)} answers about {len(set(needles))} needles: two are needed, so that "
            "heads can be chosen on other needles than they are read on."
        )
    best = _best_for_others(trials.forced.hits_set[numbers], needles, heads)
    masses = trials.free_steps
    values = {
        "needle": _of_heads(masses.needle_mass[numbers, :steps], best),
        "rivals": _of_heads(masses.rival_mass[numbers, :steps], best),
        "sink": _of_heads(masses.sink_mass[numbers, :steps], best),
        "highest weight": _of_heads(masses.top_weight[numbers, :steps], best),
    }
    values |= _top_shares(masses, numbers, best, steps)
    values["confidence"] = np.nanmean(masses.log_prob[numbers, :steps], axis=1)
    return TrialReadings(numbers, needles, values, best.shape[1], steps)


def _best_for_others(
    copied: Float[np.ndarray, "trial layer head"], needles: Sequence[str], k: int
) -> Int[np.ndarray, "trial k"]:
    """For each trial the heads, as flat numbers, with the highest sum of scores over the trials of
    other needles."""
    flat = np.nan_to_num(copied.reshape(len(copied), -1).astype(np.float64))
    names, unit = np.unique(np.asarray(needles), return_inverse=True)
    own = np.eye(len(names))[unit]
    return np.argsort(-(flat.sum(0) - own @ (own.T @ flat)), axis=1, kind="stable")[:, :k]


def _of_heads(
    values: Float[np.ndarray, "trial step layer head"], best: Int[np.ndarray, "trial k"]
) -> Float[np.ndarray, " trial"]:
    """Mean over a trial's heads and steps that apply; NaN where none does."""
    flat = values.reshape(*values.shape[:2], -1).astype(np.float64)
    picked = np.take_along_axis(flat, best[:, None], axis=2).reshape(len(flat), -1)
    applies = np.isfinite(picked)
    n = applies.sum(1)
    total = np.where(applies, picked, 0).sum(1)
    return np.divide(total, n, out=np.full(len(flat), np.nan), where=n > 0)


def _top_shares(
    steps: StepReadings, numbers: Int[np.ndarray, " trial"], best: np.ndarray, first: int
) -> dict[str, Float[np.ndarray, " trial"]]:
    place = steps.top_place[numbers, :first].astype(np.float64)
    place[place < 0] = np.nan
    return {
        f"top {name}": _of_heads(np.where(np.isnan(place), np.nan, place == i), best)
        for i, name in enumerate(PLACES)
    }


def _interval(values: Float[np.ndarray, " trial"], needles: Sequence[str], seed: int) -> Interval:
    if len(set(needles)) < 2:
        none = np.array(np.nan)
        return Interval(np.array(values.mean()), none, none, 0.95, 1)
    return bootstrap_mean(values, needles, seed=seed)
