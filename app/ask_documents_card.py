"""Fourth card: the documents of an index that hold the answer together with its prompt."""

from __future__ import annotations

import streamlit as st

from ..cli.tracing_report import expected, place_words
from ..cli.tracing_sources import OpenIndex
from ..probes.traced_spans import TracedSpan
from . import ask_cached, exports
from .ask_documents import SHORTEST, AnswerSpans
from .ask_links import onward
from .ask_scene import AskScene
from .plain import as_text
from .trace_canvas import document_pieces, draw_text
from .trace_corpus import RISK
from .trace_scene import offer_to_build, opened

SPANS, DOCUMENTS = 2, 3


def fill_documents(asked: AskScene) -> None:
    """One half for each answer; without an index, how to choose one."""
    offer = asked.offer
    if offer is None or asked.corpus is None:
        exports.info(
            "No index of documents is chosen: choose one on the left, or make one of your own "
            "texts with `mnemoscope trace index`."
        )
        return
    if not offer.built:
        offer_to_build(asked.corpus, offer)
        return
    found = opened(offer, asked.place, asked.loaded)
    assert found is not None
    scene = asked.scene()
    for i, (place, said) in enumerate(zip(st.columns(len(scene.said)), scene.said, strict=True)):
        with place:
            exports.caption(f"The answer {scene.named[i][0]}")
            show_answer(asked, found, said, i)
    exports.caption(
        f"Looked up: the prompt with the first sentence of the answer, stretches of at least "
        f"{SHORTEST} tokens that reach into the answer. Verbatim occurrence is no cause."
    )


def show_answer(asked: AskScene, found: OpenIndex, said: str, number: int) -> None:
    """What was looked up, its stretches, and the way to the page about them."""
    hidden = found.info.label == RISK
    with st.spinner("Looking it up …"):
        spans = ask_cached.spans_of(
            found,
            (found.sha256, asked.loaded.key),
            asked.question.closed,
            said,
            asked.loaded.model.tokenizer_sha256,
            hidden,
        )
    show_spans(spans, number, hidden=hidden)
    address = {"corpus": asked.corpus or "", "trace": "a text", "text": spans.text}
    rules = {"least": str(SHORTEST), "most": "0"}
    onward("provenance", "All matches of this text", {**asked.address, **address, **rules})


def show_spans(found: AnswerSpans, number: int, *, hidden: bool) -> None:
    """The stretches with their counts, or that there is none."""
    if not found.spans:
        exports.quote(found.text)
        exports.markdown(
            "**0 ×**: no stretch of this that reaches into the answer stands in the index."
        )
        return
    for i, span in enumerate(found.spans[:SPANS]):
        exports.quote(span.text)
        exports.markdown(f"**{span.count:,} ×** in the index; by chance {expected(span.log_e)} ×.")
        if i == 0:
            show_places(span, number, hidden=hidden)
    if len(found.spans) > SPANS:
        exports.caption(f"{len(found.spans) - SPANS} more stretches on the page about documents.")


def show_places(span: TracedSpan, number: int, *, hidden: bool) -> None:
    """A few of the documents; texts of a risk index stay out of sight."""
    for i, one in enumerate(span.documents[:DOCUMENTS]):
        exports.caption(as_text(place_words(one)))
        if one.match and not hidden:
            draw_text(document_pieces(one), key=f"ask-{number}-{i}", alt="The stretch in it.")
    if hidden:
        exports.caption(
            "This index is labelled risk: its texts are shown on the page about documents."
        )
