"""The ledger: one owner for each attempt whoever comes at once, and nothing lost with a worker."""

from __future__ import annotations

import errno
import json
import os
import platform
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from mnemoscope.results import ledger_workers, storage
from mnemoscope.results.errors import LedgerError
from mnemoscope.results.ledger import Ledger, Outcome, counting, open_ledger, read_ledger
from mnemoscope.results.ledger_workers import STALE_SECONDS, is_dead
from mnemoscope.results.shards import Unit

KIND, CONFIG = "some-work", {"what": [1, 2]}
UNITS = [Unit("a/one", "a", 10), Unit("a/two", "a", 10), Unit("b/one", "b")]


@pytest.fixture
def ledger(tmp_path: Path) -> Ledger:
    return open_ledger(tmp_path, KIND, CONFIG, UNITS)


def no_links(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(source: Any, target: Any) -> None:
        raise OSError(errno.EPERM, "no links here")

    monkeypatch.setattr(storage.os, "link", refuse)


def beat_of(ledger: Ledger, name: str, *, age: float = 0.0, **where: Any) -> None:
    """A worker's file, last touched `age` seconds ago, by default on another machine."""
    path = ledger.workers / f"{name}.json"
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps({"host": "elsewhere", "pid": 1, **where}), "utf-8")
    os.utime(path, (time.time() - age, time.time() - age))


def test_an_attempt_has_one_owner(ledger: Ledger) -> None:
    mine = ledger.claim("a/one", 1, "me")
    assert mine is not None
    assert ledger.claim("a/one", 1, "you") is None
    assert ledger.claim("a/two", 1, "you") is not None
    ledger.settle(mine, Outcome.DONE, row={"x": 1.5}, seconds=2.0)
    (seen,) = open_ledger(ledger.root, KIND, CONFIG, UNITS).attempts()["a/one"]
    assert (seen.outcome, seen.worker, seen.row, seen.seconds) == ("done", "me", {"x": 1.5}, 2.0)


@pytest.mark.parametrize("links", [True, False])
def test_who_is_first_is_the_same_without_links(
    ledger: Ledger, links: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not links:
        no_links(monkeypatch)
    assert ledger.claim("a/one", 1, "me") is not None
    assert ledger.claim("a/one", 1, "you") is None
    assert ledger.attempts()["a/one"][0].worker == "me"
    assert not list(ledger.folder.rglob("*.tmp"))


def test_a_link_whose_answer_was_lost_is_ours(
    ledger: Ledger, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A network file system repeats a request; the repeated one finds our own link there."""
    link = os.link

    def lossy(source: Any, target: Any) -> None:
        link(source, target)
        raise FileExistsError(errno.EEXIST, "there already")

    monkeypatch.setattr(storage.os, "link", lossy)
    assert ledger.claim("a/one", 1, "me") is not None
    monkeypatch.undo()
    assert ledger.claim("a/one", 1, "you") is None


def test_processes_that_come_at_once_share_without_overlap(tmp_path: Path) -> None:
    units = [Unit(f"unit {i}") for i in range(40)]
    ledger = open_ledger(tmp_path, KIND, CONFIG, units)
    code = (
        "import sys, time\n"
        "from pathlib import Path\n"
        "from mnemoscope.results.ledger import read_ledger\n"
        "ledger = read_ledger(Path(sys.argv[1]))\n"
        "print('ready', flush=True); sys.stdin.readline()\n"
        "for unit in ledger.units:\n"
        "    if ledger.claim(unit.name, 1, sys.argv[2]): print(unit.name, flush=True)\n"
    )
    workers = [
        subprocess.Popen(
            [sys.executable, "-c", code, str(ledger.folder), f"worker {i}"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        for i in range(4)
    ]
    for worker in workers:
        assert worker.stdout is not None
        assert worker.stdout.readline() == "ready\n"
    for worker in workers:
        assert worker.stdin is not None
        worker.stdin.write("go\n")
        worker.stdin.flush()
    won = Counter(line for w in workers for line in w.communicate()[0].splitlines())
    assert won == Counter(unit.name for unit in units), "each unit once"
    assert {name: len(tried) for name, tried in ledger.attempts().items()} == dict(won)


def test_the_first_worker_decides_units_and_sizes(tmp_path: Path) -> None:
    first = open_ledger(tmp_path, KIND, CONFIG, UNITS)
    later = open_ledger(tmp_path, KIND, CONFIG, [Unit(u.name, u.group, 99) for u in UNITS])
    assert later.units == first.units == tuple(UNITS)


def test_another_batch_is_refused(ledger: Ledger) -> None:
    with pytest.raises(LedgerError, match="another batch"):
        open_ledger(ledger.root, KIND, CONFIG, UNITS[:2])


@pytest.mark.parametrize("text", ["", "{", "[]", '{"schema": "mnemoscope/ledger/9"}'])
def test_a_damaged_ledger_is_named(ledger: Ledger, text: str) -> None:
    (ledger.folder / "ledger.json").write_text(text, "utf-8")
    with pytest.raises(LedgerError, match="delete the folder"):
        read_ledger(ledger.folder)


def test_what_was_done_counts_whatever_came_later(ledger: Ledger) -> None:
    """A worker that was thought dead comes back: it writes its own attempt, and no other."""
    slow, quick = ledger.claim("a/one", 1, "slow"), ledger.claim("a/one", 2, "quick")
    assert slow is not None
    assert quick is not None
    ledger.settle(quick, Outcome.FAILED, error="the folder exists already.", code=1)
    assert counting(ledger.attempts()["a/one"]).outcome is Outcome.FAILED
    ledger.settle(slow, Outcome.DONE, row={})
    assert counting(ledger.attempts()["a/one"]).worker == "slow"


def test_a_row_that_is_no_json_is_refused(ledger: Ledger) -> None:
    mine = ledger.claim("a/one", 1, "me")
    assert mine is not None
    with pytest.raises(LedgerError, match="plain JSON"):
        ledger.settle(mine, Outcome.DONE, row={"x": float("nan")})


def test_names_of_units_are_any_text(tmp_path: Path) -> None:
    names = ["a/b", "a_b", "A/B", "ü" * 300, "../up", ".hidden", "x.0001"]
    ledger = open_ledger(tmp_path, KIND, CONFIG, [Unit(name) for name in names])
    for name in names:
        assert ledger.claim(name, 1, name) is not None
    assert {name: one[0].worker for name, one in ledger.attempts().items()} == {n: n for n in names}


def test_a_claim_that_cannot_be_read_waits_until_it_is_old(ledger: Ledger) -> None:
    assert ledger.claim("a/one", 1, "me") is not None
    (path,) = (ledger.folder / "units").iterdir()
    path.write_bytes(b"")  # without links a file is there before its content is
    (torn,) = ledger.attempts()["a/one"]
    assert torn.outcome is Outcome.CLAIMED
    now = time.time()
    assert not ledger.is_abandoned(torn, now)
    assert ledger.is_abandoned(torn, now + STALE_SECONDS + 1)


def test_a_living_worker_is_not_dead(ledger: Ledger) -> None:
    with ledger.worker() as worker:
        mine = ledger.claim("a/one", 1, worker.name)
        assert mine is not None
        assert not ledger.is_abandoned(mine, worker.now())
    assert ledger.is_abandoned(mine, time.time()), "it left without settling"


def test_whoever_settles_and_leaves_has_abandoned_nothing(ledger: Ledger) -> None:
    """Another worker read the claim before, and looks for its owner after that."""
    with ledger.worker() as worker:
        mine = ledger.claim("a/one", 1, worker.name)
        assert mine is not None
        (seen,) = open_ledger(ledger.root, KIND, CONFIG, UNITS).attempts()["a/one"]
        ledger.settle(mine, Outcome.DONE, row={})
    assert not ledger.is_abandoned(seen, time.time())


def test_a_heart_beats(ledger: Ledger, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ledger_workers, "BEAT_SECONDS", 0.01)
    with ledger.worker() as worker:
        path = ledger.workers / f"{worker.name}.json"
        os.utime(path, (1.0, 1.0))
        deadline = time.monotonic() + 20
        while path.stat().st_mtime < 2.0:
            assert time.monotonic() < deadline
            time.sleep(0.01)


def test_silence_tells_of_a_worker_on_another_machine(ledger: Ledger) -> None:
    beat_of(ledger, "fresh")
    beat_of(ledger, "silent", age=STALE_SECONDS + 5)
    now = time.time()
    assert not is_dead(ledger.workers, "fresh", now)
    assert is_dead(ledger.workers, "silent", now)


def test_the_process_tells_on_this_machine(ledger: Ledger) -> None:
    child = subprocess.Popen([sys.executable, "-c", ""])
    child.wait()
    here = ledger_workers._here()
    beat_of(ledger, "gone", **{**here, "pid": child.pid})
    beat_of(ledger, "living", **here)
    beat_of(ledger, "elsewhere", **{**here, "pid": child.pid, "namespace": "pid:[1]"})
    beat_of(ledger, "namesake", host=platform.node(), boot="another", pid=child.pid, namespace="")
    now = time.time()
    assert is_dead(ledger.workers, "gone", now), "no need to wait"
    for name in ("living", "elsewhere", "namesake"):
        assert not is_dead(ledger.workers, name, now), name


def test_a_damaged_sign_of_life_counts_by_its_age(ledger: Ledger) -> None:
    beat_of(ledger, "odd")
    (ledger.workers / "odd.json").write_bytes(b"\xff")
    assert not is_dead(ledger.workers, "odd", time.time())
    assert is_dead(ledger.workers, "odd", time.time() + STALE_SECONDS + 5)
