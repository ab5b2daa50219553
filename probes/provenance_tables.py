"""A trace as tables: a row a span, and the documents with the spans that each of them holds."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import polars

from .provenance import Trace
from .traced_spans import SpanDocument


@dataclass(frozen=True)
class TracedDocument:
    """A document and the numbers of the spans it was listed for, with one snippet each."""

    shard: int
    document: int
    source: str
    line: int | None
    metadata: Mapping[str, Any]
    spans: tuple[int, ...]
    snippets: tuple[SpanDocument, ...]
    relevance: float


def span_table(trace: Trace) -> polars.DataFrame:
    """One row a span, the most telling first; see `TracedSpan` for the columns.

    `e_value` is how often the span is expected by chance, `paper_bci` the paper's index with
    `paper_high_risk`, its decision. What was not asked for is null.
    """
    rows = [
        {
            "span": i,
            "start": span.start,
            "stop": span.stop,
            "text": span.text,
            "tokens": len(span.ids),
            "count": span.count,
            "echo": span.echo,
            "log_e": span.log_e,
            "p": span.p,
            "q": span.q,
            "beyond_chance": span.beyond_chance,
            "contrast": span.contrast,
            "policy_conflict": span.score("policy"),
            "policy": None if span.policy is None else span.policy.policy,
            "paper_bci": span.belief.conflict,
            "paper_high_risk": span.belief.high_risk,
            "spelling": span.spelling,
            "flagged": i in trace.verdict.agreed,
        }
        for i, span in enumerate(trace.spans)
    ]
    return polars.DataFrame(rows, schema=_SPANS)


def documents(trace: Trace) -> tuple[TracedDocument, ...]:
    """Every listed document once: those with most spans first, then the most relevant."""
    places: dict[tuple[int, int], dict[int, SpanDocument]] = {}
    for i, span in enumerate(trace.spans):
        for one in span.documents:
            held = places.setdefault((one.where.shard, one.where.document), {})
            held.setdefault(i, one)
    found = [_document(*key, held) for key, held in places.items()]
    return tuple(
        sorted(found, key=lambda one: (-len(one.spans), -one.relevance, one.shard, one.document))
    )


def _document(shard: int, number: int, held: Mapping[int, SpanDocument]) -> TracedDocument:
    snippets = tuple(held.values())
    record = snippets[0].record
    return TracedDocument(
        shard=shard,
        document=number,
        source="" if record is None else record.source,
        line=None if record is None else record.line,
        metadata={} if record is None else record.metadata,
        spans=tuple(held),
        snippets=snippets,
        relevance=max(one.relevance for one in snippets),
    )


_SPANS: dict[str, Any] = {
    "span": polars.Int64,
    "start": polars.Int64,
    "stop": polars.Int64,
    "text": polars.String,
    "tokens": polars.Int64,
    "count": polars.Int64,
    "echo": polars.Boolean,
    "log_e": polars.Float64,
    "p": polars.Float64,
    "q": polars.Float64,
    "beyond_chance": polars.Boolean,
    "contrast": polars.Float64,
    "policy_conflict": polars.Float64,
    "policy": polars.String,
    "paper_bci": polars.Float64,
    "paper_high_risk": polars.Boolean,
    "spelling": polars.String,
    "flagged": polars.Boolean,
}
