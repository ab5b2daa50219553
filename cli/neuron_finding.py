"""The work behind `neurons find`: one configuration, one resumable run folder."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, get_args

import numpy as np
import plotly.graph_objects as go
import polars

from ..data.facts.designs import Design, build_design
from ..models.errors import MnemoscopeError
from ..models.hooked import HookedModel
from ..models.load import load_model
from ..models.types import Site
from ..probes.pooled_activations import Pooling
from ..probes.relation_neuron_tables import (
    layer_counts,
    neuron_set,
    overlaps,
    stability,
    table,
    verdicts,
    wording_tax,
)
from ..probes.relation_neurons import RelationNeurons, find_relation_neurons
from ..results.neuron_figures import layer_histogram_figure, matrix_figure
from ..results.neuron_set import save_neuron_set
from ..results.provenance import collect_provenance
from ..results.report import figure_html, render_report
from ..results.run import Run
from ..results.run_folder import open_run
from ..results.run_reading import load_run
from .scoring import relation_named

KIND = "relation-neurons"
SITES = (Site.NEURON, Site.GATE_PRE, Site.UP, Site.MLP_OUT)
RELATIONS = (
    *("capital", "currency", "continent", "demonym", "official_language", "country_in_french"),
    *("city_in_country", "food_country", "book_author"),
    *("atomic_number", "element_symbol", "element_series"),
)
"""Twelve shipped relations: six about countries, three about elements, three others, so that most
have negatives about the very same subjects."""
RANKED_TIMES = 10
"""Beside each set of k units a ranking this many times as long is kept, for dose curves."""
_GRIDS = ("score", "sign", "ap", "p", "q", "half", "ap_same", "ap_new", "wording_ap", "length_ap")
_CLAIM = (
    "A unit's score is its average precision in the worst of several wordings. A relation has a "
    "set of its own only where its score at rank k beats that of glued pseudo-relations; whether "
    "the model uses the units is another question (mnemoscope neurons ablate)."
)


@dataclass(frozen=True)
class FindConfig:
    """Everything that decides the numbers of a `neurons find` run, and nothing else."""

    model: str
    relations: tuple[str, ...] = RELATIONS
    subjects: int = 40
    site: str = "neuron"
    pooling: str = "mean_nobos"
    k: int | None = None
    pseudo: int = 40
    resamples: int = 20
    seed: int = 0
    device: str = "auto"
    dtype: str = "auto"

    def __post_init__(self) -> None:
        """Raises `MnemoscopeError` for a word that is not offered."""
        for name, allowed in (("site", SITES), ("pooling", get_args(Pooling))):
            if getattr(self, name) not in allowed:
                raise MnemoscopeError(
                    f"--{name} is {getattr(self, name)!r}: use {', '.join(allowed)}."
                )


@dataclass(frozen=True)
class FindResult:
    """A finished run: its units, and what was found for each relation."""

    folder: Path
    table: polars.DataFrame
    summary: Mapping[str, Any]

    @property
    def config(self) -> Mapping[str, Any]:
        """The configuration that the run was started with."""
        return dict(load_run(self.folder).config)

    def units(self, relation: str, top: int) -> polars.DataFrame:
        """The best units of a relation. Raises `MnemoscopeError` if it was not sought."""
        if relation not in self.summary["relations"]:
            raise MnemoscopeError(
                f"this run sought no units for {relation!r}: choose among "
                f"{', '.join(self.summary['relations'])}."
            )
        rows = self.table.filter(polars.col("relation") == relation).sort("rank")
        return rows.head(top)

    def document(self) -> dict[str, Any]:
        """The result as JSON."""
        return {"run": str(self.folder), **self.summary}


def find_neurons(
    config: FindConfig,
    root: Path,
    *,
    memory_mb: int,
    force: bool,
    say: Callable[[str], None],
    tell: Callable[[int, int], None],
) -> FindResult:
    """Load, pool, rank, judge and save; continues an interrupted run of the same configuration."""
    design = design_of(config)
    model = load_model(config.model, device=config.device, dtype=config.dtype)
    with open_run(root, KIND, run_key(config, model, design), force=force) as run:
        if run.finished:
            say(f"{run.id} is done already (use --force to measure again).")
        else:
            _measure(config, model, design, run, memory_mb, say, tell)
        return read_found(run.folder)


def run_key(config: FindConfig, model: HookedModel, design: Design) -> dict[str, Any]:
    """What names the run of a configuration."""
    return {
        **asdict(config),
        "relations": list(config.relations),
        "weights_sha256": model.weights_sha256,
        "design_sha256": design.sha256,
    }


def read_found(folder: Path) -> FindResult:
    """A finished `relation-neurons` run. Raises `MnemoscopeError` for a run of another kind."""
    loaded = load_run(folder)
    summary = loaded.rows.get("summary")
    if summary is None or "verdicts" not in summary:
        raise MnemoscopeError(
            f"{folder} is not a run of `neurons find` (without --paper): name one of its folders."
        )
    return FindResult(folder, loaded.table, dict(summary))


def design_of(config: FindConfig) -> Design:
    """The prompts and labels of a configuration. Raises `MnemoscopeError` with the reason."""
    relations = [relation_named(name) for name in config.relations]
    try:
        return build_design(
            relations,
            subjects=config.subjects,
            pseudo=config.pseudo,
            resamples=config.resamples,
            seed=config.seed,
        )
    except ValueError as error:
        raise MnemoscopeError(str(error)) from error


def _measure(
    config: FindConfig,
    model: HookedModel,
    design: Design,
    run: Run,
    memory_mb: int,
    say: Callable[[str], None],
    tell: Callable[[int, int], None],
) -> None:
    site = Site(config.site)
    n_prompts = sum(len(block.prompts) for block in design.blocks)
    n_units = model.anatomy.n_layers * model.anatomy.n_units(site)
    say(
        f"{n_units:,} units, {len(design.relations)} relations, {n_prompts:,} prompts; at most "
        f"{memory_mb} MB of activations at a time"
    )

    def both(done: int, total: int) -> None:
        run.progress(done, total, "ranking units")
        tell(done, total)

    found = find_relation_neurons(
        model,
        design,
        site=site,
        pooling=_as(config.pooling),
        k=config.k,
        memory_bytes=memory_mb * 2**20,
        run=run,
        progress=both,
    )
    _finish(config, model, design, found, run)


def _finish(
    config: FindConfig, model: HookedModel, design: Design, found: RelationNeurons, run: Run
) -> None:
    summary = summary_of(found)
    if "summary" not in run.done:
        run.append("summary", summary)
    provenance = collect_provenance(
        **model.identity,
        data_sha256=design.sha256,
        prompt_template=f"wordings {', '.join((*found.wordings, *found.new_wordings))}",
        seed=config.seed,
        estimand=f"average precision of single units, {found.site}, {found.pooling}",
    )
    figures = figures_of(found)
    units = table(found, seed=config.seed)
    report = render_report(
        title=f"Relation neurons of {model.name}",
        claim=_CLAIM,
        tables=tables_of(found, units),
        figures=figures,
        provenance=provenance,
        notes=[f"{one['relation']}: {one['text']}" for one in summary["verdicts"]],
    )
    arrays = {name: np.asarray(getattr(found, name)) for name in _GRIDS}
    pages = {f"{name}.html": figure_html(page, title=name) for name, page in figures.items()}
    longest = min(found.n_total, RANKED_TIMES * found.k)
    for relation in found.relations:
        for name, k in (("neurons", found.k), ("ranking", longest)):
            chosen = neuron_set(found, relation, model, k=k, run_id=run.id)
            save_neuron_set(run.folder / f"{name}-{relation}.json", chosen, force=True)
    run.finish(units, arrays, provenance, pages, report)


def summary_of(found: RelationNeurons) -> dict[str, Any]:
    """What was found, as JSON: sizes, verdicts, what new wordings cost, stability."""
    return {
        "model": found.model_id,
        "site": str(found.site),
        "pooling": found.pooling,
        "units": found.n_total,
        "k": found.k,
        "relations": list(found.relations),
        "verdicts": [plain(asdict(one)) for one in verdicts(found)],
        "wording_tax": [plain(row) for row in wording_tax(found).to_dicts()],
        "stability": [plain(row) for row in stability(found).to_dicts()],
    }


def tables_of(found: RelationNeurons, units: polars.DataFrame) -> dict[str, polars.DataFrame]:
    """The tables of the report, by caption."""
    best = units.filter(polars.col("rank") <= 5).sort("relation", "rank")
    return {
        "Verdict: score at rank k against glued pseudo-relations": polars.DataFrame(
            [asdict(one) for one in verdicts(found)]
        ),
        "What new subjects and new wordings cost the top k": wording_tax(found),
        "How well each set repeats itself": stability(found),
        "Overlap of the sets, with chance and split-half ceiling": overlaps(found),
        "The five best units of each relation": best,
    }


def figures_of(found: RelationNeurons) -> dict[str, go.Figure]:
    """Where the sets lie in depth, and what they share beside what they share with themselves."""
    n = len(found.relations)
    shared = np.full((n, n), np.nan)
    for row in overlaps(found).to_dicts():
        i, j = found.row(row["relation"]), found.row(row["other"])
        shared[i, j] = shared[j, i] = row["limited"] if row["limited"] is not None else np.nan
    return {
        "layers": layer_histogram_figure(
            layer_counts(found), found.relations, title=f"Top {found.k} units by layer"
        ),
        "overlap": matrix_figure(
            shared,
            found.relations,
            found.relations,
            title="Overlap of the sets, as a share of the split-half ceiling",
            row_label="relation",
            column_label="relation",
            axis_label="share of ceiling",
        ),
    }


def plain(row: Mapping[str, Any]) -> dict[str, Any]:
    """The row with None for numbers that are not finite, which JSON has not."""
    return {
        name: None if isinstance(value, float) and not np.isfinite(value) else value
        for name, value in row.items()
    }


def _as(word: str) -> Any:
    """A word that `FindConfig` has checked, as the literal type that the probe takes."""
    return word
