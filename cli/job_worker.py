"""A job: the process of its own that waits for its device and goes on with a queued run.

    python -m mnemoscope.cli.job_worker RUNS_ROOT RUN_ID

It ends at SIGTERM, at a cancel file and when the run's folder is deleted, wherever the work is;
what is finished is kept. Two workers of one run do not meet: the second one leaves.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import FrameType
from typing import NoReturn

from filelock import Timeout

from ..models.errors import MnemoscopeError
from ..results.errors import RunBusyError, RunCancelled, RunFolderError
from ..results.queued_runs import end_waiting, note_waiting, worker_lock
from ..results.run import RunFolder
from ..results.run_state import RunStatus, cancel_requested, read_state

WATCH_SECONDS = 0.2
SUCCESSION_SECONDS = 10.0
"""How long a new worker waits for one that is about to leave."""


def main() -> None:
    """The process that the explorer starts; exit codes are those of the command line."""
    from .output import progress, say

    folder = RunFolder(Path(sys.argv[1]), sys.argv[2])
    try:
        with progress("done") as tell:
            work_on(folder, say=say, tell=tell)
    except RunBusyError:
        return  # the other one says what there is to say
    except MnemoscopeError as error:
        say(f"error: {error}")
        sys.exit(1)
    except KeyboardInterrupt as stop:
        say(str(stop) or "interrupted")
        sys.exit(130)


def work_on(
    folder: RunFolder, *, say: Callable[[str], None], tell: Callable[[int, int], None]
) -> None:
    """Wait for the device, then finish the run; how a wait ends is told in the run's state.

    Raises `RunBusyError` when another worker has the run, else what the run's command raises, and
    `RunCancelled` at SIGTERM (in the main thread).
    """
    lock = worker_lock(folder)
    try:
        lock.acquire(timeout=SUCCESSION_SECONDS)
    except Timeout as error:
        raise RunBusyError(f"another process has run {folder.id} already: watch it.") from error
    try:
        if (
            read_state(folder.path).status is RunStatus.QUEUED
        ):  # else done, cancelled or a command's
            with stoppable(folder) as why, _told_end(folder, why):
                _in_turn(folder, say, tell)
    finally:
        lock.release()


@contextmanager
def stoppable(folder: RunFolder) -> Iterator[list[str]]:
    """Within the block SIGTERM raises `RunCancelled`, and so do a cancel file and a lost folder.

    Yields a list that holds "cancelled" or "folder gone" once that was seen.
    """
    before = signal.signal(signal.SIGTERM, _stop)
    ended = threading.Event()
    why: list[str] = []
    watcher = threading.Thread(target=_watch, args=(folder, ended, why), daemon=True)
    watcher.start()
    try:
        yield why
    finally:
        ended.set()
        watcher.join()
        signal.signal(signal.SIGTERM, before)


def _in_turn(
    folder: RunFolder, say: Callable[[str], None], tell: Callable[[int, int], None]
) -> None:
    note_waiting(folder.path, "starting")
    from .device_turns import turn_on  # torch comes with these two, which takes its time
    from .resuming import device_of, resume_run, run_config

    def waiting(holder: str) -> None:
        note_waiting(folder.path, f"queued behind {holder}")

    with turn_on(device_of(run_config(folder)), folder.id, waiting):
        note_waiting(folder.path, "loading the model")
        result = resume_run(folder, say=say, tell=tell)
    if result.name != folder.id:
        raise RunFolderError(
            f"the model or the data has changed since this run was queued: the result is the new "
            f"run {result.name}."
        )
    say(f"finished: {result}")


@contextmanager
def _told_end(folder: RunFolder, why: list[str]) -> Iterator[None]:
    """Write down why a queued run ended; one that was begun has written it itself."""
    try:
        yield
    except BaseException as error:
        with suppress(RunFolderError, OSError):  # the folder may be gone
            if isinstance(error, MnemoscopeError):
                end_waiting(folder.path, RunStatus.FAILED, str(error))
            elif isinstance(error, Exception):
                end_waiting(folder.path, RunStatus.FAILED, f"{type(error).__name__}: {error}")
            elif not why:  # a cancelled one says so already, or was queued anew meanwhile
                end_waiting(folder.path, RunStatus.INTERRUPTED, f"stopped: {error}")
        raise


def _watch(folder: RunFolder, ended: threading.Event, why: list[str]) -> None:
    """Turn a cancel file, or a deleted folder, into the signal that stops any work."""
    while not ended.wait(WATCH_SECONDS):
        if cancel_requested(folder.partial):
            why.append("cancelled")
        elif not folder.partial.is_dir() and not folder.final.is_dir():
            why.append("folder gone")
        if why:
            os.kill(os.getpid(), signal.SIGTERM)
            return


def _stop(number: int, frame: FrameType | None) -> NoReturn:
    raise RunCancelled("stopped; what is finished is kept, and the run can be resumed.")


if __name__ == "__main__":
    main()
