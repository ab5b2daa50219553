"""Figures of neuron sets: where they lie in depth, and relation by relation matrices."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import plotly.graph_objects as go
from jaxtyping import Float, Int

from .errors import FigureError
from .figures import finished

_HEIGHT_A_ROW, _LEAST_HEIGHT = 26, 360


def layer_histogram_figure(
    counts: Int[np.ndarray, "relation layer"], relations: Sequence[str], *, title: str
) -> go.Figure:
    """How many units of each relation's set lie in each layer, a row a relation.

    Raises `FigureError` when the rows are not one a relation.
    """
    if len(counts) != len(relations):
        raise FigureError(f"{len(counts)} rows of counts do not fit {len(relations)} relations.")
    figure = go.Figure(
        go.Heatmap(
            z=counts,
            x=[str(layer) for layer in range(counts.shape[1])],
            y=list(relations),
            colorscale="Blues",
            zmin=0,
            colorbar={"title": "units"},
            hovertemplate="%{y}, layer %{x}: %{z} units<extra></extra>",
        )
    )
    figure.update_xaxes(title="layer", type="category")
    figure.update_yaxes(autorange="reversed")
    figure.update_layout(height=max(_LEAST_HEIGHT, 150 + _HEIGHT_A_ROW * len(relations)))
    return finished(figure, title)


def matrix_figure(
    values: Float[np.ndarray, "row column"],
    rows: Sequence[str],
    columns: Sequence[str],
    *,
    title: str,
    row_label: str,
    column_label: str,
    axis_label: str,
    centred: bool = False,
    marked: np.ndarray | None = None,
) -> go.Figure:
    """A matrix of named rows and columns, its numbers written into the cells.

    `centred` puts white at zero (blue below, red above). `marked` cells carry a star; cells that
    are not finite stay empty. Raises `FigureError` when the names do not fit.
    """
    values = np.asarray(values, dtype=float)
    if values.shape != (len(rows), len(columns)):
        raise FigureError(f"a matrix {values.shape} does not fit {len(rows)} by {len(columns)}.")
    stars = np.zeros(values.shape, dtype=bool) if marked is None else np.asarray(marked, dtype=bool)
    limit = float(np.max(np.abs(values), where=np.isfinite(values), initial=0.0)) or 1.0
    text = [
        [_cell(v, star, limit) for v, star in zip(a, b, strict=True)]
        for a, b in zip(values, stars, strict=True)
    ]
    colours = {"colorscale": "RdBu_r", "zmid": 0, "zmin": -limit, "zmax": limit}
    figure = go.Figure(
        go.Heatmap(
            z=values,
            x=list(columns),
            y=list(rows),
            text=text,
            texttemplate="%{text}",
            colorbar={"title": axis_label},
            hovertemplate="%{y} / %{x}: %{z:.3g}<extra></extra>",
            **(colours if centred else {"colorscale": "Blues", "zmin": 0}),
        )
    )
    figure.update_xaxes(title=column_label, tickangle=-40)
    figure.update_yaxes(title=row_label, autorange="reversed")
    figure.update_layout(height=max(_LEAST_HEIGHT, 220 + _HEIGHT_A_ROW * len(rows)))
    return finished(figure, title)


def _cell(value: float, star: bool, limit: float) -> str:
    """As many decimals in every cell as the largest one needs for three digits."""
    if not np.isfinite(value):
        return ""
    decimals = max(0, 2 - int(np.floor(np.log10(limit))))
    return f"{round(value, decimals) + 0.0:.{decimals}f}{'*' if star else ''}"
