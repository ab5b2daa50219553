"""Work for a page in a thread of its own: done once, watched, stopped, its errors told."""

from __future__ import annotations

import threading
from collections.abc import Iterator

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
    for number in range(background.KEPT + 1):
        assert background.start("trial", number, lambda _: 0).wait(LONG)
    background.start("atlas", 0, lambda _: 0)
    assert background.work_of("trial", 0) is None
    assert background.work_of("trial", 1) is not None
    background.drop("trial", 1)
    assert background.work_of("trial", 1) is None
    background.drop_all()
    assert background.work_of("atlas", 0) is None


def test_what_a_page_was_shown_is_not_done_again_when_others_work(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    times: list[int] = []
    monkeypatch.setattr(background.st, "session_state", {})

    def look() -> bool:
        return background.watched("trial", "mine", lambda _: times.append(1), "Working")

    monkeypatch.setattr(background, "SOON", LONG)
    assert look()
    for number in range(background.KEPT):
        background.start("trial", number, lambda _: 0)
    assert background.work_of("trial", "mine") is None
    assert look()
    assert len(times) == 1
    background.drop_all()  # and with it the page's cache
    assert look()
    assert len(times) == 2
