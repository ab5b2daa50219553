"""Tables and figures of a `retrieval score` run."""

from __future__ import annotations

import numpy as np
import plotly.graph_objects as go
import polars

from ..data.facts.needles import NeedleDesign
from ..models.types import HeadId
from ..probes.retrieval_measures import Measured, Summarised
from ..probes.retrieval_tables import MAX_Q
from ..results.figures import PALETTE, finished, head_grid_figure

_FIGURES = {
    "copy": "share of the answer's tokens copied, 0 to 1",
    "first": "copied the answer's first token, 0 to 1",
    "continuation": "copied its later tokens, 0 to 1",
    "locate_mass": "question rows: attention mass on the needle",
    "emit": "answer rows: attention mass on the needle",
    "qr": "query to gold passage beyond an empty query",
    "locos": "logits onto the answer from the needle beyond elsewhere",
    "induction": "attention to what followed the token before",
}


def tables_of(
    measured: Measured, design: NeedleDesign, found: Summarised, rows: polars.DataFrame
) -> dict[str, polars.DataFrame]:
    """The tables of the report, by caption."""
    best = rows.sort("copy", descending=True, nulls_last=True)
    short = ["layer", "head", "role", *(n for n in (*_FIGURES, "core", "r2") if n in rows.columns)]
    tables = {
        "Heads, best copy score first": best.select(short).head(30),
        "Trials": trial_table(measured, design),
    }
    if measured.basin is not None:
        profile = measured.basin.profile("question")
        slots = np.nanmean(profile.reshape(-1, profile.shape[-1]), axis=0)
        tables["Mean attention of all heads from the question to documents by slot"] = (
            polars.DataFrame({"slot": range(1, len(slots) + 1), "mass": slots})
        )
    return tables


def trial_table(measured: Measured, design: NeedleDesign) -> polars.DataFrame:
    """One row a trial: needle, place, what was said, how it was judged."""
    trials = measured.trials
    return polars.DataFrame(
        [
            {
                "needle": trial.needle_id,
                "kind": trial.kind,
                "question": trial.question,
                "length": trial.length,
                "depth": trial.depth,
                "said": " ".join(trials.continuations[i].split())[:60],
                "verdict": trials.verdicts[i],
                "known": bool(trials.known[i]),
                "log_prob": float(trials.forced_logprob[i]),
                "without_haystack": float(trials.control_logprob[i]),
            }
            for i, trial in enumerate(design.trials)
        ]
    )


def figures_of(found: Summarised) -> dict[str, go.Figure]:
    """Heat maps of the scores, and what heads read against what they write."""
    figures = {
        name: head_grid_figure(
            found.scores[name].mean,
            title=f"{name} score of each head",
            axis_label=label,
            significant=np.nan_to_num(found.scores[name].q, nan=1.0) <= MAX_Q,
        )
        for name, label in _FIGURES.items()
        if name in found.scores
    }
    if "write_role" in found.roles:
        figures["read-write"] = _read_write(found)
    return figures


def _read_write(found: Summarised) -> go.Figure:
    """A dot a head: attention mass on the needle, and logits that it writes from there."""
    figure = go.Figure()
    read, write, words = found.scores["emit"].mean, found.grids["write"], found.roles["write_role"]
    for colour, role in zip(PALETTE, ("copy", "semantic", "suppress", "inert"), strict=False):
        cells = np.argwhere(words == role)
        at = tuple(cells.T)
        names = [str(HeadId(int(layer), int(head))) for layer, head in cells]
        figure.add_trace(
            go.Scatter(
                x=read[at], y=write[at], text=names, name=role, mode="markers", marker_color=colour
            )
        )
    figure.update_xaxes(title="read: attention mass on the needle, answer rows")
    figure.update_yaxes(title="write: logits onto the answer from there (positive: for it)")
    return finished(figure, "What heads read of the needle, and what they write from it")
