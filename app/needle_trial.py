"""One trial of retrieval, kept so that any head can be looked at afterwards: no page here."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from time import perf_counter
from typing import Literal

import numpy as np
import polars
from jaxtyping import Float

from ..data.facts.needles import Needle, NeedleDesign, NeedleKind, Trial, Verdict, judge
from ..models.errors import MnemoscopeError
from ..models.hooked import HookedModel
from ..models.pooled_maps import HeldScores, held_bytes, hold_scores
from ..models.prompt_cache import PromptCache
from ..models.row_summaries import RowSummaries
from ..models.types import HeadId
from ..probes.retrieval_designs import design_for
from ..probes.retrieval_readings import (
    SINK,
    AnswerReadings,
    AskedRows,
    QuestionReadings,
    ask,
    at_queries,
    heard,
    read_answer,
    read_question,
)
from .answers import token_label
from .background import Tell, silent
from .own_haystack import DEPTHS, OwnText, own_design

NEW_TOKENS = 16
CHUNK = 1024
"""Tokens of the haystack between two words about progress."""
MOST_BYTES = 2**30
"""Of queries and keys that one trial may keep."""

Mode = Literal["forced", "free"]
MODES: tuple[Mode, ...] = ("forced", "free")

SCORES: Mapping[str, tuple[str, str]] = {
    "copied": ("hits_set", "share of the answer's tokens that the head copied"),
    "first token": ("first_hit", "1 where the head copied the answer's first token"),
    "needle, answering": ("needle_mass", "mean attention of the answer rows on the needle"),
    "needle, asking": ("question", "mean attention of the question rows on the needle"),
    "margin": ("margin", "highest score on the right token minus highest outside the needle"),
    "rival": ("rival_mass", "mean attention of the answer rows on the other statement"),
    "sink": ("sink_mass", "mean attention of the answer rows on the first four tokens"),
}
"""What the grid can show: name to (field of the readings, words)."""


@dataclass(frozen=True)
class Asked:
    """What a person asked for; `seed` chooses needle and filler, `depth` counts from 0 (front)."""

    length: int
    depth: int
    kind: NeedleKind
    topic: str | None
    seed: int
    rival: bool


Hay = Asked | OwnText
"""A made needle in a made haystack, or a text of somebody's own."""


@dataclass(frozen=True, eq=False)
class Followed:
    """The question followed by an answer, behind the haystack: rows of all heads and their sums."""

    asked: AskedRows
    rows: RowSummaries
    """Of the answer rows."""
    scores: AnswerReadings
    held: Mapping[int, HeldScores]
    """Queries and keys of question and answer, by layer."""


@dataclass(frozen=True, eq=False)
class NeedleTrial:
    """One trial as it went. `free` is None where the model ended at once; `known` says that the
    question is answered without its haystack too."""

    design: NeedleDesign
    trial: Trial
    said: str
    verdict: Verdict
    known: bool
    forced: Followed
    free: Followed | None
    question: QuestionReadings
    held: Mapping[int, HeldScores]
    """Queries and keys of the haystack, by layer."""
    seconds: float = 0.0
    """How long all of it took."""

    @property
    def needle(self) -> Needle:
        """The statement that is asked about."""
        return self.design.needle(self.trial.needle_id)

    @property
    def spans(self) -> dict[str, tuple[int, int]]:
        """Tokens of the needle, the answer in it, the rival and the question, start and stop."""
        return spans_of(self.design, self.trial)

    def followed(self, mode: Mode) -> Followed:
        """The rows of a mode. Raises `MnemoscopeError` where the model said nothing."""
        followed = self.forced if mode == "forced" else self.free
        if followed is None:
            raise MnemoscopeError("the model ended at once, so it read nothing: choose forced.")
        return followed

    def head_scores(self, mode: Mode, head: HeadId) -> HeldScores:
        """Queries and keys of one head, over haystack, question and answer."""
        behind = self.followed(mode).held[head.layer].head(head.head)
        return self.held[head.layer].head(head.head).followed_by(behind)

    def layer_scores(self, mode: Mode) -> Iterator[HeldScores]:
        """The same of all heads, one layer after the other."""
        behind = self.followed(mode).held
        return (scores.followed_by(behind[layer]) for layer, scores in self.held.items())


def lengths_for(model: HookedModel) -> tuple[int, ...]:
    """Haystacks that fit the model's context and what a page may keep, in tokens."""
    room = (model.anatomy.max_context or 2**15) - 128
    every = [length for length in (128, 256, 512, 1024, 2048, 4096, 8192, 16384) if length <= room]
    if 128 < room < 4096:
        every.append(room // 32 * 32)  # as long as can be
    fitting = sorted({length for length in every if held_bytes(model, length) <= MOST_BYTES})
    if not fitting:
        raise MnemoscopeError(
            f"{model.name} reads too few tokens, or keeps too much for each, to hide a needle in: "
            "choose another model."
        )
    return tuple(fitting)


def longest_text(model: HookedModel) -> int:
    """Tokens of context and prompt of one's own that fit the same."""
    room = (model.anatomy.max_context or 2**15) - NEW_TOKENS
    return min(room, MOST_BYTES // held_bytes(model, 1))


def trial_design(model: HookedModel, asked: Hay) -> tuple[NeedleDesign, Trial]:
    """The design and the trial whose needle stands at the asked depth, or in one's own text.

    Raises `MnemoscopeError` for what does not fit the model.
    """
    if isinstance(asked, OwnText):
        return own_design(model, asked, longest_text(model))
    design = design_for(
        model,
        lengths=(asked.length,),
        needles=1,
        kind=asked.kind,
        depths=DEPTHS,
        needles_per_haystack=1,
        rounds=DEPTHS,
        seed=asked.seed,
        distractors=int(asked.rival),
        topics=None if asked.topic is None else (asked.topic,),
    )
    return design, next(trial for trial in design.trials if trial.stratum == asked.depth)


def spans_of(design: NeedleDesign, trial: Trial) -> dict[str, tuple[int, int]]:
    """Tokens of the needle, the answer in it, the rival and the question, start and stop."""
    haystack = design.haystacks[trial.haystack]
    named = {"needle": trial.needle, "answer": trial.answer}
    if haystack.distractors:
        named["rival"] = haystack.distractors[0][1]
    found = {name: (span.start, span.stop) for name, span in named.items()}
    return found | {"question": (trial.length, trial.length + len(trial.question_ids))}


def run_trial(model: HookedModel, asked: Hay, tell: Tell = silent) -> NeedleTrial:
    """Prefill, ask freely, replay with the gold answer and with the model's own.

    `tell` hears how far it is, and may end it by raising.

    Memory: `held_bytes` for queries and keys, the result's only large part. Raises
    `MnemoscopeError` for what does not fit the model.
    """
    began = perf_counter()
    design, trial = trial_design(model, asked)
    ids = design.haystacks[trial.haystack].ids
    haystack = None
    with hold_scores(model) as held:
        for first in range(0, len(ids), CHUNK):
            tell(0.7 * first / len(ids), f"token {first} of {len(ids)}")
            haystack = model.prefill(ids[first : first + CHUNK], before=haystack)
    assert haystack is not None
    tell(0.7, "asking")
    new = model.greedy_from(haystack, trial.question_ids, NEW_TOKENS)
    said = model.text_tokenizer.decode(new)
    alone = model.generate(model.batch([design.control(trial)]), NEW_TOKENS)[0]
    needle = design.needle(trial.needle_id)
    tell(0.8, "reading the gold answer")
    forced, question = _follow(model, haystack, ask(design, trial, trial.answer_ids))
    tell(0.9, "reading the model's own answer")
    begun = heard(new, trial.answer_ids)
    whole = begun is not None and begun[1] - begun[0] == len(trial.answer_ids)
    spoken = new[: begun[1]] if begun is not None and whole else new
    free = _follow(model, haystack, ask(design, trial, spoken))[0] if spoken else None
    return NeedleTrial(
        design,
        trial,
        said,
        judge(said, needle, design.rivals(trial)),
        judge(model.text_tokenizer.decode(alone), needle) == "needle",
        forced,
        free,
        question,
        held,
        perf_counter() - began,
    )


def score_frame(found: NeedleTrial, mode: Mode, score: str) -> polars.DataFrame:
    """One row a head as the grid wants it; null where the score does not apply."""
    name = SCORES[score][0]
    source = found.question.needle_mass if name == "question" else None
    values = source if source is not None else getattr(found.followed(mode).scores, name)
    layers, heads = np.indices(values[0].shape)
    frame = polars.DataFrame(
        {"layer": layers.ravel(), "head": heads.ravel(), "score": values[0].ravel().astype(float)}
    )
    nothing = [polars.lit(None, polars.Float64).alias(name) for name in ("low", "high", "q")]
    return frame.with_columns(polars.col("score").fill_nan(None), *nothing)


def answer_weights(found: NeedleTrial, mode: Mode, head: HeadId) -> Float[np.ndarray, "step key"]:
    """The head's whole attention rows, one for each token of the answer that they predict."""
    asked = found.followed(mode).asked
    first = asked.trial.length + asked.answer_rows.start
    rows = found.head_scores(mode, head).rows(first, len(asked.ids))[0].exp()
    return rows.float().cpu().numpy()


def step_table(
    model: HookedModel, found: NeedleTrial, mode: Mode, head: HeadId
) -> polars.DataFrame:
    """One row for each token of the answer: `token`, `read` (the key looked at most), `position`,
    `weight`, `where` it stands, `needle` (weight on the whole statement), `copied`."""
    followed = found.followed(mode)
    asked, rows = followed.asked, followed.rows
    keys = rows.top_key[head.layer, 0, head.head, :, 0].tolist()
    where = [_place(found, key) for key in keys]
    read = [asked.ids[key] for key in keys]
    return polars.DataFrame(
        {
            "token": [token_label(piece) for piece in model.pieces(asked.following)],
            "read": [token_label(piece) for piece in model.pieces(read)],
            "position": keys,
            "weight": rows.top_weight[head.layer, 0, head.head, :, 0].tolist(),
            "where": where,
            "needle": rows.mass[head.layer, 0, head.head, :, 0].tolist(),
            "copied": [
                place == "answer" and key == token
                for place, key, token in zip(where, read, asked.following, strict=True)
            ],
        }
    ).with_columns(polars.col("needle").fill_nan(None))


def _follow(
    model: HookedModel, haystack: PromptCache, asked: AskedRows
) -> tuple[Followed, QuestionReadings]:
    with hold_scores(model) as held:
        reading = model.read_suffix(haystack, asked.suffix, spans=asked.masks, top=asked.top)
    rows = at_queries(reading.rows, asked.answer_rows)
    scores = read_answer(asked, rows, reading.logits[asked.answer_rows.start :])
    question = read_question(asked, at_queries(reading.rows, asked.question_rows))
    return Followed(asked, rows, scores, held), question


def _place(found: NeedleTrial, key: int) -> str:
    """Which span a key stands in, the narrowest first."""
    named = ("answer", "needle", "rival", "question")
    spans = found.spans
    inside = [name for name in named if name in spans and spans[name][0] <= key < spans[name][1]]
    if inside:
        return inside[0]
    if key < SINK:
        return "sink"
    return "answer so far" if key >= spans["question"][1] else "filler"
