"""All roles on one layer by head map: a strip in a head's cell for each role that it has."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import altair as alt
import numpy as np
import polars
import streamlit as st
from jaxtyping import Bool

from ..models.types import HeadId
from . import exports
from .head_grid import SELECTION, picked_heads
from .role_scores import RoleScores, colours_of

Masks = Mapping[str, Bool[np.ndarray, "layer head"]]
_GROUND = {"light": "#eceef2", "dark": "#2a2d36"}
_FRAME = {"light": "#000000", "dark": "#ffffff"}
_PICKED = "#D55E00"
_AXIS = alt.Axis(labelAngle=0, labelFlush=False, labelBound=False, ticks=False, domain=False)
_CELLS = alt.Scale(paddingInner=0.12, paddingOuter=0.06)
_PIXELS = 640
WIDE = 12
"""From more heads a layer than these on the map takes the whole width of the page."""


def role_map(
    roles: Sequence[RoleScores],
    masks: Masks,
    chosen: Bool[np.ndarray, "layer head"],
    *,
    key: str,
    start: Sequence[HeadId],
    on_pick: Callable[[], None],
) -> tuple[HeadId, ...]:
    """Draw the map and return the heads that are picked in it (shift-click adds).

    As for `head_grid`, `start` stays the same while the key does. `chosen` heads get a frame.
    """
    theme = st.context.theme.type or "light"
    picked = picked_heads(key)
    exports.chart(
        role_chart(roles, masks, chosen, start=start, theme=theme),
        name="heads by role",
        saved=lambda: role_chart(roles, masks, chosen, start=picked or start, theme=theme),
        key=key,
        on_select=on_pick,
        alt=map_alt(roles, masks, chosen),
    )
    return picked


def map_alt(
    roles: Sequence[RoleScores], masks: Masks, chosen: Bool[np.ndarray, "layer head"]
) -> str:
    """The map in words."""
    told = ", ".join(f"{one.name} {int(masks[one.name].sum())}" for one in roles)
    return (
        f"Grid of heads, one row a layer, a strip for each role of a head. Heads a role: {told}. "
        f"{int(chosen.sum())} heads are in the chosen set."
    )


def role_chart(
    roles: Sequence[RoleScores],
    masks: Masks,
    chosen: Bool[np.ndarray, "layer head"],
    *,
    start: Sequence[HeadId] = (),
    theme: str = "light",
) -> Any:
    """The chart alone: layer 0 on top; strips keep their place in all cells, so that a role is told
    by its place as well as its colour."""
    cells, strips = cell_table(roles, masks, chosen), strip_table(roles, masks)
    height = alt.Step(_step(chosen.shape[0]))
    x = alt.X("head:O", title="head", axis=_AXIS, scale=_CELLS)
    y = alt.Y("layer:O", title="layer", axis=_AXIS, scale=_CELLS)
    select = alt.selection_point(
        name=SELECTION,
        fields=["layer", "head"],
        toggle="event.shiftKey",
        value=[{"layer": head.layer, "head": head.head} for head in start] or alt.Undefined,
        empty=False,
    )
    base, picked = alt.Chart(cells, height=height), alt.value(_PICKED)
    spoken = [alt.Tooltip("name:N", title="head"), alt.Tooltip("roles:N")]
    ground = (
        base.mark_rect(strokeWidth=3, cornerRadius=2)
        .encode(
            x=x,
            y=y,
            color=alt.value(_GROUND[theme]),
            stroke=alt.condition(select, picked, alt.value("transparent")),
            tooltip=spoken,
            description="spoken:N",
        )
        .add_params(select)
    )
    names = [one.name for one in roles]
    colours = alt.Scale(domain=names, range=list(colours_of(roles).values()))
    striped = (
        alt.Chart(strips)
        .mark_rect(stroke=None)
        .encode(
            x=x,
            y=y,
            xOffset=alt.XOffset("role:N", scale=alt.Scale(domain=names, paddingInner=0.15)),
            color=alt.Color("role:N", scale=colours, legend=_legend(chosen.shape[1])),
            tooltip=[*spoken, "role:N", alt.Tooltip("score:Q", format=".4f")],
        )
    )
    frame = (
        base.mark_rect(filled=False, strokeWidth=2, cornerRadius=2)
        .encode(
            x=x,
            y=y,
            stroke=alt.condition(select, picked, alt.value(_FRAME[theme])),
            tooltip=spoken,
        )
        .transform_filter("datum.chosen")
    )
    return alt.layer(ground, striped, frame)


def cell_table(
    roles: Sequence[RoleScores], masks: Masks, chosen: Bool[np.ndarray, "layer head"]
) -> polars.DataFrame:
    """One row a head: its roles in words, and whether it is chosen."""
    rows = []
    for layer, head in np.ndindex(*chosen.shape):
        has = [one.name for one in roles if masks[one.name][layer, head]]
        told = ", ".join(has) or "none of these roles"
        name = f"L{layer}.H{head}"
        rows.append(
            {
                "layer": layer,
                "head": head,
                "name": name,
                "roles": told,
                "chosen": bool(chosen[layer, head]),
                "spoken": f"{name} score of roles: {told}",
            }
        )
    return polars.DataFrame(rows)


def strip_table(roles: Sequence[RoleScores], masks: Masks) -> polars.DataFrame:
    """One row a head and role that it has."""
    schema = {"layer": polars.Int64, "head": polars.Int64, "role": polars.String}
    rows = [
        {
            "layer": int(layer),
            "head": int(head),
            "role": one.name,
            "score": float(np.nan_to_num(one.grid[layer, head])),
            "name": f"L{layer}.H{head}",
            "roles": ", ".join(r.name for r in roles if masks[r.name][layer, head]),
        }
        for one in roles
        for layer, head in np.argwhere(masks[one.name])
    ]
    words = {"score": polars.Float64, "name": polars.String, "roles": polars.String}
    return polars.DataFrame(rows, schema={**schema, **words})


def _legend(n_heads: int) -> Any:
    columns = 8 if n_heads > WIDE else 4
    return alt.Legend(
        orient="top", title=None, symbolType="square", columns=columns, labelLimit=130
    )


def _step(n_layers: int) -> int:
    """Height of a row in pixels."""
    return max(12, min(34, _PIXELS // n_layers))
