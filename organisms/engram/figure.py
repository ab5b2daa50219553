"""What engram learned when: one picture of its loss, its memory and its reading."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import plotly.graph_objects as go
from plotly.subplots import make_subplots

from ...results.figures import PALETTE
from .behaviour import Checkpoint
from .facts import FREQUENCIES

_SKILLS: Mapping[str, tuple[str, str]] = {
    "one way, as told": ("one_way_told", "right"),
    "one way, reversed": ("one_way_untold", "right"),
    "copying": ("copying", "right"),
    "needle in 512 words": ("needle_512", "right"),
    "passage, when asked for it": ("conflict_passage", "context"),
    "memory, when asked for it": ("conflict_memory", "memory"),
}


def training_figure(
    curve: Sequence[Mapping[str, float]], record: Sequence[Checkpoint]
) -> go.Figure:
    """Three panels over the steps of the training: loss, recall by frequency, other behaviours."""
    figure = make_subplots(
        1,
        3,
        subplot_titles=("loss (nats a token)", "closed-book recall by frequency", "behaviours"),
    )
    figure.add_scatter(
        x=[point["step"] for point in curve],
        y=[point["loss"] for point in curve],
        line={"color": PALETTE[0], "width": 1},
        showlegend=False,
        row=1,
        col=1,
    )
    shades = [f"rgba(0, 114, 178, {0.25 + 0.75 * i / 6})" for i in range(len(FREQUENCIES))]
    recall = {f"told {n} x": (f"closed_book_{n}", "right") for n in FREQUENCIES}
    for panel, lines, colours in ((2, recall, shades), (3, _SKILLS, PALETTE)):
        for (name, key), colour in zip(lines.items(), colours, strict=True):
            figure.add_scatter(
                x=[checkpoint.step for checkpoint in record],
                y=[rate for one in record if (rate := _rate(one, key)) is not None],
                name=name,
                mode="lines+markers",
                line={"color": colour},
                legend="legend" if panel == 2 else "legend2",
                row=1,
                col=panel,
            )
    figure.update_xaxes(title_text="step")
    figure.update_yaxes(range=[-0.02, 1.02], col=2)
    figure.update_yaxes(range=[-0.02, 1.02], col=3)
    figure.update_layout(
        template="simple_white",
        legend={"x": 1.01, "y": 1.0, "yanchor": "top", "title": {"text": "recall"}},
        legend2={"x": 1.01, "y": 0.0, "yanchor": "bottom", "title": {"text": "behaviours"}},
        margin={"l": 50, "r": 220, "t": 40, "b": 50},
    )
    return figure


def _rate(checkpoint: Checkpoint, key: tuple[str, str]) -> float | None:
    return next((b.rate for b in checkpoint.behaviours if (b.kind, b.answer) == key), None)
