"""Work for a page in a thread of its own: done once, watched, stopped, its errors told."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator

import pytest
from mnemoscope.app import background
from mnemoscope.app.background import StoppedError, Tell, Work
from mnemoscope.models.errors import MnemoscopeError

LONG = 30.0


@pytest.fixture(autouse=True)
def nothing_left() -> Iterator[None]:
    background.drop_all()
    yield
    background.drop_all()


def test_a_result_is_there_when_the_work_has_ended() -> None:
    begun, go_on = threading.Event(), threading.Event()

    def make(tell: Tell) -> str:
        tell(0.25, "first quarter")
        begun.set()
        assert go_on.wait(LONG)
        return "made"

    work = Work(make)
    assert begun.wait(LONG)
    assert (work.share, work.words) == (0.25, "first quarter")
    assert not work.wait(0)
    go_on.set()
    assert work.wait(LONG)
    assert work.value == "made"


def test_stopped_work_ends_at_its_next_word() -> None:
    begun, go_on = threading.Event(), threading.Event()

    def make(tell: Tell) -> None:
        begun.set()
        assert go_on.wait(LONG)
        tell(0.5, "half")
        pytest.fail("it should have ended")

    work = Work(make)
    assert begun.wait(LONG)
    work.stop()
    go_on.set()
    assert work.wait(LONG)
    with pytest.raises(StoppedError):
        _ = work.value


def test_an_error_is_told_where_the_result_is_asked_for() -> None:
    def make(_: Tell) -> None:
        raise MnemoscopeError("no room.")

    assert background.start("trial", "a", make).wait(LONG)
    with pytest.raises(MnemoscopeError, match="no room"):
        background.made("trial", "a", make)


def test_the_work_of_a_key_is_done_once_and_its_result_is_shared() -> None:
    times: list[int] = []

    def make(_: Tell) -> int:
        times.append(1)
        return len(times)

    first = background.start("trial", "a", make)
    assert background.start("trial", "a", make) is first
    assert background.made("trial", "a", make) == 1
    assert background.made("trial", "b", make) == 2, "nobody began it: made at once"
    assert background.work_of("trial", "b") is None
    assert background.start("atlas", "a", make) is not first


def test_only_the_last_few_results_of_a_kind_are_kept() -> None:
    for number in range(background.KEPT + 2):
        assert background.start("trial", number, lambda _: 0).wait(LONG)
    background.start("atlas", 0, lambda _: 0)
    assert background.work_of("trial", 0) is None
    assert background.work_of("trial", 1) is not None
    background.drop("trial", 1)
    assert background.work_of("trial", 1) is None
    background.drop_all()
    assert background.work_of("atlas", 0) is None


class Held:
    """Works that go on until they are let go, one after the other."""

    def __init__(self) -> None:
        self.begun: list[str] = []
        self._go_on: dict[str, threading.Event] = {}

    def start(self, name: str) -> Work:
        """Begin one; returns once it is at work, or waits for its turn."""
        self._go_on[name] = threading.Event()

        def make(tell: Tell) -> str:
            self.begun.append(name)
            tell(0.5, "half")
            assert self._go_on[name].wait(LONG)
            tell(0.9, "nearly")
            return name

        work = background.start("rates", name, make)
        until(lambda: work.words != "")
        return work

    def let_go(self, name: str) -> None:
        self._go_on[name].set()


def until(holds: Callable[[], bool]) -> None:
    deadline = time.monotonic() + LONG
    while not holds():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.005)


@pytest.fixture
def held(monkeypatch: pytest.MonkeyPatch) -> Iterator[Held]:
    monkeypatch.setattr(background, "EVERY", 0.01)
    held = Held()
    yield held
    for name in held._go_on:
        held.let_go(name)


def test_one_more_of_a_kind_waits_for_those_that_came_before_and_stops_none(held: Held) -> None:
    names = [f"user {number}" for number in range(background.AT_ONCE + 2)]
    works = {name: held.start(name) for name in names}
    first, *_, third, last = names
    assert held.begun == names[: background.AT_ONCE]
    assert (
        works[third].words
        == f"in line behind {background.AT_ONCE} others, {background.AT_ONCE} at a time"
    )
    assert (
        works[last].words
        == f"in line behind {background.AT_ONCE + 1} others, {background.AT_ONCE} at a time"
    )
    held.let_go(first)
    assert works[first].wait(LONG)
    assert works[first].value == first, "nobody stopped it"
    until(lambda: works[third].words == "half")
    assert held.begun == names[: background.AT_ONCE + 1], "first come, first served"
    held.let_go(third)
    until(lambda: works[last].words == "half")
    for name in names:
        held.let_go(name)
        assert works[name].wait(LONG)
        assert works[name].value == name


def test_other_kinds_do_not_wait(held: Held) -> None:
    for number in range(background.AT_ONCE):
        held.start(f"user {number}")
    assert background.start("trial", "mine", lambda _: 1).wait(LONG)


def test_work_that_waits_can_be_stopped_and_is_never_begun(held: Held) -> None:
    names = [f"user {number}" for number in range(background.AT_ONCE + 1)]
    *_, waiting = [held.start(name) for name in names]
    background.drop("rates", names[-1])
    assert waiting.wait(LONG)
    with pytest.raises(StoppedError):
        _ = waiting.value
    assert names[-1] not in held.begun


def test_stopped_work_keeps_its_place_until_it_has_ended(held: Held) -> None:
    names = [f"user {number}" for number in range(background.AT_ONCE + 1)]
    first, *_ = [held.start(name) for name in names]
    background.drop("rates", names[0])
    time.sleep(5 * background.EVERY)  # it looks several times
    assert names[-1] not in held.begun
    held.let_go(names[0])
    assert first.wait(LONG)
    until(lambda: names[-1] in held.begun)


def test_only_what_has_ended_is_forgotten(held: Held) -> None:
    going = held.start("going")
    for number in range(background.KEPT + 2):
        assert background.start("rates", number, lambda _: 0).wait(LONG)
    assert background.work_of("rates", "going") is going
    assert background.work_of("rates", 0) is None
    held.let_go("going")
    assert going.wait(LONG)
    background.start("rates", "one more", lambda _: 0)
    assert background.work_of("rates", "going") is going, "it came first, and ended last"
    assert background.work_of("rates", 1) is None


def test_what_a_page_was_shown_is_not_done_again_when_others_work(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    times: list[int] = []
    monkeypatch.setattr(background.st, "session_state", {})

    def look() -> bool:
        return background.watched("trial", "mine", lambda _: times.append(1), "Working")

    monkeypatch.setattr(background, "SOON", LONG)
    assert look()
    for number in range(background.KEPT + 1):
        assert background.start("trial", number, lambda _: 0).wait(LONG)
    assert background.work_of("trial", "mine") is None
    assert look()
    assert len(times) == 1
    background.drop_all()  # and with it the page's cache
    assert look()
    assert len(times) == 2
