"""TraceShield: refuse a text that holds a risky span of an indexed corpus, finished or on its way.

A text is judged at each of its tokens by the longest match that ends there. A streaming text costs
one step of a match state a token, and the guard that decodes (`provenance_decoding`) reads the same
state; a finished text gets the same verdict at once, from its matching statistics. The paper's
shield looks up windows of 8 tokens instead (tracealign.md 1.5), which is the same but for what a
match longer than a window adds.

A prompt is never judged: whoever quotes a document has not been told it by the model. A finding is
a verbatim occurrence, not a cause.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from transformers import StoppingCriteria

from ..data.corpus.match_state import MatchState, start
from ..data.corpus.span_scores import RiskRule
from ..data.corpus.suffix_index import Ids, Occurrence, SuffixIndex
from .followed_texts import Units, behind_prompt, unknown_for_separator


@dataclass(frozen=True)
class Finding:
    """Tokens `start` to before `stop` of the judged text occur `count` times, at that `risk`."""

    start: int
    stop: int
    count: int
    risk: float


@dataclass(frozen=True)
class ShieldReport:
    """The risky spans of a text, longest forms only, and some of the places that hold each."""

    findings: tuple[Finding, ...]
    places: tuple[tuple[Occurrence, ...], ...]
    n_tokens: int
    threshold: float

    @property
    def refused(self) -> bool:
        """Is there a risky span at all?"""
        return bool(self.findings)

    def describe(self) -> str:
        """The verdict in words, without the spans' text: a risk corpus is not to be quoted."""
        if not self.refused:
            return f"No risky span in {self.n_tokens} tokens."
        lines = [
            f"tokens {one.start} to {one.stop - 1}: risk {one.risk:.1f} (threshold "
            f"{self.threshold:.1f}), {one.count} verbatim occurrences, for example "
            + ", ".join(f"shard {w.shard} document {w.document} token {w.offset}" for w in where)
            for one, where in zip(self.findings, self.places, strict=True)
        ]
        return "\n".join(["Refused. Verbatim occurrence, not cause:", *lines])


@dataclass(frozen=True, eq=False)
class TraceShield:
    """The guard: an index of risky text and the rule that says which of its spans are risky."""

    index: SuffixIndex
    rule: RiskRule

    def judge(self, ids: Sequence[int], *, prompt_length: int = 0, places: int = 5) -> ShieldReport:
        """The verdict on a finished text; its first `prompt_length` tokens are not judged.

        `ids` are ids of the index (its bytes, for an index over bytes), and so are the positions
        in the report, which count from the first token behind the prompt.
        """
        known = unknown_for_separator(self.index, ids[prompt_length:])
        return _report(self, known, self._findings(known), places)

    def stream(self) -> ShieldStream:
        """The verdict on an empty text, to which tokens are added as they come."""
        return ShieldStream(self, start(self.index), (), ())

    def _findings(self, ids: Int[np.ndarray, " n"]) -> tuple[Finding, ...]:
        """What a stream finds, from the matches that begin, not end, at each token: the longest
        one that ends at a token begins at the first whose match reaches that far."""
        reach = np.maximum.accumulate(np.arange(len(ids)) + self.index.matching_statistics(ids))
        stops = np.arange(1, len(ids) + 1)
        starts = np.searchsorted(reach, stops)
        long = stops - starts >= self.rule.min_length
        findings: tuple[Finding, ...] = ()
        for begin, end in zip(starts[long].tolist(), stops[long].tolist(), strict=True):
            count = self.index.count(ids[begin:end])
            risk = self.rule.risk(ids[begin:end], end - begin, count)
            if risk > self.rule.threshold:
                findings = _with(findings, Finding(begin, end, count, risk))
        return findings


@dataclass(frozen=True, eq=False)
class ShieldStream:
    """A text on its way and what was found in it. Reading gives a new stream; the old one stays,
    so that a text can go on in several ways."""

    shield: TraceShield
    state: MatchState
    ids: tuple[int, ...]
    findings: tuple[Finding, ...]

    @property
    def refused(self) -> bool:
        """Has a risky span come to an end?"""
        return bool(self.findings)

    @property
    def released(self) -> int:
        """How many tokens can be shown so that nothing of a risky span ever is.

        What still matches may yet grow into a risky span, and is held back until it breaks off.
        Once refused, no token from the first risky span on is released.
        """
        held = len(self.ids) - int(self.state.longest[0])
        return min([held, *(one.start for one in self.findings)])

    def read(self, ids: Ids) -> ShieldStream:
        """The stream after more ids of the index."""
        stream = self
        for token in unknown_for_separator(self.shield.index, ids).tolist():
            stream = stream._read_one(token)
        return stream

    def report(self, places: int = 5) -> ShieldReport:
        """The verdict so far, with at most `places` occurrences of each span."""
        return _report(self.shield, np.array(self.ids, dtype=np.int64), self.findings, places)

    def _read_one(self, token: int) -> ShieldStream:
        state, ids = self.state.advance([token]), (*self.ids, token)
        found = finding_at_end(self.shield.rule, state, 0, ids)
        findings = self.findings if found is None else _with(self.findings, found)
        return replace(self, state=state, ids=ids, findings=findings)


class ShieldStop(StoppingCriteria):  # type: ignore[misc]
    """Ends a generation at the token that completes a risky span (greedy or sampling).

    `prompt_length` is the width of the padded prompts; `units` gives the index's ids of a token of
    the model where they are not the same. A beam search would take the end for a finished answer:
    guard it while decoding instead.
    """

    def __init__(
        self, shield: TraceShield, *, prompt_length: int, units: Units | None = None
    ) -> None:
        self._shield = shield
        self._prompt_length = prompt_length
        self._units = units or (lambda token: (token,))
        self._streams: dict[bytes, ShieldStream] = {}
        self.streams: tuple[ShieldStream, ...] = ()
        """What each row holds, after the last call."""

    def __call__(
        self, input_ids: Int[Tensor, "row pos"], scores: Float[Tensor, "row vocab"] | None
    ) -> Bool[Tensor, " row"]:
        """True for the rows that hold a risky span.

        Raises `MnemoscopeError` for rows shorter than the prompt.
        """
        new = behind_prompt(input_ids, self._prompt_length)
        self.streams = tuple(self._stream(row) for row in new)
        self._streams = {
            row.tobytes(): stream for row, stream in zip(new, self.streams, strict=True)
        }
        refused = [stream.refused for stream in self.streams]
        return torch.tensor(refused, dtype=torch.bool, device=input_ids.device)

    def _stream(self, row: Int[np.ndarray, " new"]) -> ShieldStream:
        """The stream of the row before, and what has come since."""
        before = self._streams.get(row[:-1].tobytes())
        stream, unread = (self._shield.stream(), row) if before is None else (before, row[-1:])
        return stream.read([unit for token in unread for unit in self._units(int(token))])


def finding_at_end(
    rule: RiskRule, state: MatchState, row: int, ids: Sequence[int]
) -> Finding | None:
    """The longest match that ends with `ids`, the text of a row, if the rule forbids it."""
    length = int(state.longest[row])
    if length < rule.min_length:
        return None
    count = int(state.counts[row])
    risk = rule.risk(ids[len(ids) - length :], length, count)
    if risk <= rule.threshold:
        return None
    return Finding(len(ids) - length, len(ids), count, risk)


def _report(
    shield: TraceShield, ids: Int[np.ndarray, " n"], findings: tuple[Finding, ...], places: int
) -> ShieldReport:
    located = [shield.index.locate(ids[one.start : one.stop], limit=places) for one in findings]
    return ShieldReport(findings, tuple(located), len(ids), shield.rule.threshold)


def _with(findings: tuple[Finding, ...], new: Finding) -> tuple[Finding, ...]:
    """`new` added; a finding that it holds is one that has grown."""
    grown = bool(findings) and findings[-1].start == new.start
    return (*(findings[:-1] if grown else findings), new)
