"""Which documents a text comes from: its spans in an index, and the model on each of them."""

from __future__ import annotations

import streamlit as st
from mnemoscope.app import exports
from mnemoscope.app.plain import told
from mnemoscope.app.settings import settings_from_environment
from mnemoscope.app.trace_document_section import show_documents
from mnemoscope.app.trace_export_section import provenance_of, show_export
from mnemoscope.app.trace_inside_section import show_inside
from mnemoscope.app.trace_scene import trace_sidebar
from mnemoscope.app.trace_section import show_text


def page() -> None:
    """The whole page, top to bottom."""
    settings = settings_from_environment()
    st.title("Which documents does it come from?")
    with told():
        scene = trace_sidebar(settings)
        if scene is None:
            return
        asked = {"model": scene.label, "index": scene.found.words, "prompt": scene.said.prompt}
        exports.about({**asked, "text": scene.said.text}, provenance_of(scene))
        show_text(scene)
        show_documents(scene)
        with told():
            show_inside(scene)
        show_export(scene)


page()
