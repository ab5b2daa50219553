"""Role curves over the layers: the value with its interval, between a ceiling and a floor band."""

from __future__ import annotations

import plotly.graph_objects as go
import polars

from .errors import FigureError
from .figures import PALETTE, finished

CURVE_COLUMNS = (
    "quantity",
    "roles",
    "stratum",
    "layer",
    "value",
    "low",
    "high",
    "ceiling",
    "ceiling_low",
    "ceiling_high",
    "floor",
    "floor_low",
    "floor_high",
    "null",
)
"""Columns of a table of curves; what was not measured is null."""

_CEILING, _FLOOR, _NULL = PALETTE[2], "#777777", PALETTE[4]


def role_curves_figure(
    table: polars.DataFrame, quantity: str, *, title: str, axis_label: str
) -> go.Figure:
    """One quantity's curves, a colour for each pair of roles and stratum.

    `table` has `CURVE_COLUMNS`. The ceiling (same role, another wording), the floor (entities
    permuted) and the random-initialised control are those of the first curve. Raises `FigureError`
    for a missing column or a quantity that the table does not hold.
    """
    curves = _curves(table, quantity)
    figure = go.Figure()
    for name, colour in (("ceiling", _CEILING), ("floor", _FLOOR)):
        _band(figure, curves[0][1], name, colour)
    _line(figure, curves[0][1], "null", "random initialised", _NULL, "dot")
    for i, (name, rows) in enumerate(curves):
        colour = PALETTE[i % len(PALETTE)]
        _interval(figure, rows, "low", "high", colour, 0.18)
        _line(figure, rows, "value", name, colour, "solid")
    figure.update_xaxes(title="layer (its input; the last one is the model's output)")
    figure.update_yaxes(title=axis_label)
    return finished(figure, title)


def role_curves_alt(table: polars.DataFrame, quantity: str) -> str:
    """The figure in words: each curve's peak with its interval, ceiling and floor there.

    Raises `FigureError` as `role_curves_figure` does.
    """
    return " ".join(_sentence(quantity, name, rows) for name, rows in _curves(table, quantity))


def _sentence(quantity: str, name: str, rows: polars.DataFrame) -> str:
    told = rows.filter(polars.col("value").is_finite())
    if told.is_empty():
        return f"{quantity}, {name}: not measured at any layer."
    best = told.sort("value", descending=True).row(0, named=True)
    beside = [
        f"{word} {best[word]:.3g}"
        for word in ("ceiling", "floor", "null")
        if best[word] is not None and best[word] == best[word]
    ]
    interval = "" if best["low"] is None else f" ({best['low']:.3g} to {best['high']:.3g})"
    where = f" at layer {best['layer']}; {', '.join(beside)}" if beside else ""
    return f"{quantity}, {name}: highest {best['value']:.3g}{interval}{where}."


def _curves(table: polars.DataFrame, quantity: str) -> list[tuple[str, polars.DataFrame]]:
    missing = [name for name in CURVE_COLUMNS if name not in table.columns]
    if missing:
        raise FigureError(f"the table has no column {', '.join(missing)}: it has {table.columns}.")
    rows = table.filter(polars.col("quantity") == quantity)
    if rows.is_empty():
        held = table["quantity"].unique(maintain_order=True).to_list()
        raise FigureError(f"the table holds no {quantity!r}: choose one of {', '.join(held)}.")
    parts = rows.partition_by("roles", "stratum", maintain_order=True)
    return [(_name(part), part.sort("layer")) for part in parts]


def _name(rows: polars.DataFrame) -> str:
    roles, stratum = rows["roles"][0], rows["stratum"][0]
    return roles if stratum == "all" else f"{roles}, {stratum}"


def _band(figure: go.Figure, rows: polars.DataFrame, name: str, colour: str) -> None:
    _interval(figure, rows, f"{name}_low", f"{name}_high", colour, 0.12)
    _line(figure, rows, name, name, colour, "dash")


def _line(
    figure: go.Figure, rows: polars.DataFrame, column: str, name: str, colour: str, dash: str
) -> None:
    if rows[column].is_null().all():
        return
    figure.add_trace(
        go.Scatter(
            x=rows["layer"].to_list(),
            y=rows[column].to_list(),
            name=name,
            mode="lines",
            line={"color": colour, "dash": dash},
        )
    )


def _interval(
    figure: go.Figure, rows: polars.DataFrame, low: str, high: str, colour: str, opacity: float
) -> None:
    if rows[low].is_null().all() or rows[high].is_null().all():
        return
    layers = rows["layer"].to_list()
    red, green, blue = (int(colour[i : i + 2], 16) for i in (1, 3, 5))
    figure.add_trace(
        go.Scatter(
            x=layers + layers[::-1],
            y=rows[high].to_list() + rows[low].to_list()[::-1],
            fill="toself",
            fillcolor=f"rgba({red},{green},{blue},{opacity})",
            line={"width": 0},
            mode="lines",
            hoverinfo="skip",
            showlegend=False,
        )
    )
