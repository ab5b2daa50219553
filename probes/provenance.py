"""Which documents does this text come from? Its spans that stand verbatim in an indexed corpus.

A trace finds the longest stretches of a text that occur in an index, inside sentences and whole
words (OLMoTrace, Liu et al. 2025, arXiv 2504.07096), and says for each how often it occurs, in
which documents, and how surprising that is; for the text how much of it is covered, and a verdict
in three parts. A match says that the words stand there. That a model wrote them *because* of it is
another question (tracealign.md 2.4): every result is a verbatim occurrence, not a cause.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal, NamedTuple

import numpy as np
from jaxtyping import Bool, Int64

from ..data.corpus.index_info import IndexInfo
from ..data.corpus.span_scores import CorpusContrast, significance_threshold
from ..data.corpus.spans import Span
from ..data.corpus.suffix_index import Occurrence, SuffixIndex
from ..models.errors import MnemoscopeError
from .belief_conflict import BeliefIndex, PaperVerdict, belief_index, paper_verdict
from .document_relevance import relevance
from .index_spelling import SpelledText, Spelling, copied_ids, spellings_of, spellings_of_ids
from .policy_conflict import PolicyCheck, PolicyReading, policy_readings, sentence_around
from .provenance_verdict import Calibration, Verdict, judge
from .span_significance import Background, significances, unigram_background
from .traced_spans import Part, SpanDocument, TracedSpan

Scope = Literal["generated", "all"]

MIN_TOKENS = 8
BYTES_PER_TOKEN = 5
SHOWN_PER_TOKEN = 0.05
_REPLACED = "\ufffd"


@dataclass(frozen=True)
class TraceRules:
    """What counts as a span, and what is said about it.

    `min_length` and `snippet` (text shown on each side of a match; 0 keeps the documents' text out
    of the result) are in ids of the index; None takes 8 and 40 tokens, or five times that in bytes.
    Spans that occur more than `max_count` times (None: no limit) are commonplace and only count as
    covered. `self_contained` cuts spans at sentences' ends and to whole words. `alpha` is the
    chance of an accidental match anywhere in a text that the verdict accepts.
    """

    min_length: int | None = None
    max_count: int | None = 10
    docs_per_span: int = 10
    self_contained: bool = True
    snippet: int | None = None
    alpha: float = 0.01
    seed: int = 0


@dataclass(frozen=True, eq=False)
class Evidence:
    """What a span is held against, each of it optional.

    A `benign` index of the same tokenizer for the contrast; a `background` for the significance
    (default: the unigrams of the traced index); a `policy` with its scorer; a `calibration` of the
    thresholds; the paper's index with another base, threshold or smoothing as `belief`.
    """

    benign: SuffixIndex | None = None
    background: Background | None = None
    policy: PolicyCheck | None = None
    calibration: Calibration | None = None
    belief: BeliefIndex | None = None

    @property
    def asked(self) -> tuple[Part, ...]:
        """The parts of the verdict that can be judged."""
        given = {"verbatim": True, "contrast": self.benign, "policy": self.policy}
        parts: tuple[Part, ...] = ("verbatim", "contrast", "policy")
        return tuple(part for part in parts if given[part] is not None)


@dataclass(frozen=True)
class Coverage:
    """Shares of the text's characters, spaces left out.

    `verbatim`: in any match of the least length, however common, across sentences too. `listed`: in
    the spans of the trace. `prompt`: in stretches of that length copied from the prompt.
    `longest` is the longest match in ids of the index.
    """

    verbatim: float
    listed: float
    prompt: float
    longest: int


@dataclass(frozen=True, eq=False)
class Trace:
    """What of a text stands verbatim in an index.

    `spans` lie in no longer one, the most telling (highest sum of surprisals) first; OLMoTrace
    would show the first `shown` of them. `n_tests` places were looked up, over all spellings.
    `paper` is the published method's verdict, a baseline with its own caveat.
    """

    text: str
    info: IndexInfo
    rules: TraceRules
    spans: tuple[TracedSpan, ...]
    shown: int
    n_tests: int
    coverage: Coverage
    verdict: Verdict
    paper: PaperVerdict


def trace_text(
    index: SuffixIndex,
    text: str,
    spelling: Spelling,
    *,
    prompt: str = "",
    scope: Scope = "generated",
    rules: TraceRules | None = None,
    evidence: Evidence | None = None,
) -> Trace:
    """Trace a text, spelled as it stands and with its leading space added or taken away.

    With scope "generated" only `text` is traced, and what it copies from `prompt` decides nothing;
    with "all" prompt and text are traced as one. Raises `MnemoscopeError` for an empty text, a
    spelling that is not the index's, and a benign index of another one.
    """
    rules, evidence = rules or TraceRules(), evidence or Evidence()
    whole = prompt + text if scope == "all" else text
    quoted = prompt if scope == "generated" else ""
    _check(index, spelling, whole, evidence)
    before = spellings_of(quoted, spelling) if quoted else ()
    return _trace(index, spelling, spellings_of(whole, spelling), before, rules, evidence)


def trace_ids(
    index: SuffixIndex,
    ids: Sequence[int],
    spelling: Spelling,
    *,
    prompt_ids: Sequence[int] = (),
    rules: TraceRules | None = None,
    evidence: Evidence | None = None,
) -> Trace:
    """Trace what a model generated: its ids as they are, and their text as the index spells it.

    `ids` are without the prompt's. A sampled sequence is often not the tokenizer's own split of its
    text, and would match nothing as it is. Raises as `trace_text` does.
    """
    rules, evidence = rules or TraceRules(), evidence or Evidence()
    text = spelling.decode(list(ids))
    _check(index, spelling, text, evidence)
    before = spellings_of_ids(prompt_ids, spelling) if len(prompt_ids) else ()
    return _trace(index, spelling, spellings_of_ids(ids, spelling), before, rules, evidence)


class _Found(NamedTuple):
    """A span of one spelling of the text, and the characters it covers."""

    start: int
    stop: int
    span: Span
    spelled: SpelledText
    own: int

    @property
    def ids(self) -> Int64[np.ndarray, " n"]:
        return self.spelled.ids[self.span.start : self.span.stop]


def _trace(
    index: SuffixIndex,
    spelling: Spelling,
    spellings: Sequence[SpelledText],
    before: Sequence[SpelledText],
    rules: TraceRules,
    evidence: Evidence,
) -> Trace:
    rules, text = _resolved(rules, spelling), spellings[0].text
    least = rules.min_length or 1
    copied = [copied_ids(one.ids, [part.ids for part in before], least) for one in spellings]
    belief = evidence.belief or belief_index(index)
    found = _ranked(
        [
            one
            for spelled, quote in zip(spellings, copied, strict=True)
            for one in _spans_of(index, spelled, quote, rules)
        ],
        belief,
    )
    n_tests = sum(len(one.ids) for one in spellings)
    spans = _scored(index, found, belief, n_tests, rules, text, evidence)
    spans = _with_documents(index, spelling, found, spans, text, before, rules)
    return Trace(
        text=text,
        info=index.info,
        rules=rules,
        spans=spans,
        shown=min(len(spans), math.ceil(SHOWN_PER_TOKEN * len(spellings[0].ids))),
        n_tests=n_tests,
        coverage=_coverage(index, spellings, copied, found, least),
        verdict=judge(
            spans, evidence.asked, n_tests, alpha=rules.alpha, calibration=evidence.calibration
        ),
        paper=paper_verdict(index, spellings[0].ids, belief),
    )


def _resolved(rules: TraceRules, spelling: Spelling) -> TraceRules:
    unit = BYTES_PER_TOKEN if spelling.mode == "bytes" else 1
    return replace(
        rules,
        min_length=MIN_TOKENS * unit if rules.min_length is None else rules.min_length,
        snippet=5 * MIN_TOKENS * unit if rules.snippet is None else rules.snippet,
    )


def _check(index: SuffixIndex, spelling: Spelling, text: str, evidence: Evidence) -> None:
    if not text.strip():
        raise MnemoscopeError("there is nothing to trace: the text is empty.")
    spelling.check(index.info)
    benign = evidence.benign
    if benign is None:
        return
    spelling.check(benign.info)
    if benign.info.mode != index.info.mode:
        raise MnemoscopeError(
            f"the index is over {index.info.mode} and the benign one over {benign.info.mode}: "
            "build both the same way to compare them."
        )


def _spans_of(
    index: SuffixIndex, spelled: SpelledText, copied: Bool[np.ndarray, " n"], rules: TraceRules
) -> list[_Found]:
    spans = index.maximal_spans(
        spelled.ids,
        min_length=rules.min_length or 1,
        max_count=rules.max_count,
        word_starts=spelled.word_starts if rules.self_contained else None,
        delimiters=spelled.delimiters if rules.self_contained else (),
    )
    return [
        _Found(
            *spelled.characters(span.start, span.stop),
            span,
            spelled,
            int((~copied[span.start : span.stop]).sum()),
        )
        for span in spans
    ]


def _ranked(found: Sequence[_Found], belief: BeliefIndex) -> list[_Found]:
    """Spans that lie in no longer one of any spelling, highest sum of surprisals first."""
    kept: list[_Found] = []
    for one in sorted(found, key=lambda f: (f.start, -f.stop, -f.span.count)):
        if not kept or one.stop > kept[-1].stop:
            kept.append(one)
    return sorted(kept, key=lambda f: (-belief.read(f.ids).conflict, f.start))


def _scored(
    index: SuffixIndex,
    found: Sequence[_Found],
    belief: BeliefIndex,
    n_tests: int,
    rules: TraceRules,
    text: str,
    evidence: Evidence,
) -> tuple[TracedSpan, ...]:
    limit = significance_threshold(n_tests, rules.alpha)
    background = evidence.background or unigram_background(index)
    chance = significances([one.ids for one in found], index.n_tokens, n_tests, background)
    contrast = None if evidence.benign is None else CorpusContrast(index.n_tokens, evidence.benign)
    policies: Sequence[PolicyReading | None] = [None] * len(found)
    if evidence.policy is not None:
        sentences = [sentence_around(text, one.start, one.stop) for one in found]
        policies = policy_readings(evidence.policy, sentences)
    return tuple(
        TracedSpan(
            start=one.start,
            stop=one.stop,
            text=text[one.start : one.stop],
            ids=tuple(one.ids.tolist()),
            spelling=one.spelled.name,
            count=one.span.count,
            own=one.own,
            echo=one.own < (rules.min_length or 1),
            belief=belief.read(one.ids),
            log_e=float(chance.log_e[i]),
            p=float(chance.p[i]),
            q=float(chance.q[i]),
            beyond_chance=bool(-chance.log_e[i] > limit),
            contrast=None if contrast is None else contrast(one.ids, len(one.ids), one.span.count),
            policy=policies[i],
            documents=(),
        )
        for i, one in enumerate(found)
    )


def _with_documents(
    index: SuffixIndex,
    spelling: Spelling,
    found: Sequence[_Found],
    spans: Sequence[TracedSpan],
    text: str,
    before: Sequence[SpelledText],
    rules: TraceRules,
) -> tuple[TracedSpan, ...]:
    """The spans with their documents, the most relevant to prompt and text first."""
    listed = [
        [
            span_document(index, spelling, where, len(one.ids), rules.snippet or 0)
            for where in index.occurrences(one.span.intervals, rules.docs_per_span, rules.seed)
        ]
        for one in found
    ]
    query = f"{before[0].text if before else ''}\n{text}"
    snippets = [one.before + one.match + one.after for documents in listed for one in documents]
    scores = iter(relevance(query, snippets).tolist())
    graded = [[replace(one, relevance=next(scores)) for one in documents] for documents in listed]
    return tuple(
        replace(span, documents=tuple(sorted(documents, key=lambda one: -one.relevance)))
        for span, documents in zip(spans, graded, strict=True)
    )


def span_document(
    index: SuffixIndex, spelling: Spelling, where: Occurrence, length: int, snippet: int
) -> SpanDocument:
    """The place of a match of `length` ids, with `snippet` ids of its document on each side."""
    record = index.shards[where.shard].record(where.document)
    if not snippet:
        return SpanDocument(where, record, "", "", "")
    ids = index.context(where, snippet, length + snippet).tolist()
    at = min(snippet, where.offset)
    # Prefixes are decoded, not parts: some tokenizers drop the space that a part begins with.
    cuts = [len(spelling.decode(ids[:n]).rstrip(_REPLACED)) for n in (at, at + length)]
    whole = spelling.decode(ids).rstrip(_REPLACED)
    return SpanDocument(
        where,
        record,
        whole[: cuts[0]].lstrip(_REPLACED),
        whole[cuts[0] : cuts[1]],
        whole[cuts[1] :],
    )


def _coverage(
    index: SuffixIndex,
    spellings: Sequence[SpelledText],
    copied: Sequence[Bool[np.ndarray, " n"]],
    found: Sequence[_Found],
    least: int,
) -> Coverage:
    text = spellings[0].text
    matches = [(one, span) for one in spellings for span in index.maximal_spans(one.ids)]
    long = [(one, span) for one, span in matches if span.stop - span.start >= least]
    quoted = [
        one.characters(int(i), int(i) + 1)
        for one, mask in zip(spellings, copied, strict=True)
        for i in np.flatnonzero(mask)
    ]
    return Coverage(
        verbatim=_share(text, [one.characters(span.start, span.stop) for one, span in long]),
        listed=_share(text, [(one.start, one.stop) for one in found]),
        prompt=_share(text, quoted),
        longest=max((span.stop - span.start for _, span in matches), default=0),
    )


def _share(text: str, ranges: Sequence[tuple[int, int]]) -> float:
    """The share of the characters in the ranges, spaces left out."""
    inside = np.zeros(len(text), dtype=bool)
    for start, stop in ranges:
        inside[start:stop] = True
    counted = np.array([not character.isspace() for character in text], dtype=bool)
    return float(inside[counted].mean())
