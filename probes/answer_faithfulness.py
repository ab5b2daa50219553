"""Can one tell from the heads whether an answer was read from the context?

A logistic score of what the copying heads did while the answer began (`failure_atlas`): mass on the
sink, highest weight, highest key on sink or question. Nothing in it needs to know where the needle
stands or what is right, so it can be used on answers that nobody has checked. Every number is held
out: heads are chosen, and the score is fitted, on other needles than those it is read on. Beside it
stand the sink mass alone and the model's own confidence, which needs no head: a score that does not
beat them is not worth its price.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import polars
from jaxtyping import Bool, Float, Int

from ..models.errors import MnemoscopeError
from ..results.logistic import fit_logistic, logistic_probability
from ..results.statistics import bootstrap_weights
from .failure_atlas import TrialReadings, read_copying_heads
from .retrieval_trials import RetrievalTrials

FEATURES: dict[str, tuple[str, ...]] = {
    "heads": ("sink", "highest weight", "top sink", "top question"),
    "sink mass": ("sink",),
    "confidence": ("confidence",),
    "heads and confidence": ("sink", "highest weight", "top sink", "top question", "confidence"),
}
FEWEST = 5
"""Right and wrong answers that are needed of each."""


@dataclass(frozen=True)
class Detector:
    """How well one score tells right answers from wrong ones, on held-out needles.

    `auroc`: chance that a right answer scores above a wrong one of the same fold, with its interval
    over needles.
    `brier`: mean squared distance of the probabilities from 1 (right) and 0, lower is better;
    `brier_of_rate` is that of always saying the share of right answers.
    """

    name: str
    auroc: float
    low: float
    high: float
    brier: float
    brier_of_rate: float


@dataclass(frozen=True, eq=False)
class Faithfulness:
    """Held-out probabilities that each answer is right, and how good they are.

    `trials` are places in the design, `right` their labels, `probability[name]` one of each of the
    scores `FEATURES`. `lead` is the AUROC of "heads and confidence" less that of "confidence" with
    its interval: whether heads say anything that the model's own probabilities do not.
    """

    trials: Int[np.ndarray, " trial"]
    needles: tuple[str, ...]
    right: Bool[np.ndarray, " trial"]
    probability: dict[str, Float[np.ndarray, " trial"]]
    detectors: tuple[Detector, ...]
    lead: tuple[float, float, float]

    @property
    def table(self) -> polars.DataFrame:
        """One row a score."""
        return polars.DataFrame([one.__dict__ for one in self.detectors])

    def calibration(self, name: str = "heads", bins: int = 5) -> polars.DataFrame:
        """In bins of equally many answers: mean probability and the share that is right."""
        p = self.probability[name]
        groups = np.array_split(np.argsort(p, kind="stable"), bins)
        return polars.DataFrame(
            [
                {"probability": p[g].mean(), "right": self.right[g].mean(), "answers": len(g)}
                for g in groups
                if len(g)
            ]
        )


def measure_faithfulness(
    trials: RetrievalTrials, *, heads: int = 8, folds: int = 5, draws: int = 1000, seed: int = 0
) -> Faithfulness:
    """Fit and read the scores fold by fold, all trials of a needle in one fold.

    Right is an answer with the verdict "needle". Raises `MnemoscopeError` with the counts for fewer
    than `FEWEST` right or wrong answers, or folds whose rest has only one kind.
    """
    read = read_copying_heads(trials, heads=heads)
    right = trials.accepted[read.numbers]
    if min(right.sum(), (~right).sum()) < FEWEST:
        raise MnemoscopeError(
            f"{int(right.sum())} answers are right and {int((~right).sum())} wrong: {FEWEST} of "
            "each are needed to tell them apart; use harder or easier haystacks."
        )
    fold = _folds(read.needles, folds, seed)
    mixed = [len(set(right[fold == i].tolist())) == 2 for i in np.unique(fold)]
    if any(len(set(right[fold != i].tolist())) < 2 for i in np.unique(fold)) or not any(mixed):
        raise MnemoscopeError(
            "all wrong (or right) answers are about needles of one fold: use more needles."
        )
    probability = {
        name: _held_out(_columns(read, names), right, fold) for name, names in FEATURES.items()
    }
    weights = np.concatenate(
        [np.ones((1, len(right))), bootstrap_weights(read.needles, draws=draws, seed=seed)]
    )
    areas = {name: _areas(p, right, fold, weights) for name, p in probability.items()}
    rate = right.mean()
    gap = areas["heads and confidence"] - areas["confidence"]
    return Faithfulness(
        trials=read.numbers,
        needles=read.needles,
        right=right,
        probability=probability,
        detectors=tuple(
            Detector(
                name,
                *_with_ends(areas[name]),
                float(((p - right) ** 2).mean()),
                float(rate * (1 - rate)),
            )
            for name, p in probability.items()
        ),
        lead=_with_ends(gap),
    )


def _columns(read: TrialReadings, names: Sequence[str]) -> Float[np.ndarray, "trial feature"]:
    return np.column_stack([read.values[name] for name in names])


def _folds(needles: Sequence[str], folds: int, seed: int) -> Int[np.ndarray, " trial"]:
    """A fold for each trial, by needle, of equally many needles within one."""
    names, unit = np.unique(np.asarray(needles), return_inverse=True)
    order = np.random.default_rng(seed).permutation(len(names))
    return np.asarray((np.argsort(order) % min(folds, len(names)))[unit])


def _held_out(
    features: Float[np.ndarray, "trial feature"],
    right: Bool[np.ndarray, " trial"],
    fold: Int[np.ndarray, " trial"],
) -> Float[np.ndarray, " trial"]:
    """Probabilities from a fit on the other folds, scaled as these are."""
    found = np.empty(len(right))
    for i in np.unique(fold):
        rest = fold != i
        mean, spread = features[rest].mean(0), features[rest].std(0)
        scaled = (features - mean) / np.where(spread > 0, spread, 1.0)
        weights = fit_logistic(scaled[rest], right[rest])
        found[~rest] = logistic_probability(scaled[~rest], weights)
    return found


def _areas(
    p: Float[np.ndarray, " trial"],
    right: Bool[np.ndarray, " trial"],
    fold: Int[np.ndarray, " trial"],
    weights: Float[np.ndarray, "draw trial"],
) -> Float[np.ndarray, " draw"]:
    """AUROC with each row of weights, ties counting half; NaN where a kind was not drawn.

    Only answers of one fold are compared: a fold with more right answers leaves fewer to the fit
    that scores it, so that across folds a score without a message does worse than chance.
    """
    together = fold[right][:, None] == fold[~right]
    gap = p[right][:, None] - p[~right]
    wins = together * ((gap > 0) + 0.5 * (gap == 0))
    yes, no = weights[:, right], weights[:, ~right]
    pairs = ((yes @ together) * no).sum(1)
    won = ((yes @ wins) * no).sum(1)
    return np.divide(won, pairs, out=np.full(len(pairs), np.nan), where=pairs > 0)


def _with_ends(areas: Float[np.ndarray, " draw"]) -> tuple[float, float, float]:
    low, high = np.nanquantile(areas[1:], [0.025, 0.975])
    return float(areas[0]), float(low), float(high)
