"""The sets that `neurons ablate` takes, each with what the run that found it knows about it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from ..data.facts.items import Relation
from ..models.errors import MnemoscopeError
from ..models.types import Site
from ..results.neuron_set import NeuronSet, load_neuron_set
from .neuron_finding import KIND, FindResult, read_found
from .scoring import relation_named

OF = " neurons of "
"""Between the relation and the model in the name of a set that `neurons find` writes."""
UNKNOWN = "unknown: its run is not there"


@dataclass(frozen=True)
class RelationSet:
    """Ranked units of one relation.

    `file` holds them; `k` is the size of the relation's set, at most as long as the ranking.
    `split_seed` (None if unknown) is the seed that kept some subjects from the search, `finding`
    its verdict, and `weights_sha256` the model it was made in.
    """

    file: Path
    relation: Relation
    units: NeuronSet
    k: int
    split_seed: int | None
    finding: str
    weights_sha256: str | None


def sets_in(paths: Sequence[Path], root: Path, only: Sequence[str] = ()) -> tuple[RelationSet, ...]:
    """The sets of neuron-set files and of folders of `neurons find`, of one site.

    A folder stands for the rankings in it. A file's run is looked for beside it and, by the id in
    it, under `root`: from there come facts (which need not ship), k, split and verdict.

    Raises `MnemoscopeError` for a folder without rankings, a set that does not name its relation,
    two sets of one relation, sets of several sites, and names in `only` that no set has.
    """
    files = [file for path in paths for file in _files(path)]
    sets = [(file, load_neuron_set(file)) for file in files]
    names = [relation_of(units) for _, units in sets]
    if missing := [name for name in only if name not in names]:
        raise MnemoscopeError(
            f"--only {','.join(missing)}: the sets are of {', '.join(dict.fromkeys(names))}."
        )
    chosen = [one for one, name in zip(sets, names, strict=True) if not only or name in only]
    _check(chosen)
    found = {file: _run_of(file, units, root) for file, units in chosen}
    return tuple(_with_origin(file, units, found[file]) for file, units in chosen)


def relation_of(units: NeuronSet) -> str:
    """The relation that a set's name says it belongs to. Raises `MnemoscopeError` if none."""
    name, found, _ = units.name.partition(OF)
    if not found:
        raise MnemoscopeError(
            f"neuron set {units.name!r} does not say whose units it holds: name it "
            "'RELATION neurons of MODEL'."
        )
    return name


def _files(path: Path) -> list[Path]:
    inside = sorted(path.glob("ranking-*.json")) if path.is_dir() else [path]
    if not inside:
        raise MnemoscopeError(
            f"{path} holds no ranking-*.json: name a finished run of `neurons find` or a file."
        )
    return inside


def _check(chosen: Sequence[tuple[Path, NeuronSet]]) -> None:
    names = [relation_of(units) for _, units in chosen]
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise MnemoscopeError(
            f"two sets are of {', '.join(twice)}: ablate them in runs of their own."
        )
    sites: set[Site] = {unit.site for _, units in chosen for unit in units.ids}
    if len(sites) != 1:
        raise MnemoscopeError(
            f"the sets hold units of several sites ({', '.join(sorted(sites))}): ablate each site "
            "in a run of its own."
            if sites
            else "the sets hold no units: name others."
        )


def _run_of(file: Path, units: NeuronSet, root: Path) -> FindResult | None:
    folders = [file.resolve().parent, root / (units.run_id or "")]
    runs = [one for one in folders if one.name.startswith(f"{KIND}-") and one.is_dir()]
    return read_found(runs[0]) if runs else None


def _with_origin(file: Path, units: NeuronSet, run: FindResult | None) -> RelationSet:
    name = relation_of(units)
    if run is None:
        k = len(units.neurons)
        return RelationSet(file, relation_named(name), units, k, None, UNKNOWN, None)
    text = {one["relation"]: str(one["text"]) for one in run.summary["verdicts"]}
    return RelationSet(
        file=file,
        relation=_relation(run.config, name),
        units=units,
        k=min(int(run.summary["k"]), len(units.neurons)),
        split_seed=int(run.config["seed"]),
        finding=text.get(name, UNKNOWN),
        weights_sha256=str(run.config["weights_sha256"]),
    )


def _relation(config: Mapping[str, object], name: str) -> Relation:
    """The run's own relation of this name, be it shipped or a file."""
    given = config["relations"]
    assert isinstance(given, list)
    for one in given:
        relation: Relation = relation_named(str(one))
        if relation.name == name:
            return relation
    raise MnemoscopeError(
        f"the run that found the units of {name!r} has no such relation: name its own sets."
    )
