"""Jobs of one device work one at a time, in the order in which they were queued.

Everyone who waits holds the lock of a ticket file, whose name begins with the moment of arrival; a
note beside it says for which device, and who has it. The system lets go of the lock when a process
dies, however it dies, and whoever looks next takes the ticket away.
"""

from __future__ import annotations

import json
import platform
import re
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

from filelock import FileLock, Timeout

from ..models.gguf import cache_folder
from ..results.storage import storage_errors, write_atomic

POLL_SECONDS = 0.5


@contextmanager
def turn_on(
    device: Callable[[], str],
    run_id: str,
    arrived: str,
    waiting: Callable[[tuple[str, ...]], None],
) -> Iterator[str]:
    """Hold a device (`cpu`, `cuda:0`), which is yielded, for the length of the block.

    `arrived` (UTC, ISO 8601) decides whose turn it is, so that a process that starts slowly keeps
    its place; `device` may take its time, and later arrivals wait until it has answered. Until it
    is this one's turn, `waiting` is called about twice a second with the ids of the runs before
    it, the one that works first. The line is that of one user on one machine.
    """
    line = _Line(cache_folder() / "devices" / platform.node())
    ticket, lock = line.enter(run_id, arrived)
    try:
        wanted = device()
        while before := line.before(ticket, wanted):
            waiting(before)
            time.sleep(POLL_SECONDS)
        yield wanted
    finally:
        line.leave(ticket, lock)


@dataclass(frozen=True)
class _Note:
    """What is known of a waiting run: its device once it has found out, and whether it works."""

    device: str | None = None
    works: bool = False


@dataclass(frozen=True)
class _Line:
    """The tickets of one machine; nobody comes in while somebody looks."""

    folder: Path

    def enter(self, run_id: str, arrived: str) -> tuple[Path, FileLock]:
        """A ticket and its lock, which is held from now on."""
        with storage_errors(self.folder):
            self.folder.mkdir(parents=True, exist_ok=True)
        ticket = self.folder / f"{re.sub('[^0-9]', '', arrived)}.{run_id}.ticket"
        lock = FileLock(ticket, thread_local=False)
        with self._door():
            lock.acquire()
        return ticket, lock

    def before(self, ticket: Path, device: str) -> tuple[str, ...]:
        """The runs that `ticket` has to wait for; none: it is noted as the one that works."""
        with self._door():
            found = []
            for other in sorted(self.folder.glob("*.ticket")):
                note = None if other == ticket else _living(other)
                if note is None or note.device not in (None, device):
                    continue
                if note.works or other.name < ticket.name:
                    found.append((not note.works, other.stem.partition(".")[2]))
            _write_note(ticket, _Note(device, works=not found))
        return tuple(run_id for _, run_id in sorted(found, key=lambda one: one[0]))

    def leave(self, ticket: Path, lock: FileLock) -> None:
        """Take the ticket away."""
        with self._door():
            _note_of(ticket).unlink(missing_ok=True)
            lock.release()
            ticket.unlink(missing_ok=True)

    def _door(self) -> FileLock:
        return FileLock(self.folder / "door.lock", thread_local=False)


def _living(ticket: Path) -> _Note | None:
    """The note of a ticket; None, and the ticket is gone, where its process is dead."""
    lock = FileLock(ticket, thread_local=False)
    try:
        lock.acquire(timeout=0)
    except Timeout:
        return _read_note(ticket)
    _note_of(ticket).unlink(missing_ok=True)
    lock.release()
    ticket.unlink(missing_ok=True)
    return None


def _note_of(ticket: Path) -> Path:
    return ticket.with_suffix(".json")


def _write_note(ticket: Path, note: _Note) -> None:
    if note != _read_note(ticket):
        write_atomic(_note_of(ticket), json.dumps(asdict(note)), durable=False)


def _read_note(ticket: Path) -> _Note:
    try:
        return _Note(**json.loads(_note_of(ticket).read_bytes()))
    except (OSError, ValueError, TypeError):
        return _Note()
