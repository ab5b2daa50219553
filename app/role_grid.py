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
from .head_grid import NAME, SELECTION, picked_heads
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
    layer, head = np.indices(chosen.shape).reshape(2, -1)
    return (
        polars.DataFrame({"layer": layer, "head": head})
        .with_columns(
            NAME,
            polars.Series("roles", _told(roles, masks).ravel(), polars.String),
            polars.Series("chosen", chosen.ravel()),
        )
        .with_columns(polars.format("{} score of roles: {}", "name", "roles").alias("spoken"))
    )


def strip_table(roles: Sequence[RoleScores], masks: Masks) -> polars.DataFrame:
    """One row a head and role that it has."""
    told = _told(roles, masks)
    parts = []
    for one in roles:
        layer, head = np.nonzero(masks[one.name])
        places = polars.DataFrame({"layer": layer, "head": head})
        parts.append(
            places.with_columns(
                polars.lit(one.name).alias("role"),
                polars.Series("score", np.nan_to_num(one.grid[layer, head]), polars.Float64),
                NAME,
                polars.Series("roles", told[layer, head], polars.String),
            )
        )
    return polars.concat(parts)


def _told(roles: Sequence[RoleScores], masks: Masks) -> np.ndarray:
    """Each head's roles in words."""
    has = np.stack([masks[one.name] for one in roles], axis=-1)
    names = np.array([one.name for one in roles], dtype=object)
    kinds, which = np.unique(has.reshape(-1, len(roles)), axis=0, return_inverse=True)
    words = np.array([", ".join(names[kind]) or "none of these roles" for kind in kinds], object)
    return words[which].reshape(has.shape[:-1])


def _legend(n_heads: int) -> Any:
    columns = 8 if n_heads > WIDE else 4
    return alt.Legend(
        orient="top", title=None, symbolType="square", columns=columns, labelLimit=130
    )


def _step(n_layers: int) -> int:
    """Height of a row in pixels."""
    return max(12, min(34, _PIXELS // n_layers))
