"""Files of what is on screen in a real browser, and the saved view opened with the network off."""

from __future__ import annotations

import io
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlencode, urlsplit

import polars
import pytest
from planted_ground import CONTEXT, CONTEXT_HEAD, PROMPT, STORED

pytest.importorskip("streamlit")
pytest.importorskip("playwright.sync_api")
pytest.importorskip("vl_convert")
pytestmark = pytest.mark.browser
WAIT = 60_000
MOST_BYTES = 5_000_000


class Tab:
    """A page of the explorer in a tab of its own."""

    def __init__(self, browser: Any, explorer: Any, path: str, theme: str, **address: str) -> None:
        self.page = browser.new_page(
            viewport={"width": 1280, "height": 900}, color_scheme=theme, accept_downloads=True
        )
        self.page.goto(f"{explorer.url}/{path}?{urlencode(address)}", timeout=WAIT)
        self.button("Save this view").wait_for(timeout=WAIT)
        self.settle()

    def button(self, name: str) -> Any:
        return self.page.get_by_role("button", name=name).first

    def settle(self) -> None:
        app = self.page.locator('[data-testid="stApp"]')
        self.page.wait_for_timeout(500)
        app.and_(self.page.locator('[data-test-script-state="notRunning"]')).wait_for(timeout=WAIT)

    def shoot(self, name: str) -> None:
        """Keep a picture of the whole page, if anybody wants to look."""
        folder = os.environ.get("MNEMOSCOPE_SCREENSHOTS")
        if folder:
            height = self.page.evaluate(
                "document.querySelector('[data-testid=stMain]').scrollHeight"
            )
            self.page.set_viewport_size({"width": 1280, "height": min(height + 60, 4000)})
            self.page.wait_for_timeout(1000)
            self.page.screenshot(path=Path(folder) / f"{name}.png")

    def saved(self, button: Any) -> Any:
        with self.page.expect_download(timeout=WAIT) as waiting:
            button.click()
        return waiting.value

    def saved_view(self) -> Any:
        return self.saved(self.button("Save this view"))


class Offline:
    """A saved file in a browser without any network; every request is noted."""

    def __init__(self, browser: Any, file: Path) -> None:
        self.context = browser.new_context(viewport={"width": 1280, "height": 900}, offline=True)
        self.page = self.context.new_page()
        self.asked: list[str] = []
        self.complaints: list[str] = []
        self.page.on("request", lambda request: self.asked.append(request.url))
        self.page.on("console", lambda message: self.complaints.append(message.text))
        self.page.on("pageerror", lambda error: self.complaints.append(str(error)))
        self.page.goto(file.as_uri(), timeout=WAIT)

    def pictures(self) -> list[dict[str, Any]]:
        return self.page.eval_on_selector_all(
            "img",
            "all => all.map(one => ({alt: one.alt, width: one.naturalWidth, done: one.complete}))",
        )

    def shoot(self, name: str) -> None:
        folder = os.environ.get("MNEMOSCOPE_SCREENSHOTS")
        if folder:
            self.page.screenshot(path=Path(folder) / f"{name}.png", full_page=True)


@pytest.fixture
def open_tab(browser: Any, explorer: Any) -> Iterator[Any]:
    opened: list[Tab] = []

    def tab(path: str, theme: str = "light", **address: str) -> Tab:
        opened.append(Tab(browser, explorer, path, theme, **address))
        return opened[-1]

    yield tab
    for one in opened:
        one.page.close()


def kept(download: Any, folder: Path) -> Path:
    place = folder / download.suggested_filename
    download.save_as(place)
    return place


def test_a_chart_in_four_kinds_and_a_view_that_opens_offline(
    open_tab: Any, browser: Any, tmp_path: Path
) -> None:
    tab = open_tab("explore", theme="dark", prompt=PROMPT, context=CONTEXT)
    tab.page.get_by_test_id("stPopover").first.get_by_role("button").click()
    menu = tab.page.get_by_test_id("stPopoverBody")
    begins = {"PNG": b"\x89PNG", "SVG": b"<svg", "CSV": b"rank,", "Parquet": b"PAR1"}
    for label, start in begins.items():
        file = kept(tab.saved(menu.get_by_role("button", name=label)), tmp_path)
        assert file.name == f"memory-or-context-next-tokens-without-context.{label.lower()}"
        assert file.read_bytes().startswith(start)
    csv, parquet = tmp_path.glob("*.csv"), tmp_path.glob("*.parquet")
    written = polars.read_parquet(io.BytesIO(next(parquet).read_bytes()))
    assert polars.read_csv(next(csv))["id"].to_list() == written["id"].to_list()
    tab.page.keyboard.press("Escape")
    menu.wait_for(state="hidden", timeout=WAIT)

    grid = tab.page.locator('[data-testid="stVegaLiteChart"][aria-label^="Grid of heads"]')
    grid.locator(f'path[aria-label^="{CONTEXT_HEAD} score"]').first.click()
    tab.page.get_by_text("before: ").first.wait_for(timeout=WAIT)
    tab.settle()
    shown = tab.page.locator('[data-testid="stVegaLiteChart"]').count()
    file = kept(tab.saved_view(), tmp_path)
    assert file.stat().st_size < MOST_BYTES
    view = Offline(browser, file)
    view.shoot("saved-explore")
    pictures = view.pictures()
    assert len(pictures) == shown + 1, "and the arcs of the strongest edges"
    assert all(one["width"] > 100 and one["done"] and one["alt"] for one in pictures)
    said = view.page.inner_text("body")
    for words in (PROMPT, STORED, f"Head {CONTEXT_HEAD}", "weights_sha256", "random heads:"):
        assert words in said
    assert view.complaints == []
    assert {urlsplit(url).scheme for url in view.asked} <= {"file", "data"}
    address = parse_qs(urlsplit(view.page.inner_text(".address")).query)
    shown_at = parse_qs(urlsplit(tab.page.url).query)
    assert {name: address.get(name) for name in shown_at} == shown_at, "it leads back to this view"
    assert address["off"] == [CONTEXT_HEAD]


@pytest.mark.parametrize(
    ("path", "address", "words"),
    [
        ("retrieval", {"model": "engram"}, "Attention maps"),
        ("neurons", {"model": "engram"}, "Was anything found?"),
        ("runs", {}, "Provenance"),
    ],
)
def test_views_of_other_pages_open_offline_too(
    open_tab: Any,
    browser: Any,
    tmp_path: Path,
    path: str,
    address: dict[str, str],
    words: str,
) -> None:
    tab = open_tab(path, **address)
    tab.shoot(f"page-{path}")
    charts = tab.page.locator('[data-testid="stVegaLiteChart"]').count()
    file = kept(tab.saved_view(), tmp_path)
    assert file.stat().st_size < MOST_BYTES
    view = Offline(browser, file)
    view.shoot(f"saved-{path}")
    pictures = view.pictures()
    assert len(pictures) >= charts
    assert all(one["width"] > 100 and one["alt"] for one in pictures)
    assert words in view.page.inner_text("body")
    assert view.complaints == []
    assert {urlsplit(url).scheme for url in view.asked} <= {"file", "data"}
