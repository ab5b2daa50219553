"""The other charts of the explorer: next tokens, patterns, END's row, before and after.

Texts of tokens go into charts as data and are drawn as text; none is ever read as markup.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from textwrap import wrap
from typing import Any

import altair as alt
import polars

MEMORY, CONTEXT, OTHER = "#0072B2", "#D55E00", "#8A8F98"
"""Okabe and Ito (2008): blue for the memory answer, vermilion for the context answer."""
_ROLE = alt.Scale(
    domain=["memory answer", "context answer", "other"], range=[MEMORY, CONTEXT, OTHER]
)

WEIGHT_COLOURS = {
    "light": ("#f4f7fb", "#6baed6", "#08306b"),
    "dark": ("#1f232b", "#2f7fb8", "#e3f2ff"),
}
WEIGHT_INK = {"light": ("#ffffff", "#000000", 0.7), "dark": ("#000000", "#ffffff", 0.48)}
"""Of texts on strong cells, on weak ones, and from what share of the scale cells are strong: there,
with `WEIGHT_COLOURS` at 0, a half and 1, black and white have a contrast of 4.5 both."""
_LEGEND = [0, 0.05, 0.2, 0.5, 1]
_UNIT = alt.Scale(domain=[0, 1])
_NARROW = 330
"""Pixels of width below which the names of a legend stand one below the other."""
_TENTHS = alt.Axis(values=[0, 0.2, 0.4, 0.6, 0.8, 1], labelOverlap="greedy", labelSeparation=4)


def fitted(drawn: Any) -> Any:
    """The chart with a legend that finds room in a narrow column too."""
    return drawn.configure_legend(columns=alt.ExprRef(f"width < {_NARROW} ? 1 : 6"))


def in_lines(text: str, most: int = 26) -> list[str]:
    """A title in lines of so many letters, since charts cut off what is longer than they are."""
    return wrap(text, most)


def next_token_chart(table: polars.DataFrame, ids: Mapping[str, int]) -> Any:
    """Bars of the most probable next tokens, those of the two answers coloured."""
    named = {i: f"{role} answer" for role, i in ids.items()}
    legend = alt.Legend(orient="bottom", title=None)
    return token_bars(table, named, _ROLE, legend=legend)


def token_bars(
    table: polars.DataFrame, named: Mapping[int, str], scale: Any, *, legend: Any
) -> Any:
    """Bars of the most probable next tokens, coloured by the name that their id has, or "other"."""
    shown = table.with_columns(
        polars.Series("answer", [named.get(i, "other") for i in table["id"]]),
        # The rank keeps two tokens of the same text apart.
        polars.format("{}  {}", polars.col("token"), polars.col("rank")).alias("label"),
    )
    short = _labels(130).copy()
    short.labelExpr = "split(datum.label, '  ')[0]"
    base = alt.Chart(shown, height=alt.Step(20)).encode(
        y=alt.Y(
            "label:N",
            sort=alt.SortField("rank"),
            title=None,
            axis=short,
        ),
        x=alt.X("probability:Q", title="probability", scale=_UNIT, axis=_TENTHS),
    )
    return base.mark_bar().encode(
        color=alt.Color("answer:N", scale=scale, legend=legend),
        tooltip=["token:N", "id:Q", alt.Tooltip("probability:Q", format=".4f")],
    )


def pattern_chart(table: polars.DataFrame, theme: str = "light") -> Any:
    """The attention pattern, queries down, keys across; colour on a square-root scale."""
    tokens = table["key_token"].unique(maintain_order=True)
    n = len(tokens)
    down, across = _token_labels(n, 0), _token_labels(n, -90 if n > 16 else -60)
    step = max(2, min(22, 480 // n))
    colours = list(WEIGHT_COLOURS[theme])
    scale = alt.Scale(type="sqrt", domain=[0, 0.25, 1], range=colours, interpolate="lab")
    legend = alt.Legend(orient="top", gradientLength=160, gradientThickness=10, values=_LEGEND)
    return (
        alt.Chart(table, height=alt.Step(step))
        .mark_rect()
        .encode(
            x=alt.X("key_token:O", sort=alt.SortField("key"), title="attended token", axis=across),
            y=alt.Y(
                "query_token:O", sort=alt.SortField("query"), title="attending token", axis=down
            ),
            color=alt.Color("weight:Q", scale=scale, legend=legend, title=None),
            tooltip=[
                alt.Tooltip("query_token:N", title="from"),
                alt.Tooltip("key_token:N", title="to"),
                alt.Tooltip("weight:Q", format=".4f"),
            ],
        )
    )


def end_row_chart(table: polars.DataFrame) -> Any:
    """Bars of the keys that END looks at most."""
    return (
        alt.Chart(table, height=alt.Step(20))
        .mark_bar(color="#009E73")
        .encode(
            y=alt.Y("token:N", sort="-x", title=None, axis=_labels(130)),
            x=alt.X("weight:Q", title="attention of END", scale=_UNIT, axis=_TENTHS),
            tooltip=["token:N", alt.Tooltip("weight:Q", format=".4f")],
        )
    )


def before_after_chart(
    before: Mapping[str, float], after: Mapping[str, float], random: Mapping[str, Sequence[float]]
) -> Any:
    """Probability of each answer before and after, with the range of the random heads as a line."""
    rows = [
        {"answer": f"{role} answer", "when": f"{role}: {when}", "probability": values[role]}
        for role in before
        for when, values in (("before", before), ("after", after))
    ]
    spans = [
        {"answer": f"{role} answer", "when": f"{role}: random", "low": min(d), "high": max(d)}
        for role, d in random.items()
        if d
    ]
    order = [f"{role}: {when}" for role in before for when in ("before", "after", "random")]
    y = alt.Y("when:N", sort=order, title=None, scale=alt.Scale(domain=order), axis=_labels(130))
    bars = (
        alt.Chart(alt.Data(values=rows), height=alt.Step(20))
        .mark_bar()
        .encode(
            x=alt.X(
                "probability:Q",
                title=in_lines("probability of the first token"),
                scale=_UNIT,
                axis=_TENTHS,
            ),
            y=y,
            color=alt.Color("answer:N", scale=_ROLE, legend=None),
            tooltip=["when:N", alt.Tooltip("probability:Q", format=".4f")],
        )
    )
    lines = (
        alt.Chart(alt.Data(values=spans))
        .mark_bar(height=5, minBandSize=3)
        .encode(
            x=alt.X("low:Q", scale=_UNIT),
            x2="high:Q",
            y=y,
            color=alt.value(OTHER),
            tooltip=["when:N", *[alt.Tooltip(f"{end}:Q", format=".4f") for end in ("low", "high")]],
        )
    )
    return alt.layer(bars, lines)


def _labels(limit: int) -> Any:
    """An axis whose labels stand at their bands' middles, the first and last ones too."""
    return alt.Axis(labelLimit=limit, labelFlush=False, labelBound=False)


def _token_labels(n: int, angle: int) -> Any:
    """The axis of a pattern of n tokens: every label while there is room."""
    axis = _labels(110).copy()
    axis.labelFontSize, axis.labelOverlap = (11, False) if n <= 32 else (9, "greedy")
    axis.labelAngle = angle
    return axis
