"""Jobs: long work in a process of its own, in the same run folders as the command line's.

`start_job` queues a run and starts its process, which outlives the explorer; everything that pages
show is read from the run's folder, so that any tab, user or terminal sees and steers the same job.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import threading
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from ..cli.resuming import models_of, run_config, work_of
from ..models.errors import MnemoscopeError
from ..results.errors import RunFolderError
from ..results.job_record import JobRecord, read_job_record
from ..results.provenance import JSON
from ..results.queued_runs import GRACE_SECONDS, age_of, living_state
from ..results.run import RunFolder
from ..results.run_folder import queue_run
from ..results.run_inputs import read_inputs
from ..results.run_state import RunState, RunStatus, read_state, request_cancel
from .settings import Settings

LOG = "job.log"
LOG_BYTES = 4000
"""Of the end of a log, which a page shows."""
_ID = re.compile(r"[a-z0-9]+(-[a-z0-9]+)*-[0-9a-f]{10}")


@dataclass(frozen=True)
class Job:
    """What is known of a run from outside; `state` is None where `trouble` says why."""

    folder: RunFolder
    state: RunState | None
    trouble: str = ""
    log: str = ""
    """The last lines that its process said."""
    record: JobRecord | None = None
    """On what its last process worked, and what that took."""

    @property
    def id(self) -> str:
        """The run's id."""
        return self.folder.id

    @property
    def status(self) -> str:
        """The run's status; `gone` without a folder, `damaged` with one that cannot be read."""
        if self.state is None:
            return "damaged" if self.folder.path.is_dir() else "gone"
        return str(self.state.status)

    @property
    def active(self) -> bool:
        """Whether something may change by itself."""
        return self.status in (RunStatus.QUEUED, RunStatus.RUNNING)

    @property
    def closing(self) -> bool:
        """Whether it finished just now and its process has yet to say what that took."""
        if self.status != RunStatus.FINISHED or self.state is None or not self.log:
            return False
        told = self.record is not None and self.record.pid == self.state.pid
        return not told and age_of(self.state) < GRACE_SECONDS

    @property
    def may_resume(self) -> bool:
        """Whether a new process could go on with it."""
        return self._stopped and not self.obstacle

    @property
    def obstacle(self) -> str:
        """Why an unfinished run that nobody works on cannot be gone on with by its id."""
        try:
            if self._stopped:
                work_of(self.folder)
        except RunFolderError as error:
            return str(error)
        return ""

    @property
    def _stopped(self) -> bool:
        ended = (RunStatus.FAILED, RunStatus.INTERRUPTED, RunStatus.CANCELLED, "damaged")
        unfinished = self.folder.partial.is_dir() and not self.folder.final.is_dir()
        return self.status in ended and unfinished


def start_job(settings: Settings, kind: str, config: Mapping[str, JSON]) -> str:
    """Queue the run of this configuration and start its process; returns the run's id.

    `config` is what names the run, as the commands' `run_key` makes it. A run that is finished,
    queued or going on already is left as it is. Raises `MnemoscopeError` for a model that this
    explorer does not serve, and `RunFolderError` as `queue_run` does.
    """
    _check_served(settings, models_of(config, {}))
    return _started(settings, kind, config)


def resume_job(settings: Settings, run_id: str) -> None:
    """Start a process that goes on with a run, whoever started it. Raises as `start_job` does."""
    folder = folder_of(settings.runs_root, run_id)
    config = run_config(folder)
    work_of(folder)  # which says why it cannot be
    _check_served(settings, models_of(config, read_inputs(folder.path)))
    _started(settings, run_id.rpartition("-")[0], config)


def cancel_job(settings: Settings, run_id: str) -> None:
    """Ask a queued or running run to stop. Raises `RunFolderError` when it is neither."""
    request_cancel(folder_of(settings.runs_root, run_id).path)


def job_of(settings: Settings, run_id: str) -> Job:
    """What a run is doing now, whatever its folder looks like.

    Raises `RunFolderError` only for what is no run's id.
    """
    folder = folder_of(settings.runs_root, run_id)
    if not folder.path.is_dir():
        return Job(
            folder,
            None,
            f"There is no run {run_id} in {settings.runs_root}: it was never started here, or its "
            "folder was deleted. Start it again on the page of its method.",
        )
    try:
        state = living_state(folder)
        run_config(folder)
    except (RunFolderError, OSError) as error:  # deleted while it was read, or damaged
        return Job(folder, None, f"The run's folder is damaged: {error} {_way_out(folder)}")
    return Job(folder, state, log=_log(folder), record=read_job_record(folder.path))


def folder_of(root: Path, run_id: str) -> RunFolder:
    """The folders of an id that may come from an address. Raises `RunFolderError` for others."""
    if not _ID.fullmatch(run_id):
        raise RunFolderError(
            f"{run_id!r} is no id of a run, which looks like head-scores-1a2b3c4d5e: choose one "
            "from the list of runs."
        )
    return RunFolder(root, run_id)


def _started(settings: Settings, kind: str, config: Mapping[str, JSON]) -> str:
    folder = queue_run(settings.runs_root, kind, config)
    if not folder.final.is_dir():
        _start_process(folder)
    return folder.id


def _check_served(settings: Settings, models: Sequence[str]) -> None:
    for model in models:
        if model not in settings.models.values():
            raise MnemoscopeError(
                f"this explorer does not serve the model {model}: start it with `mnemoscope app "
                f"{model}`, or use `mnemoscope runs resume` in a terminal."
            )


def _start_process(folder: RunFolder) -> None:
    """A detached process with its output in the run's folder; a thread waits for its end."""
    command = [sys.executable, "-P", "-m", "mnemoscope.cli.job_worker"]
    queued = read_state(folder.path).started
    with (folder.partial / LOG).open("ab") as log:
        process = subprocess.Popen(
            [*command, str(folder.root), folder.id],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,  # it outlives the explorer and is spared its Ctrl-C
        )
    threading.Thread(target=_await, args=(process, folder, queued), daemon=True).start()


def _await(process: subprocess.Popen[bytes], folder: RunFolder, queued: str) -> None:
    """Leave no dead child behind, and say at once when a process died without a word; the run may
    be queued for another one by then."""
    process.wait()
    with suppress(RunFolderError, OSError):
        living_state(folder, ended=queued)


def _way_out(folder: RunFolder) -> str:
    """What to do about a damaged folder."""
    if folder.final.is_dir():
        return "Run its command again with --force to measure anew."
    try:
        run_config(folder)
    except RunFolderError:
        return ""  # that error says it
    return "Resume goes on with what is finished."


def _log(folder: RunFolder) -> str:
    """The end of what the process said; empty where there is nothing to read."""
    try:
        with (folder.path / LOG).open("rb") as file:
            size = file.seek(0, os.SEEK_END)
            file.seek(max(0, size - LOG_BYTES))
            return file.read().decode("utf-8", "replace").strip()
    except OSError:
        return ""
