"""Jobs in a real browser: started on a page, followed from another tab, cancelled, resumed, killed.

Screenshots go to the folder named in MNEMOSCOPE_SCREENSHOTS.
"""

from __future__ import annotations

import os
import shutil
import signal
from collections.abc import Iterator
from contextlib import ExitStack
from typing import Any
from urllib.parse import parse_qs, urlencode, urlsplit

import pytest
from mnemoscope.cli.device_turns import turn_on
from mnemoscope.results.run import RunFolder
from mnemoscope.results.run_state import read_state

pytest.importorskip("streamlit")
pytest.importorskip("playwright.sync_api")
pytestmark = pytest.mark.browser
WAIT = 120_000


class Tab:
    """One tab, what it asked for outside and the errors of its console."""

    def __init__(self, browser: Any, url: str, *, dark: bool = False) -> None:
        self.outside: list[str] = []
        self.errors: list[str] = []
        self.page = browser.new_page(
            viewport={"width": 1280, "height": 900}, color_scheme="dark" if dark else "light"
        )
        self.page.route("**/*", self._local_only)
        self.page.on("pageerror", lambda error: self.errors.append(str(error)))
        self.page.goto(url, timeout=WAIT)

    def _local_only(self, route: Any) -> None:
        if urlsplit(route.request.url).hostname in ("127.0.0.1", None):
            route.continue_()
        else:
            self.outside.append(route.request.url)
            route.abort()

    def see(self, text: str) -> None:
        self.page.get_by_text(text).first.wait_for(timeout=WAIT)

    def press(self, name: str) -> None:
        self.page.get_by_role("button", name=name, exact=True).click(timeout=WAIT)

    def job(self) -> str:
        """The id of the job that the address names."""
        self.page.wait_for_function("() => location.search.includes('job=')", timeout=WAIT)
        return parse_qs(urlsplit(self.page.url).query)["job"][0]

    def shoot(self, name: str) -> None:
        folder = os.environ.get("MNEMOSCOPE_SCREENSHOTS")
        if folder:
            self.page.wait_for_timeout(1000)
            self.page.screenshot(path=f"{folder}/{name}.png")


@pytest.fixture
def tabs(browser: Any, explorer: Any) -> Iterator[Any]:
    """Opens tabs; none of them may ask for anything outside or fail in its scripts."""
    opened: list[Tab] = []

    def tab(path: str, *, dark: bool = False, **address: str) -> Tab:
        opened.append(Tab(browser, f"{explorer.url}/{path}?{urlencode(address)}", dark=dark))
        return opened[-1]

    yield tab
    for one in opened:
        one.page.close()
    assert [one.outside for one in opened] == [[]] * len(opened)
    assert [one.errors for one in opened] == [[]] * len(opened)


@pytest.fixture
def held() -> Iterator[ExitStack]:
    """What is let go at the end of a test, however it ends."""
    with ExitStack() as stack:
        yield stack


def folder_of(explorer: Any, run_id: str) -> RunFolder:
    return RunFolder(explorer.folder / "runs", run_id)


def test_started_watched_from_another_tab_cancelled_and_finished(
    tabs: Any, explorer: Any, held: ExitStack, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MNEMOSCOPE_CACHE", str(explorer.folder / "cache"))  # where devices are held
    held.enter_context(turn_on("cpu", "retrieval-scores-0123456789", lambda _: None))
    first = tabs("explore", model="engram", prompt="The capital of France is", context="")
    first.page.get_by_label("Subjects").fill("8")
    first.page.get_by_label("Subjects").press("Enter")  # by keyboard alone
    run_id = first.job()
    first.see("queued behind retrieval-scores-0123456789")  # what another user works on
    first.page.get_by_role("button", name="Cancel", exact=True).scroll_into_view_if_needed()
    first.shoot("job-queued")

    second = tabs("runs", dark=True, run=run_id)
    second.press("Cancel")
    first.see("It was cancelled; what it finished is kept.")  # nobody touched this tab
    second.page.get_by_role("button", name="Resume", exact=True).wait_for(timeout=WAIT)
    second.shoot("job-cancelled-dark")

    first.page.close()
    held.close()
    second.press("Resume")
    second.see("It is finished.")
    second.see("Provenance")
    assert folder_of(explorer, run_id).final.is_dir()
    second.shoot("job-finished-dark")


def test_a_killed_worker_a_deleted_and_a_damaged_folder(tabs: Any, explorer: Any) -> None:
    tab = tabs("explore", model="engram", prompt="The capital of France is", context="")
    tab.page.get_by_label("Subjects").fill("9")
    tab.press("Start as a job")
    folder = folder_of(explorer, tab.job())
    tab.page.get_by_role("button", name="Cancel", exact=True).wait_for(timeout=WAIT)
    tab.page.wait_for_timeout(3000)  # until the process has put its number there
    os.kill(read_state(folder.path).pid, signal.SIGKILL)
    tab.see("Its process is gone; what it finished is kept.")
    tab.page.get_by_role("button", name="Resume", exact=True).scroll_into_view_if_needed()
    tab.shoot("job-killed")

    (folder.partial / "state.json").write_text("{")
    runs = tabs("runs", run=folder.id)
    runs.see("The run's folder is damaged")
    runs.shoot("job-damaged")
    shutil.rmtree(folder.partial)
    gone = tabs("runs", run=folder.id)
    gone.see("Start it again on the page of its method.")
    gone.shoot("job-gone")
    assert gone.page.get_by_text("Traceback").count() == 0
