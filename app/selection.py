"""Which heads are picked: one state in the session, whoever changes it.

The grid, the layer and head fields and the list of heads to switch off all write here. A chart is
never redrawn to show its own click; a change from elsewhere starts a new chart (`epoch`).
"""

from __future__ import annotations

from collections.abc import Collection, Sequence

import polars
import streamlit as st

from ..models.anatomy import Anatomy
from ..models.types import HeadId
from .arrival import arrive
from .head_grid import picked_heads
from .settings import Settings

HEADS = ("layer", "head", "off", "picks")
"""What is picked, by its names in the session."""


def chosen_head() -> HeadId:
    """The head whose pattern is shown."""
    state = st.session_state
    return HeadId(int(state.get("layer") or 0), int(state.get("head") or 0))


def choose_model(
    settings: Settings, key: str = "model", *, of_a_question: Collection[str] = ()
) -> str:
    """The model on show, part of the address; another one has other heads. The first field of a
    page: before it the address is heeded, see `arrive`. Under another key it is that of the entry
    page, which has no heads and takes over what an address says by itself."""
    ours = key == "model"
    if ours and arrive(of_a_question):
        _new_chart()
    label = str(st.selectbox("Model", list(settings.models), key=key, bind="query-params"))
    if ours:
        _heads_are_of(label)
    return label


def head_fields(anatomy: Anatomy) -> None:
    """Fields for layer and head, part of the address; before the grid, which begins with them and
    with the list of heads."""
    heed_list(anatomy)
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


def heed_list(anatomy: Anatomy) -> None:
    """The list of heads as its field further down will have it: from the address until the field is
    there, without what this model does not have."""
    state = st.session_state
    listed = state["off"] if "off" in state else st.query_params.get_all("off")
    there = {str(head) for head in anatomy.all_heads()}
    kept = [name for name in listed if name in there]
    if "off" not in state or kept != listed:
        state["off"] = kept


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
    """What a new chart under this key is drawn with; the same for as long as the chart lives."""
    state = st.session_state
    starts = state.setdefault("grid_start", {})
    if key not in starts or key not in state:  # no chart yet, or one of an earlier visit
        starts.clear()
        starts[key] = state["picks"] = _framed()
    return starts[key]


def _framed() -> tuple[HeadId, ...]:
    """The list where it follows the grid, for the next shift-click adds to what is framed; else
    the picks so far. The chosen head where there are none."""
    state = st.session_state
    listed = tuple(map(HeadId.parse, state.get("off", ())))
    return (listed if _follows() else state.get("picks", ())) or (chosen_head(),)


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
    st.session_state["picks"] = tuple(heads)
    _new_chart()
    if heads:
        _choose(heads[0])
    _follow(tuple(heads))


def on_list_edited() -> None:
    """The list was edited by hand: from now on clicks leave it alone."""
    st.session_state["follow"] = False


def _heads_are_of(label: str) -> None:
    state = st.session_state
    if state.setdefault("heads_of", label) != label:
        for name in (*HEADS, "grid_start"):
            state.pop(name, None)
    state["heads_of"] = label


def _new_chart() -> None:
    st.session_state["epoch"] = st.session_state.get("epoch", 0) + 1


def _choose(head: HeadId) -> None:
    st.session_state["layer"], st.session_state["head"] = head.layer, head.head


def _follows() -> bool:
    return bool(st.session_state.get("follow", True))


def _follow(picks: tuple[HeadId, ...]) -> None:
    if _follows():
        st.session_state["off"] = [str(head) for head in picks]
