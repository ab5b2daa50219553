"""What the trials of `retrieval score` tell beside scores of heads: laws of length, the steps of an
answer, and how answers fail. Nothing is run for it. All columns come together here."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any, TypeVar

import numpy as np
import polars
from jaxtyping import Float

from ..models.errors import MnemoscopeError
from ..probes.answer_faithfulness import Faithfulness, measure_faithfulness
from ..probes.dynamic_heads import DynamicSets, dynamic_sets
from ..probes.failure_atlas import FailureAtlas, failure_atlas
from ..probes.length_laws import LengthLaw, fit_length_law
from ..probes.retrieval_heads import RetrievalScores, score_trials
from ..probes.retrieval_measures import Measured, Summarised
from ..probes.retrieval_trials import RetrievalTrials
from .neuron_finding import plain
from .retrieval_causal import Causal

Found = TypeVar("Found")


@dataclass(frozen=True, eq=False)
class Answers:
    """None where the trials do not allow it (one length, no wrong answers); `notes` say why."""

    law: LengthLaw | None
    """Of answer rows, all trials, teacher-forced."""
    locate_law: LengthLaw | None
    """Of question rows."""
    dynamic: DynamicSets | None
    atlas: FailureAtlas | None
    faithfulness: Faithfulness | None
    notes: tuple[str, ...]

    @property
    def grids(self) -> dict[str, Float[np.ndarray, "layer head"]]:
        """Further columns of the table of heads."""
        laws = {"": self.law, "locate_": self.locate_law}
        grids = {
            f"{prefix}{name}": getattr(law, name)
            for prefix, law in laws.items()
            if law is not None
            for name in ("lead", "decay", "horizon", "horizon_low", "horizon_high")
        }
        if self.dynamic is not None:
            grids["step_entropy"] = self.dynamic.head_entropy
        return grids

    @property
    def tables(self) -> dict[str, polars.DataFrame]:
        """Further tables of the report, by caption."""
        tables = {}
        if self.dynamic is not None:
            tables["Heads that copy, by step of the answer"] = self.dynamic.table
        if self.atlas is not None:
            tables[
                f"What the {self.atlas.heads} heads that copy most look at in the first "
                f"{self.atlas.steps} steps, by verdict"
            ] = self.atlas.table
        if self.faithfulness is not None:
            tables["Telling right answers from wrong ones, held out by needle"] = (
                self.faithfulness.table
            )
            tables["Held-out probabilities of the heads' score against what was right"] = (
                self.faithfulness.calibration()
            )
        return tables

    @property
    def summary(self) -> dict[str, Any]:
        """The same as JSON."""
        told: dict[str, Any] = {"alike_steps": None, "fixed_heads": None, "faithfulness": None}
        if self.dynamic is not None:
            told["alike_steps"] = _ends(self.dynamic.alike)
            told["fixed_heads"] = {"k": self.dynamic.k, **(_ends(self.dynamic.fixed) or {})}
        if self.faithfulness is not None:
            told["faithfulness"] = [asdict(one) for one in self.faithfulness.detectors]
        return plain(told)


@dataclass(frozen=True, eq=False)
class Whole:
    """Statistics of all heads with every further column, and where these come from."""

    found: Summarised
    answers: Answers
    causal: Causal | None


def with_columns(
    found: Summarised, measured: Measured, causal: Causal | None, *, seed: int
) -> Whole:
    """Columns of laws of length and steps of answers, and of edges where any were cut."""
    answers = tell_answers(measured.trials, seed=seed)
    scores, roles, notes = dict(found.scores), dict(found.roles), (*found.notes, *answers.notes)
    if causal is not None:
        scores["edge"], roles["edge_role"] = causal.edges, causal.roles
        notes = (*notes, *causal.notes)
    grids = {**found.grids, **answers.grids}
    wider = replace(found, scores=scores, grids=grids, roles=roles, notes=notes)
    return Whole(wider, answers, causal)


def tell_answers(trials: RetrievalTrials, *, seed: int) -> Answers:
    """All of it, from trials that were run."""
    notes: list[str] = []
    everyone = score_trials(trials, mode="forced", among="all")
    kept = trials.accepted & ~trials.known
    needles = [trial.needle_id for trial in trials.design.trials]
    return Answers(
        law=_law(everyone, "lead", seed, notes),
        locate_law=_law(everyone, "locate_lead", seed, []),
        dynamic=_unless("steps of answers", notes)(
            lambda: dynamic_sets(trials.forced_steps, needles, kept=kept, seed=seed)
        ),
        atlas=_unless("atlas of failures", notes)(lambda: failure_atlas(trials, seed=seed)),
        faithfulness=_unless("score of faithfulness", notes)(
            lambda: measure_faithfulness(trials, seed=seed)
        ),
        notes=tuple(notes),
    )


def _law(scores: RetrievalScores, score: Any, seed: int, notes: list[str]) -> LengthLaw | None:
    return _unless("law of length", notes)(
        lambda: fit_length_law(scores.values[score], scores.needles, scores.lengths, seed=seed)
    )


def _unless(what: str, notes: list[str]) -> Callable[[Callable[[], Found]], Found | None]:
    """Runs it, and notes the reason where it is refused."""

    def attempt(work: Callable[[], Found]) -> Found | None:
        try:
            return work()
        except MnemoscopeError as error:
            notes.append(f"No {what}: {error}")
            return None

    return attempt


def _ends(interval: Any) -> Mapping[str, float] | None:
    if interval is None:
        return None
    return {name: float(getattr(interval, name)) for name in ("mean", "low", "high")}
