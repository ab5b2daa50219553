"""One job at a time on a device, in the order in which they were queued, whatever becomes of it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from mnemoscope.cli import device_turns
from mnemoscope.cli.device_turns import turn_on


@pytest.fixture(autouse=True)
def line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A line of this test, looked at often; the folder of its tickets."""
    monkeypatch.setenv("MNEMOSCOPE_CACHE", str(tmp_path))
    monkeypatch.setattr(device_turns, "POLL_SECONDS", 0.01)
    return tmp_path / "devices"


def tickets(line: Path) -> list[str]:
    return sorted(path.name.partition(".")[2] for path in line.glob("*/*.*.*"))


def at(second: int) -> str:
    return f"2026-01-01T00:00:{second:02d}.000+00:00"


def until(holds: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 60
    while not holds():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.005)


class Job(threading.Thread):
    """A thread that takes its turn and works until it may end."""

    def __init__(self, name: str, second: int, device: str = "cpu", *, found: bool = True) -> None:
        super().__init__(daemon=True)
        self.run_id, self.arrived, self.device = f"{name}-0123456789", at(second), device
        self.behind: list[tuple[str, ...]] = []
        self.asks, self.works, self.may_end, self.may_find = (threading.Event() for _ in range(4))
        if found:
            self.may_find.set()
        self.start()

    def run(self) -> None:
        def find() -> str:
            self.asks.set()
            self.may_find.wait()
            return self.device

        with turn_on(find, self.run_id, self.arrived, self.behind.append):
            self.works.set()
            self.may_end.wait()

    def end(self) -> None:
        self.may_end.set()
        self.join(60)


@pytest.fixture
def first() -> Iterator[Job]:
    """A job at work."""
    job = Job("first", 0)
    assert job.works.wait(60)
    yield job
    job.end()


def test_who_was_queued_first_goes_first_however_late_its_process_comes(
    first: Job, line: Path
) -> None:
    third = Job("third", 3)
    until(lambda: third.behind[-1:] == [(first.run_id,)])
    second = Job("second", 2)
    until(lambda: second.behind[-1:] == [(first.run_id,)])
    until(lambda: third.behind[-1:] == [(first.run_id, second.run_id)])
    first.end()
    assert second.works.wait(60)
    until(lambda: third.behind[-1:] == [(second.run_id,)])
    assert not third.works.is_set()
    second.end()
    assert third.works.wait(60)
    third.end()
    assert tickets(line) == []


def test_a_later_job_waits_until_an_earlier_one_knows_its_device() -> None:
    slow = Job("slow", 1, found=False)
    assert slow.asks.wait(60)  # it stands in the line, its device unknown
    quick = Job("quick", 2)
    until(lambda: quick.behind[-1:] == [(slow.run_id,)])
    slow.may_find.set()
    assert slow.works.wait(60)
    assert not quick.works.is_set()
    slow.end()
    assert quick.works.wait(60)
    quick.end()


def test_one_at_work_is_not_interrupted_by_one_that_was_queued_before_it(first: Job) -> None:
    early = Job("early", 0)  # the same moment, and its name comes before
    until(lambda: early.behind[-1:] == [(first.run_id,)])
    assert not early.works.is_set()
    first.end()
    assert early.works.wait(60)
    early.end()


def test_other_devices_do_not_wait(first: Job) -> None:
    other = Job("other", 5, "cuda:0")
    assert other.works.wait(60)
    assert other.behind == []
    other.end()


def test_a_killed_process_leaves_its_place(first: Job, line: Path) -> None:
    code = (
        "from mnemoscope.cli.device_turns import turn_on\n"
        "tell = lambda before: print(*before, flush=True)\n"
        f"turn_on(lambda: 'cpu', 'killed-0', {at(1)!r}, tell).__enter__()"
    )
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline().strip() == first.run_id
    late = Job("late", 2)
    until(lambda: late.behind[-1:] == [(first.run_id, "killed-0")])
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    until(lambda: late.behind[-1:] == [(first.run_id,)])
    assert not any("killed" in name for name in tickets(line))
    first.end()
    assert late.works.wait(60)
    late.end()


def test_who_cannot_tell_its_device_leaves_no_ticket(line: Path) -> None:
    def broken() -> str:
        raise ValueError("no such device")

    with pytest.raises(ValueError, match="no such device"), turn_on(broken, "a-0", at(0), print):
        pass
    assert tickets(line) == []
