"""What one worker does with a batch: claim a unit, do it, write down what came of it, go on.

It leaves when every unit of its shard is settled, or is in the hands of a worker that it has seen
alive.
"""

from __future__ import annotations

import signal
import threading
import time
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from types import FrameType
from typing import NoReturn

from ..models.errors import MnemoscopeError
from ..results.errors import RunBusyError, RunCancelled, RunFolderError
from ..results.ledger import Attempt, Ledger, Outcome, counting
from ..results.ledger_workers import Worker, last_beat
from ..results.merged_run import Shown
from ..results.provenance import JSON
from ..results.shards import Unit
from .exit_codes import FAILED, exit_code_of

POLL_SECONDS = 2.0
MOST_DEATHS = 3
"""After as many workers in a row that died at a unit, the unit has failed: it may kill them."""

Do = Callable[[str], Mapping[str, JSON]]
"""Does the unit of this name and returns its row. Errors are the unit's, not the batch's."""


@dataclass(frozen=True)
class Shift:
    """One worker's part of a ledger.

    `again` holds the failed attempts that are to be repeated, `lost` the attempts that somebody
    else began first, which a network file system may show only later.
    """

    ledger: Ledger
    units: Sequence[Unit]
    worker: Worker
    again: Mapping[str, int]
    lost: set[tuple[str, int]] = field(default_factory=set)


def work_through(
    ledger: Ledger,
    units: Sequence[Unit],
    do: Do,
    *,
    retry: bool,
    shown: Shown,
    say: Callable[[str], None],
    tell: Callable[[int, int], None],
) -> None:
    """Do the units that nobody else does; with `retry` those too that had failed until now.

    An interruption gives the present unit back and goes on. Raises `RunFolderError` for what
    concerns every unit, as a full disk does.
    """
    with _interruptible(), ledger.worker() as worker:
        tried = ledger.attempts()
        again = {name: one[-1].number for name, one in tried.items() if retry and _failed(one)}
        shift = Shift(ledger, units, worker, again)
        beats: dict[str, float | None] = {}
        while True:
            shown.check_cancelled()
            tried, now = ledger.attempts(), worker.now()
            settled = sum(_is_settled(tried.get(unit.name, ()), again) for unit in units)
            shown.progress(settled, len(units), "")
            tell(settled, len(units))
            free = next((unit for unit in units if _is_free(shift, tried, unit, now)), None)
            if free is not None:
                _try(shift, free.name, tried.get(free.name, ()), do, say)
            elif _all_in_good_hands(shift, tried, beats):
                return
            else:
                time.sleep(POLL_SECONDS)


def _is_free(shift: Shift, tried: Mapping[str, Sequence[Attempt]], unit: Unit, now: float) -> bool:
    attempts = tried.get(unit.name, ())
    if (unit.name, _next_number(attempts)) in shift.lost:
        return False
    if not attempts:
        return True
    match counting(attempts):
        case Attempt(outcome=Outcome.DONE):
            return False
        case Attempt(outcome=Outcome.RELEASED):
            return True
        case Attempt(outcome=Outcome.FAILED) as last:
            return shift.again.get(unit.name) == last.number
        case last:
            return shift.ledger.is_abandoned(last, now)


def _is_settled(attempts: Sequence[Attempt], again: Mapping[str, int]) -> bool:
    if not attempts:
        return False
    last = counting(attempts)
    if last.outcome is Outcome.FAILED:
        return again.get(last.unit) != last.number
    return last.outcome is Outcome.DONE


def _all_in_good_hands(
    shift: Shift, tried: Mapping[str, Sequence[Attempt]], beats: dict[str, float | None]
) -> bool:
    """Whether each unit that is not settled has a worker whose heart was seen to beat.

    `beats` keeps when each one's last sign was at first sight.
    """
    in_good_hands = True
    for unit in shift.units:
        attempts = tried.get(unit.name, ())
        if (unit.name, _next_number(attempts)) in shift.lost:
            in_good_hands = False
            continue
        if not attempts or counting(attempts).outcome is not Outcome.CLAIMED:
            continue
        owner = attempts[-1].worker
        beat = last_beat(shift.ledger.workers, owner) if owner else None
        seen = beats.setdefault(owner, beat)
        if beat is None or seen is None or beat <= seen:
            in_good_hands = False
    return in_good_hands


def _try(
    shift: Shift, name: str, before: Sequence[Attempt], do: Do, say: Callable[[str], None]
) -> None:
    """Claim a unit, unless somebody else is faster, and settle it."""
    ledger = shift.ledger
    number = _next_number(before)
    attempt = ledger.claim(name, number, shift.worker.name)
    if attempt is None:
        shift.lost.add((name, number))
        return
    dead = _deaths(before)
    if dead and dead[-1].worker:
        say(f"{name}: taken over from {dead[-1].worker}, which is dead")
    if len(dead) >= MOST_DEATHS:
        error = (
            f"its last {len(dead)} workers died at it without a word (the last was "
            f"{dead[-1].worker}): see their logs and memory."
        )
        _say_how(ledger.settle(attempt, Outcome.FAILED, error=error, code=FAILED), say)
        return
    started = time.monotonic()
    try:
        ended = _done(ledger, attempt, do, started, say)
    except BaseException:
        with suppress(RunFolderError, OSError):  # on a full disk the claim is left to grow old
            ledger.settle(attempt, Outcome.RELEASED)
        raise
    _say_how(ended, say)


def _done(
    ledger: Ledger, attempt: Attempt, do: Do, started: float, say: Callable[[str], None]
) -> Attempt:
    """Do the unit. Whatever goes wrong in it is its error, unless it concerns all units."""
    try:
        row = do(attempt.unit)
    except RunBusyError as error:
        reason, code = str(error), exit_code_of(error)
    except RunFolderError:
        raise  # a full disk, for example
    except MnemoscopeError as error:
        reason, code = str(error), exit_code_of(error)
    except Exception as error:  # anything else, an error of torch for example, spares the rest
        say(traceback.format_exc())  # one line is enough for the table, not for whoever mends it
        first = (str(error).strip().splitlines() or [""])[0]
        reason, code = f"{type(error).__name__}: {first}", FAILED
    else:
        return ledger.settle(attempt, Outcome.DONE, row=row, seconds=_since(started))
    return ledger.settle(attempt, Outcome.FAILED, error=reason, code=code, seconds=_since(started))


def _say_how(attempt: Attempt, say: Callable[[str], None]) -> None:
    say(f"{attempt.unit}: {attempt.outcome}{': ' + attempt.error if attempt.error else ''}")


def _deaths(attempts: Sequence[Attempt]) -> list[Attempt]:
    """The last attempts that nobody settled."""
    dead: list[Attempt] = []
    for attempt in reversed(attempts):
        if attempt.outcome is not Outcome.CLAIMED:
            break
        dead.insert(0, attempt)
    return dead


def _next_number(attempts: Sequence[Attempt]) -> int:
    return attempts[-1].number + 1 if attempts else 1


def _failed(attempts: Sequence[Attempt]) -> bool:
    return counting(attempts).outcome is Outcome.FAILED


def _since(started: float) -> float:
    return round(time.monotonic() - started, 3)


@contextmanager
def _interruptible() -> Iterator[None]:
    """Let SIGTERM, a scheduler's word, end the block like Ctrl-C (main thread only)."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, _stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _stop(number: int, frame: FrameType | None) -> NoReturn:
    raise RunCancelled("stopped by SIGTERM; start the same command again to go on.")
