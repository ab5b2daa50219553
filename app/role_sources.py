"""Where roles of heads come from: finished runs, saved head sets, and files of other projects.

Everything lies in folders that the explorer was started with: the runs, the head sets beside them,
and `imports` beside those, for score files of Retrieval_Head and CoRe (JSON), lists of QRHead
(YAML), gates of DuoAttention (a folder) and PruLong (a table), and HeadVis trees (a folder).
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import numpy as np
import polars

from ..cli.retrieval_gates import KIND as GATES
from ..cli.retrieval_patterns import full_heads, holds_pattern, load_pattern
from ..cli.retrieval_scoring import KIND as RETRIEVAL
from ..cli.retrieval_scoring import read_scored
from ..cli.retrieval_sources import methods_of
from ..cli.scoring import KIND as CONFLICT
from ..models.anatomy import Anatomy
from ..models.errors import MnemoscopeError
from ..models.hooked import HookedModel
from ..probes.conflict_heads import ROLES
from ..probes.method_comparison import on_query_heads
from ..results.errors import UnitSetError
from ..results.head_key_files import read_head_object
from ..results.head_set import HEAD_SET_SCHEMA, HeadSet, check_fits, load_head_set
from ..results.head_vis import CONFIG, holds_head_vis, load_head_vis
from ..results.retrieval_head_files import RETRIEVAL_THRESHOLD
from ..results.run_reading import RunInfo, list_runs, load_run
from ..results.run_state import RunStatus
from .head_files import saved_sets
from .role_scores import Family, RoleScores, frame_of
from .run_scores import grid_frame, run_scores
from .settings import Settings

Kind = Literal["run", "head set", "import"]

FAMILIES: dict[str, Family] = {
    "memory": "memory",
    "context": "context",
    "retrieval": "retrieval",
    "copy": "retrieval",
    "locate": "retrieval",
    "emit": "retrieval",
    "query": "retrieval",
    "induction": "induction",
    "induction_score": "induction",
    "streaming": "streaming",
}
FROM_TRIALS = ("copy", "locate", "emit", "induction")
"""Scores of a `retrieval score` run that are roles here."""
_FILES = (".json", ".yaml", ".yml", ".tsv")


@dataclass(frozen=True)
class RoleSource:
    """Something that scores heads: `key` names it in addresses, `stamp` changes when it does."""

    key: str
    kind: Kind
    path: Path
    stamp: str


def imports_folder(settings: Settings) -> Path:
    """The folder of files from other projects, beside that of the head sets."""
    return settings.head_sets.with_name("imports")


def found_sources(settings: Settings, model: HookedModel) -> tuple[RoleSource, ...]:
    """Everything that may score this model's heads, runs first, each kind latest or by name.

    Left out: runs of other weights under the same name, and head sets of a model of another size.
    """
    runs = [
        RoleSource(info.id, "run", info.folder, info.updated)
        for info in list_runs(settings.runs_root)
        if _is_about(info, model)
    ]
    names = saved_sets(settings.head_sets)
    sets = [_source("head set", settings.head_sets / name) for name in names]
    imports = [_source("import", path) for path in importable(imports_folder(settings))]
    return (*runs, *(one for one in sets if _may_fit(one.path, model.anatomy)), *imports)


def first_choice(sources: Sequence[RoleSource]) -> list[str]:
    """Keys of the latest run of each kind: what a first visit shows."""
    latest: dict[str, str] = {}
    for one in sources:
        if one.kind == "run":
            latest.setdefault(one.key.rpartition("-")[0], one.key)
    return list(latest.values())


def is_whole(source: RoleSource) -> bool:
    """Whether what a run found can be read: one that is damaged is offered, and not chosen."""
    if source.kind != "run":
        return True
    try:
        polars.read_parquet_schema(source.path / "table.parquet")
    except (OSError, polars.exceptions.PolarsError):
        return False
    return True


def importable(folder: Path) -> tuple[Path, ...]:
    """Files and folders of the imports folder that a reader is there for, by name."""
    if not folder.is_dir():
        return ()
    return tuple(
        path
        for path in sorted(folder.iterdir())
        if not path.name.startswith(".")
        and not path.name.endswith(".provenance.json")
        and (holds_pattern(path) or holds_head_vis(path) or path.suffix in _FILES)
    )


def read_source(source: RoleSource, model: HookedModel) -> tuple[RoleScores, ...]:
    """The roles of one source. Raises `MnemoscopeError` for what is damaged, of another form or of
    a model of another size."""
    roles = _read(source, model)
    shape = (model.anatomy.n_layers, model.anatomy.n_heads)
    if any(one.shape != shape for one in roles):
        raise UnitSetError(
            f"{source.key} is for {roles[0].shape[0]} layers of {roles[0].shape[1]} heads, this "
            f"model has {shape[0]} of {shape[1]}: choose another source."
        )
    return roles


def named_apart(roles: Sequence[RoleScores]) -> tuple[RoleScores, ...]:
    """The roles with names that differ, the usual ones first: `memory`, `memory_2`."""
    order = list(FAMILIES)
    ranked = sorted(
        roles, key=lambda one: order.index(one.name) if one.name in order else len(order)
    )
    taken: set[str] = set()
    apart = []
    for one in ranked:
        name, number = one.name, 1
        while name in taken:
            number += 1
            name = f"{one.name}_{number}"
        taken.add(name)
        apart.append(replace(one, name=name))
    return tuple(apart)


def word(text: str) -> str:
    """A text as a name that expressions can use: letters, digits and `_`."""
    plain = re.sub(r"[^A-Za-z0-9]+", "_", text).strip("_").lower() or "scores"
    return f"s_{plain}" if plain[0].isdigit() or plain in ("and", "or", "not", "minus") else plain


def _is_about(info: RunInfo, model: HookedModel) -> bool:
    if info.status != RunStatus.FINISHED or info.model_id != model.name:
        return False
    if info.kind not in (CONFLICT, RETRIEVAL, GATES):
        return False
    try:
        weights = load_run(info.folder).config.get("weights_sha256")
    except MnemoscopeError:
        return False  # the page of runs shows it with the reason
    return weights in (None, model.weights_sha256)


def _may_fit(path: Path, anatomy: Anatomy) -> bool:
    """Whether a set is of this size; a damaged one is kept, so that its reason is told."""
    try:
        found = load_head_set(path)
    except MnemoscopeError:
        return True
    return (found.n_layers, found.n_heads) == (anatomy.n_layers, anatomy.n_heads)


def _source(kind: Kind, path: Path) -> RoleSource:
    inside = path / CONFIG
    changed = (inside if inside.is_file() else path).stat()
    return RoleSource(path.name, kind, path, f"{changed.st_mtime_ns} {changed.st_size}")


def _read(source: RoleSource, model: HookedModel) -> tuple[RoleScores, ...]:
    path = source.path
    if source.kind == "head set":
        return _of_head_set(load_head_set(path), source.key, model.anatomy)
    if source.kind == "run" and path.name.startswith(CONFLICT):
        return _of_conflicts(path)
    if source.kind == "run" and path.name.startswith(RETRIEVAL):
        return _of_trials(path)
    if holds_head_vis(path):
        return _of_head_vis(path)
    if holds_pattern(path):
        return (_of_pattern(source, model.anatomy),)
    return _of_file(source, model.anatomy)


def _of_conflicts(folder: Path) -> tuple[RoleScores, ...]:
    scores = run_scores(folder)
    if scores is None:
        raise MnemoscopeError(f"{folder.name} holds no memory and context scores: run it again.")
    method = f"conflict heads, {scores.estimand}"
    return tuple(
        RoleScores(
            role,
            FAMILIES[role],
            folder.name,
            method,
            grid_frame(scores.table, role),
            run_id=folder.name,
        )
        for role in ROLES
    )


def _of_trials(folder: Path) -> tuple[RoleScores, ...]:
    table = read_scored(folder).table
    return tuple(
        RoleScores(
            name,
            FAMILIES[name],
            folder.name,
            f"{name} score of needle trials",
            grid_frame(table, name),
            run_id=folder.name,
        )
        for name in FROM_TRIALS
        if name in table.columns
    )


def _of_pattern(source: RoleSource, anatomy: Anatomy) -> RoleScores:
    """Gates turned round: a head streams where its gate is low."""
    pattern = load_pattern(source.path)
    pattern.check(anatomy.n_layers, anatomy.n_kv_heads)
    streams = ~full_heads(pattern.gates, pattern.settings)
    return RoleScores(
        "streaming",
        "streaming",
        source.key,
        "1 - gate of the key/value head",
        frame_of(1 - on_query_heads(pattern.gates, anatomy.n_heads)),
        listed=on_query_heads(streams.astype(float), anatomy.n_heads) > 0,
        run_id=source.key if source.kind == "run" else None,
    )


def _of_head_vis(folder: Path) -> tuple[RoleScores, ...]:
    tree = load_head_vis(folder)
    return tuple(
        RoleScores(
            word(name),
            FAMILIES.get(word(name), "imported"),
            folder.name,
            f"HeadVis metric {name}: {tree.descriptions.get(name, 'not described')}",
            frame_of(grid),
        )
        for name, grid in tree.metrics.items()
    )


def _of_file(source: RoleSource, anatomy: Anatomy) -> tuple[RoleScores, ...]:
    """Score files and lists of other projects, and head sets that were put among them."""
    path = source.path
    if path.suffix == ".json" and _is_head_set(path):
        return _of_head_set(load_head_set(path), source.key, anatomy)
    (method,) = methods_of((), (), (path,), (), anatomy)
    listed = None
    told = "CoRe score"
    if path.suffix in (".yaml", ".yml"):
        listed, told = method.scores > 0, "place in a QRHead list, counted from its end"
    elif any(isinstance(value, list) for value in read_head_object(path).values()):
        listed = np.nan_to_num(method.scores) >= RETRIEVAL_THRESHOLD
        told = f"Retrieval_Head mean copy score, listed from {RETRIEVAL_THRESHOLD} on"
    name = word(path.stem)
    return (
        RoleScores(
            name, FAMILIES.get(name, "retrieval"), source.key, told, frame_of(method.scores), listed
        ),
    )


def _of_head_set(found: HeadSet, key: str, anatomy: Anatomy) -> tuple[RoleScores, ...]:
    """One role for each that the set names; heads outside the set have no score."""
    check_fits(found, anatomy.n_layers, anatomy.n_heads)
    if not found.heads:
        raise UnitSetError(f"{key} holds no head: choose another set.")
    return tuple(
        _of_set_role(found.where(role=role), role or found.name, key)
        for role in dict.fromkeys(scored.role for scored in found.heads)
    )


def _of_set_role(found: HeadSet, role: str, key: str) -> RoleScores:
    shape = (found.n_layers, found.n_heads)
    score, low, high = (np.full(shape, np.nan) for _ in range(3))
    for scored in found.heads:
        at = (scored.head.layer, scored.head.head)
        score[at] = scored.score
        if scored.ci is not None:
            low[at], high[at] = scored.ci
    return RoleScores(
        word(f"{key.removesuffix('.json')}_{role}" if role not in FAMILIES else role),
        FAMILIES.get(role, "imported"),
        key,
        f"head set {found.name!r} ({found.method})",
        frame_of(score, low=low, high=high),
        listed=np.isfinite(score),
        run_id=found.run_id,
    )


def _is_head_set(path: Path) -> bool:
    try:
        record = json.loads(path.read_bytes())
    except (OSError, ValueError):
        return False  # the reader of score files says what is wrong
    return isinstance(record, dict) and record.get("schema") == HEAD_SET_SCHEMA
