"""The layer by head grid of scores: a clickable Altair chart and what a click returns."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import altair as alt
import polars
import streamlit as st

from ..models.types import HeadId
from . import exports
from .charts import in_lines

ALPHA = 0.05
TESTED = (f"q ≤ {ALPHA}", f"not significant (q > {ALPHA})")
SELECTION = "heads"
NAME = polars.format("L{}.H{}", "layer", "head").alias("name")
"""What a head is called, from its columns `layer` and `head`."""

# Orange below zero, purple above, as in `results.figures`; the middle is the page's own colour.
_COLOURS = {
    "light": ("#b35806", "#f1a340", "#ededf0", "#998ec3", "#542788"),
    "dark": ("#ffc77d", "#c77f28", "#2a2b33", "#7b6bc0", "#d8c8ff"),
}
_MIDDLE = alt.Axis(labelAngle=0, labelFlush=False, labelBound=False, labelOverlap="greedy")
_CELLS = alt.Scale(paddingInner=0.08)
_FRAME = {"light": "#000000", "dark": "#ffffff"}


def head_grid(
    frame: polars.DataFrame,
    *,
    key: str,
    title: str,
    start: Sequence[HeadId] = (),
    on_pick: Callable[[], None] | None = None,
) -> tuple[HeadId, ...]:
    """Draw the grid and return the heads that are picked in it (shift-click adds).

    `frame` has one row a head: `layer`, `head`, `score`, `low`, `high`, `q` (the last three null
    where nothing was tested). `start` is what a new chart under this `key` begins with; it must
    stay the same while the key does, as another chart forgets its selection. `on_pick` runs before
    the page when a cell is clicked; `picked_heads(key)` tells it which.
    """
    theme = st.context.theme.type or "light"
    picked = picked_heads(key)
    exports.chart(
        grid_chart(frame, title=title, start=start, theme=theme),
        name=f"heads {title}",
        saved=lambda: grid_chart(frame, title=title, start=picked or start, theme=theme),
        key=key,
        on_select="rerun" if on_pick is None else on_pick,
        alt=f"Grid of heads, one row a layer. {title}",
    )
    return picked


def picked_heads(key: str) -> tuple[HeadId, ...]:
    """The heads picked in the grid of this key, in the order of layers."""
    state = st.session_state.get(key) or {}
    points = state.get("selection", {}).get(SELECTION, [])
    return tuple(sorted(HeadId(int(point["layer"]), int(point["head"])) for point in points))


def grid_chart(
    frame: polars.DataFrame,
    *,
    title: str,
    start: Sequence[HeadId] = (),
    theme: str = "light",
) -> Any:
    """The chart alone: layer 0 on top, colour centred on zero, cells with `q > ALPHA` faded."""
    tested = bool(frame["q"].is_not_null().any())
    limit = float(abs(frame["score"].fill_null(0.0).to_numpy()).max(initial=0.0)) or 1.0
    select = alt.selection_point(
        name=SELECTION,
        fields=["layer", "head"],
        toggle="event.shiftKey",
        value=[{"layer": head.layer, "head": head.head} for head in start] or alt.Undefined,
        empty=False,
    )
    framed = alt.condition(select, alt.value(_FRAME[theme]), alt.value("transparent"))
    encodings = {
        "x": alt.X("head:O", title="head", axis=_MIDDLE, scale=_CELLS),
        "y": alt.Y("layer:O", title="layer", axis=_MIDDLE, scale=_CELLS),
        "color": _colour(limit, theme),
        "stroke": framed,
        "tooltip": _tooltip(tested),
        "description": "spoken:N",
    }
    if tested:
        encodings["opacity"] = _fading(theme)
    return (
        alt.Chart(_with_test(frame), height=alt.Step(_step(frame)))
        .mark_rect(strokeWidth=2.5)
        .encode(**encodings)
        .add_params(select)
        .properties(title=alt.Title(in_lines(title, 36), fontSize=13, anchor="start"))
    )


def _colour(limit: float, theme: str) -> Any:
    stops = [-limit, -limit / 2, 0.0, limit / 2, limit]
    return alt.Color(
        "score:Q",
        title=None,
        scale=alt.Scale(domain=stops, range=list(_COLOURS[theme]), interpolate="lab"),
        legend=alt.Legend(orient="top", gradientLength=160, gradientThickness=10, format=".2~f"),
    )


def _fading(theme: str) -> Any:
    scale = alt.Scale(domain=list(TESTED), range=[1.0, 0.3])
    highest = _COLOURS[theme][-1]
    legend = alt.Legend(orient="bottom", title=None, symbolType="square", symbolFillColor=highest)
    return alt.Opacity("tested:N", scale=scale, legend=legend)


def _tooltip(tested: bool) -> list[Any]:
    shown = [alt.Tooltip("name:N", title="head"), alt.Tooltip("score:Q", format=".4f")]
    if tested:
        shown += [alt.Tooltip(f"{name}:Q", format=".4f") for name in ("low", "high", "q")]
    return shown


def _with_test(frame: polars.DataFrame) -> polars.DataFrame:
    significant = polars.col("q").fill_null(1.0) <= ALPHA
    return frame.with_columns(
        polars.when(significant)
        .then(polars.lit(TESTED[0]))
        .otherwise(polars.lit(TESTED[1]))
        .alias("tested"),
        NAME,
        polars.format("L{}.H{} score {}", "layer", "head", polars.col("score").round(4)).alias(
            "spoken"
        ),
    )


def _step(frame: polars.DataFrame) -> int:
    """Height of a row in pixels, so that the grid is 120 to 640 pixels high."""
    return max(8, min(30, 560 // frame["layer"].n_unique()))
