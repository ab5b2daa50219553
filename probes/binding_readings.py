"""What every question is answered with, under every intervention on its context.

The results of the binding probes have one form, so that each stands beside the behaviour: the
log-probabilities of all candidate answers, the slot that the model was told, and the slot that
binding IDs predict under the intervention (reversal_binding, section 3.1).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import numpy as np
import polars
from jaxtyping import Bool, Float, Int

from ..results.statistics import Interval, bootstrap_mean, paired_difference

Measure = Literal["moved", "kept", "as told"]
CLEAN = "clean"


@dataclass(frozen=True, eq=False)
class BindingReadings:
    """Log-probabilities, nats, of each answer's first token. `queries` and `answers` are words such
    as "e0" and "a'1"; `predicted` and `told` are indices of answers, -1 where there is none (the
    name is unknown). The first condition is the clean one."""

    conditions: tuple[str, ...]
    queries: tuple[str, ...]
    answers: tuple[str, ...]
    log_prob: Float[np.ndarray, "condition context query answer"]
    predicted: Int[np.ndarray, "condition query"]
    told: Int[np.ndarray, " query"]

    @property
    def calibrated(self) -> Float[np.ndarray, "condition context query answer"]:
        """`log_prob` less each answer's median over contexts and over queries that have an answer:
        a liking for the first or the last slot falls away. Answers that no query is predicted to
        have are out of the choice (-inf), for a median would lift them to the others' height."""
        values = np.full_like(self.log_prob, -np.inf)
        for i, asked in enumerate(self.predicted):
            there = np.unique(asked[asked >= 0])
            scores = self.log_prob[i][..., there]
            values[i][..., there] = scores - np.median(scores[:, asked >= 0], axis=(0, 1))
        return values

    def accuracy(
        self, condition: int, measure: Measure, *, calibrated: bool = False, seed: int = 0
    ) -> Interval | None:
        """Share of answers that are right, with its interval over contexts; None for no queries.

        "moved": queries whose predicted answer is not the one told, right as predicted; "kept":
        those whose predicted answer is; "as told": all queries of told names, right as told.
        """
        asked, right = self._asked(condition, measure)
        if not asked.any():
            return None
        scores = (self.calibrated if calibrated else self.log_prob)[condition]
        hits = scores[:, asked].argmax(-1) == right[asked]
        return bootstrap_mean(hits.mean(1), range(len(hits)), seed=seed)

    def behaviour(self, *, calibrated: bool = False, seed: int = 0) -> Interval:
        """Accuracy without any intervention."""
        found = self.accuracy(0, "as told", calibrated=calibrated, seed=seed)
        assert found is not None
        return found

    def gaps(self) -> Float[np.ndarray, "condition context"]:
        """Log-probability of the told answer less the mean of the other told ones, nats, mean over
        the queries of told names."""
        (known,) = np.nonzero(self.told >= 0)
        values = self.log_prob[:, :, known][..., self.told[known]]
        n = len(known)
        own = values.diagonal(axis1=2, axis2=3)
        others = (values.sum(-1) - own) / (n - 1)
        return np.asarray((own - others).mean(-1))

    def accuracies(self, seed: int = 0) -> polars.DataFrame:
        """One row a condition and measure: raw and median-calibrated accuracy with intervals over
        contexts, the behaviour beside them, and chance (all candidates alike)."""
        return polars.DataFrame(list(self._accuracy_rows(seed)))

    def changes(self, seed: int = 0) -> polars.DataFrame:
        """One row a condition, query and answer: mean log-probability, its change against clean
        with interval over contexts and sign-flip p, and whether the answer is predicted."""
        contexts = range(self.log_prob.shape[1])
        rows = []
        for i, condition in enumerate(self.conditions):
            change = paired_difference(self.log_prob[i], self.log_prob[0], contexts, seed=seed)
            for q, a in np.ndindex(len(self.queries), len(self.answers)):
                rows.append(
                    {
                        "condition": condition,
                        "query": self.queries[q],
                        "answer": self.answers[a],
                        "log_prob": float(self.log_prob[i, :, q, a].mean()),
                        "change": float(change.interval.mean[q, a]),
                        "low": float(change.interval.low[q, a]),
                        "high": float(change.interval.high[q, a]),
                        "p": float(change.p[q, a]),
                        "predicted": bool(self.predicted[i, q] == a),
                        "told": bool(self.told[q] == a),
                    }
                )
        return polars.DataFrame(rows)

    def gap_table(self, seed: int = 0) -> polars.DataFrame:
        """One row a condition: the mean gap with interval, and its change against clean."""
        gaps = self.gaps()
        contexts = range(gaps.shape[1])
        rows = []
        for condition, values in zip(self.conditions, gaps, strict=True):
            here = bootstrap_mean(values, contexts, seed=seed)
            change = paired_difference(values, gaps[0], contexts, seed=seed)
            rows.append(
                {
                    "condition": condition,
                    "gap": float(here.mean),
                    "low": float(here.low),
                    "high": float(here.high),
                    "change": float(change.interval.mean),
                    "p": float(change.p),
                }
            )
        return polars.DataFrame(rows)

    def _asked(
        self, condition: int, measure: Measure
    ) -> tuple[Bool[np.ndarray, " query"], Int[np.ndarray, " query"]]:
        """Which queries count, and the right answer of each."""
        if measure == "as told":
            return self.told >= 0, self.told
        predicted = self.predicted[condition]
        differs = predicted != self.told
        return (predicted >= 0) & (differs if measure == "moved" else ~differs), predicted

    def _accuracy_rows(self, seed: int) -> Iterator[dict[str, object]]:
        measures: tuple[Measure, ...] = ("moved", "kept", "as told")
        behaviour = float(self.behaviour(seed=seed).mean)
        for i, condition in enumerate(self.conditions):
            for measure in measures:
                raw = self.accuracy(i, measure, seed=seed)
                fair = self.accuracy(i, measure, calibrated=True, seed=seed)
                if raw is None or fair is None:
                    continue
                yield {
                    "condition": condition,
                    "measure": measure,
                    "accuracy": float(raw.mean),
                    "low": float(raw.low),
                    "high": float(raw.high),
                    "calibrated": float(fair.mean),
                    "calibrated_low": float(fair.low),
                    "calibrated_high": float(fair.high),
                    "behaviour": behaviour,
                    "chance": 1 / len(self.answers),
                }
