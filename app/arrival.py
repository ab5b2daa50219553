"""On the way into a page by a link: what its address says, and nothing of an earlier visit.

Streamlit keeps what the fields of a page hold after the page is left, by their names, and lets an
address change only what it gives a value other than the field's default. Whoever follows a link
would find the rest as it was left, about a question that the link does not ask. So it is forgotten
before the fields are drawn. The menu brings no address: there everything stays as it was left.
"""

from __future__ import annotations

from collections.abc import Collection

import streamlit as st
from streamlit.runtime.scriptrunner import get_script_run_ctx

QUESTION = ("prompt", "context", "mem", "ctx")
"""The fields of a question. Links carry it to pages without such fields too, in the address."""
ENTRY = ""
"""The path of the page whose links carry its question to all others."""
_PAGE, _FROM = "page_on_show", "page_before"


def turn_to(page: str) -> None:
    """At the start of every run: the path of the page that it shows."""
    state = st.session_state
    before = state.get(_PAGE, page)
    state[_PAGE], state[_FROM] = page, None if before == page else before


def arrive(of_a_question: Collection[str]) -> bool:
    """Before the first field of a page about a model: forget what the address is about. Whether it
    asks a question; then all of these names are forgotten too, which on this page hold a question
    and the choices that were made about it.

    Links of the entry page, whose fields have names of their own, name the model unless it is the
    first one. Of links between other pages Streamlit takes away what both pages have in common.
    """
    context, state = get_script_run_ctx(), st.session_state
    by_history = bool(getattr(context, "is_history_navigation", False))
    came_from = state.get(_FROM)
    by_link = came_from is not None and bool(st.query_params)
    if not (by_history or by_link):
        return False
    forgotten = set(st.query_params) - set(QUESTION)
    if came_from == ENTRY:
        forgotten.add("model")
    if asks := by_history or came_from == ENTRY or "prompt" in st.query_params:
        forgotten.update(of_a_question)
    for name in forgotten:
        state.pop(name, None)
    return asks
