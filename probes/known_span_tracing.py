"""Attribution against the truth: does an index find the documents that taught a span?

The corpus of an organism is known to the character (`organisms/known_spans.py`), so precision and
recall of tracing can be measured, which no published provenance method reports. A span is hidden in
everyday text that stands in no document, the whole is traced, and the documents that come back are
compared with those that hold the span. What is found is a verbatim occurrence, not a cause: whether
it is one is what `left_out_documents` measures.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ..data.corpus.build import build_index
from ..data.corpus.documents import Document as IndexedDocument
from ..data.corpus.spans import Span
from ..data.corpus.suffix_index import SuffixIndex, open_index
from ..models.hooked import HookedModel
from ..models.tokens import PlainEncoder
from ..organisms.engram.ledger import Document
from ..organisms.known_spans import KnownSpan
from ..results.statistics import bootstrap_mean
from .elicitation import Progress, silent

Encode = Callable[[str], Sequence[int]]


@dataclass(frozen=True)
class TracingRule:
    """Which matches count, and how many documents are listed for each.

    Matches shorter than `min_length` or that occur more than `max_count` times (None: any number)
    are dropped. With `within_sentences` a match ends with the first full stop or line end in it, as
    in OLMoTrace (2.2): one that runs on by chance, by a word, hides all documents that do not.
    """

    name: str
    min_length: int = 8
    max_count: int | None = None
    documents_a_span: int = 10
    within_sentences: bool = True


RULES = (
    TracingRule("every match", documents_a_span=1000),
    TracingRule("across sentences", documents_a_span=1000, within_sentences=False),
    TracingRule("ten documents"),
    TracingRule("at most 10 matches", max_count=10),
    TracingRule("at most 3 matches", max_count=3, documents_a_span=5),
)
"""No filter, with and without the rule on sentences; ten documents a match, also with OLMoTrace's
filter on counts; the filter of the paper (tracealign.md 1.2, 1.3)."""


@dataclass(frozen=True)
class Attribution:
    """One span, traced: `found` documents, of which `right` hold it and `related` teach the same.

    `found` are named by matches that lie in the span for the most part, `stray` are documents that
    only matches in the text around it name. `length` is in tokens, `taught` are all documents that
    teach the same.
    """

    span: str
    rule: str
    count: int
    length: int
    found: int
    right: int
    related: int
    taught: int
    stray: int

    @property
    def recall(self) -> float:
        """Share of the documents that hold the span which were found."""
        return self.right / self.count

    @property
    def related_recall(self) -> float:
        """Share of the documents that teach the same in any words which were found."""
        return self.related / self.taught


@dataclass(frozen=True)
class Passage:
    """Token ids of a span and of what stands before and behind it."""

    before: Sequence[int]
    inside: Sequence[int]
    after: Sequence[int]

    @property
    def ids(self) -> list[int]:
        """The whole."""
        return [*self.before, *self.inside, *self.after]

    def holds(self, match: Span) -> bool:
        """Whether more than half of a match's tokens are those of the span."""
        start = len(self.before)
        inside = min(match.stop, start + len(self.inside)) - max(match.start, start)
        return 2 * inside > match.stop - match.start


@dataclass(frozen=True)
class AttributionRow:
    """Spans of one count and length under one rule.

    `precision` is over all documents that were found (nan if none was), `recall` the mean over
    spans with a 95 % bootstrap interval over spans (nan ends for a single span), `related_recall`
    the mean share of the documents that teach the same in any words, and `stray` the mean number of
    documents that are named for the text around.
    """

    rule: str
    count: int
    length: int
    spans: int
    precision: float
    recall: float
    recall_low: float
    recall_high: float
    related_recall: float
    stray: float


def index_corpus(
    documents: Sequence[Document],
    folder: Path,
    model: HookedModel,
    *,
    label: str = "",
    force: bool = False,
) -> SuffixIndex:
    """An index of an organism's documents over the model's own tokens, in one shard.

    Every document keeps its id. Raises what `build_index` raises.
    """
    build_index(
        [IndexedDocument(d.text, label, i, {"id": d.id}) for i, d in enumerate(documents)],
        folder,
        encode=PlainEncoder(model.text_tokenizer),
        vocab_size=len(model.text_tokenizer),
        tokenizer_name=model.name,
        tokenizer_sha256=model.tokenizer_sha256,
        label=label,
        force=force,
        any_path=True,
    )
    return open_index(folder)


def attributions(
    index: SuffixIndex,
    encode: Encode,
    spans: Sequence[KnownSpan],
    around: Sequence[str],
    *,
    rules: Sequence[TracingRule] = RULES,
    progress: Progress = silent,
) -> tuple[Attribution, ...]:
    """Trace every span between two of the texts `around`, under every rule.

    A span that begins a line is looked for both behind a line's end and behind a space, since the
    two are other tokens (tracealign.md 6.5), and what either finds counts.
    """
    measured = []
    documents, stops = _DocumentIds(index), [encode(mark)[0] for mark in (".", "\n")]
    for i, span in enumerate(spans):
        before, after = around[i % len(around)], around[(i + 1) % len(around)]
        passages = [
            Passage(encode(before), encode(text), encode(f" {after}"))
            for text in _variants(span.text)
        ]
        cut = [(p, index.maximal_spans(p.ids, delimiters=stops)) for p in passages]
        whole = [(p, index.maximal_spans(p.ids)) for p in passages]
        for rule in rules:
            found, stray = _named(documents, cut if rule.within_sentences else whole, rule)
            measured.append(_compared(span, rule, len(passages[0].inside), found, stray - found))
        progress(i + 1, len(spans))
    return tuple(measured)


def found_documents(index: SuffixIndex, ids: Sequence[int], rule: TracingRule) -> frozenset[str]:
    """Ids of the documents that hold some maximal span of `ids`, under the rule but that on
    sentences: what `ids` are is the caller's to say."""
    passage = Passage((), ids, ())
    found, _ = _named(_DocumentIds(index), [(passage, index.maximal_spans(ids))], rule)
    return found


def attribution_table(
    measured: Iterable[Attribution],
    *,
    lengths: Callable[[int], int] = int,
    counts: Callable[[int], int] = int,
    seed: int = 0,
) -> tuple[AttributionRow, ...]:
    """A row for each rule, count and length; `lengths` and `counts` may put several into one."""
    cells: dict[tuple[str, int, int], list[Attribution]] = {}
    for one in measured:
        cells.setdefault((one.rule, counts(one.count), lengths(one.length)), []).append(one)
    return tuple(_row(*key, cell, seed) for key, cell in sorted(cells.items()))


def _variants(text: str) -> tuple[str, ...]:
    return (text,) if text.startswith(" ") else (f"\n{text}", f" {text}")


class _DocumentIds:
    """The ids of the documents of an index, each record read once."""

    def __init__(self, index: SuffixIndex) -> None:
        self.index = index
        self._known: dict[tuple[int, int], str] = {}

    def of(self, match: Span, limit: int) -> frozenset[str]:
        places = self.index.occurrences(match.intervals, limit)
        return frozenset(self._id(place.shard, place.document) for place in places)

    def _id(self, shard: int, document: int) -> str:
        if (shard, document) not in self._known:
            record = self.index.shards[shard].record(document)
            assert record is not None, "the index was built with records"
            self._known[shard, document] = record.metadata["id"]
        return self._known[shard, document]


def _named(
    documents: _DocumentIds, traced: Sequence[tuple[Passage, Sequence[Span]]], rule: TracingRule
) -> tuple[frozenset[str], frozenset[str]]:
    """Documents named for the span, and for what stands around it."""
    inside: set[str] = set()
    around: set[str] = set()
    for passage, matches in traced:
        for match in matches:
            common = rule.max_count is not None and match.count > rule.max_count
            if match.stop - match.start >= rule.min_length and not common:
                named = inside if passage.holds(match) else around
                named |= documents.of(match, rule.documents_a_span)
    return frozenset(inside), frozenset(around)


def _compared(
    span: KnownSpan, rule: TracingRule, length: int, found: frozenset[str], stray: frozenset[str]
) -> Attribution:
    return Attribution(
        span=span.id,
        rule=rule.name,
        count=span.count,
        length=length,
        found=len(found),
        right=len(found & {*span.documents}),
        related=len(found & {*span.related}),
        taught=len(span.related),
        stray=len(stray),
    )


def _row(rule: str, count: int, length: int, cell: list[Attribution], seed: int) -> AttributionRow:
    found = sum(one.found for one in cell)
    recalls = np.array([one.recall for one in cell])
    low, high = interval_ends(recalls, [one.span for one in cell], seed)
    return AttributionRow(
        rule=rule,
        count=count,
        length=length,
        spans=len(cell),
        precision=sum(one.right for one in cell) / found if found else float("nan"),
        recall=float(recalls.mean()),
        recall_low=low,
        recall_high=high,
        related_recall=float(np.mean([one.related_recall for one in cell])),
        stray=float(np.mean([one.stray for one in cell])),
    )


def interval_ends(values: np.ndarray, units: Sequence[str], seed: int) -> tuple[float, float]:
    """Ends of the 95 % bootstrap interval of the mean over units; nan where there is one unit."""
    if len({*units}) < 2:
        return float("nan"), float("nan")
    interval = bootstrap_mean(values, units, seed=seed)
    return float(interval.low), float(interval.high)
