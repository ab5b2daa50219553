"""The work behind `binding entangle`: overlap of facts, and what teaching one does to another."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, get_args

import numpy as np
import plotly.graph_objects as go
import polars

from ..data.facts.pairs import pairs_sha256
from ..models.errors import MnemoscopeError
from ..models.random_weights import random_initialised
from ..probes.effective_rank import StateSpread, name_tokens, state_spread
from ..probes.elicitation import Progress
from ..probes.entanglement import EVERYONE, Entanglement, entanglement
from ..probes.gradient_crosstalk import GradientCrosstalk, gradient_crosstalk
from ..probes.interference import (
    Interference,
    InterferenceExplained,
    Stepped,
    explain_interference,
    interference,
)
from ..probes.role_prompts import RolePrompts
from ..probes.role_states import role_states
from ..results.figures import dose_figure
from ..results.provenance import collect_provenance
from ..results.run import Run
from .binding_pairs import (
    Asked,
    Chosen,
    PairsConfig,
    asked_pairs,
    chosen_pairs,
    told_counts,
    way_named,
)
from .binding_runs import BindingResult, Findings, Phases, binding_run

KIND = "binding-entanglement"
RANDOM = "random initialised"
_SHARING = ("same first token", "shared 2+", "shared 1")
_CLAIM = (
    "Overlap of hidden activations (kappa) and of gradients says how far a step for one fact "
    "reaches another; steps that were really made say whether it does. What a model with random "
    "weights shows too is the tokens' doing."
)


@dataclass(frozen=True)
class EntangleConfig:
    """Everything that decides the numbers of a `binding entangle` run, and nothing else.

    `sources` facts are taught, one small step each, and `targets` asked after it; 0 sources leave
    the steps out. `stepped`: all weights, or the down projections of the MLPs only.
    """

    pairs: PairsConfig
    way: str = "forward"
    sources: int = 16
    targets: int = 64
    stepped: str = "all"
    control: bool = True

    def __post_init__(self) -> None:
        """Raises `MnemoscopeError` for a word that is not offered."""
        way_named(self.way)
        if self.stepped not in get_args(Stepped):
            raise MnemoscopeError(f"--stepped is {self.stepped!r}: use all or down.")


@dataclass(frozen=True, eq=False)
class Entangled:
    """All measurements; those of the steps are None where none was made."""

    overlap: Entanglement
    control: Entanglement | None
    gradients: GradientCrosstalk
    spread: StateSpread
    steps: Interference | None
    explained: InterferenceExplained | None


def entangle_binding(
    config: EntangleConfig,
    root: Path,
    *,
    memory_mb: int,
    force: bool,
    say: Callable[[str], None],
    tell: Progress,
) -> BindingResult:
    """Measure overlaps, make the steps, save; goes on with an interrupted run."""
    asked = asked_pairs(config.pairs)
    if config.sources and asked.model.dtype.itemsize < 4:
        raise MnemoscopeError(
            f"{asked.model.name} is loaded in {asked.model.dtype}, where a small step is lost in "
            "rounding: use --dtype float32, or --sources 0 for no steps."
        )
    key = {**asdict(config), **asked.identity}

    def measure(run: Run, phase: Phases) -> Findings:
        way = way_named(config.way)
        chosen = chosen_pairs(asked, way=way, run=run, progress=phase("pairs known"))
        say(f"{len(chosen.prompts.kept)} facts of {asked.relation.name}, asked {way}")
        found = _measured(config, asked, chosen.prompts, memory_mb << 20, run, phase)
        return _findings(asked, chosen, found)

    return binding_run(KIND, key, root, measure, force=force, say=say, tell=tell)


def _measured(
    config: EntangleConfig,
    asked: Asked,
    prompts: RolePrompts,
    memory_bytes: int,
    run: Run,
    phase: Phases,
) -> Entangled:
    model, way, seed = asked.model, way_named(config.way), config.pairs.seed
    overlap = entanglement(model, prompts, way=way, seed=seed, progress=phase("overlap"))
    control = None
    if config.control:
        blank = random_initialised(model, seed)
        control = entanglement(blank, prompts, way=way, seed=seed, progress=phase(RANDOM))
    gradients = gradient_crosstalk(
        *(model, prompts),
        way=way,
        memory_bytes=memory_bytes,
        seed=seed,
        progress=phase("gradients"),
    )
    states = role_states(model, prompts, run=run, progress=phase("states"))
    spread = state_spread(
        states["a" if way == "forward" else "b", "S"],
        name_tokens(prompts, way),
        model=model.name,
        seed=seed,
    )
    if not config.sources:
        return Entangled(overlap, control, gradients, spread, None, None)
    steps = interference(
        *(model, prompts),
        way=way,
        sources=config.sources,
        targets=config.targets,
        stepped="down" if config.stepped == "down" else "all",
        seed=seed,
        run=run,
        progress=phase("steps"),
    )
    predictors = {
        "activations (kappa)": overlap.kappa,
        "gradients (kappa_NTK)": gradients.kappa,
        "gradients of all layers": gradients.together,
    }
    explained = explain_interference(steps, predictors, seed=seed)
    return Entangled(overlap, control, gradients, spread, steps, explained)


def layer_rows(found: Entangled) -> list[dict[str, Any]]:
    """By layer: the mean overlaps of all pairs of facts and of those whose names share tokens."""
    kappa, cosine = found.overlap.classes, found.gradients.classes
    sharing = next((name for name in _SHARING if name in kappa), None)
    rows = []
    for i, layer in enumerate(found.overlap.layers):
        row = {"layer": layer, "kappa": float(kappa[EVERYONE].mean.mean[i])}
        row["summed"] = float(kappa[EVERYONE].summed.mean[i])
        if found.control is not None:
            row["kappa_random"] = float(found.control.classes[EVERYONE].mean.mean[i])
        if sharing is not None:
            row[f"kappa, {sharing}"] = float(kappa[sharing].mean.mean[i])
        row["gradient_cosine"] = float(cosine[EVERYONE].mean.mean[i])
        row["effective_rank"] = float(found.spread.effective_rank[layer])
        row["token_share"] = float(found.spread.explained[layer])
        rows.append(row)
    return rows


def _findings(asked: Asked, chosen: Chosen, found: Entangled) -> Findings:
    relation = chosen.prompts.relation
    classes = [found.overlap.table(), found.gradients.table()]
    if found.control is not None:
        classes.append(
            found.control.table().with_columns(polars.lit(f"kappa, {RANDOM}").alias("measure"))
        )
    table = polars.concat(classes)
    tables = {
        "By layer": polars.DataFrame(layer_rows(found)),
        "By class of names": table,
        "How the states of the names spread": found.spread.table(),
    }
    arrays = {"kappa": found.overlap.kappa, "gradient_inner": found.gradients.inner}
    if found.steps is not None and found.explained is not None:
        tables["What goes with the interference"] = found.explained.table()
        tables["Interference"] = found.steps.table()
        arrays |= {"change": found.steps.change, "expected": found.steps.expected}
    return Findings(
        title=f"Entanglement of {relation.name} in {asked.model.name}",
        claim=_CLAIM,
        summary={
            "model": asked.model.name,
            "relation": relation.name,
            "way": found.overlap.way,
            "n_pairs": len(relation.pairs),
            "dropped": chosen.dropped,
            "told": told_counts(relation),
            "layers": layer_rows(found),
            "steps": None if found.steps is None else _steps(found.steps),
            "explained": [] if found.explained is None else _best(found.explained),
        },
        table=table,
        provenance=collect_provenance(
            **asked.model.identity,
            data_sha256=pairs_sha256(relation),
            prompt_template=" | ".join(relation.wordings(found.overlap.way)),
            seed=asked.config.seed,
            estimand="overlap of MLP activations at names and of facts' gradients; change of "
            "other facts' log-probability after one step",
        ),
        tables=tables,
        figures=_figures(table),
        arrays=arrays,
        notes=_notes(found),
    )


def _steps(steps: Interference) -> dict[str, Any]:
    others = np.ones(steps.change.shape, dtype=bool)
    others[np.arange(len(steps.sources)), steps.places] = False
    return {
        "sources": len(steps.sources),
        "targets": len(steps.targets),
        "stepped": steps.stepped,
        "own": float(steps.own.mean()),
        "linearity": float(np.median(steps.linearity)),
        "others": float(steps.change[others].mean()),
        "others_size": float(np.abs(steps.share[others]).mean()),
    }


def _best(explained: InterferenceExplained) -> list[dict[str, Any]]:
    """Each predictor at its best layer."""
    rows = explained.table()
    return [
        part.sort("r2", descending=True, nulls_last=True).row(0, named=True)
        for part in rows.partition_by("predictor", maintain_order=True)
    ]


def _figures(table: polars.DataFrame) -> dict[str, go.Figure]:
    axes: Mapping[str, str] = {
        "kappa": "mean size of kappa",
        "gradient cosine": "mean size of the gradients' cosine",
    }
    figures = {}
    for measure, label in axes.items():
        rows = table.filter(polars.col("measure").str.starts_with(measure)).with_columns(
            polars.when(polars.col("measure") == measure)
            .then(polars.col("class"))
            .otherwise(polars.format("{} ({})", "class", polars.lit(RANDOM)))
            .alias("series")
        )
        figures[measure.replace(" ", "-")] = dose_figure(
            rows.rename({"layer": "dose", "mean": "value"}),
            title=f"{label} by class of names",
            dose_label="layer",
            axis_label=label,
        )
    return figures


def _notes(found: Entangled) -> list[str]:
    kappa = found.overlap.classes[EVERYONE]
    best = int(np.argmax(kappa.mean.mean))
    said = [
        f"Activations overlap most in layer {found.overlap.layers[best]}: mean |kappa| "
        f"{kappa.mean.mean[best]:.2f}, {kappa.summed.mean[best]:.1f} summed over all other facts."
    ]
    if found.steps is not None:
        told = _steps(found.steps)
        said.append(
            f"A step for one fact raises it by {told['own']:.3g} nats "
            f"({told['linearity']:.0%} of what its gradient promises) and moves every other one, "
            f"up or down, by {told['others_size']:.0%} of that promise on average."
        )
    if found.explained is not None:
        said += [
            f"{row['predictor']}: r = {row['r']:.2f} ({row['low']:.2f} to {row['high']:.2f}) with "
            f"the interference, r2 {row['r2']:.2f} (null {row['r2_null']:.2f}), p = "
            f"{row['p_any_layer']:.3g}."
            for row in _best(found.explained)
        ]
    return said
