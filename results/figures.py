"""Plotly figures from plain arrays and tables, in colours that the colour-blind can tell apart.

For reports and exported files; the app draws its clickable head grid with Altair.
"""

from __future__ import annotations

import importlib
import importlib.util
import shutil
from collections.abc import Sequence

import numpy as np
import plotly.graph_objects as go
import polars
from jaxtyping import Bool, Float

from ..models.types import HeadId
from .errors import FigureError

# Okabe and Ito (2008), without yellow and black.
PALETTE = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#D55E00", "#56B4E9")

_BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")


def head_grid_figure(
    scores: Float[np.ndarray, "layers heads"],
    *,
    title: str,
    axis_label: str,
    selected: Sequence[HeadId] = (),
    significant: Bool[np.ndarray, "layers heads"] | None = None,
) -> go.Figure:
    """Heads as cells, layer 0 on top, orange below zero and purple above, white at zero.

    `axis_label` states the score and its sign convention (`change in memory logit; negative: the
    head helps memory`). `selected` heads get a frame, `significant` ones a dot. Cells that are not
    finite stay empty. Raises `FigureError` for scores that are no layer-by-head grid.
    """
    scores = np.asarray(scores, dtype=np.float64)
    if scores.ndim != 2 or scores.size == 0:
        raise FigureError(f"a head grid needs scores [layers, heads], got shape {scores.shape}.")
    if significant is not None and np.shape(significant) != scores.shape:
        raise FigureError(f"significant is {np.shape(significant)}, the scores are {scores.shape}.")
    limit = float(np.max(np.abs(scores), where=np.isfinite(scores), initial=0.0)) or 1.0
    figure = go.Figure(
        go.Heatmap(
            z=scores,
            zmin=-limit,
            zmax=limit,
            colorscale="PuOr",
            xgap=1,
            ygap=1,
            colorbar={"title": {"text": axis_label, "side": "right"}},
            hovertemplate="L%{y}.H%{x}<br>%{z:.4g}<extra></extra>",
        )
    )
    if significant is not None:
        dots = [HeadId(int(layer), int(head)) for layer, head in np.argwhere(significant)]
        figure.add_trace(_marks(dots, "significant", "circle", 6))
    if selected:
        figure.add_trace(_marks(selected, "selected", "square-open", 14))
    # Ranges are set so that marks on the rim do not widen the grid.
    figure.update_xaxes(title="head", range=[-0.5, scores.shape[1] - 0.5], showgrid=False)
    figure.update_yaxes(title="layer", range=[scores.shape[0] - 0.5, -0.5], showgrid=False)
    return finished(figure, title)


def rates_figure(
    table: polars.DataFrame, *, title: str, axis_label: str = "share of answers"
) -> go.Figure:
    """Grouped bars with intervals, one group a condition, one bar a kind of answer.

    `table` has the columns `condition` (before, after, random), `answer` (memory, context,
    other), `rate`, `low`, `high`, rates between 0 and 1. Raises `FigureError` when one is missing.
    """
    _need(table, ("condition", "answer", "rate", "low", "high"))
    figure = go.Figure()
    for colour, answer in _coloured(table["answer"]):
        rows = table.filter(polars.col("answer") == answer)
        figure.add_trace(
            go.Bar(
                name=answer,
                x=rows["condition"].to_list(),
                y=rows["rate"].to_list(),
                error_y=_bars(rows, "rate"),
                marker_color=colour,
            )
        )
    figure.update_layout(barmode="group")
    figure.update_yaxes(title=axis_label, range=[0, 1])
    return finished(figure, title)


def dose_figure(
    table: polars.DataFrame, *, title: str, dose_label: str, axis_label: str
) -> go.Figure:
    """Lines with intervals over a dose (heads removed, amplification), one line a series.

    `table` has the columns `series`, `dose`, `value`, `low`, `high`. Raises `FigureError` when
    one is missing.
    """
    _need(table, ("series", "dose", "value", "low", "high"))
    figure = go.Figure()
    for colour, series in _coloured(table["series"]):
        rows = table.filter(polars.col("series") == series).sort("dose")
        figure.add_trace(
            go.Scatter(
                name=series,
                x=rows["dose"].to_list(),
                y=rows["value"].to_list(),
                error_y=_bars(rows, "value"),
                mode="lines+markers",
                line={"color": colour},
            )
        )
    figure.update_xaxes(title=dose_label)
    figure.update_yaxes(title=axis_label)
    return finished(figure, title)


def can_write_png() -> bool:
    """Whether kaleido is installed and a Chromium or Chrome is found."""
    return importlib.util.find_spec("kaleido") is not None and any(map(shutil.which, _BROWSERS))


def figure_png(figure: go.Figure, *, scale: float = 2.0) -> bytes:
    """The figure as PNG, drawn by a headless Chromium without touching the network.

    Raises `FigureError` where `can_write_png` is false; save HTML through `results.report` then.
    """
    if not can_write_png():
        raise FigureError("PNG needs kaleido and a Chromium or Chrome: install both, or save HTML.")
    kaleido = importlib.import_module("kaleido")
    # Without `mathjax: False` kaleido's page asks a CDN for MathJax.
    return kaleido.calc_fig_sync(
        figure.to_dict(), opts={"format": "png", "scale": scale}, kopts={"mathjax": False}
    )


def _marks(heads: Sequence[HeadId], name: str, symbol: str, size: int) -> go.Scatter:
    """Black and white together, to be seen on the darkest and the lightest cell."""
    outline = {"width": 2 if symbol.endswith("-open") else 1, "color": "#111111"}
    fill = "#111111" if symbol.endswith("-open") else "#ffffff"
    marker = {"symbol": symbol, "size": size, "color": fill, "line": outline}
    x, y = [head.head for head in heads], [head.layer for head in heads]
    return go.Scatter(x=x, y=y, name=name, mode="markers", marker=marker, hoverinfo="skip")


def _bars(rows: polars.DataFrame, middle: str) -> dict[str, object]:
    return {
        "type": "data",
        "symmetric": False,
        "array": (rows["high"] - rows[middle]).to_list(),
        "arrayminus": (rows[middle] - rows["low"]).to_list(),
    }


def _coloured(names: polars.Series) -> list[tuple[str, str]]:
    different = names.unique(maintain_order=True).cast(polars.String).to_list()
    return [(PALETTE[i % len(PALETTE)], name) for i, name in enumerate(different)]


def _need(table: polars.DataFrame, columns: Sequence[str]) -> None:
    missing = [name for name in columns if name not in table.columns]
    if missing:
        raise FigureError(f"the table has no column {', '.join(missing)}: it has {table.columns}.")


def finished(figure: go.Figure, title: str) -> go.Figure:
    figure.update_layout(
        title=title,
        template="plotly_white",
        legend={"orientation": "h", "y": 1.02, "yanchor": "bottom", "x": 1, "xanchor": "right"},
    )
    return figure
