"""Queued runs: which process is about to start one, what it waits for, and how its wait ended.

A worker holds the lock of `worker_lock` from its first moment to its last, so that anybody can see
whether a queued run still has a process. The run's own lock is taken only once the work begins.
"""

from __future__ import annotations

import os
import platform
from contextlib import suppress
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

from filelock import FileLock, Timeout

from .errors import RunFolderError
from .provenance import utc_now
from .run import RunFolder
from .run_reading import RunInfo, list_runs
from .run_state import (
    RunState,
    RunStatus,
    cancel_requested,
    mark_interrupted_if_dead,
    read_state,
    write_state,
)
from .storage import storage_errors

GRACE_SECONDS = 30.0
"""How long a new process may take until it holds its lock."""


def worker_lock(folder: RunFolder) -> FileLock:
    """The lock that the process which works on a queued run holds for as long as it lives."""
    return FileLock(folder.root / f".{folder.id}.worker.lock", thread_local=False)


def note_waiting(folder: Path, message: str) -> None:
    """Say in the state of a queued run what its process is doing; other states stay."""
    state = read_state(folder)
    if state.status is not RunStatus.QUEUED or (state.message, state.pid) == (message, os.getpid()):
        return
    _replace(folder, state, RunStatus.QUEUED, message)
    if cancel_requested(folder):  # it came between reading and writing
        _replace(folder, state, RunStatus.CANCELLED, "")


def end_waiting(folder: Path, status: RunStatus, message: str) -> None:
    """Say how a queued run ended whose work never began; other states stay."""
    state = read_state(folder)
    if state.status is RunStatus.QUEUED:
        _replace(folder, state, status, message)


def living_state(folder: RunFolder, *, ended: str | None = None) -> RunState:
    """The state of a run, set to `interrupted` if it is queued or running and its process is gone.

    A queued run that was touched less than `GRACE_SECONDS` ago is left to its process, which may
    not have come so far; unless that one is known to have ended: `ended` is when the run was queued
    for it (`RunState.started`), and a run that was queued anew since is another process's. A run of
    another machine is left alone. Raises `RunFolderError` when the state is missing or damaged.
    """
    state = mark_interrupted_if_dead(folder.path)
    if state.status is not RunStatus.QUEUED or state.host != platform.node():
        return state
    if state.started != ended and age_of(state) < GRACE_SECONDS:
        return state
    try:
        with storage_errors(folder.root), worker_lock(folder).acquire(timeout=0):
            now = read_state(folder.path)
            if now.started != state.started:  # queued anew meanwhile
                return now
            with suppress(RunFolderError):
                end_waiting(
                    folder.path, RunStatus.INTERRUPTED, "its process ended before the work began"
                )
            return read_state(folder.path)
    except Timeout:
        return state


def age_of(state: RunState) -> float:
    """Seconds since the run's last sign of life."""
    try:
        return (datetime.now(UTC) - datetime.fromisoformat(state.updated)).total_seconds()
    except (TypeError, ValueError):
        return float("inf")  # no time that can be read was not written a moment ago


def settle_runs(root: Path) -> tuple[RunInfo, ...]:
    """Every run under the root, with those whose process is gone set to `interrupted`."""
    for info in list_runs(root):
        if info.status in (RunStatus.RUNNING, RunStatus.QUEUED):
            with suppress(RunFolderError):  # the listing says what is wrong with it
                living_state(RunFolder(root, info.id))
    return list_runs(root)


def _replace(folder: Path, state: RunState, status: RunStatus, message: str) -> None:
    new = replace(state, status=status, message=message, pid=os.getpid(), updated=utc_now())
    write_state(folder, new)
