"""The strip of a head: what each token of the answer read, over the whole prompt."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any

import altair as alt
import numpy as np
import polars
from jaxtyping import Float

from ..models.pooled_maps import bin_edges
from .charts import WEIGHT_COLOURS

BINS = 240
_FAINTEST = 1e-4


def strip_table(
    weights: Float[np.ndarray, "step key"],
    tokens: Sequence[str],
    pieces: Sequence[str],
    borders: Sequence[int],
) -> polars.DataFrame:
    """One row a step and bin of keys: `step`, `token`, `start`, `stop`, `peak` (highest weight in
    the bin), `key` (the token that has it) and `position`; bins below 1e-4 are left out."""
    edges = bin_edges(0, weights.shape[1], BINS, borders)
    rows = []
    for step, row in enumerate(weights):
        for start, stop in pairwise(edges):
            best = start + int(row[start:stop].argmax())
            if row[best] >= _FAINTEST:
                rows.append((step, start, stop, float(row[best]), best))
    table = polars.DataFrame(
        rows, schema=["step", "start", "stop", "peak", "position"], orient="row"
    )
    names = [f"{step} {token}" for step, token in enumerate(tokens)]
    return table.with_columns(
        polars.Series("token", [names[step] for step in table["step"]], polars.String),
        polars.Series("key", [pieces[place] for place in table["position"]], polars.String),
    )


def strip_chart(
    table: polars.DataFrame,
    tokens: Sequence[str],
    spans: Mapping[str, tuple[int, int]],
    length: int,
    colours: Mapping[str, str],
    theme: str = "light",
) -> Any:
    """Rows: the answer's tokens. Across: the prompt, with its spans as bars on top."""
    order = [f"{step} {token}" for step, token in enumerate(tokens)]
    across = alt.Scale(domain=[0, length], nice=False)
    marks = [
        {"start": start, "stop": stop, "span": name, "row": "spans"}
        for name, (start, stop) in spans.items()
    ]
    y = alt.Y(
        "row:N",
        title=None,
        scale=alt.Scale(domain=["spans", *order]),
        axis=alt.Axis(labelLimit=130, labelFlush=False, labelBound=False),
    )
    named = alt.Scale(domain=list(spans), range=[colours[name] for name in spans])
    bars = (
        alt.Chart(alt.Data(values=marks))
        .mark_bar(minBandSize=2, height=9)
        .encode(
            x=alt.X("start:Q", scale=across, title="position in the prompt"),
            x2="stop:Q",
            y=y,
            stroke=alt.Color("span:N", scale=named, legend=None),
            color=alt.Color("span:N", scale=named, legend=alt.Legend(orient="bottom", title=None)),
            tooltip=["span:N", "start:Q", "stop:Q"],
        )
    )
    shades = alt.Scale(
        type="log", domain=[_FAINTEST, 1e-2, 1], range=list(WEIGHT_COLOURS[theme]), clamp=True
    )
    cells = (
        alt.Chart(table.rename({"token": "row"}))
        .mark_rect()
        .encode(
            x=alt.X("start:Q", scale=across),
            x2="stop:Q",
            y=y,
            color=alt.Color(
                "peak:Q",
                scale=shades,
                title=None,
                legend=alt.Legend(orient="top", gradientLength=160, values=[1e-4, 1e-2, 1]),
            ),
            tooltip=[
                alt.Tooltip("row:N", title="predicts"),
                alt.Tooltip("key:N", title="reads"),
                alt.Tooltip("position:Q"),
                alt.Tooltip("peak:Q", format=".4f", title="weight"),
            ],
        )
    )
    both = alt.layer(cells, bars).resolve_scale(color="independent")
    return both.properties(height=alt.Step(24))
