"""Texts with marked pieces: our own small component, which draws every string as plain text.

Documents of an index may hold anything, markup and scripts too, so that none of their text goes
through Markdown or HTML.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from itertools import pairwise
from pathlib import Path
from typing import Literal

import streamlit as st

from ..cli.tracing_report import span_words
from ..probes.provenance import Trace
from ..probes.traced_spans import SpanDocument, TracedSpan
from . import exports

Kind = Literal["", "found", "chance", "echo", "match"]


@dataclass(frozen=True)
class Piece:
    """A stretch of text; `pick` is the number of the span that a click on it chooses."""

    text: str
    kind: Kind = ""
    title: str = ""
    pick: int | None = None
    chosen: bool = False


_traced = st.components.v2.component(
    "mnemoscope_traced",
    html='<div class="traced"></div>',
    css="""
.traced { font-family: var(--st-font); font-size: 1rem; line-height: 1.75;
  color: var(--st-text-color); white-space: pre-wrap; overflow-wrap: anywhere; }
.traced mark { color: inherit; border-radius: 3px; padding: .12em 0;
  background: color-mix(in srgb, #0072b2 26%, transparent);
  box-shadow: inset 2px 0 0 var(--st-background-color); }
.traced mark.chance { background: color-mix(in srgb, #e69f00 26%, transparent); }
.traced mark.echo { background: color-mix(in srgb, #8a8f98 30%, transparent); }
.traced mark[role=button] { cursor: pointer; }
.traced mark.chosen { border-bottom: 3px solid var(--st-primary-color); border-radius: 0; }
.traced mark:focus-visible { outline: 2px solid var(--st-primary-color); }
""",
    js=Path(__file__).with_name("trace_canvas.js").read_text("utf-8"),
)


def draw_text(
    pieces: Sequence[Piece], *, key: str, alt: str, on_picked: Callable[[], None] | None = None
) -> None:
    """The pieces one after the other; `on_picked` runs after a click, `picked` tells on which."""
    data = {"name": key, "alt": alt, "pieces": [asdict(piece) for piece in pieces]}
    _traced(key=key, data=data, on_picked_change=on_picked or _ignore)
    exports.marked(alt, [(piece.text, piece.kind) for piece in pieces])


def picked(key: str) -> int | None:
    """The number of the span that a callback was called for."""
    found = (st.session_state.get(key) or {}).get("picked")
    return int(found["span"]) if found else None


def text_pieces(trace: Trace, chosen: int) -> list[Piece]:
    """The traced text, cut wherever a span begins or ends; spans may overlap.

    A click on an overlap chooses the most telling of its spans that is not chosen yet.
    """
    edges = {0, len(trace.text), *(at for span in trace.spans for at in (span.start, span.stop))}
    pieces = []
    for start, stop in pairwise(sorted(edges)):
        over = [i for i, one in enumerate(trace.spans) if one.start <= start and stop <= one.stop]
        text = trace.text[start:stop]
        if not over:
            pieces.append(Piece(text))
            continue
        title = "\n".join(f"span {i + 1}: {span_words(trace.spans[i])}" for i in over)
        other = next((i for i in over if i != chosen), chosen)
        pieces.append(
            Piece(text, _kind([trace.spans[i] for i in over]), title, other, chosen in over)
        )
    return pieces


def document_pieces(one: SpanDocument) -> list[Piece]:
    """The match in its surroundings."""
    return [Piece(f"… {one.before}"), Piece(one.match, "match"), Piece(f"{one.after} …")]


def _kind(spans: Sequence[TracedSpan]) -> Kind:
    own = [span for span in spans if not span.echo]
    if not own:
        return "echo"
    return "found" if any(span.beyond_chance for span in own) else "chance"


def _ignore() -> None:
    """Nothing here can be picked."""
