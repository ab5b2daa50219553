"""The work behind `binding swap`: predicted states written over names, with all controls."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, get_args

import numpy as np
import plotly.graph_objects as go
import polars

from ..data.facts.pairs import pairs_sha256
from ..models.errors import MnemoscopeError
from ..probes.elicitation import Progress
from ..probes.reverse_steering import ReverseSteering, measure_reverse_steering
from ..probes.role_prompts import role_prompts
from ..probes.role_states import RoleStates, role_states
from ..probes.role_swaps import SwapConfig as SwapGrid
from ..probes.role_swaps import measure_role_swaps
from ..probes.swap_results import RoleSwaps
from ..probes.swap_vectors import Arm, Form
from ..results.neuron_figures import matrix_figure
from ..results.provenance import collect_provenance
from ..results.run import Run
from .binding_pairs import (
    Asked,
    Chosen,
    PairsConfig,
    asked_pairs,
    chosen_pairs,
    relation_named,
    told_counts,
)
from .binding_runs import BindingResult, Findings, Phases, binding_run

KIND = "binding-swap"
_ALPHA = 0.05
_CLAIM = (
    "The state that predicts B, written over B's name in a question that names B, counts where it "
    "brings out A beyond another entity's state of the same kind. A state that was read from a "
    "prompt with A in it may carry A itself: only the arms without_asked and elsewhere are free of "
    "that, and asked shows what plain leakage can do."
)


@dataclass(frozen=True)
class SwapConfig:
    """Everything that decides the numbers of a `binding swap` run, and nothing else.

    Layers `()` are six evenly strided ones; rank 0 is the whole state. `elsewhere` is a relation
    that asks for the same B without naming A. `steer` adds the test of necessity.
    """

    pairs: PairsConfig
    sources: tuple[int, ...] = ()
    targets: tuple[int, ...] = ()
    ranks: tuple[int, ...] = (1, 4, 16, 0)
    forms: tuple[str, ...] = ("raw", "mapped")
    elsewhere: str | None = None
    steer: bool = False
    strengths: tuple[float, ...] = (0.25, 0.5, 1.0)

    def __post_init__(self) -> None:
        """Raises `MnemoscopeError` for a word or number that is not offered."""
        if not self.forms or not set(self.forms) <= set(get_args(Form)):
            raise MnemoscopeError(
                f"--forms is {','.join(self.forms)!r}: use {', '.join(get_args(Form))}."
            )
        if not self.ranks or min(self.ranks) < 0:
            raise MnemoscopeError("--ranks are numbers of directions, 0 or full for all of them.")

    @property
    def grid(self) -> SwapGrid:
        """The same for the probe."""
        return SwapGrid(
            self.sources,
            self.targets,
            tuple(form for form in get_args(Form) if form in self.forms),
            tuple(rank or None for rank in self.ranks),
            seed=self.pairs.seed,
        )


def swap_binding(
    config: SwapConfig,
    root: Path,
    *,
    force: bool,
    say: Callable[[str], None],
    tell: Progress,
) -> BindingResult:
    """Filter, read the states, swap on the grid, save; goes on with an interrupted run."""
    asked = asked_pairs(config.pairs)
    key = {**asdict(config), **asked.identity}

    def measure(run: Run, phase: Phases) -> Findings:
        chosen = chosen_pairs(asked, run=run, progress=phase("pairs known"))
        say(
            f"{len(chosen.prompts.kept)} pairs of {asked.relation.name} that the model can be asked"
        )
        states = role_states(asked.model, chosen.prompts, run=run, progress=phase("states"))
        swaps = measure_role_swaps(
            asked.model,
            states,
            config.grid,
            elsewhere=_elsewhere(config, asked, run, phase),
            run=run,
            progress=phase("swaps"),
        )
        steered = None
        if config.steer:
            steered = measure_reverse_steering(
                asked.model,
                states,
                strengths=config.strengths,
                seed=config.pairs.seed,
                run=run,
                progress=phase("steering"),
            )
        return _findings(asked, chosen, swaps, steered)

    return binding_run(KIND, key, root, measure, force=force, say=say, tell=tell)


def _elsewhere(config: SwapConfig, asked: Asked, run: Run, phase: Phases) -> RoleStates | None:
    """States of the other relation that asks for the same names."""
    if config.elsewhere is None:
        return None
    relation = relation_named(replace(config.pairs, pairs=config.elsewhere))
    prompts = role_prompts(asked.model, relation)
    return role_states(asked.model, prompts, run=run, progress=phase("states elsewhere"))


def arm_rows(swaps: RoleSwaps) -> list[dict[str, Any]]:
    """One row an arm that has a control, at the cells that the other half of the pairs chose."""
    rows = []
    for arm in swaps.arms:
        if arm.of != "own" or arm.control not in swaps.arms:
            continue
        cell = swaps.held_out(arm)
        rows.append(
            {
                "origin": arm.origin,
                "form": arm.form,
                "rank": "full" if arm.rank is None else str(arm.rank),
                "cells": [list(at) for at in cell.cells],
                "gain": float(cell.gain.mean),
                "gain_low": float(cell.gain.low),
                "gain_high": float(cell.gain.high),
                "beyond": float(cell.beyond.mean),
                "low": float(cell.beyond.low),
                "high": float(cell.beyond.high),
                "p": cell.p,
            }
        )
    return rows


def _findings(
    asked: Asked, chosen: Chosen, swaps: RoleSwaps, steered: ReverseSteering | None
) -> Findings:
    table, rows, relation = swaps.table(), arm_rows(swaps), chosen.prompts.relation
    tables = {"Every arm, held out": _text_cells(rows), "Every cell of the grid": table}
    arrays = {"swap.log_prob": swaps.log_prob, "swap.first": swaps.first, "swap.rank": swaps.rank}
    arrays |= {"clean.log_prob": swaps.clean_log_prob, "clean.rank": swaps.clean_rank}
    if steered is not None:
        tables["Steering the name towards its prediction"] = steered.table()
        arrays |= {"steer.log_prob": steered.log_prob, "steer.rank": steered.rank}
    return Findings(
        title=f"Role swaps of {swaps.relation} in {asked.model.name}",
        claim=_CLAIM,
        summary={
            "model": asked.model.name,
            "relation": swaps.relation,
            "n_pairs": len(swaps.pairs),
            "dropped": chosen.dropped,
            "told": told_counts(relation),
            "clean_log_prob": float(swaps.clean_log_prob.mean()),
            "clean_mrr": float((1 / swaps.clean_rank).mean()),
            "chance": swaps.chance,
            "arms": rows,
            "steering": None if steered is None else _best_steering(steered),
        },
        table=table,
        provenance=collect_provenance(
            **asked.model.identity,
            data_sha256=pairs_sha256(relation),
            prompt_template=" | ".join((*relation.forward, *relation.reverse)),
            seed=asked.config.seed,
            estimand="change of the whole asked name's log-probability when the state of the "
            "named entity is replaced, at one layer",
        ),
        tables=tables,
        figures=_figures(swaps, table),
        arrays=arrays,
        notes=_notes(rows, steered),
    )


def _figures(swaps: RoleSwaps, table: polars.DataFrame) -> dict[str, go.Figure]:
    """The grid of the whole predicted state in each form, and of it without what it has of A."""
    figures = {}
    for arm in swaps.arms:
        if arm.of != "own" or arm.rank is not None or arm.origin == "same_role":
            continue
        cells = table.filter(
            (polars.col("origin") == arm.origin)
            & (polars.col("of") == "own")
            & (polars.col("form") == arm.form)
            & (polars.col("rank") == "full")
        )
        shape = len(swaps.source_layers), len(swaps.target_layers)
        figures[f"{arm.origin}-{arm.form}"] = _grid_figure(swaps, arm, cells, shape)
    return figures


def _grid_figure(
    swaps: RoleSwaps, arm: Arm, cells: polars.DataFrame, shape: tuple[int, int]
) -> go.Figure:
    return matrix_figure(
        cells["beyond"].to_numpy().reshape(shape),
        [f"from {layer}" for layer in swaps.source_layers],
        [f"into {layer}" for layer in swaps.target_layers],
        title=f"{arm.origin}, {arm.form}: gain beyond another entity's (* p < {_ALPHA}, grid)",
        row_label="layer read from",
        column_label="layer written to",
        axis_label="nats",
        centred=True,
        marked=cells["p_grid"].to_numpy().reshape(shape) < _ALPHA,
    )


def _best_steering(steered: ReverseSteering) -> dict[str, Any]:
    """The map's layer and strength of the largest gain beyond a shuffled map."""
    rows = steered.table().filter(polars.col("direction") == "map")
    return rows.sort("beyond", descending=True).row(0, named=True)


def _notes(rows: list[dict[str, Any]], steered: ReverseSteering | None) -> list[str]:
    said = []
    for row in rows:
        if row["rank"] != "full" or not np.isfinite(row["beyond"]):
            continue
        works = "brings out A" if row["p"] < _ALPHA and row["low"] > 0 else "does not bring out A"
        said.append(
            f"{row['origin']}, {row['form']}, whole state: {works} beyond another entity's "
            f"({row['beyond']:+.2f} nats, {row['low']:+.2f} to {row['high']:+.2f}; p = "
            f"{row['p']:.3g})."
        )
    if steered is not None:
        best = _best_steering(steered)
        said.append(
            f"Steering names along the map, best at layer {best['layer']} with strength "
            f"{best['strength']:g}: {best['beyond']:+.2f} nats beyond a shuffled map, accuracy "
            f"{best['accuracy_gain']:+.2f}; p = {best['p_grid']:.3g} over all layers and strengths."
        )
    return said


def _text_cells(rows: list[dict[str, Any]]) -> polars.DataFrame:
    """The rows with their pairs of layers as text."""
    cells = [{**row, "cells": ", ".join(f"{a} > {b}" for a, b in row["cells"])} for row in rows]
    return polars.DataFrame(cells)
