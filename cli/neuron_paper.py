"""The work behind `neurons find --paper`: Liu et al. 2025 to the letter, for comparison."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import plotly.graph_objects as go
import polars

from ..models.errors import MnemoscopeError
from ..models.hooked import HookedModel
from ..models.load import load_model
from ..probes.paper_relation_effects import (
    Cumulativity,
    PaperEffects,
    measure_cumulativity,
    measure_paper_effects,
)
from ..probes.paper_relation_neurons import PaperNeurons, find_paper_neurons
from ..probes.paper_relations import PaperPreset, PaperRelation, paper_relation, paper_relations
from ..results.neuron_figures import layer_histogram_figure, matrix_figure
from ..results.neuron_set import NeuronScore, NeuronSet, save_neuron_set
from ..results.provenance import collect_provenance, sha256_of_json
from ..results.report import figure_html, render_report
from ..results.run import Run
from ..results.run_folder import open_run
from ..results.run_reading import load_run
from .neuron_finding import RELATIONS, plain
from .neuron_sets import OF
from .scoring import relation_named

KIND = "paper-relation-neurons"
FIXED = ("subjects", "site", "pooling", "k", "pseudo", "resamples")
"""Options of `neurons find` that the paper's procedure decides."""
_CLAIM = (
    "The procedure of Liu et al. 2025 as published, for comparison. It has no null for a relation: "
    "arbitrary groups of prompts get units as well, each relation is found by its own few words, "
    "and its random units write less than chosen ones. For conclusions of your own use "
    "`mnemoscope neurons find` without --paper."
)

Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class PaperConfig:
    """Everything that decides the numbers of a `neurons find --paper` run, and nothing else.

    `relations` are shipped ones or files, or, with `lre` (a local copy of LRE), some of the paper's
    own; none: all twelve.
    """

    model: str
    relations: tuple[str, ...] = ()
    lre: str | None = None
    cumulativity: bool = False
    seed: int = 0
    device: str = "auto"
    dtype: str = "auto"


@dataclass(frozen=True)
class PaperResult:
    """A finished run: relative drops by asked relation and ablated set, and a summary."""

    folder: Path
    table: polars.DataFrame
    summary: Mapping[str, Any]

    def document(self) -> dict[str, Any]:
        """The result as JSON."""
        return {"run": str(self.folder), **self.summary, "matrix": self._matrix()}

    def _matrix(self) -> list[dict[str, Any]]:
        return [plain(row) for row in self.table.to_dicts()]


def find_as_paper(
    config: PaperConfig,
    root: Path,
    *,
    memory_mb: int,
    force: bool,
    say: Callable[[str], None],
    tell: Progress,
) -> PaperResult:
    """Find, ablate and save. Interrupted, it finds again but keeps the answers under ablation.

    Raises `MnemoscopeError` for relations that cannot be asked, or that the model does not know.
    """
    relations, preset = relations_of(config), PaperPreset(seed=config.seed)
    model = load_model(config.model, device=config.device, dtype=config.dtype)
    key = {
        **asdict(config),
        "relations": list(config.relations),
        "preset": json.loads(json.dumps(asdict(preset))),
        "data_sha256": _data_hash(relations),
        "weights_sha256": model.weights_sha256,
    }
    with open_run(root, KIND, key, force=force) as run:
        if run.finished:
            say(f"{run.id} is done already (use --force to measure again).")
        else:
            _measure(config, model, relations, preset, run, memory_mb, say, tell)
        return read_paper(run.folder)


def read_paper(folder: Path) -> PaperResult:
    """A finished `paper-relation-neurons` run. Raises `MnemoscopeError` for another kind."""
    loaded = load_run(folder)
    summary = loaded.rows.get("summary")
    if summary is None or "paper" not in summary:
        raise MnemoscopeError(
            f"{folder} is not a run of `neurons find --paper`: name one of its folders."
        )
    return PaperResult(folder, loaded.table, dict(summary))


def relations_of(config: PaperConfig) -> tuple[PaperRelation, ...]:
    """The relations in the paper's form. Raises `MnemoscopeError` for one that is not there."""
    if config.lre is None:
        names = config.relations or RELATIONS
        return tuple(paper_relation(relation_named(name)) for name in names)
    try:
        known = {one.name: one for one in paper_relations(config.lre)}
    except (ValueError, FileNotFoundError) as error:
        raise MnemoscopeError(f"--lre: {error}") from error
    if unknown := [name for name in config.relations if name not in known]:
        raise MnemoscopeError(
            f"{', '.join(unknown)}: with --lre choose among the paper's {', '.join(known)}."
        )
    return tuple(known[name] for name in config.relations or known)


def _data_hash(relations: tuple[PaperRelation, ...]) -> str:
    return sha256_of_json(
        [
            [one.name, one.templates, one.new_templates, [[f.subject, f.object] for f in one.facts]]
            for one in relations
        ]
    )


def _measure(
    config: PaperConfig,
    model: HookedModel,
    relations: tuple[PaperRelation, ...],
    preset: PaperPreset,
    run: Run,
    memory_mb: int,
    say: Callable[[str], None],
    tell: Progress,
) -> None:
    def stage(message: str) -> Progress:
        def both(done: int, total: int) -> None:
            run.progress(done, total, message)
            tell(done, total)

        return both

    found = find_paper_neurons(
        model, relations, preset, memory_bytes=memory_mb * 2**20, progress=stage("finding units")
    )
    say(
        f"top {found.k} of {len(found.pool):,} units of {len(found.pool.sites)} sites; "
        f"{len(found.detection)} of {int(found.n_asked.sum())} prompts answered right; "
        f"{len(found.held_out)} held out"
    )
    effects = measure_paper_effects(model, found, run=run, progress=stage("ablating"))
    together = None
    if config.cumulativity:
        together = measure_cumulativity(model, found, run=run, progress=stage("cumulativity"))
    _finish(config, model, relations, found, effects, together, run)


def _finish(
    config: PaperConfig,
    model: HookedModel,
    relations: tuple[PaperRelation, ...],
    found: PaperNeurons,
    effects: PaperEffects,
    together: Cumulativity | None,
    run: Run,
) -> None:
    summary = summary_of(found, effects, together)
    if "summary" not in run.done:
        run.append("summary", summary)
    provenance = collect_provenance(
        **model.identity,
        data_sha256=_data_hash(relations),
        prompt_template=" | ".join(dict.fromkeys(p.wording for p in found.held_out)),
        seed=config.seed,
        estimand="Liu et al. 2025: zero at all positions, relative drop of two-token accuracy",
    )
    figures = figures_of(found, effects)
    tables = {
        "By relation": polars.DataFrame(summary["effects"], infer_schema_length=None).drop("forms"),
        "Lost answers under the own set, by what was said": effects.lost_answers(),
        "Accuracy by asked relation and ablated set": effects.table(),
        "The best units": found.table().filter(polars.col("rank") <= 5),
    }
    if together is not None:
        tables["Cumulativity: 1 - affected / total"] = polars.DataFrame(
            summary["cumulativity"], infer_schema_length=None
        )
    report = render_report(
        title=f"Relation-specific neurons of {model.name}, as in Liu et al. 2025",
        claim=_CLAIM,
        tables=tables,
        figures=figures,
        provenance=provenance,
        notes=notes_of(summary),
    )
    for relation in found.relations:
        chosen = _neuron_set(found, relation, model, run.id)
        save_neuron_set(run.folder / f"neurons-{relation}.json", chosen, force=True)
    pages = {f"{name}.html": figure_html(page, title=name) for name, page in figures.items()}
    arrays: dict[str, np.ndarray] = {"ranking": found.ranking.astype(np.int64)}
    arrays["ap"] = found.ap.astype(np.float32)
    run.finish(effects.table(), arrays, provenance, pages, report)


def summary_of(
    found: PaperNeurons, effects: PaperEffects, together: Cumulativity | None
) -> dict[str, Any]:
    """What was found and lost, as JSON. Drops are in per cent of the unedited accuracy; positive:
    answers are lost."""
    summary: dict[str, Any] = {
        "paper": "Liu et al. 2025 (arXiv 2502.17355)",
        "model": found.model_id,
        "units": len(found.pool),
        "k": found.k,
        "relations": list(found.relations),
        "effects": [_effect(found, effects, i) for i in range(len(found.relations))],
    }
    if together is not None:
        summary["cumulativity"] = _cumulativity(together)
    return summary


def _effect(found: PaperNeurons, effects: PaperEffects, i: int) -> dict[str, Any]:
    name, drop = found.relations[i], effects.drop
    others = np.delete(drop[i], i)
    lost = effects.lost_answers().row(i, named=True)
    row = {
        "relation": name,
        "positives": int(found.n_positives[i]),
        "negatives": int(found.n_negatives[i]),
        "tied at k": int(found.n_tied[i]),
        "held out": sum(prompt.relation == name for prompt in effects.prompts),
        "right before": float(effects.accuracy(effects.original)[i]),
        "drop": _rounded(drop[i, i]),
        "drop, other sets": _rounded(others.mean()),
        "drop, random": _rounded(effects.random_drop[i].mean()),
        "lost": int(lost["lost"]),
        "forms": {form: n for form, n in lost.items() if form not in ("relation", "lost")},
    }
    return plain(row)


def _rounded(drop: np.floating[Any]) -> float:
    """Per cent, without the noise of the last digits."""
    return round(float(drop), 6)


def _cumulativity(together: Cumulativity) -> list[dict[str, Any]]:
    shares = [*together.by_relation, together.micro, together.macro]
    names = [*together.relations, "all prompts", "mean of relations"]
    steps = [f"{a} to {b}" for a, b in pairwise(together.sizes)]
    return [
        {"relation": name, **plain(dict(zip(steps, map(float, row), strict=True)))}
        for name, row in zip(names, shares, strict=True)
    ]


def notes_of(summary: Mapping[str, Any]) -> list[str]:
    """What a reader must know beside the numbers."""
    notes = [
        "Drops are in per cent of the unedited accuracy; positive: answers are lost. The paper's "
        "match calls any change of form a lost answer: see the table of what was said."
    ]
    for one in summary["effects"]:
        if one["tied at k"] > 1:
            notes.append(
                f"{one['relation']}: {one['tied at k']} units have the precision of rank "
                f"{summary['k']}, so the set is in part an arbitrary choice among them."
            )
        if not one["right before"]:
            notes.append(f"{one['relation']}: no held-out prompt is answered right: no drop.")
    return notes


def figures_of(found: PaperNeurons, effects: PaperEffects) -> dict[str, go.Figure]:
    """The matrix of relative drops, and where the sets lie in depth."""
    values = np.concatenate([effects.drop.T, effects.random_drop.mean(1)[None]])
    draws = len(effects.random)
    return {
        "drops": matrix_figure(
            values,
            (*found.relations, f"random (mean of {draws})"),
            found.relations,
            title="Relative drop of accuracy on held-out prompts",
            row_label="ablated",
            column_label="asked",
            axis_label="drop (%)",
            centred=True,
        ),
        "layers": layer_histogram_figure(
            found.layers(), found.relations, title=f"Top {found.k} units by layer"
        ),
    }


def _neuron_set(found: PaperNeurons, relation: str, model: HookedModel, run_id: str) -> NeuronSet:
    scores = found.ap[found.row(relation), : found.k]
    return NeuronSet(
        name=f"{relation}{OF}{found.model_id}",
        model_id=model.name,
        n_layers=model.anatomy.n_layers,
        d_mlp=int(model.anatomy.d_mlp or 0),
        method="Liu et al. 2025: average precision of the mean over all tokens",
        run_id=run_id,
        neurons=tuple(
            NeuronScore(unit, float(score), "high")
            for unit, score in zip(found.neurons(relation), scores, strict=True)
        ),
    )
