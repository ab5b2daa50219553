"""The cards of the entry page: each a fragment that runs beside the others and fills by itself.

A card's errors stand in the card. What several cards need (what the model says) is computed once
and kept; the model's lock lets one of them run the model at a time.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import streamlit as st

from . import exports
from .ask_documents_card import fill_documents
from .ask_heads_card import fill_answer, fill_heads
from .ask_reading_card import fill_reading
from .ask_reverse_card import fill_reverse
from .ask_scene import AskScene
from .ask_units_card import fill_units
from .plain import told

Fill = Callable[[AskScene], None]

ROWS: tuple[tuple[Mapping[str, Fill], ...], ...] = (
    ({"What does the model say?": fill_answer},),
    (
        {"Memory or context?": fill_heads, "Which units hear the relation?": fill_units},
        {"Who reads the context?": fill_reading, "Does the reverse hold?": fill_reverse},
    ),
    ({"Which documents hold the answer?": fill_documents},),
)
"""The cards by their title: rows of columns, each from top to bottom."""


def show_cards(scene: AskScene) -> None:
    """All cards; none waits for another."""
    exports.reserve(*(title for row in ROWS for column in row for title in column))
    for row in ROWS:
        for place, column in zip(st.columns(len(row)), row, strict=True):
            with place:
                for title, fill in column.items():
                    st.fragment(card, parallel=True)(title, fill, scene)


def card(title: str, fill: Fill, scene: AskScene) -> None:
    """One card: its question, and what is found, or what is wrong."""
    with exports.section(title), st.container(border=True):
        exports.subheader(title)
        with told():
            fill(scene)
