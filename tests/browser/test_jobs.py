"""Jobs in a real browser: started on a page, watched from other tabs, cancelled and resumed there
and in a terminal, killed.

Nothing here waits for a time to pass, only for what is to be seen. Screenshots go to the folder
named in MNEMOSCOPE_SCREENSHOTS.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pytest
from mnemoscope.app.jobs import start_job
from mnemoscope.app.settings import settings_for
from mnemoscope.cli.device_turns import turn_on
from mnemoscope.cli.scoring import KIND, ScoreConfig, run_key
from mnemoscope.models.load import load_model
from mnemoscope.results.job_record import read_job_record
from mnemoscope.results.run import RunFolder
from mnemoscope.results.run_state import RunStatus, read_state
from visit import Visit

pytest.importorskip("streamlit")
playwright = pytest.importorskip("playwright.sync_api")
pytestmark = pytest.mark.browser
WAIT = 180_000
"""Milliseconds, for a machine that has much else to do."""
OTHER = "retrieval-scores-0123456789"
CANCELLED = "It was cancelled; what it finished is kept."


@pytest.fixture
def held(explorer: Any, monkeypatch: pytest.MonkeyPatch) -> Iterator[ExitStack]:
    """The CPU is taken by another job until this is closed."""
    monkeypatch.setenv("MNEMOSCOPE_CACHE", str(explorer.folder / "cache"))
    with ExitStack() as stack:
        long_ago = "2020-01-01T00:00:00.000+00:00"
        stack.enter_context(turn_on(lambda: "cpu", OTHER, long_ago, lambda _: None))
        yield stack


def see(tab: Visit, text: str) -> None:
    """Wait until the text stands on the page; the table of runs has it for screen readers too."""
    tab.page.get_by_text(text).filter(visible=True).first.wait_for(timeout=WAIT)


def press(tab: Visit, name: str) -> None:
    button(tab, name).click(timeout=WAIT)


def button(tab: Visit, name: str) -> Any:
    """While a part is drawn anew it may be there twice for a moment; the old one does nothing."""
    found = tab.page.get_by_role("button", name=name, exact=True)
    playwright.expect(found).to_have_count(1, timeout=WAIT)
    return found


def job(tab: Visit, explorer: Any) -> RunFolder:
    """The job that the address names."""
    tab.page.wait_for_function("() => location.search.includes('job=')", timeout=WAIT)
    run_id = parse_qs(urlsplit(tab.page.url).query)["job"][0]
    return RunFolder(explorer.folder / "runs", run_id)


def queued(explorer: Any, subjects: int) -> RunFolder:
    """A job of so many subjects, started as the pages do; every test asks for a run of its own."""
    settings = settings_for(["engram"], explorer.folder / "runs")
    key = run_key(ScoreConfig("engram", subjects=subjects), load_model("engram"))
    return RunFolder(settings.runs_root, start_job(settings, KIND, key))


def terminal(explorer: Any, *words: str) -> subprocess.Popen[bytes]:
    """`mnemoscope runs WORDS` beside the explorer."""
    command = [sys.executable, "-P", "-m", "mnemoscope.cli.main", "runs", *words]
    return subprocess.Popen(command, cwd=explorer.folder, stderr=subprocess.DEVNULL)


def until(holds: Callable[[], bool]) -> None:
    deadline = time.monotonic() + WAIT / 1000
    while not holds():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.01)


def test_started_watched_from_another_tab_cancelled_and_finished(
    visits: Any, explorer: Any, held: ExitStack
) -> None:
    first = visits("explore", model="engram", prompt="The capital of France is", context="")
    first.page.get_by_role("button", name="Start as a job").wait_for(timeout=WAIT)
    first.settle()
    field = first.page.get_by_label("Subjects")
    field.fill("8")
    field.press("Enter")  # by keyboard alone
    folder = job(first, explorer)
    see(first, f"queued behind {OTHER}")  # what another user works on
    first.shoot("job-queued")

    second = visits("runs", dark=True, run=folder.id)
    press(second, "Cancel")
    see(first, CANCELLED)  # nobody touched this tab
    first.page.close()
    button(second, "Resume")
    second.shoot("job-cancelled-dark")

    held.close()
    press(second, "Resume")
    see(second, "It is finished.")
    see(second, "Provenance")
    see(second, "all of it is free again")
    second.shoot("job-finished-dark")
    assert folder.final.is_dir()
    record = read_job_record(folder.final)
    assert record is not None
    assert record.device == "cpu"
    assert first.own_complaints == second.own_complaints == []


def test_steered_from_a_terminal_killed_at_work_and_gone_on_with(
    visits: Any, explorer: Any, held: ExitStack
) -> None:
    """The page tells all of it, and nobody touches it except for the last button."""
    folder = queued(explorer, 30)
    tab = visits("runs", run=folder.id)
    see(tab, f"queued behind {OTHER}")
    assert terminal(explorer, "cancel", folder.id).wait(WAIT / 1000) == 0
    see(tab, CANCELLED)
    resumed = terminal(explorer, "resume", folder.id, "--queue")
    see(tab, f"queued behind {OTHER}")
    held.close()

    until(lambda: read_state(folder.path).status is RunStatus.RUNNING)
    os.kill(read_state(folder.path).pid, signal.SIGKILL)
    assert resumed.wait(WAIT / 1000) == -signal.SIGKILL
    see(tab, "Its process is gone; what it finished is kept.")
    button(tab, "Resume").scroll_into_view_if_needed()
    tab.shoot("job-killed")
    press(tab, "Resume")
    see(tab, "It is finished.")
    assert read_state(folder.path).status is RunStatus.FINISHED
    assert tab.own_complaints == []
