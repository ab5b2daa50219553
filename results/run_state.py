"""`state.json`: what a run is doing, for whoever watches it from another process."""

from __future__ import annotations

import json
import os
import platform
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass, field, fields, replace
from enum import StrEnum
from pathlib import Path

from filelock import FileLock, Timeout

from .errors import RunFolderError
from .provenance import utc_now
from .storage import storage_errors, write_atomic


class RunStatus(StrEnum):
    """Where a run stands; all but `queued` and `finished` can be resumed by starting it again."""

    QUEUED = "queued"
    RUNNING = "running"
    FINISHED = "finished"
    FAILED = "failed"
    INTERRUPTED = "interrupted"
    CANCELLED = "cancelled"


@dataclass(frozen=True)
class RunState:
    """The content of `state.json`.

    `done` and `total` count units of work (`total` is `None` while unknown); `started` is when
    the present process began, `updated` the last sign of life, both UTC; `files` holds the
    SHA-256 of every result file of a finished run.
    """

    status: RunStatus
    done: int = 0
    total: int | None = None
    message: str = ""
    pid: int = field(default_factory=os.getpid)
    host: str = field(default_factory=platform.node)
    started: str = field(default_factory=utc_now)
    updated: str = field(default_factory=utc_now)
    files: Mapping[str, str] = field(default_factory=dict)


def read_state(folder: Path) -> RunState:
    """Read `folder/state.json`. Raises `RunFolderError` when it is missing or damaged."""
    path = folder / "state.json"
    try:
        record = json.loads(path.read_bytes())
        known = {field.name for field in fields(RunState)}
        if not isinstance(record, dict) or not set(record) <= known:
            raise ValueError("unknown fields")
        return RunState(**{**record, "status": RunStatus(record["status"])})
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise RunFolderError(f"{path} cannot be read ({error!r}).") from error


def write_state(
    folder: Path, state: RunState, *, durable: bool = True, kept: int | None = None
) -> None:
    """Replace `folder/state.json` in one step; `durable` and `kept` as in `write_atomic`."""
    text = json.dumps(asdict(state), indent=2) + "\n"
    write_atomic(folder / "state.json", text, durable=durable, kept=kept)


def request_cancel(folder: Path) -> None:
    """Ask the process that works in `folder` to stop after its present unit.

    Raises `RunFolderError` when the run is neither queued nor running.
    """
    state = read_state(folder)
    if state.status not in (RunStatus.QUEUED, RunStatus.RUNNING):
        raise RunFolderError(f"{folder} is {state.status}: there is nothing to cancel.")
    write_atomic(folder / "cancel", "")
    if state.status is RunStatus.QUEUED:
        ended = replace(state, status=RunStatus.CANCELLED, message="cancelled", updated=utc_now())
        write_state(folder, ended)


def cancel_requested(folder: Path) -> bool:
    """Whether `request_cancel` was called since the run was started."""
    return (folder / "cancel").exists()


def mark_interrupted_if_dead(folder: Path) -> RunState:
    """Set `running` to `interrupted` when no process holds the run any more; return the state.

    The lock tells, not the process id: ids are reused, and a killed child keeps its id until its
    parent looks. A run of another machine is left alone.
    """
    state = read_state(folder)
    if state.status is not RunStatus.RUNNING or state.host != platform.node():
        return state
    lock = run_lock(folder)
    try:
        with storage_errors(folder), lock.acquire(timeout=0):
            state = read_state(folder)  # it may have moved on before the lock was ours
            if state.status is not RunStatus.RUNNING:
                return state
            state = replace(
                state,
                status=RunStatus.INTERRUPTED,
                message=f"process {state.pid} ended without a word",
                updated=utc_now(),
            )
            with suppress(RunFolderError):  # on a full disk the answer is true all the same
                write_state(folder, state)
    except Timeout:
        pass
    return state


def run_lock(folder: Path) -> FileLock:
    """The lock of a run, beside its folder so that it outlives renames and removals."""
    run_id = folder.name.removeprefix(".").removesuffix(".partial")
    return FileLock(folder.with_name(f".{run_id}.lock"), thread_local=False)
