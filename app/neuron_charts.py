"""The charts of the page about relation neurons."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import altair as alt
import polars

from .charts import OTHER, WEIGHT_COLOURS, WEIGHT_INK, token_bars
from .neuron_runs import FOUND_BY, JUDGED_ON, NOT_ABOUT_IT

FIRST = "said unchanged"
_BLUE, _GREEN = "#0072B2", "#009E73"
_GROUPS = alt.Scale(domain=[FOUND_BY, JUDGED_ON, NOT_ABOUT_IT], range=[_BLUE, _GREEN, OTHER])
_TOKENS = alt.Scale(domain=[FIRST, "other"], range=[_BLUE, OTHER])
_MIDDLE = alt.Axis(labelAngle=0, labelFlush=False, labelBound=False, labelLimit=180)
_UNIT = alt.Scale(domain=[0, 1])
_FEW = alt.Axis(labelOverlap="greedy", labelSeparation=4)


def layer_chart(table: polars.DataFrame, theme: str = "light") -> Any:
    """Relations down, layers across; colour and number say how many units lie there."""
    most = max(1, *table["units"].to_list())
    colours = list(WEIGHT_COLOURS[theme])
    base = alt.Chart(table, height=alt.Step(28)).encode(
        x=alt.X("layer:O", title="layer", axis=_MIDDLE),
        y=alt.Y("relation:N", sort=None, title=None, axis=_MIDDLE),
    )
    cells = base.mark_rect().encode(
        color=alt.Color(
            "units:Q",
            title=None,
            scale=alt.Scale(domain=[0, most / 2, most], range=colours, interpolate="lab"),
            legend=None,
        ),
        tooltip=["relation:N", "layer:O", "units:Q", "up:Q", "down:Q"],
    )
    strong, weak, share = WEIGHT_INK[theme]
    numbers = (
        base.transform_filter("datum.units > 0")
        .mark_text()
        .encode(
            text="units:Q",
            color=alt.condition(
                f"datum.units > {share * most}", alt.value(strong), alt.value(weak)
            ),
        )
    )
    return alt.layer(cells, numbers)


def precision_chart(table: polars.DataFrame) -> Any:
    """Bars of a unit's average precisions, coloured by what they are good for."""
    return (
        alt.Chart(table, height=alt.Step(22))
        .mark_bar()
        .encode(
            y=alt.Y("what:N", sort=None, title=None, axis=_MIDDLE),
            x=alt.X("ap:Q", title="average precision", scale=_UNIT, axis=_FEW),
            color=alt.Color("group:N", scale=_GROUPS, legend=None),
            tooltip=["what:N", alt.Tooltip("ap:Q", format=".4f")],
        )
    )


def unit_token_chart(table: polars.DataFrame, first: int) -> Any:
    """The most probable next tokens; the one that the unchanged model says is coloured."""
    return token_bars(table, {first: FIRST}, _TOKENS, legend=None)


def log_p_chart(values: Mapping[str, float], random: Sequence[float]) -> Any:
    """log P of one token: a mark for each named value, a tick for each random set."""
    rows = [{"what": name, "log P": value} for name, value in values.items()]
    rows += [{"what": "random units", "log P": value} for value in random]
    order = [*values, "random units"]
    return (
        alt.Chart(alt.Data(values=rows), height=alt.Step(24))
        .mark_tick(thickness=3, bandSize=16)
        .encode(
            x=alt.X(
                "log P:Q",
                title="log P of the token",
                scale=alt.Scale(zero=False, nice=True),
                axis=alt.Axis(tickCount=5, labelOverlap="greedy", labelSeparation=8),
            ),
            y=alt.Y("what:N", sort=order, title=None, axis=_MIDDLE),
            color=alt.condition("datum.what == 'random units'", alt.value(OTHER), alt.value(_BLUE)),
            tooltip=["what:N", alt.Tooltip("log P:Q", format=".3f")],
        )
    )
