"""Second section: the chosen span and the documents that hold it, side by side."""

from __future__ import annotations

import streamlit as st

from ..cli.tracing_report import place_words
from ..probes.traced_spans import SpanDocument, TracedSpan
from . import exports
from .plain import as_text
from .trace_canvas import document_pieces, draw_text
from .trace_scene import TraceScene
from .trace_section import show_span, show_table

FEW, SCROLLED = 3, 560
"""More documents than this scroll in a box of so many pixels."""


def show_documents(scene: TraceScene) -> None:
    """Numbers on the left, documents on the right; then the table of all spans."""
    exports.header("Which documents hold it?")
    span = scene.span
    if span is None:
        show_nothing(scene)
        return
    left, right = st.columns([2, 3], gap="large")
    with left:
        show_span(scene, span)
    with right:
        show_places(scene, span)
    show_table(scene)


def show_nothing(scene: TraceScene) -> None:
    """Why no span is listed."""
    most, covered = scene.trace.rules.max_count, scene.trace.coverage.verbatim
    if not covered or most is None:
        exports.info(
            "Nothing of this text stands in the index, in a stretch of the shortest length: allow "
            "shorter ones under “Which matches are listed”, or choose another index."
        )
        return
    exports.info(
        f"{covered:.0%} of the text stands in the index, in more than {most} places each: it is "
        "commonplace there, and so is not listed."
    )
    st.button("List it all the same", on_click=list_all)


def list_all() -> None:
    """Callback: spans of any number of occurrences."""
    st.session_state["most"] = 0


def show_places(scene: TraceScene, span: TracedSpan) -> None:
    """The documents, the most relevant to the text first."""
    if scene.hidden:
        exports.warning(
            "This index is labelled risk: where the documents stand is listed, their text is not. "
            "The switch on the left shows it."
        )
    with st.container(height=SCROLLED if len(span.documents) > FEW else "content", border=False):
        for i, one in enumerate(span.documents):
            with st.container(border=True):
                exports.caption(as_text(f"{place_words(one)}{metadata_words(one)}"))
                if one.match:
                    draw_text(document_pieces(one), key=f"document-{i}", alt="The span in it.")
    if span.count > len(span.documents):
        exports.caption(f"{len(span.documents)} of {span.count:,} occurrences, evenly sampled.")


def metadata_words(one: SpanDocument) -> str:
    """What else the index knows of the document, cut short."""
    known = {} if one.record is None else one.record.metadata
    words = ", ".join(f"{name}: {value}" for name, value in known.items())
    return f" ({words[:200]}{'…' if len(words) > 200 else ''})" if words else ""
