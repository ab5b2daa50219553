"""What a `trace text` run says: its summary as JSON, and the page with the spans in the text."""

from __future__ import annotations

import math
from collections.abc import Mapping
from itertools import pairwise
from typing import Any

import jinja2
import polars
from markupsafe import Markup

from ..probes.provenance import Trace
from ..probes.provenance_tables import documents, span_table
from ..probes.provenance_verdict import CLAIM, VerdictPart
from ..probes.traced_spans import SpanDocument, TracedSpan
from ..results.provenance import Provenance
from ..results.report import render_report
from .tracing_sources import OpenIndex

LISTED = 50
"""Spans that the page lists with their documents."""

_PAGE = """
<style>
.traced { white-space: pre-wrap; overflow-wrap: anywhere; border: 1px solid #ddd; padding: 1rem;
  line-height: 1.9; }
.traced mark { background: #cfe6f5; padding: .15rem 0; }
.traced mark.flagged { background: #f6c9a8; }
.traced mark.echo { background: #e6e6e6; }
.traced a { font-size: .7rem; vertical-align: super; text-decoration: none; color: #0072B2; }
details { border-bottom: 1px solid #ddd; padding: .4rem 0; }
details q { quotes: none; white-space: pre-wrap; overflow-wrap: anywhere; }
details q b { background: #cfe6f5; font-weight: 600; }
.where { color: #555; font-size: .9rem; }
</style>
{% if prompt %}<h2>Prompt (not judged)</h2><p class="traced">{{ prompt }}</p>{% endif %}
<h2>Text</h2>
<p class="traced">{% for piece in pieces %}{% if piece.kind %}<mark class="{{ piece.kind }}"
title="{{ piece.title }}">{{ piece.text }}</mark>{% for n in piece.ends %}<a
href="#span-{{ n }}">{{ n }}</a>{% endfor %}{% else %}{{ piece.text }}{% endif %}{% endfor %}</p>
<p class="where">Blue: stands verbatim in the index. Orange: flagged by the verdict. Grey: copied
from the prompt. Numbers lead to the documents.</p>
<h2>Documents that hold the spans</h2>
{% for n, span, title, flagged in spans %}
<details id="span-{{ n }}"{% if flagged %} open{% endif %}><summary>{{ n }}. {{ span.text | trim }}
<span class="where">{{ title }}</span></summary>
{% for one in span.documents %}<p><span class="where">{{ place(one) }}</span><br>
{% if one.match %}<q>{{ one.before }}<b>{{ one.match }}</b>{{ one.after }}</q>{% endif %}</p>
{% endfor %}
{% if span.count > span.documents | length %}<p class="where">{{ span.documents | length }} of
{{ span.count }} occurrences, evenly sampled.</p>{% endif %}
</details>
{% else %}<p>No span of the text stands in the index.</p>
{% endfor %}
{% if left_out %}<p class="where">{{ left_out }} more spans are in the table of the run.</p>
{% endif %}
"""


def summary_of(trace: Trace, traced: OpenIndex, *, prompt: str, model: str) -> dict[str, Any]:
    """What was found, as JSON: verdict, coverage, the paper's verdict, spans with documents."""
    info, verdict, paper = trace.info, trace.verdict, trace.paper
    parts = {
        part.part: _part(part) for part in (verdict.verbatim, verdict.contrast, verdict.policy)
    }
    return {
        "claim": CLAIM,
        "index": {
            "folder": str(traced.folder),
            "label": info.label,
            "mode": info.mode,
            "n_tokens": info.n_tokens,
            "n_documents": info.n_documents,
        },
        "model": model or None,
        "prompt": prompt,
        "text": trace.text,
        "min_length": trace.rules.min_length,
        "max_count": trace.rules.max_count,
        "coverage": {
            name: getattr(trace.coverage, name)
            for name in ("verbatim", "listed", "prompt", "longest")
        },
        "verdict": {
            "words": verdict.words,
            "flagged": verdict.flagged,
            "false_refusal": verdict.false_refusal,
            "parts": parts,
        },
        "paper": {
            "refused": paper.refused,
            "windows": paper.n_windows,
            "found": paper.found,
            "risky": len(paper.risky),
            "tau": paper.tau,
            "weakness": paper.weakness,
        },
        "n_tests": trace.n_tests,
        "shown": trace.shown,
        "spans": _spans(trace),
        "documents": _documents(trace),
    }


def report_of(trace: Trace, summary: Mapping[str, Any], provenance: Provenance) -> str:
    """The page: verdict, the text with its spans, their documents, the table."""
    return render_report(
        title="Trace of a text",
        claim=trace.verdict.words,
        tables={
            "Spans, the most telling first: E is how often chance would have it, paper_bci the "
            "published score": _short(span_table(trace)),
        },
        figures={},
        provenance=provenance,
        notes=[coverage_words(summary), trace.paper.weakness],
        blocks=[traced_text(trace, prompt=str(summary["prompt"]))],
    )


def traced_text(trace: Trace, *, prompt: str = "") -> Markup:
    """The text with its spans marked and the documents below, as HTML; every text is escaped."""
    agreed = set(trace.verdict.agreed)
    numbered = [
        (i + 1, span, span_words(span), i in agreed) for i, span in enumerate(trace.spans[:LISTED])
    ]
    environment = jinja2.Environment(autoescape=True)
    html = environment.from_string(_PAGE).render(
        prompt=prompt,
        pieces=_pieces(trace, agreed),
        spans=numbered,
        left_out=max(0, len(trace.spans) - LISTED),
        place=place_words,
    )
    return Markup(html)


def span_words(span: TracedSpan) -> str:
    """Count, E-value and contrast of a span in a line."""
    times = "once" if span.count == 1 else f"{span.count:,} times"
    words = f"occurs {times}; by chance {expected(span.log_e)} times"
    if span.contrast is not None:
        words += f"; {math.exp(span.contrast):.3g} times its rate in the benign corpus"
    if span.policy is not None:
        words += f"; contradicts the policy with probability {span.policy.conflict:.2f}"
    return words + ("; echo of the prompt" if span.echo else "")


def expected(log_e: float) -> str:
    """An E-value, which may be far below what a float holds."""
    exponent = log_e / math.log(10)
    return f"{math.exp(log_e):.2g}" if exponent > -4 else f"1e{math.floor(exponent)}"


def place_words(one: SpanDocument) -> str:
    """Where a document stands: source and line, then shard, number and token."""
    where = one.where
    number = f"document {where.shard}/{where.document}, at {where.offset}"
    return (
        number
        if one.record is None
        else f"{one.record.source}, record {one.record.line + 1}, {number}"
    )


def coverage_words(summary: Mapping[str, Any]) -> str:
    """How much of the text is found, in a sentence."""
    covered = summary["coverage"]
    unit = "bytes" if summary["index"]["mode"] == "bytes" else "tokens"
    words = (
        f"{covered['verbatim']:.0%} of the text stands in matches of at least "
        f"{summary['min_length']} {unit} (longest: {covered['longest']}), {covered['listed']:.0%} "
        f"in {len(summary['spans'])} listed spans"
    )
    rare = summary["max_count"]
    words += f" that occur at most {rare} times" if rare else ""
    return words + (f"; {covered['prompt']:.0%} copies the prompt." if covered["prompt"] else ".")


def _pieces(trace: Trace, agreed: set[int]) -> list[dict[str, Any]]:
    """The text cut wherever a span begins or ends; spans may overlap."""
    edges = {0, len(trace.text), *(at for s in trace.spans for at in (s.start, s.stop))}
    cuts = sorted(edges)
    pieces = []
    for start, stop in pairwise(cuts):
        inside = [i for i, s in enumerate(trace.spans) if s.start <= start and stop <= s.stop]
        kind = ""
        if inside:
            own = [i for i in inside if not trace.spans[i].echo]
            kind = "flagged" if agreed & {*inside} else "found" if own else "echo"
        pieces.append(
            {
                "text": trace.text[start:stop],
                "kind": kind,
                "title": "; ".join(f"{i + 1}: {span_words(trace.spans[i])}" for i in inside),
                "ends": [i + 1 for i in inside if trace.spans[i].stop == stop and i < LISTED],
            }
        )
    return pieces


def _short(table: polars.DataFrame) -> polars.DataFrame:
    """The columns of the page, numbered from 1 as in the text; E-values as words."""
    named = table.with_columns(
        polars.col("span") + 1,
        polars.col("log_e").map_elements(expected, return_dtype=polars.String).alias("E"),
    )
    wanted = [
        "span",
        "text",
        "tokens",
        "count",
        "E",
        "q",
        "contrast",
        "policy_conflict",
        "paper_bci",
    ]
    shown = named.select(*wanted, "paper_high_risk", "echo", "flagged")
    return shown.select(one for one in shown if one.null_count() < max(1, len(shown)))


def _part(part: VerdictPart) -> dict[str, Any]:
    return {
        "score": finite(part.score),
        "threshold": finite(part.threshold),
        "holds": part.holds,
        "words": part.words,
    }


def _spans(trace: Trace) -> list[dict[str, Any]]:
    rows = span_table(trace).to_dicts()
    return [
        {
            **{name: finite(value) for name, value in row.items()},
            "documents": [document_of(one) for one in span.documents],
        }
        for row, span in zip(rows, trace.spans, strict=True)
    ]


def _documents(trace: Trace) -> list[dict[str, Any]]:
    """Every document once, with the numbers of the spans that it was listed for."""
    return [
        {
            "document": f"{one.shard}/{one.document}",
            "source": one.source,
            "record": one.line,
            "spans": list(one.spans),
            "relevance": one.relevance,
        }
        for one in documents(trace)
    ]


def document_of(one: SpanDocument) -> dict[str, Any]:
    """A place of a span, as JSON."""
    return {
        "document": f"{one.where.shard}/{one.where.document}",
        "at": one.where.offset,
        "source": None if one.record is None else one.record.source,
        "record": None if one.record is None else one.record.line,
        "metadata": {} if one.record is None else dict(one.record.metadata),
        "before": one.before,
        "match": one.match,
        "after": one.after,
    }


def finite(value: Any) -> Any:
    """None for numbers that JSON does not have."""
    return None if isinstance(value, float) and not math.isfinite(value) else value
