"""What batches show people: their table, what is left, and the ledger while they run."""

from __future__ import annotations

import time
from collections import Counter
from typing import TYPE_CHECKING, Any

from ..results.ledger import Attempt, Ledger, Outcome, counting
from ..results.ledger_workers import last_beat
from .output import say, show_table

if TYPE_CHECKING:
    from .sweep_batch import BatchResult

WAITING, RUNNING, ABANDONED = "waiting", "running", "abandoned"


def show_batch(result: BatchResult, next_step: str) -> None:
    """One row for each settled unit, and how to go on where some failed or are open."""
    show_table("Batch", result.table.columns, list(result.table.iter_rows()))
    total = len(result.table) + len(result.open)
    if result.run is not None:
        say(f"run      {result.run}")
        say(f"table    {result.run / 'table.parquet'}")
    else:
        say(f"ledger   {result.ledger}")
        say(
            f"{len(result.open)} of {total} units are open, in other shards or with other workers. "
            f"Next: mnemoscope sweep status {result.ledger}"
        )
    if result.failed:
        say(
            f"{len(result.failed)} of {total} units failed. Next: mend what the errors name and "
            "run the same command with --retry; finished units are kept."
        )
    elif result.run is not None:
        say(f"Next: {next_step}")


def status_document(ledger: Ledger) -> dict[str, Any]:
    """Where every unit of a ledger stands, as JSON."""
    tried, now = ledger.attempts(), time.time()
    units = [_standing(ledger, unit.name, tried.get(unit.name, ()), now) for unit in ledger.units]
    return {
        "ledger": str(ledger.folder),
        "counts": dict(Counter(unit["status"] for unit in units)),
        "units": units,
    }


def show_status(told: dict[str, Any]) -> None:
    """The same for people."""
    columns = ("unit", "status", "attempts", "worker", "seconds", "error")
    rows = [["-" if unit[c] is None else unit[c] for c in columns] for unit in told["units"]]
    show_table(told["ledger"], columns, rows)
    say(", ".join(f"{count} {status}" for status, count in told["counts"].items()))
    if told["counts"].get(ABANDONED):
        say("abandoned: its worker is dead; any worker of its shard takes it over.")


def _standing(ledger: Ledger, unit: str, tried: tuple[Attempt, ...], now: float) -> dict[str, Any]:
    told: dict[str, Any] = {
        "unit": unit,
        "status": WAITING,
        "attempts": len(tried),
        "worker": None,
        "seconds": None,
        "error": None,
    }
    if not tried:
        return told
    last = counting(tried)
    status = str(last.outcome)
    if last.outcome is Outcome.RELEASED:
        status = WAITING
    elif last.outcome is Outcome.CLAIMED:
        status = ABANDONED if ledger.is_abandoned(last, now) else RUNNING
        beat = last_beat(ledger.workers, last.worker) if last.worker else None
        if beat is not None:
            told["last_beat_seconds_ago"] = round(max(0.0, now - beat), 1)
    return {
        **told,
        "status": status,
        "worker": last.worker or None,
        "seconds": last.seconds,
        "error": last.error or None,
    }
