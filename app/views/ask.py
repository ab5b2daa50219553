"""One question, every answer: the entry page. Each card leads to the page that measures more."""

from __future__ import annotations

import streamlit as st
from mnemoscope.app import cached, exports
from mnemoscope.app.ask_cards import show_cards
from mnemoscope.app.ask_scene import AskScene, adopt_address, ask_sidebar
from mnemoscope.app.ask_tour import show_tour
from mnemoscope.app.plain import told
from mnemoscope.app.settings import settings_from_environment


def page() -> None:
    """The whole page, top to bottom."""
    settings = settings_from_environment()
    st.title("Where does the answer come from?")
    show_tour(settings)
    adopt_address()
    label, question, typed, corpus = ask_sidebar(settings)
    with told():
        loaded = cached.loaded_model(settings.models[label])
        asked = {"model": label, "prompt": question.prompt, "context": question.context}
        found = exports.measured_on(loaded.model, "first readings of one prompt")
        exports.about({**asked, "index": corpus or "none"}, found)
        show_cards(AskScene(settings, label, loaded, question, typed, corpus))


page()
