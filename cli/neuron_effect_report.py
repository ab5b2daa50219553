"""Figures and report of a `neurons ablate` run."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import plotly.graph_objects as go
import polars

from ..probes.neuron_doses import DoseCurve, curve_table
from ..probes.neuron_effects import Effects, matrix_table
from ..results.figures import dose_figure
from ..results.neuron_figures import matrix_figure
from ..results.provenance import Provenance
from ..results.report import render_report

_CLAIM = (
    "Loss: how much the right answer's margin over wrong answers of the same type falls, in nats; "
    "positive means that the edit hurts. 'Loss beyond controls' is the mean over the (log) number "
    "of units ablated, less that of matched random units of the same layers and write size."
)
_SHOWN = (
    *("relation", "loss beyond controls", "low", "high", "z", "p", "specificity"),
    *("right before", "right after", "answer lost", "type lost", "format lost", "perplexity"),
)
Curves = Mapping[str, tuple[DoseCurve, DoseCurve]]
"""By relation: over sizes, over factors."""


def effect_figures(curves: Curves, effects: Effects, *, seed: int) -> dict[str, go.Figure]:
    """By file name: the relation by relation matrix, then a curve over sizes and one over factors
    for each relation."""
    figures = {"matrix": _matrix_page(effects, seed)}
    for name, (sizes, factors) in curves.items():
        figures[f"{name}-sizes"] = _dose_page(
            sizes, seed, f"{name}: loss without its first units", "units ablated"
        )
        figures[f"{name}-factors"] = _dose_page(
            factors, seed, f"{name}: loss with its units multiplied", "factor (1: as they are)"
        )
    return figures


def effect_report(
    model: str,
    summary: Mapping[str, Any],
    doses: polars.DataFrame,
    effects: Effects,
    figures: Mapping[str, go.Figure],
    provenance: Provenance,
    *,
    seed: int,
) -> str:
    """The run as one HTML page."""
    rows = summary["effects"]
    notes = [f"{one['relation']}: {one['text']} (search: {one['set']})." for one in rows]
    notes += [f"{one['relation']}: {one['controls']}." for one in rows if one["controls"]]
    before = summary["perplexity"]
    notes.append(
        f"General damage: perplexity of neutral text is {before:.4g} before, and after ablating "
        f"{summary['largest']} units "
        + ", ".join(f"{one['perplexity']:.4g} ({one['relation']})" for one in rows)
        + ("; the means were taken on the same text." if summary["mode"] == "mean" else ".")
    )
    return render_report(
        title=f"What {model} loses without relation neurons",
        claim=_CLAIM,
        tables={
            f"Without the first {summary['largest']} units": polars.DataFrame(
                [{name: one.get(name) for name in _SHOWN} for one in rows], infer_schema_length=None
            ),
            "Relation by relation": matrix_table(effects, seed=seed),
            "Every dose": doses,
        },
        figures={_caption(name): page for name, page in figures.items()},
        provenance=provenance,
        notes=[*notes, *summary["notes"]],
    )


def _caption(name: str) -> str:
    """What the bars and stars of a figure are."""
    relation, _, by = name.rpartition("-")
    if not relation:
        return "Mean loss of each relation's facts under each set; q over all cells."
    done = "Ablation" if by == "sizes" else "Weakening and amplifying"
    return f"{done}, {relation}: mean and 95 % interval over subjects; mean and range of controls."


def _dose_page(curve: DoseCurve, seed: int, title: str, label: str) -> go.Figure:
    table = curve_table(curve, seed=seed)
    spread = curve.control_loss.mean(2)
    own = table.select(
        polars.lit("its units").alias("series"),
        "dose",
        polars.col("loss").alias("value"),
        "low",
        "high",
    )
    random = polars.DataFrame(
        {
            "series": ["matched random units (range)"] * len(curve.doses),
            "dose": list(curve.doses),
            "value": spread.mean(0),
            "low": spread.min(0),
            "high": spread.max(0),
        }
    )
    figure = dose_figure(
        polars.concat([own, random]),
        title=title,
        dose_label=label,
        axis_label="loss (nats; positive hurts)",
    )
    figure.update_xaxes(tickvals=list(curve.doses))
    if curve.by == "size":
        figure.update_xaxes(type="log", ticktext=[f"{dose:g}" for dose in curve.doses])
    return figure


def _matrix_page(effects: Effects, seed: int) -> go.Figure:
    rows, columns = effects.ablated, effects.relations
    values = np.full((len(rows), len(columns)), np.nan)
    marked = np.zeros(values.shape, dtype=bool)
    for cell in matrix_table(effects, seed=seed).to_dicts():
        at = rows.index(cell["ablated"]), columns.index(cell["asked"])
        values[at], marked[at] = cell["loss"], cell["q"] <= 0.05
    return matrix_figure(
        values,
        rows,
        columns,
        title="Loss by ablated set and asked relation (* q <= 0.05)",
        row_label="ablated",
        column_label="asked",
        axis_label="loss (nats)",
        centred=True,
        marked=marked,
    )


def named(table: polars.DataFrame, relation: str) -> polars.DataFrame:
    """The table with the relation as its first column."""
    return table.select(polars.lit(relation).alias("relation"), polars.all())
