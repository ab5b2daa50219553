"""Reading runs: list a root, load a finished run, check its files."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import polars

from .array_files import read_arrays
from .errors import RunFolderError
from .provenance import Provenance, sha256_of_json
from .row_log import Row, parse_rows
from .run_state import RunState, RunStatus, read_state


@dataclass(frozen=True)
class RunInfo:
    """One line of a listing. `status` is `damaged` (with the reason as `message`) when the folder
    cannot be read; `done` and `total` count units, `updated` is UTC."""

    id: str
    kind: str
    status: str
    done: int
    total: int | None
    updated: str
    model_id: str
    message: str
    folder: Path


@dataclass(frozen=True)
class LoadedRun:
    """A finished run. Table, arrays and rows are read when they are first asked for."""

    folder: Path
    config: Mapping[str, Any]
    state: RunState
    provenance: Provenance

    @property
    def id(self) -> str:
        """`<kind>-<hash>`."""
        return self.folder.name

    @cached_property
    def table(self) -> polars.DataFrame:
        """The tidy table. Raises `RunFolderError` when the file is missing or damaged."""
        path = self.folder / "table.parquet"
        try:
            return polars.read_parquet(path)
        except (OSError, polars.exceptions.PolarsError) as error:
            raise RunFolderError(f"{path} is missing or damaged ({error}).") from error

    @cached_property
    def arrays(self) -> Mapping[str, np.ndarray]:
        """Name to array. Raises `RunFolderError` when the file is missing or damaged."""
        return read_arrays(self.folder / "arrays.safetensors")

    @cached_property
    def rows(self) -> Mapping[str, Row]:
        """Key to row of every unit of work. Raises `RunFolderError` for a damaged line."""
        path = self.folder / "rows.jsonl"
        try:
            return parse_rows(path.read_bytes(), path)
        except OSError as error:
            raise RunFolderError(f"{path} cannot be read ({error}).") from error


def list_runs(root: Path | str) -> tuple[RunInfo, ...]:
    """Every run under `root`, finished or not, the latest first; empty when there is no root.

    Statuses are as stored: `mark_interrupted_if_dead(info.folder)` looks behind a `running`.
    """
    root = Path(root)
    folders = [*root.glob("[!.]*/config.json"), *root.glob(".*.partial/config.json")]
    infos = [_info(path.parent) for path in folders]
    return tuple(sorted(infos, key=lambda info: (info.updated, info.id), reverse=True))


def load_run(folder: Path | str) -> LoadedRun:
    """Open a finished run. Raises `RunFolderError` when it is unfinished, missing or damaged."""
    folder = Path(folder)
    if folder.name.startswith(".") or not folder.is_dir():
        raise RunFolderError(
            f"{folder} is no finished run: run the command that started it again to go on."
        )
    path = folder / "config.json"
    try:
        config = json.loads(path.read_bytes())
        path = folder / "provenance.json"
        provenance = Provenance.from_json(path.read_text("utf-8"))
    except (OSError, ValueError, RunFolderError) as error:
        raise RunFolderError(
            f"{folder} is no finished run, or its {path.name} is damaged ({error})."
        ) from error
    return LoadedRun(folder, config, read_state(folder), provenance)


def verify_run(folder: Path | str) -> None:
    """Read every file of a finished run and compare the checksums taken when it was finished.

    Raises `RunFolderError` naming the first file that is missing, damaged or changed.
    """
    run = load_run(folder)
    if run.id.rpartition("-")[2] != sha256_of_json(run.config)[:10]:
        raise RunFolderError(f"{run.folder / 'config.json'} was changed: it no longer fits the id.")
    _ = (run.table, run.arrays, run.rows)
    for name, expected in run.state.files.items():
        path = run.folder / name
        try:
            found = hashlib.sha256(path.read_bytes()).hexdigest()
        except OSError as error:
            raise RunFolderError(f"{path} cannot be read ({error}).") from error
        if found != expected:
            raise RunFolderError(f"{path} was changed or damaged after the run was finished.")


def _info(folder: Path) -> RunInfo:
    partial = folder.name.startswith(".")
    run_id = folder.name.removeprefix(".").removesuffix(".partial")
    kind = run_id.rpartition("-")[0]
    try:
        state = read_state(folder)
        model = _model_id(folder)
    except RunFolderError as error:
        return RunInfo(run_id, kind, "damaged", 0, None, "", "", str(error), folder)
    status = state.status
    if partial and status is RunStatus.FINISHED:  # died between the last file and the rename
        status = RunStatus.INTERRUPTED
    return RunInfo(
        run_id, kind, status, state.done, state.total, state.updated, model, state.message, folder
    )


def _model_id(folder: Path) -> str:
    """From the provenance of a finished run, else the configuration's `model_id` or `model`."""
    if not folder.name.startswith("."):
        return load_run(folder).provenance.model_id
    try:
        config = json.loads((folder / "config.json").read_bytes())
        return str(config.get("model_id", config.get("model", "")))
    except (OSError, ValueError, AttributeError) as error:
        raise RunFolderError(f"{folder / 'config.json'} cannot be read ({error}).") from error
