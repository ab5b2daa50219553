"""A job: the process of its own that waits for its device and goes on with a queued run.

    python -m mnemoscope.cli.job_worker RUNS_ROOT RUN_ID

It ends at SIGTERM, at a cancel file and when the run's folder is deleted, wherever the work is;
what is finished is kept. Two workers of one run do not meet: the second one leaves. `job.json`
says in the end on which device it worked, and how much memory that took.
"""

from __future__ import annotations

import os
import platform
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import FrameType
from typing import NoReturn

from filelock import Timeout

from ..models.errors import MnemoscopeError
from ..results.errors import RunBusyError, RunCancelled, RunFolderError
from ..results.job_record import JobRecord, peak_host_bytes, write_job_record
from ..results.queued_runs import end_waiting, note_waiting, worker_lock
from ..results.run import RunFolder
from ..results.run_state import RunStatus, cancel_requested, read_state
from .exit_codes import INTERRUPTED, exit_code_of

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
        sys.exit(exit_code_of(error))
    except KeyboardInterrupt as stop:
        say(str(stop) or "interrupted")
        sys.exit(INTERRUPTED)


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
    from .device_turns import turn_on

    arrived = read_state(folder.path).started  # when it was queued, however slowly this starts
    note_waiting(folder.path, "starting")

    def waiting(before: tuple[str, ...]) -> None:
        more = f" and {len(before) - 1} more" if len(before) > 1 else ""
        note_waiting(folder.path, f"queued behind {before[0]}{more}")

    with turn_on(lambda: _device(folder), folder.id, arrived, waiting) as device:
        note_waiting(folder.path, "loading the model")
        with _recorded(folder, device):
            result = _resume(folder, say, tell)
    if result.name != folder.id:
        raise RunFolderError(
            f"the model or the data has changed since this run was queued: the result is the new "
            f"run {result.name}."
        )
    say(f"finished: {result}")


def _device(folder: RunFolder) -> str:
    from .resuming import device_of  # torch comes with it, which takes its time

    return device_of(folder)


def _resume(
    folder: RunFolder, say: Callable[[str], None], tell: Callable[[int, int], None]
) -> Path:
    from .resuming import resume_run

    return resume_run(folder, say=say, tell=tell)


@contextmanager
def _recorded(folder: RunFolder, device: str) -> Iterator[None]:
    """Write down what the block took, however it ends."""
    began = time.monotonic()
    try:
        yield
    finally:
        seconds = round(time.monotonic() - began, 3)
        name, peak = _graphics(device)
        record = JobRecord(device, name, peak_host_bytes(), peak, seconds)
        with suppress(RunFolderError, OSError):  # the folder may be gone, or the disk full
            if folder.path.is_dir():
                write_job_record(folder.path, record)


def _graphics(device: str) -> tuple[str, int | None]:
    """Name of the device, and what torch held on it at most."""
    import torch

    if not device.startswith("cuda") or not torch.cuda.is_initialized():
        return platform.processor() or platform.machine(), None
    return torch.cuda.get_device_name(device), int(torch.cuda.max_memory_reserved(device))


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
