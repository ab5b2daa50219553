"""The charts of the page about binding: names, recall by told, curves with bands, swaps."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import altair as alt
import polars

from ..results.figures import PALETTE
from .charts import OTHER

CEILING, FLOOR = "ceiling: same role, other wording", "floor: permuted"
NULL = "random weights"
MEASURED = "measured"
PAIR, MEAN = "this pair", "mean of all pairs"
_WAYS = alt.Scale(domain=["forward", "reverse"], range=[PALETTE[0], PALETTE[4]])
_MIDDLE = alt.Axis(labelAngle=0, labelFlush=False, labelBound=False, labelLimit=220)
_BELOW = alt.Legend(
    orient="bottom",
    title=None,
    columns=2,
    labelLimit=320,
    symbolType="stroke",
    symbolSize=300,
    symbolOpacity=1,
    symbolStrokeWidth=2.5,
)
_HEIGHT = 330
_FIXED = {CEILING: PALETTE[2], FLOOR: OTHER, NULL: PALETTE[3]}
_DASHES = {CEILING: [6, 4], FLOOR: [6, 4], NULL: [2, 3]}
_LINES = (PALETTE[0], PALETTE[4], PALETTE[1], PALETTE[5], "#8C6BB1", "#6B8E23")


def names_chart(names: polars.DataFrame) -> Any:
    """log P of the likeliest names as points, the right one in blue."""
    shown = names.with_columns(
        polars.format("{}  {}", polars.col("rank"), polars.col("name")).alias("label"),
        polars.when("right")
        .then(polars.lit("right name"))
        .otherwise(polars.lit("other"))
        .alias("is"),
    )
    scale = alt.Scale(domain=["right name", "other"], range=[PALETTE[0], OTHER])
    return (
        alt.Chart(shown, height=alt.Step(19))
        .mark_point(filled=True, size=70, opacity=1)
        .encode(
            y=alt.Y("label:N", sort=alt.SortField("rank"), title=None, axis=_MIDDLE),
            x=alt.X("log P:Q", title="log P, nats", scale=_free(), axis=alt.Axis(tickCount=6)),
            color=alt.Color("is:N", scale=scale, legend=None),
            tooltip=["name:N", "rank:Q", alt.Tooltip("log P:Q", format=".2f")],
        )
    )


def recall_chart(lines: polars.DataFrame, measure: str) -> Any:
    """Share said, or MRR, of the pairs told one way or both, in both directions."""
    titles = {"exact": "share said whole", "mrr": "mean reciprocal rank"}
    shown = lines.with_columns(
        polars.format("{} ({})", polars.col("pairs told"), polars.col("n")).alias("pairs")
    )
    base = alt.Chart(shown, height=alt.Step(17)).encode(
        y=alt.Y("pairs:N", sort=None, title=None, axis=_MIDDLE),
        yOffset=alt.YOffset("way:N", sort=["forward", "reverse"]),
        color=alt.Color("way:N", scale=_WAYS, legend=alt.Legend(orient="bottom", title=None)),
    )
    x = alt.X(f"{measure}:Q", title=titles[measure], scale=alt.Scale(domain=[0, 1]))
    spans = base.mark_rule(strokeWidth=2).encode(
        x=alt.X(f"{measure}_low:Q", title=titles[measure]), x2=f"{measure}_high:Q"
    )
    points = base.mark_point(filled=True, size=80, opacity=1).encode(
        x=x,
        tooltip=[
            "pairs:N",
            "way:N",
            *[alt.Tooltip(f"{measure}{end}:Q", format=".3f") for end in ("", "_low", "_high")],
        ],
    )
    layers = [spans, points]
    if measure == "mrr":
        chance = alt.Chart(shown.select("chance").unique()).mark_rule(
            strokeDash=[4, 4], color=OTHER
        )
        layers.insert(0, chance.encode(x="mean(chance):Q"))
    return alt.layer(*layers)


def curve_chart(rows: polars.DataFrame, label: str) -> Any:
    """One quantity over the layers: all pairs with interval between ceiling and floor, strata."""
    long = _long(rows)
    names = long["line"].unique(maintain_order=True).to_list()
    free = iter(_LINES)
    colours = [_FIXED.get(name) or next(free) for name in names]
    dashes = [_DASHES.get(name, [1, 0]) for name in names]
    base = alt.Chart(long).encode(
        x=alt.X("layer:Q", title="layer (its input; the last is the output)", axis=_whole()),
        color=alt.Color("line:N", scale=alt.Scale(domain=names, range=colours), legend=_BELOW),
    )
    bands = base.mark_area(opacity=0.15).encode(
        y=alt.Y("low:Q", title=label, scale=_free()), y2="high:Q"
    )
    lines = base.mark_line(strokeWidth=2.2).encode(
        y=alt.Y("value:Q", title=label, scale=_free()),
        strokeDash=alt.StrokeDash("line:N", scale=alt.Scale(domain=names, range=dashes)),
    )
    points = base.mark_point(filled=True, size=34, opacity=1).encode(
        y="value:Q",
        tooltip=[
            "line:N",
            "layer:Q",
            *[alt.Tooltip(f"{name}:Q", format=".3f") for name in ("value", "low", "high")],
        ],
    )
    return alt.layer(bands, lines, points).properties(height=_HEIGHT)


def readout_chart(readout: polars.DataFrame) -> Any:
    """Rank of the right answer's first token by layer, best on top; dashed: another pair's."""
    own = readout.select(
        polars.col("way").alias("line"),
        "layer",
        *[(10.0 ** polars.col(c)).alias(n) for c, n in (("log10_rank", "value"),)],
        *[(10.0 ** polars.col(c)).alias(c) for c in ("low", "high")],
    )
    other = readout.select(
        polars.format("{}, another pair’s answer", polars.col("way")).alias("line"),
        "layer",
        (10.0 ** polars.col("null")).alias("value"),
    )
    long = polars.concat([own, other], how="diagonal")
    names = ["forward", "reverse", *[f"{w}, another pair’s answer" for w in ("forward", "reverse")]]
    colours = [PALETTE[0], PALETTE[4]] * 2
    dashes = [[1, 0], [1, 0], [5, 4], [5, 4]]
    scale = alt.Scale(type="log", reverse=True)
    base = alt.Chart(long).encode(
        x=alt.X("layer:Q", title="layer (its input; the last is the output)", axis=_whole()),
        color=alt.Color("line:N", scale=alt.Scale(domain=names, range=colours), legend=_BELOW),
    )
    title = "rank in the vocabulary (1 is best)"
    bands = (
        base.transform_filter("isValid(datum.low)")
        .mark_area(opacity=0.15)
        .encode(y=alt.Y("low:Q", title=title, scale=scale), y2="high:Q")
    )
    lines = base.mark_line(strokeWidth=2.2, point=True).encode(
        y=alt.Y("value:Q", title=title, scale=scale),
        strokeDash=alt.StrokeDash("line:N", scale=alt.Scale(domain=names, range=dashes)),
        tooltip=["line:N", "layer:Q", alt.Tooltip("value:Q", format=".1f")],
    )
    return alt.layer(bands, lines).properties(height=_HEIGHT)


def swap_chart(pair: polars.DataFrame, every: polars.DataFrame | None, order: Sequence[str]) -> Any:
    """Change of log P(A) under each arm: this pair, and the mean of all with its interval."""
    y = alt.Y("what:N", sort=list(order), title=None, axis=_MIDDLE)
    title = "change of log P(A), nats"
    axis = alt.Axis(tickCount=8)
    scale = alt.Scale(domain=[PAIR, MEAN], range=[PALETTE[0], PALETTE[1]])
    colour = alt.Color("of:N", scale=scale, legend=alt.Legend(orient="bottom", title=None))
    zero = (
        alt.Chart(alt.Data(values=[{"zero": 0}]))
        .mark_rule(color=OTHER, strokeDash=[4, 4])
        .encode(x="zero:Q")
    )
    own = pair.filter(polars.col("what").is_in(list(order))).with_columns(
        polars.lit(PAIR).alias("of")
    )
    points = (
        alt.Chart(own, height=alt.Step(30))
        .mark_point(filled=True, size=90, opacity=1, yOffset=-5)
        .encode(
            x=alt.X("change:Q", title=title, axis=axis),
            y=y,
            color=colour,
            tooltip=["what:N", alt.Tooltip("change:Q", format="+.2f"), "rank:Q", "says:N"],
        )
    )
    if every is None:
        return alt.layer(zero, points)
    base = alt.Chart(every.with_columns(polars.lit(MEAN).alias("of")), height=alt.Step(30)).encode(
        y=y, color=colour
    )
    spans = base.mark_rule(strokeWidth=2, yOffset=6).encode(x="low:Q", x2="high:Q")
    means = base.mark_point(filled=True, shape="diamond", size=90, opacity=1, yOffset=6).encode(
        x="gain:Q",
        tooltip=[
            "what:N",
            *[alt.Tooltip(f"{name}:Q", format="+.2f") for name in ("gain", "low", "high")],
        ],
    )
    return alt.layer(zero, spans, means, points)


def _long(rows: polars.DataFrame) -> polars.DataFrame:
    """A row a line and layer: `line`, `layer`, `value`, `low`, `high`; lines not measured left
    out. Ceiling, floor and null are those of all pairs."""
    whole = rows.filter(polars.col("stratum") == "all")
    fixed = ((CEILING, "ceiling"), (FLOOR, "floor"))
    parts = [
        part.select(
            polars.lit(MEASURED if name == "all" else str(name)).alias("line"),
            *("layer", "value", "low", "high"),
        )
        for (name,), part in rows.group_by("stratum", maintain_order=True)
    ]
    parts += [
        whole.select(
            polars.lit(line).alias("line"),
            "layer",
            polars.col(name).alias("value"),
            polars.col(f"{name}_low").alias("low"),
            polars.col(f"{name}_high").alias("high"),
        )
        for line, name in fixed
    ]
    parts.append(
        whole.select(
            polars.lit(NULL).alias("line"),
            "layer",
            polars.col("null").alias("value"),
            low=polars.lit(None, polars.Float64),
            high=polars.lit(None, polars.Float64),
        )
    )
    return polars.concat(parts).drop_nulls("value").filter(polars.col("value").is_finite())


def _whole() -> Any:
    return alt.Axis(format="d", tickMinStep=1)


def _free() -> Any:
    return alt.Scale(zero=False, nice=True)
