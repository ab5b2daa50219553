"""A batch and its shards: open the ledger, work, and merge once every unit is settled."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import polars

from ..results.errors import LedgerError, RunFolderError
from ..results.ledger import (
    Attempt,
    Ledger,
    Outcome,
    counting,
    ledger_folder,
    open_ledger,
    read_ledger,
)
from ..results.ledger_workers import is_dead
from ..results.merged_run import publish_merged, shown_as_run
from ..results.provenance import JSON, Provenance
from ..results.report import render_report
from ..results.run import Run
from ..results.shards import Shard, Unit
from .exit_codes import exit_code_of_all
from .sweep_worker import Do, work_through


@dataclass(frozen=True)
class Batch:
    """Many units of one kind of work.

    `table` has a row for each outcome, made of nothing that two attempts would differ in; `extra`
    writes more files into the run before it is finished.
    """

    kind: str
    config: Mapping[str, JSON]
    units: Sequence[Unit]
    do: Do
    table: Callable[[Sequence[Attempt]], polars.DataFrame]
    provenance: Callable[[], Provenance]
    title: str
    extra: Callable[[Run, Sequence[Attempt]], None] | None = None


@dataclass(frozen=True)
class BatchResult:
    """A batch as a worker leaves it. `run` is None while units are open; `table` has one row for
    each that is settled."""

    ledger: Path
    run: Path | None
    shard: Shard
    table: polars.DataFrame
    open: tuple[str, ...]
    failures: Mapping[str, Attempt]
    code: int
    """The exit code: that of the failures in this shard."""

    @property
    def folder(self) -> Path:
        """The finished run, or the ledger as long as there is none."""
        return self.run or self.ledger

    @property
    def failed(self) -> tuple[str, ...]:
        """The units that failed, in whatever shard."""
        return tuple(self.failures)

    def document(self) -> dict[str, Any]:
        """The result as JSON."""
        return {
            "run": None if self.run is None else str(self.run),
            "ledger": str(self.ledger),
            "shard": str(self.shard),
            "units": self.table.to_dicts(),
            "failed": list(self.failed),
            "open": list(self.open),
        }


def work_on_batch(
    batch: Batch,
    runs: Path,
    *,
    shard: Shard,
    retry: bool,
    force: bool,
    say: Callable[[str], None],
    tell: Callable[[int, int], None],
) -> BatchResult:
    """Do a shard of a batch; the worker that settles the last unit merges all of them.

    `retry` does failed units of the shard once more, `force` starts the whole batch over. Raises
    `RunFolderError` for what concerns every unit.
    """
    if force:
        _start_over(runs, batch)
    ledger = open_ledger(runs, batch.kind, batch.config, batch.units)
    mine = shard.of(ledger.units)
    before = _outcomes(ledger)
    todo = retry and any(one.outcome is Outcome.FAILED for one in before.values())
    if not todo and all(_settled(before.get(unit.name)) for unit in ledger.units):
        say(f"{ledger.id} is done already (use --force to start over).")
    else:
        with shown_as_run(ledger) as shown:
            work_through(ledger, mine, batch.do, retry=retry, shown=shown, say=say, tell=tell)
    return _result(batch, ledger, shard, {unit.name for unit in mine})


def sized_units(paths: Mapping[str, str]) -> tuple[Unit, ...]:
    """Units by name and the path of their checkpoint, with the bytes of its weights where known;
    those of a checkpoint are of one group."""
    sizes = {path: _size_of(path) for path in dict.fromkeys(paths.values())}
    return tuple(Unit(name, path, sizes[path]) for name, path in paths.items())


def _size_of(path: str) -> int | None:
    """Bytes of a checkpoint's weights, None where they are not lying here under that path."""
    place = Path(path)
    with suppress(OSError):
        if place.is_file():
            return place.stat().st_size
        for pattern in ("*.safetensors", "*.bin", "*.gguf"):
            found = sum(file.stat().st_size for file in place.glob(pattern))
            if found:
                return found
    return None


def _result(batch: Batch, ledger: Ledger, shard: Shard, mine: set[str]) -> BatchResult:
    now = _outcomes(ledger)
    settled = [now[unit.name] for unit in ledger.units if _settled(now.get(unit.name))]
    failures = {one.unit: one for one in settled if one.outcome is Outcome.FAILED}
    unsettled = tuple(unit.name for unit in ledger.units if not _settled(now.get(unit.name)))
    table = batch.table(settled)
    return BatchResult(
        ledger.folder,
        None if unsettled else _merge(batch, ledger, settled, table),
        shard,
        table,
        unsettled,
        failures,
        exit_code_of_all(one.code for name, one in failures.items() if name in mine),
    )


def _merge(
    batch: Batch, ledger: Ledger, settled: Sequence[Attempt], table: polars.DataFrame
) -> Path:
    def finish(run: Run) -> None:
        if batch.extra is not None:
            batch.extra(run, settled)
        provenance = batch.provenance()
        failed = sum(one.outcome is Outcome.FAILED for one in settled)
        seconds = np.array([np.nan if one.seconds is None else one.seconds for one in settled])
        report = render_report(
            title=batch.title,
            claim=f"{len(settled) - failed} of {len(settled)} units are done, {failed} failed.",
            tables={"One row a unit": table},
            figures={},
            provenance=provenance,
        )
        run.finish(table, {"seconds": seconds}, provenance, report_html=report)

    rows = {
        one.unit: {"status": str(one.outcome), "error": one.error, "row": one.row}
        for one in settled
    }
    return publish_merged(ledger, rows, finish)


def _outcomes(ledger: Ledger) -> dict[str, Attempt]:
    return {name: counting(tried) for name, tried in ledger.attempts().items()}


def _settled(attempt: Attempt | None) -> bool:
    return attempt is not None and attempt.outcome in (Outcome.DONE, Outcome.FAILED)


def _start_over(runs: Path, batch: Batch) -> None:
    """Throw the ledger away. Raises `LedgerError` while a worker lives."""
    folder = ledger_folder(runs, batch.kind, batch.config)
    if not folder.exists():
        return
    with suppress(LedgerError):  # a damaged one has nobody to ask for
        workers = read_ledger(folder).workers
        names = [path.stem for path in workers.glob("*.json")]
        living = [name for name in names if not is_dead(workers, name, time.time())]
        if living:
            raise RunFolderError(
                f"{', '.join(living)} still work{'s' * (len(living) == 1)} on {folder.name}: stop "
                "it first, or leave out --force to join."
            )
    doomed = folder.with_name(f".{folder.name}.removed")
    shutil.rmtree(doomed, ignore_errors=True)
    folder.rename(doomed)
    shutil.rmtree(doomed)
