"""The page "Heads by role" in a browser: a click, the algebra, saved set, tree out and in again."""

from __future__ import annotations

import io
import os
import re
import zipfile
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

import pytest
from head_vis_contract import check_tree
from mnemoscope.results.head_set import load_head_set
from planted_ground import CONTEXT_HEAD, MEMORY_HEAD
from visit import WAIT, Visit

pytest.importorskip("streamlit")
pytest.importorskip("playwright.sync_api")
pytestmark = pytest.mark.browser


def shot(visit: Visit, name: str) -> None:
    """Keep the whole page as a picture where somebody asked for pictures."""
    folder = os.environ.get("MNEMOSCOPE_SCREENSHOTS")
    if folder:
        visit.page.screenshot(path=str(Path(folder) / f"{name}.png"))


def opened(browser: Any, explorer: Any, *, dark: bool = False, **address: str) -> Visit:
    query = urlencode({"model": "planted", **address})
    visit = Visit(browser, f"{explorer.url}/heads?{query}", dark=dark)
    visit.see("All scores as files")
    visit.settle()
    return visit


def test_a_click_shows_the_head_and_the_address_holds_it(browser: Any, explorer: Any) -> None:
    visit = opened(browser, explorer, by="rank", k="1")
    visit.cell(CONTEXT_HEAD).click(force=True)
    visit.see(f"Head {CONTEXT_HEAD}")
    visit.settle()
    assert re.search(r"layer=1&head=5", visit.page.url)
    shot(visit, "heads-light")
    field = visit.page.get_by_role("textbox", name="Which heads?")
    field.fill("context or memory")
    field.press("Enter")
    visit.see("The set: 2 heads")
    assert visit.outside == []
    visit.page.close()


def test_the_head_of_the_address_is_marked_in_the_map(browser: Any, explorer: Any) -> None:
    visit = opened(browser, explorer, dark=True, layer="1", head="2", by="rank", k="1")
    visit.see(f"Head {MEMORY_HEAD}")
    assert visit.cell(MEMORY_HEAD).get_attribute("stroke") == "#D55E00"
    assert visit.cell("L0.H0").get_attribute("stroke") == "transparent"
    width = visit.page.evaluate(
        "(m => m.scrollWidth - m.clientWidth)(document.querySelector('[data-testid=stMain]'))"
    )
    assert width == 0
    shot(visit, "heads-dark")
    visit.page.close()


def test_a_set_is_saved_and_its_dry_run_shown(browser: Any, explorer: Any) -> None:
    visit = opened(browser, explorer, by="rank", k="1", expr="memory and not context")
    visit.page.get_by_role("button", name="Save them as a head set (1 head)").click()
    visit.see("Dry run: what it would change")
    saved = load_head_set(explorer.folder / "head-sets" / "memory-and-not-context.json")
    assert [str(head) for head in saved.ids] == [MEMORY_HEAD]
    assert "set algebra: memory and not context" in saved.method
    visit.page.close()


def test_a_tree_goes_out_and_is_taken_in_again(browser: Any, explorer: Any) -> None:
    visit = opened(browser, explorer)
    with visit.page.expect_download(timeout=WAIT) as waiting:
        visit.page.get_by_role("button", name="HeadVis tree (zip)").click()
    content = Path(waiting.value.path()).read_bytes()
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        check_tree({name: archive.read(name) for name in archive.namelist()})
    visit.page.get_by_text("Import scores of other projects").click()
    given = {"name": "back.zip", "mimeType": "application/zip", "buffer": content}
    visit.page.locator('input[type="file"]').set_input_files(given)
    visit.page.get_by_text("back.zip").first.wait_for(timeout=WAIT)
    visit.page.get_by_role("button", name="Import", exact=True).click()
    visit.see("Imported back")
    assert (explorer.folder / "imports" / "back" / "scatter_data.json").is_file()
    assert visit.outside == []
    visit.page.close()
