"""Retrieval heads: which heads copy a needle's answer, which find the needle from the question?

Scores of a head in one trial; the higher, the more it does the job. Readings are explained in
`retrieval_readings`, statistics over trials live in `retrieval_statistics`.

    copy          share of the answer's distinct tokens that it copied (Wu et al. 2024), 0 to 1
    event         copying steps / answer tokens: the released code's score, can pass 1
    first         copied the answer's first token: no induction can do that
    continuation  share of the answer's other tokens copied: induction does it too
    jump          `continuation` where induction cannot help: needles with a broken order of words
    soft          attention weight on the keys that hold the predicted token, 0 to 1
    margin        score of the best of those keys minus the best key outside the needle
    lead          the needle's best score minus the logsumexp of all outside it (`length_laws`)
    locate_lead   the same of question rows
    emit          attention mass of the answer rows on the needle, 0 to 1
    contrast      answer rows: mass per token of the needle minus mass per token outside it
    r2            HeadKV's weight of top keys in the needle, per needle token
    locate        question rows: mass per token of the needle minus mass per token outside it
    locate_mass   question rows: attention mass on the needle, 0 to 1
    rival, locate_rival, sink   masses on the other statements and on the first tokens: what a
                  head looks at instead

Forced and free answer rows, accepted and rejected trials are scored apart, never in one mean.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np
from jaxtyping import Bool, Float, Int

from ..data.facts.answers import normalise
from ..models.errors import MnemoscopeError
from ..models.types import HeadId
from .retrieval_readings import AnswerReadings, QuestionReadings
from .retrieval_trials import RetrievalTrials

Mode = Literal["forced", "free"]
Among = Literal["accepted", "rejected", "all"]
Gate = Literal["judge", "recall"]
Score = Literal[
    "copy",
    "event",
    "first",
    "continuation",
    "jump",
    "soft",
    "margin",
    "lead",
    "emit",
    "contrast",
    "r2",
    "locate",
    "locate_mass",
    "locate_lead",
    "rival",
    "locate_rival",
    "sink",
]
SCORES: tuple[Score, ...] = get_args(Score)
RETRIEVAL_THRESHOLD = 0.1
"""Mean copy score from which Wu et al. call a head a retrieval head."""


@dataclass(frozen=True, eq=False)
class RetrievalScores:
    """Scores trial by trial, `values[score]` `[trial, layer, head]`; NaN: not applicable.

    The trial axis, and `trials`, `needles`, `lengths`, `depths` with it, holds the trials kept:
    `trials` are their places in the design, `depths` their share of filler before the needle.
    `counts` says how many were asked, accepted, known and kept. `notes` have to be read beside the
    scores.
    """

    mode: Mode
    among: Among
    gate: Gate
    values: Mapping[Score, Float[np.ndarray, "trial layer head"]]
    trials: Int[np.ndarray, " trial"]
    needles: tuple[str, ...]
    lengths: Int[np.ndarray, " trial"]
    depths: Float[np.ndarray, " trial"]
    counts: Mapping[str, int]
    notes: tuple[str, ...]

    def mean(self, score: Score) -> Float[np.ndarray, "layer head"]:
        """Mean over the trials that apply to a head; NaN where none does."""
        values = self.values[score]
        applies = ~np.isnan(values)
        total = np.where(applies, values, 0).sum(0, dtype=np.float64)
        return np.divide(
            total, applies.sum(0), out=np.full_like(total, np.nan), where=applies.any(0)
        )

    def active(self, score: Score = "copy") -> Float[np.ndarray, "layer head"]:
        """Activation frequency: share of trials with a score above 0, of those that apply."""
        values = self.values[score]
        applies = ~np.isnan(values)
        n = applies.sum(0)
        return np.divide((values > 0).sum(0), n, out=np.full(n.shape, np.nan), where=applies.any(0))

    def per_head(self, score: Score) -> dict[HeadId, tuple[float, ...]]:
        """Head to its scores, one a trial that applies: what `retrieval_head_files` writes."""
        values = self.values[score]
        return {
            HeadId(i, j): tuple(float(x) for x in values[:, i, j] if not np.isnan(x))
            for i, j in np.ndindex(*values.shape[1:])
        }


def score_trials(
    trials: RetrievalTrials,
    *,
    mode: Mode = "free",
    among: Among = "accepted",
    gate: Gate = "judge",
) -> RetrievalScores:
    """Scores of the trials `among` those asked, known needles left out, in one mode of answer rows.

    For the published score take `mode="free", among="accepted"` and read "event"; `gate="recall"`
    then accepts as the released code does (`recalled`). Raises `MnemoscopeError`, with the counts,
    when no trial is left, and when no head of the model can see a needle.
    """
    accepted = trials.accepted if gate == "judge" else recalled(trials)
    kept = {"accepted": accepted, "rejected": ~accepted, "all": np.ones_like(accepted)}[among]
    kept = kept & ~trials.known
    counts = {
        "asked": len(accepted),
        "accepted": int(accepted.sum()),
        "known": int(trials.known.sum()),
        "kept": int(kept.sum()),
    }
    if not kept.any():
        raise MnemoscopeError(_nothing_left(among, counts))
    readings = trials.forced if mode == "forced" else trials.free
    values = {name: cells[kept] for name, cells in _scores(readings, trials.question).items()}
    chosen = [trial for trial, keep in zip(trials.design.trials, kept, strict=True) if keep]
    return RetrievalScores(
        mode=mode,
        among=among,
        gate=gate,
        values=values,
        trials=np.flatnonzero(kept),
        needles=tuple(trial.needle_id for trial in chosen),
        lengths=np.array([trial.length for trial in chosen]),
        depths=np.array([trial.depth for trial in chosen]),
        counts=counts,
        notes=(*trials.notes, *_visible_notes(values["locate_mass"])),
    )


def recalled(trials: RetrievalTrials) -> Bool[np.ndarray, " trial"]:
    """Wu's gate on the answer: more than half of its words stand in what the model said (ROUGE-1
    recall; words are folded here, not stemmed)."""
    return np.array(
        [
            _recall(text, trials.design.needle(trial.needle_id).answer) > 0.5
            for text, trial in zip(trials.continuations, trials.design.trials, strict=True)
        ]
    )


def _recall(text: str, answer: str) -> float:
    said, words = normalise(text).split(), normalise(answer).split()
    return sum(min(said.count(word), words.count(word)) for word in set(words)) / len(words)


def _scores(
    answer: AnswerReadings, question: QuestionReadings
) -> dict[Score, Float[np.ndarray, "trial layer head"]]:
    return {
        "copy": answer.hits_set,
        "event": answer.hits_event,
        "first": answer.first_hit,
        "continuation": answer.later_hits,
        "jump": answer.jump_hits,
        "soft": answer.soft,
        "margin": answer.margin,
        "lead": answer.lead,
        "emit": answer.needle_mass,
        "contrast": answer.contrast,
        "r2": answer.r2,
        "locate": question.contrast,
        "locate_mass": question.needle_mass,
        "locate_lead": question.lead,
        "rival": answer.rival_mass,
        "locate_rival": question.rival_mass,
        "sink": answer.sink_mass,
    }


def _nothing_left(among: Among, counts: Mapping[str, int]) -> str:
    which = {"accepted": "accepted", "rejected": "rejected", "all": "unknown"}[among]
    mend = {
        "accepted": "ask in the model's chat template, use shorter haystacks or fewer needles in "
        "each, or score rejected or all trials",
        "rejected": "score accepted trials, or make them harder",
        "all": "use needles that the model cannot know",
    }[among]
    return (
        f"no {which} trial to score: {counts['asked']} were asked, {counts['accepted']} answered "
        f"from the haystack and {counts['known']} without it; {mend}."
    )


def _visible_notes(mass: Float[np.ndarray, "trial layer head"]) -> Sequence[str]:
    """Heads whose window ends before the needle have no score; raises when that is all of them."""
    blind = np.isnan(mass).all(0)
    if blind.all():
        raise MnemoscopeError(
            "no head of this model can see a needle from the question: all of them read a window "
            "that ends before it; use shorter haystacks."
        )
    if not blind.any():
        return ()
    return (
        f"{int(blind.sum())} of {blind.size} heads never see a needle (sliding windows): their "
        "scores do not apply, which is not a score of 0.",
    )
