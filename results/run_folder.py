"""Run folders: `open_run` starts, continues or finds a run; `results.run` works on it.

    runs/<kind>-<10 hex>/  config.json  state.json  rows.jsonl  table.parquet  arrays.safetensors
                           provenance.json  figures/  report.html  units/

The name follows from the configuration, so that the same command finds its own run again. Work
happens in `.<id>.partial/` beside the final place; the folder appears under its final name by one
rename. `results.run_reading` lists and reads runs.
"""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

from filelock import FileLock, Timeout

from .errors import RunBusyError, RunCancelled, RunFolderError
from .provenance import JSON, canonical_json, sha256_of_json
from .row_log import RowLog
from .run import Run, RunFolder
from .run_reading import LoadedRun, RunInfo, list_runs, load_run, verify_run
from .run_state import (
    RunState,
    RunStatus,
    mark_interrupted_if_dead,
    read_state,
    request_cancel,
    run_lock,
    write_state,
)
from .storage import storage_errors, write_atomic

__all__ = [
    "LoadedRun",
    "Run",
    "RunBusyError",
    "RunCancelled",
    "RunFolder",
    "RunFolderError",
    "RunInfo",
    "RunState",
    "RunStatus",
    "list_runs",
    "load_run",
    "mark_interrupted_if_dead",
    "open_run",
    "queue_run",
    "read_state",
    "request_cancel",
    "run_id_of",
    "verify_run",
]

_KIND = re.compile(r"[a-z0-9]+(-[a-z0-9]+)*")


def run_id_of(kind: str, config: Mapping[str, JSON]) -> str:
    """`<kind>-<first 10 hex digits of the configuration's SHA-256>`.

    Raises `RunFolderError` for a kind that is not lower-case words joined by hyphens, or a
    configuration that is not plain JSON.
    """
    if not _KIND.fullmatch(kind):
        raise RunFolderError(
            f"{kind!r} is no kind of run: use lower-case words, as in head-scores."
        )
    try:
        return f"{kind}-{sha256_of_json(config)[:10]}"
    except (TypeError, ValueError) as error:
        raise RunFolderError(f"the configuration is not plain JSON ({error}).") from error


def open_run(
    root: Path | str, kind: str, config: Mapping[str, JSON], *, force: bool = False
) -> Run:
    """Start the run of this configuration, continue it, or find it finished (`run.finished`).

    Use it as a context manager: whatever ends the block is recorded in `state.json`, the lock is
    released and finished units are kept. `force` throws away what is there and starts over.

    Raises `RunBusyError` when another process works on the run, `RunFolderError` when the folder
    holds another configuration or damaged rows, or cannot be written.
    """
    folder = RunFolder(Path(root), run_id_of(kind, config))
    if folder.final.exists() and not force:
        return _finished_run(folder, config)
    with storage_errors(folder.root):
        folder.root.mkdir(parents=True, exist_ok=True)
    lock = _take_lock(folder)
    try:
        if force:
            _remove(folder.partial)
            _remove(folder.final)
        if folder.final.exists():  # finished by another process just before the lock was ours
            lock.release()
            return _finished_run(folder, config)
        _prepare(folder.partial, config)
        with storage_errors(folder.partial):
            (folder.partial / "cancel").unlink(missing_ok=True)
        return _started_run(folder, lock)
    except BaseException:
        lock.release()
        raise


def queue_run(root: Path | str, kind: str, config: Mapping[str, JSON]) -> RunFolder:
    """Make the folder of a run that another process is about to start, with status `queued`.

    Does nothing to a run that is running or finished. Raises `RunFolderError` as `open_run` does.
    """
    folder = RunFolder(Path(root), run_id_of(kind, config))
    with storage_errors(folder.root):
        folder.root.mkdir(parents=True, exist_ok=True)
    try:
        lock = _take_lock(folder)
    except RunBusyError:
        return folder
    try:
        if not folder.final.exists():
            _prepare(folder.partial, config)
            with storage_errors(folder.partial):
                (folder.partial / "cancel").unlink(missing_ok=True)
            state = RunState(RunStatus.QUEUED)
            with suppress(RunFolderError):  # a new run has no state to take over
                before = read_state(folder.partial)
                state = replace(state, done=before.done, total=before.total)
            write_state(folder.partial, state)
    finally:
        lock.release()
    return folder


def _finished_run(folder: RunFolder, config: Mapping[str, JSON]) -> Run:
    _check_config(folder.final, config)
    return Run(folder, None, None)


def _started_run(folder: RunFolder, lock: FileLock) -> Run:
    log = RowLog(folder.partial / "rows.jsonl")
    try:
        write_state(folder.partial, RunState(RunStatus.RUNNING, done=len(log.rows)))
        return Run(folder, lock, log)
    except BaseException:
        log.close()
        raise


def _take_lock(folder: RunFolder) -> FileLock:
    lock = run_lock(folder.final)
    try:
        with storage_errors(folder.root):
            lock.acquire(timeout=0.5)  # long enough for a watcher that only looks
    except Timeout as error:
        holder = "another process"
        with suppress(RunFolderError):
            state = read_state(folder.partial)
            holder = f"process {state.pid} on {state.host}"
        raise RunBusyError(
            f"{holder} is working on run {folder.id}: wait for it, or cancel it first."
        ) from error
    return lock


def _prepare(partial: Path, config: Mapping[str, JSON]) -> None:
    """Make the folder with its configuration, or check that it holds the same one."""
    if (partial / "config.json").exists():
        _check_config(partial, config)
        return
    if (partial / "rows.jsonl").exists():
        raise RunFolderError(f"{partial} has rows but no config.json: use force to start over.")
    with storage_errors(partial):
        partial.mkdir(exist_ok=True)
    write_atomic(partial / "config.json", json.dumps(config, indent=2, allow_nan=False) + "\n")


def _check_config(folder: Path, config: Mapping[str, JSON]) -> None:
    path = folder / "config.json"
    try:
        same = canonical_json(json.loads(path.read_bytes())) == canonical_json(config)
    except (OSError, ValueError) as error:
        raise RunFolderError(
            f"{path} cannot be read ({error}): use force to start over."
        ) from error
    if not same:
        raise RunFolderError(
            f"{path} holds another configuration than this command's: use force to start over."
        )


def _remove(folder: Path) -> None:
    """Delete a folder, first by a rename so that half of it is never taken for a run."""
    if not folder.exists():
        return
    doomed = folder.with_name(f".{folder.name.removeprefix('.')}.removed-{os.getpid()}")
    with storage_errors(folder):
        os.rename(folder, doomed)
        shutil.rmtree(doomed)
