"""Finished runs of `neurons find`, as the page about relation neurons reads them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import polars

from ..cli.neuron_finding import KIND, FindConfig, design_of, read_found
from ..data.facts.designs import Prompt
from ..models.errors import MnemoscopeError
from ..models.hooked import HookedModel
from ..models.types import NeuronId, Site
from ..results.neuron_set import NeuronSet, check_neurons_fit, load_neuron_set
from ..results.run_reading import RunInfo, list_runs
from ..results.run_state import RunStatus

SAME, NEW = "new subjects", "new wordings"
WORDING, LENGTH = "which wording", "name length"
FOUND_BY, JUDGED_ON, NOT_ABOUT_IT = "found by", "judged on", "should be near chance"
"""Groups of the bars of `precision_table`."""

_AFTER = {"ap_same": (SAME, JUDGED_ON), "ap_new": (NEW, JUDGED_ON)}
_NULLS = {"wording_ap": (WORDING, NOT_ABOUT_IT), "length_ap": (LENGTH, NOT_ABOUT_IT)}


@dataclass(frozen=True, eq=False)
class NeuronRun:
    """What a run found: `sets` holds the top k units of each relation, best first; `table` is
    that of `relation_neuron_tables.table`; `summary` what the run's row "summary" says."""

    id: str
    folder: Path
    config: Mapping[str, Any]
    summary: Mapping[str, Any]
    table: polars.DataFrame
    sets: Mapping[str, NeuronSet]

    @property
    def relations(self) -> tuple[str, ...]:
        """Names of the relations that units were sought for."""
        return tuple(self.sets)

    @property
    def site(self) -> Site:
        """Where the units sit."""
        return Site(self.summary["site"])

    @property
    def units(self) -> tuple[NeuronId, ...]:
        """The units of all sets, each once."""
        return tuple(dict.fromkeys(unit for one in self.sets.values() for unit in one.ids))

    def verdict(self, relation: str) -> Mapping[str, Any]:
        """What was found for a relation."""
        return next(one for one in self.summary["verdicts"] if one["relation"] == relation)

    def unit(self, relation: str, neuron: NeuronId) -> Mapping[str, Any]:
        """The unit's row of the table for this relation."""
        rows = self.table.filter(
            polars.col("relation") == relation,
            polars.col("layer") == neuron.layer,
            polars.col("unit") == neuron.index,
        )
        return rows.row(0, named=True)


def finished_neuron_runs(root: Path, model_id: str) -> tuple[RunInfo, ...]:
    """Finished runs of `neurons find` under the root that are about this model, latest first."""
    return tuple(
        info
        for info in list_runs(root)
        if (info.kind, info.status, info.model_id) == (KIND, RunStatus.FINISHED, model_id)
    )


def neuron_run(folder: Path) -> NeuronRun:
    """Read a finished run. Raises `MnemoscopeError` when it is damaged or of another kind."""
    found = read_found(folder)
    sets = {
        relation: load_neuron_set(folder / f"neurons-{relation}.json")
        for relation in found.summary["relations"]
    }
    return NeuronRun(folder.name, folder, found.config, found.summary, found.table, sets)


def check_run_fits(run: NeuronRun, model: HookedModel) -> None:
    """Raises `UnitSetError` when the run's units are those of a model of another size."""
    anatomy = model.anatomy
    for one in run.sets.values():
        check_neurons_fit(one, anatomy.n_layers, int(anatomy.d_mlp or one.d_mlp))


def run_prompts(run: NeuronRun) -> tuple[Prompt, ...]:
    """Every prompt of the run's design, made again from its configuration.

    Raises `MnemoscopeError` when the facts have changed since, so that they would be others.
    """
    known = {field.name for field in fields(FindConfig)}
    given = {name: value for name, value in run.config.items() if name in known}
    design = design_of(FindConfig(**{**given, "relations": tuple(given["relations"])}))
    if design.sha256 != run.config["design_sha256"]:
        raise MnemoscopeError(
            f"the prompts of {run.id} cannot be made again, as the facts have changed since: run "
            "`mnemoscope neurons find` anew to see them."
        )
    return design.prompts


def verdict_table(run: NeuronRun) -> polars.DataFrame:
    """A row a relation: the verdict and the numbers behind it."""
    tax = {row["relation"]: row for row in run.summary["wording_tax"]}
    rows = [
        {
            "relation": one["relation"],
            "verdict": "found" if one["found"] else one["text"],
            "score at k": one["score"],
            "pseudo limit": one["limit"],
            "p": one["p"],
            "new subjects": tax[one["relation"]]["ap_same"],
            "new wordings": tax[one["relation"]]["ap_new"],
            "wording tax": tax[one["relation"]]["tax"],
        }
        for one in run.summary["verdicts"]
    ]
    return polars.DataFrame(
        rows, schema_overrides=dict.fromkeys(("pseudo limit", "p"), polars.Float64)
    )


def layer_table(run: NeuronRun) -> polars.DataFrame:
    """How many of each relation's top k lie in each layer, those that go up and down apart.

    Columns `relation`, `layer`, `units`, `up`, `down`; layers without units are there with 0.
    """
    n_layers = max(one.n_layers for one in run.sets.values())
    rows = [
        {
            "relation": relation,
            "layer": layer,
            "up": roles.count("high"),
            "down": roles.count("low"),
        }
        for relation, one in run.sets.items()
        for layer in range(n_layers)
        for roles in [[scored.role for scored in one.neurons if scored.neuron.layer == layer]]
    ]
    return polars.DataFrame(rows).with_columns(
        (polars.col("up") + polars.col("down")).alias("units")
    )


def precision_table(row: Mapping[str, Any]) -> polars.DataFrame:
    """The average precisions of a unit's row: `what`, `group`, `ap`; those unknown left out."""
    wordings = [name for name in row if name.startswith("ap_") and name not in _AFTER]
    named = {name: (name[3:].replace("_", " "), FOUND_BY) for name in wordings} | _AFTER | _NULLS
    rows = [
        {"what": what, "group": group, "ap": row[name]}
        for name, (what, group) in named.items()
        if row.get(name) is not None
    ]
    return polars.DataFrame(rows)
