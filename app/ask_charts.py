"""The charts of the entry page: bars of heads and of relations."""

from __future__ import annotations

from typing import Any

import altair as alt
import polars

from .ask_relation import FOUND
from .charts import CONTEXT, MEMORY, OTHER, in_lines
from .head_grid import NAME

_BAR = alt.Step(22)
_LABELS = alt.Axis(labelLimit=220, labelFlush=False, labelBound=False)
_FOUND = "#009E73"


def effect_chart(table: polars.DataFrame, *, both: bool) -> Any:
    """Bars of direct effects, in the order given; `table` has `layer`, `head`, `score`."""
    names = ("speaks for memory", "speaks for the context") if both else ("for it", "against it")
    above = polars.col("score") >= 0
    shown = table.with_columns(
        NAME,
        polars.when(above).then(polars.lit(names[0])).otherwise(polars.lit(names[1])).alias("for"),
    )
    title = "direct effect on logit(memory) − logit(context)" if both else "direct effect, logits"
    colours = alt.Scale(domain=list(names), range=[MEMORY, CONTEXT if both else OTHER])
    return _bars(
        shown,
        "name",
        alt.X("score:Q", title=in_lines(title)),
        alt.Color("for:N", scale=colours, legend=alt.Legend(orient="top", title=None)),
        [alt.Tooltip("name:N"), alt.Tooltip("score:Q", format="+.3f")],
    )


def reader_chart(table: polars.DataFrame) -> Any:
    """Bars of the strongest readers: which context token each looks at, and with what weight."""
    on, off = "context answer", "another token"
    shown = table.with_columns(
        polars.format("{} → {} {}", "head", "position", "token").alias("name"),
        polars.when("on_answer").then(polars.lit(on)).otherwise(polars.lit(off)).alias("reads"),
    )
    colours = alt.Scale(domain=[on, off], range=[CONTEXT, OTHER])
    weight = alt.X(
        "weight:Q",
        title=in_lines("attention of END on that token", 20),
        scale=alt.Scale(domain=[0, 1]),
    )
    return _bars(
        shown,
        "name",
        weight,
        alt.Color("reads:N", scale=colours, legend=alt.Legend(orient="top", title=None)),
        [
            "head:N",
            "token:N",
            *(alt.Tooltip(f"{n}:Q", format=".3f") for n in ("weight", "context")),
        ],
    )


def relation_chart(table: polars.DataFrame) -> Any:
    """Bars of relations by how far their units stand out, and the line of chance."""
    shown = table.with_columns(polars.col("relation").str.replace_all("_", " "))
    colour = alt.condition(alt.datum.verdict == FOUND, alt.value(_FOUND), alt.value(OTHER))
    bars = _bars(
        shown,
        "relation",
        alt.X(
            "standing:Q",
            title=in_lines("stands above prompts of other relations"),
            scale=alt.Scale(domain=[0, 1]),
        ),
        colour,
        ["relation:N", "units:Q", alt.Tooltip("standing:Q", format=".3f")],
    )
    rule = alt.Chart(alt.Data(values=[{"chance": 0.5}]))
    return alt.layer(bars, rule.mark_rule(color=OTHER, strokeDash=[4, 3]).encode(x="chance:Q"))


def _bars(table: polars.DataFrame, name: str, x: Any, colour: Any, tips: list[Any]) -> Any:
    order = table[name].to_list()
    y = alt.Y(f"{name}:N", sort=order, title=None, axis=_LABELS)
    return alt.Chart(table, height=_BAR).mark_bar().encode(x=x, y=y, color=colour, tooltip=tips)
