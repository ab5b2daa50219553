"""The causal columns of `retrieval score --knockouts`: single edges cut, and who leads whom."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import plotly.graph_objects as go
import polars

from ..data.facts.needles import NeedleDesign
from ..models.errors import MnemoscopeError
from ..models.hooked import HookedModel
from ..models.types import HeadId
from ..probes.edge_knockouts import EdgeKnockouts, measure_knockouts, trials_of_needles
from ..probes.retrieval_measures import Measured, Phase, Summarised
from ..probes.retrieval_statistics import HeadStatistics
from ..probes.serial_dependence import SerialDependence, serial_dependence
from ..results.figures import PALETTE, finished
from ..results.run import Run

LOCATE_HEADS = 3
"""How many heads, those that locate best, are taken from the emitting ones."""


@dataclass(frozen=True, eq=False)
class Causal:
    """Edges to the needle cut one by one, and what emitting heads read without locating ones
    (None where there are none of either)."""

    knockouts: EdgeKnockouts
    edges: HeadStatistics
    roles: np.ndarray
    serial: SerialDependence | None
    notes: tuple[str, ...]

    @property
    def tables(self) -> dict[str, polars.DataFrame]:
        """Further tables of the report, by caption."""
        if self.serial is None:
            return {}
        told = self.serial
        row = {
            "locate heads": " ".join(map(str, told.locate)),
            "emit heads": len(told.emit),
            "mass before": float(told.before.mean),
            "fall": float(told.fall.mean),
            "low": float(told.fall.low),
            "high": float(told.fall.high),
            "under random heads": told.against.control_mean,
            "p": told.against.p_loss,
            "answer loses": float(told.loss.mean),
        }
        return {
            "Needle mass of the emit heads, with the needle hidden from locate heads in the "
            "question": polars.DataFrame([row])
        }

    @property
    def summary(self) -> dict[str, Any]:
        """The same as JSON."""
        serial = self.serial
        return {
            "knockout_trials": len(self.knockouts.trials),
            "needed_edges": int((self.roles == "needed").sum()),
            "hindering_edges": int((self.roles == "hinders").sum()),
            "serial": None
            if serial is None
            else {
                "share": serial.share,
                "p": serial.against.p_loss,
                "sets": serial.against.n_controls,
            },
        }


def measure_causal(
    model: HookedModel,
    design: NeedleDesign,
    measured: Measured,
    found: Summarised,
    *,
    trials: int,
    seed: int,
    run: Run,
    phase: Phase,
) -> Causal:
    """Cut every head's edge to the needle in accepted `trials` about different needles.

    Raises `MnemoscopeError` where accepted trials are about one needle.
    """
    kept = measured.trials.accepted & ~measured.trials.known
    chosen = trials_of_needles(design, kept, trials)
    cut = measure_knockouts(
        model, design, chosen, seed=seed, run=run, progress=phase("edges to the needle")
    )
    locate, notes = _heads(found, "locate", "locate_mass"), list[str]()
    if not locate:
        notes.append(
            f"No head locates beyond chance: the {LOCATE_HEADS} that come nearest stand in for "
            "them in the test of serial dependence."
        )
        locate = _best(found.scores["locate_mass"])
    try:
        serial = serial_dependence(
            model,
            design,
            locate[:LOCATE_HEADS],
            _heads(found, "emit", "emit"),
            chosen,
            seed=seed,
            run=run,
            progress=phase("locate, then emit"),
        )
    except MnemoscopeError as error:
        serial = None
        notes.append(f"No test of serial dependence: {error}")
    return Causal(cut, cut.statistics(seed=seed), cut.roles(seed=seed), serial, tuple(notes))


def read_write_cause(found: Summarised, causal: Causal) -> go.Figure:
    """A dot a head: needle mass that it reads, nats that the answer loses without that look; its
    colour is what it writes from there."""
    figure = go.Figure()
    read, drop = found.scores["emit"].mean, causal.edges.mean
    words = found.roles.get("write_role", np.full(drop.shape, ""))
    for colour, role in zip(PALETTE, np.unique(words), strict=False):
        cells = np.argwhere(words == role)
        at = tuple(cells.T)
        names = [str(HeadId(int(layer), int(head))) for layer, head in cells]
        figure.add_trace(
            go.Scatter(
                x=read[at],
                y=drop[at],
                text=names,
                name=f"writes: {role}" if role else "heads",
                mode="markers",
                marker_color=colour,
            )
        )
    figure.update_xaxes(title="read: attention mass on the needle, answer rows")
    figure.update_yaxes(title="cause: nats the answer loses without that look (positive: needed)")
    return finished(figure, "What heads read of the needle, and what hangs on it")


def _heads(found: Summarised, role: str, score: str) -> list[HeadId]:
    """Heads of a role, highest score first."""
    has_role = np.isin(found.roles["role"], (role, "both"))
    return [head for head in _best(found.scores[score]) if has_role[head.layer, head.head]]


def _best(scores: HeadStatistics) -> list[HeadId]:
    """Heads that can see a needle, highest score first."""
    cells = np.argwhere(np.isfinite(scores.mean)).tolist()
    cells.sort(key=lambda at: (-scores.mean[tuple(at)], at))
    return [HeadId(layer, head) for layer, head in cells]
