"""The strongest edges of the chosen head: arcs over the text, a list, what the sink takes."""

from __future__ import annotations

from collections.abc import Sequence

import streamlit as st

from ..models.types import HeadId
from . import exports
from .edges import KEPT, Edges, edge_table
from .token_strip import draw_edges

LISTED = 100
"""Edges in the list on the page; files of it hold all."""


def show_edges(
    found: Edges,
    tokens: Sequence[str],
    head: HeadId,
    *,
    key: str,
    queries: tuple[int, int] | None = None,
) -> None:
    """Arcs and tokens, then the list; `queries` (start, stop) are those that the list is about."""
    alt = f"Tokens and the strongest edges of {head}."
    draw_edges(found, tokens, key=key, name=f"arcs of {head}", alt=alt)
    exports.caption(edge_words(found, head))
    rows = edge_table(found, tokens, queries)
    with st.expander(f"List of the strongest edges of {head}"):
        exports.table(
            rows.head(LISTED),
            name=f"edges of {head}",
            alt=f"The strongest edges of {head}: query, key and weight.",
            height=300,
            columns={
                "weight": st.column_config.NumberColumn("weight", format="%.4f"),
                "times_even": st.column_config.NumberColumn("times even", format="%.1f"),
            },
            whole=rows,
            key=key,
        )
        exports.caption(
            f"The {min(LISTED, rows.height)} strongest of {rows.height:,} edges"
            + ("" if queries is None else f" of queries {queries[0]} to {queries[1]}")
            + "; the files hold them all."
        )


def edge_words(found: Edges, head: HeadId) -> str:
    """What is drawn and what is left out."""
    first = "the first token" if found.sinks == 1 else f"the first {found.sinks} tokens"
    sink = (
        f"{found.sink.mean():.0%} of the attention of {head} rests on {first} (the sink)"
        f"{', which is left out' if found.without_sink else ''}; of even attention over all tokens "
        f"so far, {found.even_sink:.0%}"
    )
    return (
        f"The {KEPT} strongest edges of each token hold {found.kept.mean():.0%} of the attention "
        f"of {head}; as many edges of even attention, the same weight for every key that a token "
        f"sees, hold {found.even_kept:.0%}. Beside each weight stands how many times that of even "
        f"attention it is. {sink}. Blue: what the picked token attends to; orange: what attends to "
        "it; colours by the square root of the weight. Arcs go from left (read) to right "
        "(reading); at most 4,000 are drawn pale. An edge is attention, no effect: hide the token "
        "from the head to see its effect."
    )
