"""Workers of a batch: shards, all at once, killed, interrupted; the merged table is always one."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import polars
import pytest
from mnemoscope.cli import sweep_worker
from mnemoscope.cli.exit_codes import GateFailedError
from mnemoscope.cli.sweep_batch import Batch, BatchResult, work_on_batch
from mnemoscope.models.errors import MnemoscopeError, UnsupportedModelError
from mnemoscope.results import ledger_workers
from mnemoscope.results.errors import RunBusyError, RunCancelled, RunFolderError
from mnemoscope.results.ledger import Attempt, Ledger, read_ledger
from mnemoscope.results.provenance import collect_provenance
from mnemoscope.results.run_reading import list_runs, load_run, verify_run
from mnemoscope.results.run_state import request_cancel
from mnemoscope.results.shards import WHOLE, Shard, Unit

UNITS = tuple(Unit(f"m{m}/p{p}", f"m{m}", 10 + 7 * m) for m in range(4) for p in range(3))


def table(settled: Sequence[Attempt]) -> polars.DataFrame:
    rows = [
        {"unit": one.unit, "x": (one.row or {}).get("x"), "error": one.error} for one in settled
    ]
    schema = {"unit": polars.String, "x": polars.Float64, "error": polars.String}
    return polars.DataFrame(rows, schema=schema)


def provenance() -> Any:
    nothing = ("weights_sha256", "tokenizer_sha256", "data_sha256", "prompt_template", "bos_rule")
    return collect_provenance(
        model_id="m",
        **dict.fromkeys(nothing),
        seed=0,
        estimand="none",
        device="cpu",
        dtype="float32",
        attention=None,
    )


def square(name: str) -> dict[str, float]:
    """The work: a number that follows from the unit alone."""
    return {"x": float(sum(map(ord, name)) ** 2) / 7}


def batch(do: Callable[[str], Mapping[str, Any]] = square) -> Batch:
    return Batch("some-work", {"a": 1}, UNITS, do, table, provenance, "Some work")


def work(root: Path, do: Any = square, shard: Shard = WHOLE, **how: Any) -> BatchResult:
    options: dict[str, Any] = {"retry": False, "force": False, "say": lambda text: None, **how}
    return work_on_batch(batch(do), root, shard=shard, tell=lambda done, total: None, **options)


def result(root: Path) -> tuple[bytes, bytes]:
    """What has to be the same however the work was split."""
    (folder,) = root.glob("some-work-*[!r]")
    verify_run(folder)
    return (folder / "table.parquet").read_bytes(), (folder / "rows.jsonl").read_bytes()


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> tuple[bytes, bytes]:
    """The table and rows of one worker that does everything."""
    root = tmp_path_factory.mktemp("whole")
    done = work(root)
    assert done.run is not None
    assert load_run(done.run).table["unit"].to_list() == [unit.name for unit in UNITS]
    return result(root)


def process(root: Path, code: str = "", shard: str = "1/1") -> subprocess.Popen[str]:
    """A worker in a process of its own; `code` may replace `do`."""
    script = (
        "import os, signal, sys, time\n"
        f"sys.path.insert(0, {str(Path(__file__).parent)!r})\n"
        "from pathlib import Path\n"
        "from test_sweep_worker import Shard, square, work\n"
        "from mnemoscope.results import ledger_workers\n"
        "from mnemoscope.cli import sweep_worker\n"
        "ledger_workers.BEAT_SECONDS = sweep_worker.POLL_SECONDS = 0.1\n"
        "root, shard = Path(sys.argv[1]), Shard.parse(sys.argv[2])\n"
        "def do(name):\n"
        "    print(name, flush=True)\n"
        "    return square(name)\n"
        f"{code}\n"
        "print('ready', flush=True)\n"
        "sys.stdin.readline()\n"
        "sys.exit(work(root, do, shard).code)\n"
    )
    return subprocess.Popen(
        [sys.executable, "-c", script, str(root), shard],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )


def together(workers: Sequence[subprocess.Popen[str]]) -> list[str]:
    """Start all at one moment; returns the units that each of them did."""
    for worker in workers:
        assert worker.stdout is not None
        assert worker.stdout.readline() == "ready\n"
    for worker in workers:
        assert worker.stdin is not None
        worker.stdin.write("go\n")
        worker.stdin.flush()
    return [unit for worker in workers for unit in worker.communicate(timeout=60)[0].splitlines()]


@pytest.mark.parametrize("order", [(1, 2, 3), (3, 1, 2)])
def test_shards_merge_to_the_table_of_one_worker(
    whole: tuple[bytes, bytes], order: tuple[int, ...], tmp_path: Path
) -> None:
    did: list[str] = []

    def do(name: str) -> dict[str, float]:
        did.append(name)
        return square(name)

    found = [work(tmp_path, do, Shard(i, 3)) for i in order]
    assert [one.run is None for one in found] == [True, True, False], "the last one merges"
    assert [len(one.open) for one in found[:2]] == [len(UNITS) - 3, 3] or len(found[0].open)
    assert sorted(did) == sorted(unit.name for unit in UNITS)
    assert result(tmp_path) == whole


def test_overlapping_shards_do_nothing_twice(whole: tuple[bytes, bytes], tmp_path: Path) -> None:
    did: Counter[str] = Counter()

    def do(name: str) -> dict[str, float]:
        did[name] += 1
        return square(name)

    for shard in ("2/3", "1/2", "2/2", "1/5", "1/1"):
        work(tmp_path, do, Shard.parse(shard))
    assert did == Counter(unit.name for unit in UNITS)
    assert result(tmp_path) == whole


def test_a_last_word_behind_the_merged_run_does_not_stay(tmp_path: Path) -> None:
    """The worker that shows the batch writes its end while another one removes what it shows."""
    work(tmp_path)
    (final,) = (path for path in tmp_path.glob("some-work-*") if path.suffix != ".ledger")
    partial = tmp_path / f".{final.name}.partial"
    partial.mkdir()
    (partial / "state.json").write_text("{}")
    work(tmp_path)
    assert not partial.exists()


def test_workers_at_once_do_nothing_twice(whole: tuple[bytes, bytes], tmp_path: Path) -> None:
    workers = [process(tmp_path, shard=shard) for shard in ("1/1", "1/1", "1/2", "2/2")]
    assert Counter(together(workers)) == Counter(unit.name for unit in UNITS)
    assert [worker.returncode for worker in workers] == [0] * 4
    work(tmp_path)  # whoever came last has merged; if all left at one moment, this does it
    assert result(tmp_path) == whole
    assert not list(tmp_path.glob("*.ledger/merging-*"))
    assert not list(tmp_path.glob(".*.partial"))


@pytest.mark.parametrize("moment", ["at work", "before it is noted", "after it is noted"])
def test_a_killed_worker_is_taken_over(
    whole: tuple[bytes, bytes], moment: str, tmp_path: Path
) -> None:
    code = (
        "from mnemoscope.results.ledger import Ledger\n"
        f"moment, settle, plain = {moment!r}, Ledger.settle, do\n"
        "def die(): os.kill(os.getpid(), signal.SIGKILL)\n"
        "def do(name):\n"
        "    if name == 'm3/p1' and moment == 'at work': die()\n"
        "    return plain(name)\n"
        "def settled(self, attempt, *a, **k):\n"
        "    if attempt.unit == 'm3/p1' and moment == 'before it is noted': die()\n"
        "    ended = settle(self, attempt, *a, **k)\n"
        "    if attempt.unit == 'm3/p1': die()\n"
        "    return ended\n"
        "Ledger.settle = settled\n"
    )
    dead = process(tmp_path, code, "1/2")
    together([dead])
    assert dead.returncode == -signal.SIGKILL
    said: list[str] = []
    work(tmp_path, shard=Shard(2, 2))
    done = work(tmp_path, shard=Shard(1, 2), say=said.append)
    assert done.code == 0
    assert any("taken over" in line for line in said) == (moment != "after it is noted")
    assert result(tmp_path) == whole


def test_random_kills_lose_nothing(whole: tuple[bytes, bytes], tmp_path: Path) -> None:
    """Two workers are killed somewhere, again and again, until one pair gets through."""
    code = (
        "import random, threading\n"
        "sweep_worker.MOST_DEATHS, begun = 99, []\n"
        "def die(): os.kill(os.getpid(), signal.SIGKILL)\n"
        "def do(name):\n"
        "    if DIES and not begun:\n"
        "        begun.append(threading.Timer(random.uniform(0.0, 0.15), die))\n"
        "        begun[0].start()\n"
        "    time.sleep(0.01)\n"
        "    return square(name)\n"
    )
    for dies in (True, True, False):
        together([process(tmp_path, code.replace("DIES", str(dies))) for _ in range(2)])
    assert work(tmp_path).code == 0
    assert result(tmp_path) == whole


def test_a_worker_that_is_told_to_stop_gives_its_unit_back(
    whole: tuple[bytes, bytes], tmp_path: Path
) -> None:
    """SIGTERM, as a scheduler sends it: 130, and the next worker need not wait."""
    code = (
        "def do(name):\n"
        "    if name == 'm0/p1': os.kill(os.getpid(), signal.SIGTERM); time.sleep(30)\n"
        "    return square(name)\n"
        "from mnemoscope.results.errors import RunCancelled\n"
        "inner = work\n"
        "def work(*a):\n"
        "    try: return inner(*a)\n"
        "    except RunCancelled: sys.exit(130)\n"
    )
    stopped = process(tmp_path, code)
    together([stopped])
    assert stopped.returncode == 130
    ledger = read_ledger(next(tmp_path.glob("*.ledger")))
    assert [one.outcome for one in ledger.attempts()["m0/p1"]] == ["released"]
    assert not list(ledger.workers.iterdir())
    assert [(run.status, run.done) for run in list_runs(tmp_path)] == [("interrupted", 1)]
    assert work(tmp_path).code == 0
    assert result(tmp_path) == whole
    assert [run.status for run in list_runs(tmp_path)] == ["finished"]


def test_a_unit_in_the_hands_of_a_living_worker_is_left_to_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sweep_worker, "POLL_SECONDS", 0.05)
    code = "def do(name):\n    print(name, flush=True); time.sleep(30)\n"
    busy = process(tmp_path, code)
    assert busy.stdin is not None
    assert busy.stdout is not None
    busy.stdout.readline()
    busy.stdin.write("go\n")
    busy.stdin.flush()
    assert busy.stdout.readline() == "m0/p0\n"
    try:
        done = work(tmp_path)
    finally:
        busy.kill()
        busy.communicate()
    assert (done.run, done.open, done.code) == (None, ("m0/p0",), 0)


def test_a_silent_worker_of_another_machine_is_waited_for_then_replaced(
    whole: tuple[bytes, bytes], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stop(name: str) -> Any:
        raise RunFolderError("the disk is full")

    with pytest.raises(RunFolderError):  # makes the ledger
        work(tmp_path, stop)
    ledger = read_ledger(next(tmp_path.glob("*.ledger")))
    assert ledger.claim("m0/p0", 2, "far") is not None
    ledger.workers.mkdir(exist_ok=True)
    (ledger.workers / "far.json").write_text('{"host": "far", "pid": 1}', "utf-8")
    waited: list[float] = []

    def sleep(seconds: float) -> None:
        waited.append(seconds)
        if len(waited) == 3:
            long_ago = time.time() - ledger_workers.STALE_SECONDS - 5
            os.utime(ledger.workers / "far.json", (long_ago, long_ago))

    monkeypatch.setattr(sweep_worker.time, "sleep", sleep)
    assert work(tmp_path).code == 0
    assert len(waited) == 3
    assert result(tmp_path) == whole


def test_a_listing_that_lags_behind_makes_nobody_hurry(
    whole: tuple[bytes, bytes], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A network file system shows another machine's claim late: the link knows, the list not."""
    monkeypatch.setattr(sweep_worker, "POLL_SECONDS", 0.0)
    listed, hidden, claimed = Ledger.attempts, [9], []

    def late(self: Ledger) -> dict[str, tuple[Attempt, ...]]:
        hidden[0] -= 1
        return {k: v for k, v in listed(self).items() if hidden[0] < 0 or k != "m0/p0"}

    def claim(self: Ledger, unit: str, number: int, worker: str) -> Attempt | None:
        claimed.append(unit)
        return first_claim(self, unit, number, worker)

    first_claim = Ledger.claim
    with pytest.raises(RunFolderError):
        work(tmp_path, lambda name: (_ for _ in ()).throw(RunFolderError("stop")))
    ledger = read_ledger(next(tmp_path.glob("*.ledger")))
    for path in (ledger.folder / "units").iterdir():
        path.unlink()
    assert ledger.claim("m0/p0", 1, "who-has-left") is not None
    monkeypatch.setattr(Ledger, "attempts", late)
    monkeypatch.setattr(Ledger, "claim", claim)
    assert work(tmp_path).code == 0
    assert claimed.count("m0/p0") == 2, "once lost, once taken over"
    monkeypatch.undo()
    assert result(tmp_path) == whole


def test_a_unit_that_kills_its_workers_fails_in_the_end(tmp_path: Path) -> None:
    code = "def do(name):\n    os.kill(os.getpid(), signal.SIGKILL)\n"
    for _ in range(sweep_worker.MOST_DEATHS):
        together([process(tmp_path, code)])
    done = work(tmp_path)
    assert done.failed == ("m0/p0",)
    assert "3 workers died" in done.failures["m0/p0"].error
    assert work(tmp_path, retry=True).failed == ()


def test_a_failure_stops_nothing_and_is_retried_on_demand(
    whole: tuple[bytes, bytes], tmp_path: Path
) -> None:
    tried: list[str] = []

    def broken(name: str) -> dict[str, float]:
        tried.append(name)
        if name == "m1/p0":
            raise MnemoscopeError("there is no such head.")
        if name == "m2/p2":
            raise RuntimeError("out of memory\nand a long trace")
        if name == "m3/p0":
            raise RunBusyError("another process has it: wait.")
        return square(name)

    first = work(tmp_path, broken)
    assert first.failed == ("m1/p0", "m2/p2", "m3/p0")
    assert first.run is not None, "all units are settled"
    errors = dict(first.table.select("unit", "error").iter_rows())
    assert errors["m1/p0"] == "there is no such head."
    assert errors["m2/p2"] == "RuntimeError: out of memory"
    assert first.code == 1

    tried.clear()
    again = work(tmp_path, broken)
    assert (tried, again.failed) == ([], first.failed), "not without being asked to"
    work(tmp_path, broken, retry=True)
    assert tried == list(first.failed), "once each, though they fail again"

    assert work(tmp_path, retry=True).failed == ()
    assert result(tmp_path) == whole, "the run is replaced"


def test_a_shard_retries_its_own_units_only(tmp_path: Path) -> None:
    def broken(name: str) -> dict[str, float]:
        raise MnemoscopeError("no.")

    mine = {unit.name for unit in Shard(1, 2).of(UNITS)}
    first = work(tmp_path, broken, Shard(1, 2))
    assert (set(first.failed), first.run) == (mine, None)
    other = work(tmp_path, shard=Shard(2, 2), retry=True)
    assert set(other.failed) == mine
    assert other.code == 0, "the failures are those of another shard"


def test_what_concerns_all_units_stops_the_worker(tmp_path: Path) -> None:
    def full(name: str) -> dict[str, float]:
        raise RunFolderError("the disk is full; free space.")

    with pytest.raises(RunFolderError, match="disk is full"):
        work(tmp_path, full)
    assert work(tmp_path).code == 0


@pytest.mark.parametrize(
    ("errors", "code"),
    [
        ((), 0),
        ((GateFailedError("closed fell."),), 4),
        ((UnsupportedModelError("what is that?"),), 3),
        ((UnsupportedModelError("what is that?"), GateFailedError("closed fell.")), 1),
        ((ValueError("?"),), 1),
    ],
)
def test_exit_codes(errors: tuple[Exception, ...], code: int, tmp_path: Path) -> None:
    by_unit = dict(zip((unit.name for unit in UNITS), errors, strict=False))

    def do(name: str) -> dict[str, float]:
        if name in by_unit:
            raise by_unit[name]
        return square(name)

    assert work(tmp_path, do).code == code


def test_force_starts_over_unless_somebody_works(tmp_path: Path) -> None:
    work(tmp_path)
    did: list[str] = []
    work(tmp_path, lambda name: did.append(name) or square(name), force=True)
    assert len(did) == len(UNITS)
    ledger = read_ledger(next(tmp_path.glob("*.ledger")))
    with ledger.worker() as worker, pytest.raises(RunFolderError, match=worker.name):
        work(tmp_path, force=True)


def test_a_deleted_run_is_merged_again(whole: tuple[bytes, bytes], tmp_path: Path) -> None:
    done = work(tmp_path)
    assert done.run is not None
    shutil.rmtree(done.run)
    work(tmp_path)
    assert result(tmp_path) == whole


def test_a_batch_can_be_cancelled_between_units(tmp_path: Path) -> None:
    def do(name: str) -> dict[str, float]:
        if name == "m0/p2":
            request_cancel(next(tmp_path.glob(".*.partial")))
        return square(name)

    with pytest.raises(RunCancelled):
        work(tmp_path, do)
    ledger = read_ledger(next(tmp_path.glob("*.ledger")))
    assert list(ledger.attempts()) == ["m0/p0", "m0/p1", "m0/p2"]
    assert work(tmp_path).code == 0


def test_cancelling_stops_all_workers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One of them shows the batch as a run; the other one sees that it was cancelled, too."""
    monkeypatch.setattr(sweep_worker, "POLL_SECONDS", 0.05)
    code = "def do(name):\n    print(name, flush=True); time.sleep(30)\n"
    showing = process(tmp_path, code)
    assert showing.stdin is not None
    assert showing.stdout is not None
    showing.stdout.readline()
    showing.stdin.write("go\n")
    showing.stdin.flush()
    assert showing.stdout.readline() == "m0/p0\n"

    def do(name: str) -> dict[str, float]:
        request_cancel(next(tmp_path.glob(".*.partial")))
        return square(name)

    try:
        with pytest.raises(RunCancelled):
            work(tmp_path, do)
    finally:
        showing.kill()
        showing.communicate()
    ledger = read_ledger(next(tmp_path.glob("*.ledger")))
    assert list(ledger.attempts()) == ["m0/p0", "m0/p1"]
    assert work(tmp_path).code == 0, "a start anew forgets it"
