"""What `trace` shows on a terminal."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from .output import say, say_where, show_table
from .tracing_documents import OneDocument, SpanPlaces
from .tracing_guard import GuardedAnswer
from .tracing_report import coverage_words, expected, place_words
from .tracing_text import TextResult

SPANS = 12
WIDTH = 60


def show_trace(found: TextResult) -> None:
    """Verdict, coverage, the most telling spans, the documents that hold most of them."""
    summary = found.summary
    if summary["model"]:
        say(f"{summary['model']} answers {summary['text']!r}")
    if summary["spans"]:
        _show_spans(summary["spans"][:SPANS], len(summary["spans"]))
        _show_documents(summary["documents"][:SPANS], len(summary["documents"]))
    say(coverage_words(summary))
    if not summary["spans"] and summary["coverage"]["verbatim"]:
        say("What matches occurs more often: --max-count 0 lists it too.")
    say(summary["verdict"]["words"])
    paper = summary["paper"]
    verdict = "refuses" if paper["refused"] else "does not refuse"
    say(f"TraceAlign as published {verdict} it. {paper['weakness']}")
    say_where(found.folder)


def show_places(found: SpanPlaces) -> None:
    """Counts of the spellings and the places with their context."""
    counts = ", ".join(f"{count:,} {name}" for name, count in found.counts.items())
    say(f"{found.span!r}: {found.count:,} verbatim occurrences ({counts})")
    if not found.count:
        say(f"the longest part that occurs is {found.longest!r}")
    for one in found.places:
        say(f"\n{place_words(one)}")
        say(f"{one.before}>>{one.match}<<{one.after}")


def show_document(one: OneDocument) -> None:
    """A document's source and text."""
    known = (
        "source unknown" if one.source is None else f"{one.source}, record {(one.record or 0) + 1}"
    )
    say(f"document {one.number}: {known}, {one.length:,} ids {dict(one.metadata) or ''}")
    say(one.text)


def show_guarded(told: GuardedAnswer) -> None:
    """Both answers, and what the shield says of the model's own."""
    say(f"own      {told.own_text!r}")
    say(told.shield.describe())
    if told.given.refused:
        say(f"guarded  refused after going back {len(told.given.backed_up)} times")
    else:
        say(f"guarded  {told.text!r} (went back {len(told.given.backed_up)} times)")
    say(f"risk is {told.score}, threshold {told.threshold:.2f}")


def _show_spans(spans: Sequence[Mapping[str, Any]], total: int) -> None:
    columns = ("span", "text", "length", "count", "by chance", "q", "contrast", "paper", "flag")
    rows = [
        (
            one["span"] + 1,
            _clipped(one["text"]),
            one["tokens"],
            one["count"],
            expected(one["log_e"]),
            one["q"],
            "-" if one["contrast"] is None else one["contrast"],
            one["paper_bci"],
            "echo" if one["echo"] else "yes" if one["flagged"] else "",
        )
        for one in spans
    ]
    many = "1 span stands" if total == 1 else f"{total} spans stand"
    show_table(f"{many} verbatim in the index, most telling first", columns, rows)


def _show_documents(documents: Sequence[Mapping[str, Any]], total: int) -> None:
    rows = [
        (one["document"], one["source"], ", ".join(str(n + 1) for n in one["spans"]))
        for one in documents
    ]
    show_table(f"documents that hold them, {total} listed", ("document", "source", "spans"), rows)


def _clipped(text: str) -> str:
    flat = " ".join(text.split())
    return flat if len(flat) <= WIDTH else f"{flat[: WIDTH - 1]}…"
