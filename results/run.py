"""`Run`: one run while it is worked on, from its first row to the rename that finishes it."""

from __future__ import annotations

import hashlib
import io
import os
import re
import shutil
import signal
import threading
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from types import FrameType, TracebackType
from typing import NoReturn

import numpy as np
import polars
from filelock import FileLock

from .array_files import array_bytes, read_arrays
from .errors import RunCancelled, RunFolderError
from .provenance import JSON, Provenance, utc_now
from .row_log import Row, RowLog
from .run_reading import load_run
from .run_state import RunState, RunStatus, cancel_requested, read_state, write_state
from .storage import storage_errors, sync_folder, write_atomic

_FIGURE_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.\-]*")


@dataclass(frozen=True)
class RunFolder:
    """The two places of a run: `final` once finished, `partial` until then."""

    root: Path
    id: str

    @property
    def final(self) -> Path:
        """Where the finished run is found."""
        return self.root / self.id

    @property
    def partial(self) -> Path:
        """Where the unfinished run is worked on."""
        return self.root / f".{self.id}.partial"

    @property
    def path(self) -> Path:
        """The finished folder if there is one, else the partial one (which may not exist yet)."""
        return self.final if self.final.exists() else self.partial


class Run:
    """One run: the rows so far, a place for the next ones, and the way to finish.

    `run.done` maps the key of every finished unit to its row; a loop skips those keys.
    A finished run can be read but takes no more rows.
    """

    def __init__(self, folder: RunFolder, lock: FileLock | None, log: RowLog | None) -> None:
        """Made by `open_run`; `lock` and `log` are `None` for a finished run."""
        self._folder = folder
        self._lock = lock
        self._log = log
        self._rows = log.rows if log else load_run(folder.final).rows
        self._state = read_state(folder.path)
        self._old_sigterm: signal._HANDLER = None

    @property
    def id(self) -> str:
        """`<kind>-<hash>`."""
        return self._folder.id

    @property
    def folder(self) -> Path:
        """Where the run is now: the partial folder until `finish`, the final one after it."""
        return self._folder.path

    @property
    def finished(self) -> bool:
        """Whether the run is complete; the caller then says so and does nothing."""
        return self._state.status is RunStatus.FINISHED

    @property
    def state(self) -> RunState:
        """The state as last written by this process."""
        return self._state

    @property
    def done(self) -> Mapping[str, Row]:
        """Key to row of the finished units, in the order in which they were finished."""
        return self._rows

    def append(self, key: str, row: Mapping[str, JSON]) -> None:
        """Log one finished unit; it is on the disk when this returns.

        Save the unit's arrays first: a unit counts as done once its row is there. Raises
        `RunFolderError` for a key that is done, a row that is not plain JSON, or a full disk.
        """
        self._open_log().append(key, row)

    def save_unit_arrays(self, key: str, arrays: Mapping[str, np.ndarray]) -> None:
        """Save the arrays of a unit under way, any dtype and shape; before its `append`."""
        if key in self._open_log().rows:
            raise RunFolderError(f"unit {key!r} of {self.folder} is done: its arrays stay.")
        path = self._unit_path(key)
        with storage_errors(path, kept=len(self.done)):
            path.parent.mkdir(exist_ok=True)
        write_atomic(path, array_bytes(arrays), kept=len(self.done))

    def load_unit_arrays(self, key: str) -> dict[str, np.ndarray]:
        """The arrays of `save_unit_arrays`. Raises `RunFolderError` when missing or damaged."""
        return read_arrays(self._unit_path(key))

    def progress(self, done: int, total: int | None, message: str = "") -> None:
        """Tell watchers how far the work is."""
        self._write(replace(self._state, done=done, total=total, message=message), durable=False)

    def check_cancelled(self) -> None:
        """Raise `RunCancelled` when somebody called `request_cancel` on the folder."""
        if cancel_requested(self.folder):
            raise RunCancelled(f"run {self.id} was cancelled; start it again to go on.")

    def finish(
        self,
        table: polars.DataFrame,
        arrays: Mapping[str, np.ndarray],
        provenance: Provenance,
        figures: Mapping[str, bytes | str] | None = None,
        report_html: str | None = None,
    ) -> Path:
        """Write the results, move the folder to its final name by one rename, return that.

        `figures` maps file names (`heads.html`) to contents. Raises `RunFolderError` when a name
        is not a plain file name or the disk is full; the run can then be finished again.
        """
        self._open_log()
        contents = _result_files(table, arrays, provenance, figures or {}, report_html)
        self._write_results(contents)
        running, total = self._state, len(self.done)
        files = {name: hashlib.sha256(content).hexdigest() for name, content in contents.items()}
        rows = (self._folder.partial / "rows.jsonl").read_bytes()
        files["rows.jsonl"] = hashlib.sha256(rows).hexdigest()
        finished = replace(running, status=RunStatus.FINISHED, done=total, total=total, files=files)
        self._write(replace(finished, message=""))
        try:
            with storage_errors(self._folder.partial, kept=total):
                os.rename(self._folder.partial, self._folder.final)
        except BaseException:
            self._state = running
            raise
        sync_folder(self._folder.root)
        self.close()
        return self._folder.final

    def close(self) -> None:
        """Let go of the log and the lock; the rows stay readable. Closing twice is harmless."""
        if self._log is not None:
            self._log.close()
            self._log = None
        if self._lock is not None:
            self._lock.release()
            self._lock = None

    def __enter__(self) -> Run:
        """Turn SIGTERM into `RunCancelled` for the length of the block (main thread only)."""
        if self._lock is not None and threading.current_thread() is threading.main_thread():
            self._old_sigterm = signal.signal(signal.SIGTERM, self._on_sigterm)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Record how the block ended and release the lock; the exception goes on."""
        try:
            if self._lock is not None:
                with suppress(RunFolderError, OSError):  # a full disk must not hide the error
                    self._record_end(error)
        finally:
            self.close()
            if self._old_sigterm is not None:
                signal.signal(signal.SIGTERM, self._old_sigterm)
                self._old_sigterm = None

    def _write_results(self, contents: Mapping[str, bytes]) -> None:
        """Write the files; an earlier finish that failed half-way leaves nothing behind."""
        partial = self._folder.partial
        with storage_errors(partial, kept=len(self.done)):
            shutil.rmtree(partial / "figures", ignore_errors=True)
            (partial / "figures").mkdir(exist_ok=True)
            for leftover in [partial / "report.html", partial / "cancel", *partial.rglob(".*.tmp")]:
                leftover.unlink(missing_ok=True)
        for name, content in contents.items():
            write_atomic(partial / name, content, kept=len(self.done))

    def _record_end(self, error: BaseException | None) -> None:
        if error is None:
            status, message = RunStatus.INTERRUPTED, "left before it was finished"
        elif isinstance(error, Exception):
            status, message = RunStatus.FAILED, f"{type(error).__name__}: {error}"
        elif isinstance(error, RunCancelled) and cancel_requested(self.folder):
            status, message = RunStatus.CANCELLED, "cancelled"
        else:
            status, message = RunStatus.INTERRUPTED, f"stopped by {type(error).__name__}"
        done = max(self._state.done, len(self.done))
        self._write(replace(self._state, status=status, done=done, message=message))

    def _write(self, state: RunState, *, durable: bool = True) -> None:
        self._open_log()
        state = replace(state, updated=utc_now())
        write_state(self._folder.partial, state, durable=durable, kept=len(self.done))
        self._state = state

    def _open_log(self) -> RowLog:
        if self._log is None:
            reason = "finished" if self.finished else "closed"
            raise RunFolderError(f"run {self.id} is {reason}: it takes no more rows.")
        return self._log

    def _unit_path(self, key: str) -> Path:
        return self.folder / "units" / f"{hashlib.sha256(key.encode()).hexdigest()}.safetensors"

    def _on_sigterm(self, number: int, frame: FrameType | None) -> NoReturn:
        raise RunCancelled(f"run {self.id} was stopped by SIGTERM; start it again to go on.")


def _result_files(
    table: polars.DataFrame,
    arrays: Mapping[str, np.ndarray],
    provenance: Provenance,
    figures: Mapping[str, bytes | str],
    report_html: str | None,
) -> dict[str, bytes]:
    """Relative name to content of everything that `finish` writes."""
    parquet = io.BytesIO()
    table.write_parquet(parquet)
    files = {
        "table.parquet": parquet.getvalue(),
        "arrays.safetensors": array_bytes(arrays),
        "provenance.json": provenance.to_json().encode(),
    }
    for name, content in figures.items():
        if not _FIGURE_NAME.fullmatch(name):
            raise RunFolderError(f"{name!r} is no plain file name for a figure, as in heads.html.")
        files[f"figures/{name}"] = content.encode() if isinstance(content, str) else content
    if report_html is not None:
        files["report.html"] = report_html.encode()
    return files
