"""What the entry page's cards share: links to other pages with the same question, and the button
that long work waits for."""

from __future__ import annotations

from collections.abc import Mapping

import streamlit as st

from .ask_scene import AskScene
from .forecast import LONGEST_WAIT
from .scene import CONTEXT, PROMPT
from .trace_inside_section import LINK, VIEWS

BEGINS = {"explore": {"prompt": PROMPT, "context": CONTEXT}}
"""What pages ask unless their address asks something else."""


def onward(view: str, label: str, address: Mapping[str, str]) -> None:
    """A link to a page with this address, without what the page asks anyway and would strip."""
    anyway = BEGINS.get(view, {})
    asked = {name: value for name, value in address.items() if anyway.get(name) != value}
    st.page_link(VIEWS / f"{view}.py", label=label, icon=LINK, query_params=asked)


def may_start(asked: AskScene, what: str, seconds: float) -> bool:
    """Whether the work is short, was asked for about this question, or is asked for by a click."""
    key, stamp = f"asked for {what}", (asked.loaded.key, asked.question)
    if seconds <= LONGEST_WAIT or st.session_state.get(key) == stamp:
        return True
    if not st.button(f"{what} (about {seconds:.0f} s)", type="primary"):
        return False
    st.session_state[key] = stamp
    return True
