"""The sidebar's fields for a haystack of one's own: a pasted text or a file, prompt and answer."""

from __future__ import annotations

from typing import Literal

import streamlit as st

from .own_haystack import FILE_KINDS, OwnText, read_text_file, text_files
from .plain import as_text
from .settings import Settings

Source = Literal["made", "my own", "a file"]
SOURCES: tuple[Source, ...] = ("made", "my own", "a file")
PROMPT = "Question: What is the password of Fezdul? Answer:"
CONTEXT = (
    "The gate is shut at night and the guards change at noon. The password of Fezdul is double "
    "coin. Nobody writes it down, and the cook has forgotten it before.\n"
)


def choose_source() -> Source:
    """Whether the haystack is made, pasted or a file; part of the address."""
    with st.sidebar:
        source: Source = st.segmented_control(
            "Haystack", SOURCES, default="made", required=True, key="hay", bind="query-params"
        )
    return source


def own_text(settings: Settings, source: Source) -> OwnText | None:
    """What is typed or chosen; None, with words why, where there is no file to choose."""
    with st.sidebar:
        context = _from_file(settings) if source == "a file" else _pasted()
        prompt = st.text_area(
            "Prompt, put behind it", PROMPT, key="prompt", bind="query-params", height=90
        )
        answer = st.text_input(
            "Answer to be found",
            key="ctx",
            bind="query-params",
            placeholder="the model's own",
            help="Words that stand in the text. Empty: the model's own answer, if it stands there.",
        )
        st.caption("Changes take effect with Ctrl+Enter in a box, Enter in a field, or Tab.")
    return None if context is None else OwnText(context, prompt, answer)


def _pasted() -> str:
    return str(st.text_area("Context", CONTEXT, key="context", bind="query-params", height=220))


def _from_file(settings: Settings) -> str | None:
    """The text of the chosen file. Raises `MnemoscopeError` for one that cannot be read."""
    folder = settings.texts
    files = text_files(folder)
    if st.session_state.get("file") not in (None, *files):
        del st.session_state["file"]
    if not files:
        st.info(as_text(f"Put texts ({' or '.join(FILE_KINDS)}) into {folder}, then choose here."))
        return None
    name = st.selectbox("File", files, key="file", bind="query-params")
    return read_text_file(folder, name)
