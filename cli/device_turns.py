"""One job at a time on a device: the others wait, and can say for whom."""

from __future__ import annotations

import json
import platform
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

from ..models.gguf import cache_folder
from ..results.storage import storage_errors, write_atomic

POLL_SECONDS = 0.5


@contextmanager
def turn_on(device: str, run_id: str, waiting: Callable[[str], None]) -> Iterator[None]:
    """Hold the device (`cpu`, `cuda:0`) for the length of the block.

    Until it is free, `waiting` is called about twice a second with the id of the run that has it,
    or "another job". The lock is that of one user on one machine; the system frees it when its
    process dies, however it dies.
    """
    lock_path, holder = _paths(device)
    with storage_errors(lock_path):
        lock_path.parent.mkdir(parents=True, exist_ok=True)
    lock = FileLock(lock_path, thread_local=False)
    while True:
        try:
            lock.acquire(timeout=POLL_SECONDS)
            break
        except Timeout:
            waiting(_holder(holder))
    try:
        write_atomic(holder, json.dumps({"run": run_id}))
        yield
    finally:
        holder.unlink(missing_ok=True)
        lock.release()


def _paths(device: str) -> tuple[Path, Path]:
    name = f"{platform.node()}-{device.replace(':', '')}"
    folder = cache_folder() / "devices"
    return folder / f"{name}.lock", folder / f"{name}.json"


def _holder(path: Path) -> str:
    try:
        return str(json.loads(path.read_bytes())["run"])
    except (OSError, ValueError, KeyError, TypeError):
        return "another job"
