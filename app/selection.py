"""Which heads are picked: one state in the session, whoever changes it.

The grid, the layer and head fields and the list of heads to switch off all write here. A chart is
never redrawn to show its own click; a change from elsewhere starts a new chart (`epoch`).
"""

from __future__ import annotations

from collections.abc import Sequence

import polars
import streamlit as st

from ..models.anatomy import Anatomy
from ..models.types import HeadId
from .head_grid import picked_heads
from .settings import Settings


def chosen_head() -> HeadId:
    """The head whose pattern is shown."""
    state = st.session_state
    return HeadId(int(state.get("layer") or 0), int(state.get("head") or 0))


def choose_model(settings: Settings, key: str = "model") -> str:
    """The model on show, part of the address; another one has other heads."""
    return str(
        st.selectbox(
            "Model",
            list(settings.models),
            key=key,
            bind="query-params",
            on_change=forget_heads,
        )
    )


def head_fields(anatomy: Anatomy) -> None:
    """Fields for layer and head, part of the address."""
    sizes = (("layer", anatomy.n_layers), ("head", anatomy.n_heads))
    for place, (name, count) in zip(st.columns(2), sizes, strict=True):
        place.number_input(
            name.capitalize(),
            0,
            count - 1,
            None,  # so that 0 is written into the address too
            key=name,
            bind="query-params",
            on_change=on_head_typed,
        )


def start_with_best(frame: polars.DataFrame) -> None:
    """On a first visit whose address names no head, choose the one with the highest score."""
    if "layer" in st.session_state or {"layer", "head"} & set(st.query_params):
        return
    best = frame.sort("score", descending=True, nulls_last=True).row(0, named=True)
    st.session_state["layer"], st.session_state["head"] = best["layer"], best["head"]


def grid_key(*parts: object) -> str:
    """The key of the grid that shows these data; it is noted, so that callbacks find its clicks."""
    key = f"grid-{hash(parts):x}-{st.session_state.setdefault('epoch', 0)}"
    st.session_state["grid_key"] = key
    return key


def start_of(key: str) -> tuple[HeadId, ...]:
    """What a new chart under this key is drawn with; the same for as long as the key lives."""
    starts = st.session_state.setdefault("grid_start", {})
    if key not in starts:
        starts.clear()
        starts[key] = st.session_state.get("picks") or (chosen_head(),)
    return starts[key]


def on_pick() -> None:
    """A cell was clicked: the newest pick becomes the chosen head, the list follows if it may."""
    state = st.session_state
    picks = picked_heads(state["grid_key"])
    new = sorted(set(picks) - set(state.get("picks", ())))
    state["picks"] = picks
    if picks:
        _choose(new[0] if new else picks[-1])
    _follow(picks)


def on_head_typed() -> None:
    """Layer or head was typed: pick that head alone, on a new chart."""
    pick_heads((chosen_head(),))


def pick_heads(heads: Sequence[HeadId]) -> None:
    """Pick these heads, choose the first, and start a new chart that shows them."""
    state = st.session_state
    state["picks"] = tuple(heads)
    state["epoch"] = state.get("epoch", 0) + 1
    if heads:
        _choose(heads[0])
    _follow(tuple(heads))


def on_list_edited() -> None:
    """The list was edited by hand: from now on clicks leave it alone."""
    st.session_state["follow"] = False


def forget_heads() -> None:
    """Another model: its heads are other heads."""
    for name in ("picks", "grid_start", "layer", "head", "off"):
        st.session_state.pop(name, None)


def _choose(head: HeadId) -> None:
    st.session_state["layer"], st.session_state["head"] = head.layer, head.head


def _follow(picks: tuple[HeadId, ...]) -> None:
    if st.session_state.get("follow", True):
        st.session_state["off"] = [str(head) for head in picks]
