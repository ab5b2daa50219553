"""What the attention rows of one trial say, head by head: copying, needle mass, margins.

*Question rows* belong to the question's tokens without its last one; *answer rows* to END (the last
token of the prompt) and to all answer tokens but the last, since their logits predict the answer.
No row is on both sides. Which tokens follow END is the mode of answer rows: *forced* (the gold
answer) or *free* (what the model says itself); the two are never mixed in one mean.

A step is a *copying* step of a head when the key with its highest score lies in the needle's answer
and holds the very token that this row predicts (Wu et al. 2024, arXiv 2404.15574). NaN stands for
"not applicable" everywhere: a windowed head that cannot see the needle, a trial without such a row.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from ..data.facts.needles import NeedleDesign, Span, Trial
from ..models.row_summaries import RowSummaries

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

SPANS = ("needle", "answer", "rivals", "sink", "recent", "question", "rest")
"""Spans of keys that every row is read for: the needle's statement, the answer in it, the other
statements of the haystack, the first `SINK` tokens, the last `RECENT` tokens of the haystack (less
needle, rivals and sink), the question with END, and `rest`, which is everything but the needle."""
SINK = 4
RECENT = 256
_NEEDLE, _ANSWER, _REST = (SPANS.index(name) for name in ("needle", "answer", "rest"))


@dataclass(frozen=True, eq=False)
class AnswerReadings:
    """Answer rows of one mode, forced or free; arrays `[trial, layer, head]`, float32, NaN = n/a.

    Means are over the answer rows that can see the needle's answer.
    """

    hits_set: Float[np.ndarray, "trial layer head"]
    """Share of the answer's distinct tokens that the head copied at some step, 0 to 1."""
    hits_event: Float[np.ndarray, "trial layer head"]
    """Copying steps divided by the answer's tokens, as released code counts; can pass 1."""
    first_hit: Float[np.ndarray, "trial layer head"]
    """1 where the head copies at the step that predicts the answer's first token, else 0; NaN
    where no row does (free mode: the model never began the answer)."""
    later_hits: Float[np.ndarray, "trial layer head"]
    """Share of copying steps among those that predict the answer's other tokens; NaN without."""
    jump_hits: Float[np.ndarray, "trial layer head"]
    """`later_hits` at the steps where no induction can help: nowhere in the haystack does the
    predicted token follow the token that it follows in the answer. NaN without such a step, which
    only needles with a broken order of words have (`data.facts.needles.reordered`)."""
    soft: Float[np.ndarray, "trial layer head"]
    """Mean attention weight on keys of the answer that hold the predicted token, 0 to 1."""
    margin: Float[np.ndarray, "trial layer head"]
    """Mean over steps of the highest score on such a key minus the highest score outside the
    needle, in score units (natural log of a weight ratio); positive: the key wins."""
    lead: Float[np.ndarray, "trial layer head"]
    """Mean over steps of the needle's highest score minus the logsumexp of all scores outside it,
    natural log: above 0 one key of the needle outweighs the whole rest (`length_laws`)."""
    needle_mass: Float[np.ndarray, "trial layer head"]
    """Mean attention mass on the needle's statement, 0 to 1."""
    answer_mass: Float[np.ndarray, "trial layer head"]
    """Mean attention mass on the answer in it, 0 to 1."""
    contrast: Float[np.ndarray, "trial layer head"]
    """Mean mass per token of the needle minus mean mass per token outside it."""
    rival_mass: Float[np.ndarray, "trial layer head"]
    """Mean attention mass on the other statements of the haystack; NaN without any."""
    sink_mass: Float[np.ndarray, "trial layer head"]
    """Mean attention mass on the first four tokens."""
    recent_mass: Float[np.ndarray, "trial layer head"]
    """Mean attention mass on the haystack's last 256 tokens, statements and sink left out."""
    top_is_needle: Float[np.ndarray, "trial layer head"]
    """Share of rows whose highest score lies anywhere in the needle."""
    r2: Float[np.ndarray, "trial layer head"]
    """HeadKV's reading (Fu et al. 2024, arXiv 2410.19258): sum over steps of the weights of those
    of the `m` highest keys that lie in the needle, divided by its `m` tokens."""
    own_choice: Float[np.ndarray, " trial"]
    """Share of steps at which the model's own first choice is the token that follows."""
    steps: Int[np.ndarray, " trial"]
    """Answer rows read; 0 where the model said nothing."""


@dataclass(frozen=True, eq=False)
class QuestionReadings:
    """Question rows (END left out); arrays `[trial, layer, head]`, float32, NaN = n/a."""

    needle_mass: Float[np.ndarray, "trial layer head"]
    """Mean attention mass on the needle's statement, 0 to 1."""
    contrast: Float[np.ndarray, "trial layer head"]
    """Mean mass per token of the needle minus mean mass per token outside it."""
    rival_mass: Float[np.ndarray, "trial layer head"]
    """Mean attention mass on the other statements of the haystack; NaN without any."""
    peak: Float[np.ndarray, "trial layer head"]
    """Highest attention weight that any question row gives a token of the needle, 0 to 1."""
    lead: Float[np.ndarray, "trial layer head"]
    """Mean over rows of the needle's highest score minus the logsumexp of all scores outside it."""


Readings = TypeVar("Readings", bound="DataclassInstance")


def joined(readings: Sequence[Readings]) -> Readings:
    """The readings of several trials (or of several haystacks) in one, in their order."""
    return type(readings[0])(
        *(np.concatenate([getattr(r, f.name) for r in readings]) for f in fields(readings[0]))
    )


def as_arrays(readings: DataclassInstance, prefix: str) -> dict[str, np.ndarray]:
    """`{prefix}_{field}` to array, to be kept in a file."""
    return {f"{prefix}_{f.name}": getattr(readings, f.name) for f in fields(readings)}


def from_arrays(kind: type[Readings], arrays: Mapping[str, np.ndarray], prefix: str) -> Readings:
    """The inverse of `as_arrays`."""
    return kind(*(arrays[f"{prefix}_{f.name}"] for f in fields(kind)))


# -- which rows and which keys --------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class AskedRows:
    """One pass over a question and the tokens `following` it: which rows and keys are which.

    `masks`, over the positions of haystack, question and `following`, hold the spans `SPANS` and
    then one for each of `tokens`, the distinct tokens of the gold answer that stand in the needle's
    answer: the keys there that hold it.
    """

    trial: Trial
    ids: tuple[int, ...]
    """Tokens of haystack, question and `following`, less the last one, which is only predicted."""
    following: tuple[int, ...]
    tokens: tuple[int, ...]
    masks: Bool[Tensor, "span key"]

    @property
    def suffix(self) -> tuple[int, ...]:
        """What runs behind the haystack."""
        return self.ids[self.trial.length :]

    @property
    def question_rows(self) -> range:
        """Offsets of the question's rows into the suffix, END left out."""
        return range(len(self.trial.question_ids) - 1)

    @property
    def answer_rows(self) -> range:
        """Offsets of the rows that predict `following`."""
        return range(len(self.trial.question_ids) - 1, len(self.suffix))

    @property
    def top(self) -> int:
        """How many of the highest keys are read: as many as the needle has tokens."""
        return self.trial.needle.stop - self.trial.needle.start


def ask(design: NeedleDesign, trial: Trial, following: Sequence[int]) -> AskedRows:
    """The rows and keys of a trial whose question is followed by these tokens (at least one)."""
    ids = (*design.prompt(trial), *following[:-1])
    answer = ids[trial.answer.start : trial.answer.stop]
    tokens = tuple(dict.fromkeys(i for i in trial.answer_ids if i in answer))
    spans = _spans(design, trial, len(ids))
    holding = torch.tensor(ids) == torch.tensor(tokens, dtype=torch.long)[:, None]
    return AskedRows(
        trial, ids, tuple(following), tokens, torch.cat([spans, holding & spans[[_ANSWER]]])
    )


def _spans(design: NeedleDesign, trial: Trial, n_keys: int) -> Bool[Tensor, "span key"]:
    haystack, place = design.haystacks[trial.haystack], torch.arange(n_keys)

    def within(span: Span) -> Tensor:
        return (place >= span.start) & (place < span.stop)

    statements = [span for _, span in (*haystack.needles, *haystack.distractors)]
    needle = within(trial.needle)
    rivals = torch.stack([within(span) for span in statements]).any(0) & ~needle
    sink = place < SINK
    recent = (place >= trial.length - RECENT) & (place < trial.length) & ~(needle | rivals | sink)
    question = (place >= trial.length) & (place < trial.length + len(trial.question_ids))
    return torch.stack([needle, within(trial.answer), rivals, sink, recent, question, ~needle])


def heard(said: Sequence[int], answer: Sequence[int]) -> tuple[int, int] | None:
    """Where among the tokens `said` the answer begins, and where it ends or is left.

    That is the longest common beginning, the earliest of several; None where not even the answer's
    first token was said.
    """
    common = [_common(said[i:], answer) for i in range(len(said))]
    longest = max(common, default=0)
    return (common.index(longest), common.index(longest) + longest) if longest else None


def _common(a: Sequence[int], b: Sequence[int]) -> int:
    same = [x == y for x, y in zip(a, b, strict=False)]
    return (*same, False).index(False)


# -- readings of one trial ------------------------------------------------------------------------


def read_answer(
    asked: AskedRows, rows: RowSummaries, logits: Float[Tensor, "query d_vocab"]
) -> AnswerReadings:
    """The readings of a trial's answer rows; `rows` and `logits` hold those queries only."""
    following = torch.tensor(asked.following)
    predicts = following[:, None] == torch.tensor(asked.tokens, dtype=torch.long)  # [query, token]
    hit = copying(asked, rows, following)
    mass = dict(zip(SPANS, rows.mass[:, 0].nanmean(2).unbind(-1), strict=False))
    first, stop = heard(asked.following, asked.trial.answer_ids) or (-1, 0)
    step, copyable = torch.arange(len(following)), predicts.any(1)
    later = copyable & (step > first) & (step < stop)
    ahead = _held(rows.peak, predicts) - rows.peak[:, 0, ..., _REST]
    in_needle = _inside(rows.top_key[:, 0], asked.trial.needle) * _seen(rows, _NEEDLE)[..., None]
    fetched = (in_needle * rows.top_weight[:, 0]).sum(-1) / asked.top
    n_answer = asked.trial.answer.stop - asked.trial.answer.start
    return AnswerReadings(
        hits_set=_cells(_recall(hit, predicts)),
        hits_event=_cells(_sum(hit) / n_answer),
        first_hit=_cells(_mean(hit, copyable & (step == first))),
        later_hits=_cells(_mean(hit, later)),
        jump_hits=_cells(_mean(hit, later & ~_inducible(asked, following))),
        soft=_cells(_mean(_held(rows.mass, predicts), copyable)),
        margin=_cells(_mean(ahead, copyable)),
        lead=_cells(_lead(rows).nanmean(2)),
        needle_mass=_cells(mass["needle"]),
        answer_mass=_cells(mass["answer"]),
        contrast=_cells(_contrast(asked, rows).nanmean(2)),
        rival_mass=_cells(mass["rivals"]),
        sink_mass=_cells(mass["sink"]),
        recent_mass=_cells(mass["recent"]),
        top_is_needle=_cells(in_needle[..., 0].nanmean(2)),
        r2=_cells(_sum(fetched)),
        own_choice=np.array([(logits.argmax(-1).cpu() == following).float().mean()], np.float32),
        steps=np.array([len(following)]),
    )


def read_question(asked: AskedRows, rows: RowSummaries) -> QuestionReadings:
    """The readings of a trial's question rows; `rows` holds those queries only."""
    mass = dict(zip(SPANS, rows.mass[:, 0].nanmean(2).unbind(-1), strict=False))
    peak = rows.peak[:, 0, ..., _NEEDLE]
    highest = peak.nan_to_num(nan=-torch.inf).amax(2).exp()
    return QuestionReadings(
        needle_mass=_cells(mass["needle"]),
        contrast=_cells(_contrast(asked, rows).nanmean(2)),
        rival_mass=_cells(mass["rivals"]),
        peak=_cells(highest.masked_fill(peak.isnan().all(2), torch.nan)),
        lead=_cells(_lead(rows).nanmean(2)),
    )


def nothing_said(layers: int, heads: int) -> AnswerReadings:
    """The readings of a trial in which the model ended at once: not applicable throughout."""
    none = np.full((1, layers, heads), np.nan, np.float32)
    named: dict[str, Any] = dict.fromkeys((f.name for f in fields(AnswerReadings)), none)
    return AnswerReadings(**{**named, "own_choice": none[:, 0, 0], "steps": np.zeros(1, int)})


def at_queries(rows: RowSummaries, queries: range) -> RowSummaries:
    """Some of the query rows, on the CPU."""
    some = slice(queries.start, queries.stop)
    tensors = [getattr(rows, f.name).cpu() for f in fields(rows)[2:]]
    return RowSummaries(
        rows.layers, rows.columns.cpu()[:, some], *(t[:, :, :, some] for t in tensors)
    )


Rows = Float[Tensor, "layer head query"]


def copying(asked: AskedRows, rows: RowSummaries, following: Int[Tensor, " query"]) -> Rows:
    """1 where the highest key lies in the answer and holds the token that the row predicts."""
    key = rows.top_key[:, 0, ..., 0]
    same = torch.tensor(asked.ids)[key] == following
    return _inside(key, asked.trial.answer) * same * _seen(rows, _ANSWER)


def _inside(keys: Int[Tensor, "*cells"], span: Span) -> Float[Tensor, "*cells"]:
    return ((keys >= span.start) & (keys < span.stop)).float()


def _seen(rows: RowSummaries, span: int) -> Rows:
    """1 where the head can see the span, else NaN."""
    return torch.where(rows.visible[:, 0, ..., span], 1.0, torch.nan)


def _held(
    values: Float[Tensor, "layer batch head query span"], predicts: Bool[Tensor, "query token"]
) -> Rows:
    """The value of the span that holds the token which each row predicts; rows that predict none
    hold some other value."""
    if predicts.shape[1] == 0:
        return torch.full_like(values[:, 0, ..., 0], torch.nan)
    return values[:, 0, :, torch.arange(len(predicts)), len(SPANS) + predicts.int().argmax(1)]


def _recall(hit: Rows, predicts: Bool[Tensor, "query token"]) -> Float[Tensor, "layer head"]:
    """Share of the distinct tokens that were copied at one step at least."""
    copied = (hit.nan_to_num()[..., None] * predicts).amax(2).mean(-1)
    return copied.masked_fill(hit.isnan().all(2), torch.nan)


def _inducible(asked: AskedRows, following: Int[Tensor, " query"]) -> Bool[Tensor, " query"]:
    """Whether what a row predicts has followed the row's own token somewhere in the haystack."""
    ids = torch.tensor(asked.ids)
    haystack, own = ids[: asked.trial.length], ids[-len(following) :]
    pairs = (haystack[:-1] == own[:, None]) & (haystack[1:] == following[:, None])
    return pairs.any(1)


def _lead(rows: RowSummaries) -> Rows:
    """Needle's highest score less the logsumexp outside it; both are in the units of a weight."""
    rest = rows.mass[:, 0, ..., _REST].clamp(min=torch.finfo(torch.float32).tiny)
    return rows.peak[:, 0, ..., _NEEDLE] - rest.log()


def _contrast(asked: AskedRows, rows: RowSummaries) -> Rows:
    """Mass per token of the needle minus mass per token outside it, of all tokens so far."""
    inside = asked.trial.needle.stop - asked.trial.needle.start
    outside = rows.columns[0] + 1 - inside
    return rows.mass[:, 0, ..., _NEEDLE] / inside - rows.mass[:, 0, ..., _REST] / outside


def _mean(values: Rows, among: Bool[Tensor, " query"]) -> Float[Tensor, "layer head"]:
    return values[..., among].nanmean(-1)


def _sum(values: Rows) -> Float[Tensor, "layer head"]:
    """Over the rows that apply; NaN where none does."""
    return values.nanmean(-1) * (~values.isnan()).sum(-1)


def _cells(values: Float[Tensor, "layer head"]) -> Float[np.ndarray, "trial layer head"]:
    return values[None].float().numpy()
