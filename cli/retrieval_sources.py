"""What `retrieval compare` lays side by side: scores of runs and of files of other projects."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import fmean

import numpy as np
from jaxtyping import Bool, Float

from ..models.anatomy import Anatomy
from ..models.errors import MnemoscopeError
from ..models.types import HeadId
from ..probes.method_comparison import listed_scores, on_query_heads
from ..probes.retrieval_tables import column_grid
from ..results.head_set import HEAD_SET_SCHEMA, check_fits, load_head_set
from ..results.provenance import sha256_of_json
from ..results.query_head_files import load_core_head_scores, load_query_head_list
from ..results.retrieval_head_files import load_retrieval_head_scores
from ..results.run_reading import load_run
from .retrieval_gates import KIND as GATES
from .retrieval_gates import read_gates
from .retrieval_patterns import holds_pattern, load_pattern
from .retrieval_scoring import KIND as SCORES
from .retrieval_scoring import ScoreConfig, ScoreResult, read_scored

USUAL = (
    *("copy", "first", "continuation", "emit", "locate", "r2"),
    *("qr", "core", "locos", "induction"),
)
"""Scores of a run that are compared unless others are named."""


@dataclass(frozen=True, eq=False)
class Method:
    """One score of every head; `gates` are those of key/value heads that it was spread from."""

    name: str
    scores: Float[np.ndarray, "layer head"]
    gates: Float[np.ndarray, "layer kv_head"] | None = None


@dataclass(frozen=True, eq=False)
class ScoredRun:
    """A run of `retrieval score`: its trials are those that heads are ablated in."""

    result: ScoreResult

    @property
    def config(self) -> ScoreConfig:
        """Its configuration, from which the design is built again."""
        known = {name: self.result.config[name] for name in ScoreConfig.__dataclass_fields__}
        return ScoreConfig(**{**known, "lengths": tuple(known["lengths"])})

    @property
    def answered(self) -> Bool[np.ndarray, " trial"]:
        """Trials that were answered from the haystack, and not without it."""
        arrays = load_run(self.result.folder).arrays
        return arrays["accepted"] & ~arrays["known"]


def sort_out(
    paths: Sequence[Path],
) -> tuple[tuple[ScoredRun, ...], tuple[Path, ...], tuple[Path, ...]]:
    """Runs of `score`, runs of `gates`, and files. Raises `MnemoscopeError` for what is missing, a
    run of another kind, no run of `score` at all, and runs of different models."""
    scored: list[ScoredRun] = []
    gates: list[Path] = []
    files: list[Path] = []
    for path in dict.fromkeys(paths):
        if not path.exists():
            raise MnemoscopeError(f"{path} does not exist: name runs, or score files.")
        if path.is_file() or not (path / "state.json").is_file():
            files.append(path)
        elif path.name.startswith(SCORES):
            scored.append(ScoredRun(read_scored(path)))
        elif path.name.startswith(GATES):
            gates.append(path)
        else:
            raise MnemoscopeError(
                f"{path} is a run of another kind: name runs of `retrieval score` and `gates`."
            )
    if not scored:
        raise MnemoscopeError(
            "no run of `retrieval score` is named: heads are ablated in its trials, so name one."
        )
    folders = [*(run.result.folder for run in scored), *gates]
    weights = {load_run(folder).config["weights_sha256"] for folder in folders}
    if len(weights) > 1:
        raise MnemoscopeError("these runs are of different models: compare runs of one model.")
    return tuple(scored), tuple(gates), tuple(files)


def methods_of(
    scored: Sequence[ScoredRun],
    gates: Sequence[Path],
    files: Sequence[Path],
    wanted: Sequence[str],
    anatomy: Anatomy,
) -> tuple[Method, ...]:
    """All methods under different names. Raises `MnemoscopeError` for a score that no run has, and
    for files of a model of another size."""
    found: list[Method] = []
    for run in scored:
        told = f"{run.result.folder.name[-4:]}:" if len(scored) > 1 else ""
        rows = run.result.table
        for name in wanted or [name for name in USUAL if name in rows.columns]:
            grid = column_grid(rows, name, anatomy.n_layers, anatomy.n_heads)
            found.append(Method(f"{told}{name}", grid))
    found += [_of_gates(path, anatomy) for path in gates]
    found += [_of_file(path, anatomy) for path in files]
    return _named_apart(found)


def fingerprint(scored: Sequence[ScoredRun], methods: Sequence[Method]) -> str:
    """SHA-256 of all that is compared."""
    return sha256_of_json(
        {
            "runs": [run.result.folder.name for run in scored],
            "methods": [[m.name, np.nan_to_num(m.scores, nan=-1e9).tolist()] for m in methods],
        }
    )


def _of_gates(path: Path, anatomy: Anatomy) -> Method:
    result = read_gates(path)
    value = result.table.sort("layer", "kv_head")["value"].to_numpy()
    name = {"costs": "streaming cost", "train": "gate"}[str(result.summary["method"])]
    return _on_heads(name, value.reshape(anatomy.n_layers, -1), anatomy)


def _of_file(path: Path, anatomy: Anatomy) -> Method:
    if holds_pattern(path):
        return _on_heads(path.stem, load_pattern(path).gates, anatomy)
    if path.suffix in (".yaml", ".yml"):
        heads = load_query_head_list(path).heads
        return Method(path.stem, listed_scores(heads, anatomy.n_layers, anatomy.n_heads))
    if path.suffix != ".json":
        raise MnemoscopeError(
            f"{path} is no score file: name JSON (Retrieval_Head, CoRe, head sets), YAML (QRHead), "
            "a pattern folder or a PruLong table."
        )
    return Method(path.stem, _of_json(path, anatomy))


def _of_json(path: Path, anatomy: Anatomy) -> Float[np.ndarray, "layer head"]:
    try:
        record = json.loads(path.read_bytes())
    except (OSError, ValueError) as error:
        raise MnemoscopeError(f"{path} cannot be read as JSON ({error}).") from error
    if isinstance(record, dict) and record.get("schema") == HEAD_SET_SCHEMA:
        head_set = load_head_set(path)
        check_fits(head_set, anatomy.n_layers, anatomy.n_heads)
        chosen = {scored.head: scored.score for scored in head_set.heads}
        lowest = min(0.0, *chosen.values()) if chosen else 0.0
        return _grid(path, chosen, anatomy, rest=lowest)
    if isinstance(record, dict) and any(isinstance(value, list) for value in record.values()):
        trials = load_retrieval_head_scores(path)
        return _grid(path, {head: fmean(s) for head, s in trials.items() if s}, anatomy)
    return _grid(path, load_core_head_scores(path), anatomy)


def _grid(
    path: Path, scores: dict[HeadId, float], anatomy: Anatomy, *, rest: float = np.nan
) -> Float[np.ndarray, "layer head"]:
    """Scores as a grid; heads that are not told get `rest`."""
    grid = np.full((anatomy.n_layers, anatomy.n_heads), rest)
    for head, score in scores.items():
        if head.layer >= anatomy.n_layers or head.head >= anatomy.n_heads:
            raise MnemoscopeError(
                f"{path} names {head}, but this model has {anatomy.n_layers} layers of "
                f"{anatomy.n_heads} heads: it is of another model."
            )
        grid[head.layer, head.head] = score
    return grid


def _on_heads(name: str, gates: Float[np.ndarray, "layer kv_head"], anatomy: Anatomy) -> Method:
    if gates.shape != (anatomy.n_layers, anatomy.n_kv_heads):
        raise MnemoscopeError(
            f"{name} has {gates.shape} layers and key/value heads, this model "
            f"{(anatomy.n_layers, anatomy.n_kv_heads)}: it is of another model."
        )
    return Method(name, on_query_heads(gates, anatomy.n_heads), gates)


def _named_apart(methods: Sequence[Method]) -> tuple[Method, ...]:
    """Methods of one name are numbered."""
    names = [method.name for method in methods]
    apart = []
    for i, method in enumerate(methods):
        before = names[:i].count(method.name)
        apart.append(replace(method, name=f"{method.name} {before + 1}") if before else method)
    return tuple(apart)
