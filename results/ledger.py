"""A ledger: which units of a batch are done, failed or under way, shared by many workers.

    <root>/<kind>-<10 hex>.ledger/
        ledger.json                     configuration and units, written once by the first worker
        units/<unit>-<8 hex>.0001.json  an attempt at a unit: a claim, replaced by its outcome
        workers/<worker>.json           touched while the worker lives (`results.ledger_workers`)

The folder may lie on a network file system. There are no locks: an attempt belongs to whoever
makes its file first, and nobody else ever writes that file. Whoever takes over from a dead worker,
or tries a failed unit again, makes the attempt with the next number, so two never take over at
once. A worker that was only thought dead finishes an attempt of its own, and does no harm.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from enum import StrEnum
from pathlib import Path
from typing import Any

from .errors import LedgerError
from .ledger_workers import STALE_SECONDS, Worker, is_dead
from .provenance import JSON, canonical_json, utc_now
from .run_folder import run_id_of
from .shards import Unit
from .storage import storage_errors, write_atomic, write_if_absent

SCHEMA = "mnemoscope/ledger/1"
_ATTEMPT = re.compile(r"(?P<unit>.+-[0-9a-f]{8})\.(?P<number>\d{4,})\.json")


class Outcome(StrEnum):
    """Where an attempt stands. One that is `claimed` is under way, or its worker died."""

    CLAIMED = "claimed"
    DONE = "done"
    FAILED = "failed"
    RELEASED = "released"
    """Its worker was interrupted, and said so."""


@dataclass(frozen=True)
class Attempt:
    """One attempt at a unit. `number` counts from 1, `seconds` is how long it took.

    `row` is the result of a done one, `error` the one sentence of a failed one and `code` the exit
    code that the error stands for.
    """

    unit: str
    number: int
    outcome: Outcome
    worker: str
    claimed: str
    row: Mapping[str, Any] | None = None
    error: str = ""
    code: int = 0
    seconds: float | None = None


class Ledger:
    """The shared record of one batch; made by `open_ledger` or `read_ledger`."""

    def __init__(self, folder: Path, record: Mapping[str, Any]) -> None:
        self.folder = folder
        self.kind = str(record["kind"])
        self.config: Mapping[str, Any] = record["config"]
        self.units = tuple(Unit(**unit) for unit in record["units"])
        self._file_of = {unit.name: _file_name(unit.name) for unit in self.units}
        self._unit_of = {name: unit for unit, name in self._file_of.items()}
        self._places: dict[str, tuple[str, int]] = {}
        self._ended: dict[tuple[str, int], Attempt] = {}

    @property
    def id(self) -> str:
        """`<kind>-<hash>`: the name of the run that the finished batch becomes."""
        return self.folder.name.removesuffix(".ledger")

    @property
    def root(self) -> Path:
        """The folder of runs that it lies in."""
        return self.folder.parent

    @property
    def workers(self) -> Path:
        """Where workers give signs of life."""
        return self.folder / "workers"

    def worker(self) -> Worker:
        """This process as a worker, alive for the length of a `with` block."""
        return Worker(self.workers)

    def attempts(self) -> dict[str, tuple[Attempt, ...]]:
        """The attempts at every unit that has any, the oldest first, as they are now."""
        found: dict[str, list[Attempt]] = {}
        with storage_errors(self.folder):
            names = sorted(os.listdir(self.folder / "units"))
        for name in names:
            place = self._places.get(name) or self._place(name)
            if place is not None:
                attempt = self._ended.get(place) or self._read(*place)
                found.setdefault(place[0], []).append(attempt)
        return {
            unit: tuple(sorted(tried, key=lambda attempt: attempt.number))
            for unit, tried in found.items()
        }

    def is_abandoned(self, attempt: Attempt, now: float) -> bool:
        """Whether a claim is that of a dead worker; `now` is the file system's (`Worker.now`)."""
        if attempt.worker:
            dead = is_dead(self.workers, attempt.worker, now)
        else:  # a claim that cannot be read: nobody's, once it is old
            try:
                written = os.stat(self._path(attempt.unit, attempt.number)).st_mtime
                dead = now - written > STALE_SECONDS
            except OSError:
                return False
        if not dead:
            return False
        # It may have settled the unit and left in good order since the claim was read.
        return self._read(attempt.unit, attempt.number).outcome is Outcome.CLAIMED

    def claim(self, unit: str, number: int, worker: str) -> Attempt | None:
        """Make attempt `number` at a unit one's own; None if somebody else was first."""
        attempt = Attempt(unit, number, Outcome.CLAIMED, worker, utc_now())
        first = write_if_absent(self._path(unit, number), _text(attempt))
        return attempt if first else None

    def settle(
        self,
        attempt: Attempt,
        outcome: Outcome,
        *,
        row: Mapping[str, JSON] | None = None,
        error: str = "",
        code: int = 0,
        seconds: float | None = None,
    ) -> Attempt:
        """Replace one's own claim by what came of it. Raises `RunFolderError` for a full disk, and
        `LedgerError` for a row that is not plain JSON."""
        ended = replace(attempt, outcome=outcome, row=row, error=error, code=code, seconds=seconds)
        write_atomic(self._path(attempt.unit, attempt.number), _text(ended))
        return ended

    def _place(self, name: str) -> tuple[str, int] | None:
        """Unit and number of an attempt's file, None for files of other kinds."""
        match = _ATTEMPT.fullmatch(name)
        unit = self._unit_of.get(match["unit"]) if match else None
        if match is None or unit is None:
            return None
        self._places[name] = (unit, int(match["number"]))
        return self._places[name]

    def _path(self, unit: str, number: int) -> Path:
        return self.folder / "units" / f"{self._file_of[unit]}.{number:04d}.json"

    def _read(self, unit: str, number: int) -> Attempt:
        """An attempt as it is now; what has ended never changes, and is kept."""
        try:
            record = json.loads(self._path(unit, number).read_bytes())
            attempt = Attempt(**{**record, "outcome": Outcome(record["outcome"])})
        except (OSError, ValueError, TypeError, KeyError):
            # Torn by a crash, or between two states: a claim of nobody, which may be taken over.
            return Attempt(unit, number, Outcome.CLAIMED, "", "")
        if attempt.outcome is not Outcome.CLAIMED:
            self._ended[unit, number] = attempt
        return attempt


def ledger_folder(root: Path, kind: str, config: Mapping[str, JSON]) -> Path:
    """Where the ledger of a configuration lies."""
    return Path(root) / f"{run_id_of(kind, config)}.ledger"


def open_ledger(root: Path, kind: str, config: Mapping[str, JSON], units: Sequence[Unit]) -> Ledger:
    """The ledger of a configuration, made if there is none.

    The first worker's units and sizes hold for all, so that all split them in the same way. Raises
    `LedgerError` when the ledger has other units or another configuration, `RunFolderError` when
    it cannot be written.
    """
    folder = ledger_folder(root, kind, config)
    path = folder / "ledger.json"
    with storage_errors(folder):
        (folder / "units").mkdir(parents=True, exist_ok=True)
    if not path.exists():
        record = {
            "schema": SCHEMA,
            "kind": kind,
            "config": config,
            "units": [asdict(unit) for unit in units],
        }
        write_if_absent(path, json.dumps(record, indent=1, allow_nan=False) + "\n")
    ledger = read_ledger(folder)
    same = canonical_json(ledger.config) == canonical_json(config)
    if not same or [unit.name for unit in ledger.units] != [unit.name for unit in units]:
        raise LedgerError(
            f"{path} is the ledger of another batch: delete the folder to start over, or use "
            "another folder of runs."
        )
    return ledger


def read_ledger(folder: Path) -> Ledger:
    """An existing ledger. Raises `LedgerError` when it is missing or damaged."""
    path = folder / "ledger.json"
    try:
        record = json.loads(path.read_bytes())
        if record["schema"] != SCHEMA:
            raise ValueError(f"its schema is {record['schema']!r}")
        return Ledger(folder, record)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise LedgerError(
            f"{path} cannot be read ({error}): delete the folder to start over."
        ) from error


def counting(tried: Sequence[Attempt]) -> Attempt:
    """Which of a unit's attempts counts: the first that was done, else the last one."""
    for attempt in tried:
        if attempt.outcome is Outcome.DONE:
            return attempt
    return tried[-1]


def _file_name(unit: str) -> str:
    """A name for people, and a hash for what it leaves out."""
    plain = re.sub(r"[^A-Za-z0-9.-]+", "_", unit)[:80].lstrip(".")
    return f"{plain}-{hashlib.sha256(unit.encode()).hexdigest()[:8]}"


def _text(attempt: Attempt) -> str:
    try:
        return json.dumps(asdict(attempt), allow_nan=False) + "\n"
    except (TypeError, ValueError) as error:
        raise LedgerError(
            f"the row of unit {attempt.unit!r} is not plain JSON ({error})."
        ) from error
