"""First section: the text with its spans, what is said of the chosen one, and the verdict."""

from __future__ import annotations

import math

import polars
import streamlit as st

from ..cli.tracing_report import coverage_words, expected, summary_of
from ..probes.provenance_tables import span_table
from ..probes.provenance_verdict import CLAIM, VerdictPart
from ..probes.traced_spans import TracedSpan
from . import exports
from .plain import as_text
from .trace_canvas import draw_text, picked, text_pieces
from .trace_scene import TraceScene

TEXT = "traced"
_STATES = {True: ("yes", "orange"), False: ("no", "gray"), None: ("not decided", "gray")}


def show_text(scene: TraceScene) -> None:
    """The text on the left, the verdict on the right, coverage below."""
    left, right = st.columns([3, 2], gap="large")
    with left:
        exports.caption(scene_words(scene))
        if scene.said.prompt:
            exports.caption("Prompt (not judged):")
            exports.quote(scene.said.prompt)
        draw_text(
            text_pieces(scene.trace, -1 if scene.number is None else scene.number),
            key=TEXT,
            alt="The traced text; marked spans can be chosen.",
            on_picked=on_picked,
        )
        exports.caption(
            "Blue stands verbatim in the index and is no chance match, yellow may be one, grey "
            "copies the prompt. Click a span to choose it."
        )
    with right:
        show_verdict(scene)
    show_coverage(scene)


def show_verdict(scene: TraceScene) -> None:
    """The card: three parts that stay apart, and what they come to."""
    verdict = scene.trace.verdict
    with st.container(border=True):
        exports.subheader(CLAIM.rstrip("."))
        asked = (verdict.verbatim, verdict.contrast, verdict.policy)
        for part in asked:
            show_part(part)
        exports.markdown(
            "Whether to **flag** the text is not decided here: the thresholds for that are set on "
            "harmless texts of your own (`mnemoscope trace text --calibrate`)."
        )
        exports.caption(
            "The words stand in the index. That the model wrote them because of a document does "
            "not follow: leaving the document out and training again would be needed to say so."
        )


def show_part(part: VerdictPart) -> None:
    """One line of the card; what was not asked for is said in grey."""
    if part.score is None or not math.isfinite(part.score):
        exports.caption(as_text(part.words))
        return
    words, colour = _STATES[part.holds]
    question = part.words.partition(":")[0]
    limit = "no threshold" if part.threshold is None else f"threshold {part.threshold:.2f}"
    exports.markdown(f"{as_text(question)}: :{colour}-badge[{words}] {part.score:.2f}, {limit}")


def show_coverage(scene: TraceScene) -> None:
    """How much of the text stands in the index at all."""
    covered, bytes_ = scene.trace.coverage, scene.trace.info.mode == "bytes"
    shown = (
        ("In any match", f"{covered.verbatim:.0%}", "Share of the text in matches of at least "
         "the shortest length, however common."),
        ("In listed spans", f"{covered.listed:.0%}", "Share in the spans marked above."),
        ("Copies the prompt", f"{covered.prompt:.0%}", "Share that repeats the prompt."),
        ("Longest match", f"{covered.longest} {'bytes' if bytes_ else 'tokens'}", "Of any count."),
    )  # fmt: skip
    for place, (name, value, why) in zip(st.columns(len(shown)), shown, strict=True):
        exports.metric(place, name, value, why)
    summary = summary_of(scene.trace, scene.found, prompt=scene.said.prompt, model=scene.label)
    exports.caption(as_text(coverage_words(summary)))


def show_span(scene: TraceScene, span: TracedSpan) -> None:
    """The chosen span's numbers."""
    exports.subheader(f"Span {(scene.number or 0) + 1} of {len(scene.trace.spans)}")
    exports.quote(span.text)
    numbers = [
        ("Occurs", f"{span.count:,} ×", "Times in the index."),
        ("E-value", expected(span.log_e), "Times that chance would have it there, words drawn "
         "one by one as often as they occur in the index. An idiom surprises it all the same."),
        ("q", expected(math.log(span.q)) if span.q else "0", "After Benjamini and Hochberg over "
         "all places of the text."),
        ("Contrast", "–" if span.contrast is None else f"{math.exp(span.contrast):.3g} ×",
         "Its rate in this index over that in the benign one."),
    ]  # fmt: skip
    for place, (name, value, why) in zip((*st.columns(2), *st.columns(2)), numbers, strict=True):
        exports.metric(place, name, value, why)
    if span.echo:
        exports.info("It echoes the prompt, so that it decides nothing.")


def show_table(scene: TraceScene) -> None:
    """All spans, and what the published score would have said."""
    with st.expander(f"All {len(scene.trace.spans)} spans, and the published score"):
        exports.table(numbered(scene), name="spans", alt="The spans with their numbers.")
        paper = scene.trace.paper
        said = "refuses" if paper.refused else "does not refuse"
        exports.caption(
            as_text(
                f"The published method {said} this text ({len(paper.risky)} of {paper.n_windows} "
                f"windows). {paper.weakness}"
            )
        )


def numbered(scene: TraceScene) -> polars.DataFrame:
    """The table of spans, counted from 1 as on the page."""
    columns = ("span", "text", "tokens", "count", "log_e", "q", "contrast", "echo")
    table = span_table(scene.trace).with_columns(polars.col("span") + 1)
    return table.select(*columns, "paper_bci", "paper_high_risk")


def scene_words(scene: TraceScene) -> str:
    """What was looked up where."""
    words = as_text(f"Looked up in {scene.found.words}")
    beside = "" if scene.benign is None else as_text(f"; beside {scene.benign.words}")
    return f"{words}{beside}."


def on_picked() -> None:
    """A span was clicked: choose it."""
    number = picked(TEXT)
    if number is not None:
        st.session_state["span"] = number + 1
