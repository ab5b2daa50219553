"""Who works on a ledger, and who of them is still alive: heartbeats on a shared folder.

A worker keeps a file that it touches every `BEAT_SECONDS`. It counts as dead when its process is
gone, where that can be seen (same machine), and when the file was not touched for `STALE_SECONDS`:
longer than network file systems show old times (a minute), so clocks of machines may differ by as
much.
"""

from __future__ import annotations

import json
import os
import platform
import re
import secrets
import threading
import time
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Any

from .provenance import utc_now
from .storage import storage_errors, write_if_absent

BEAT_SECONDS = 15.0
STALE_SECONDS = 180.0


class Worker:
    """This process's sign of life, for the length of a `with` block."""

    def __init__(self, folder: Path) -> None:
        """`folder` holds the workers of a ledger; it is made when needed."""
        host = re.sub(r"[^A-Za-z0-9.-]+", "_", platform.node())[:40] or "host"
        self.name = f"{host}-{os.getpid()}-{secrets.token_hex(3)}"
        self._path = folder / f"{self.name}.json"
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._beat, daemon=True)

    def __enter__(self) -> Worker:
        """Write the file and begin to touch it. Raises `RunFolderError` if it cannot be written."""
        with storage_errors(self._path):
            self._path.parent.mkdir(exist_ok=True)
        write_if_absent(self._path, json.dumps({**_here(), "started": utc_now()}) + "\n")
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Stop, and take the file away: whoever left in good order holds nothing."""
        self._ended.set()
        self._thread.join()
        with suppress(OSError):
            self._path.unlink(missing_ok=True)

    def now(self) -> float:
        """The time in seconds as the file system has it, which other workers' files are by."""
        with suppress(OSError):
            os.utime(self._path)
            return os.stat(self._path).st_mtime
        return time.time()

    def _beat(self) -> None:
        while not self._ended.wait(BEAT_SECONDS):
            with suppress(OSError):  # a file system that is away for a moment; others have patience
                os.utime(self._path)


def last_beat(folder: Path, name: str) -> float | None:
    """When the worker last gave a sign, in the file system's seconds; None if it has left."""
    try:
        return os.stat(folder / f"{name}.json").st_mtime
    except OSError:
        return None


def is_dead(folder: Path, name: str, now: float) -> bool:
    """Whether the worker has left, its process is gone, or it was silent for too long."""
    beat = last_beat(folder, name)
    if beat is None or now - beat > STALE_SECONDS:
        return True
    try:
        record = json.loads((folder / f"{name}.json").read_bytes())
    except FileNotFoundError:
        return True
    except (OSError, ValueError):
        return False  # its age decides, later
    return isinstance(record, dict) and _process_is_gone(record)


def _here() -> dict[str, Any]:
    """What tells whether a process number means the same process to two people."""
    namespace = ""
    with suppress(OSError):
        namespace = os.readlink("/proc/self/ns/pid")
    boot = ""
    with suppress(OSError):
        boot = Path("/proc/sys/kernel/random/boot_id").read_text("ascii").strip()
    return {"host": platform.node(), "boot": boot, "namespace": namespace, "pid": os.getpid()}


def _process_is_gone(record: dict[str, Any]) -> bool:
    here = _here()
    if any(record.get(field) != here[field] for field in ("host", "boot", "namespace")):
        return False  # another machine, or a number that means another process there
    try:
        os.kill(int(record["pid"]), 0)
    except ProcessLookupError:
        return True
    except (OSError, KeyError, TypeError, ValueError):
        return False
    return False
