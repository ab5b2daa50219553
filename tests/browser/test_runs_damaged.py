"""Run folders that somebody deleted or damaged: every page goes on, and says what to do."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from mnemoscope.results.run_folder import load_run, open_run
from visit import WAIT, Visit

pytest.importorskip("streamlit")
NothingToClick = pytest.importorskip("playwright.sync_api").TimeoutError
pytestmark = pytest.mark.browser

WHOLE = "Estimand: direct effect, substitution"
DAMAGES = {
    "state.json": b"{",
    "config.json": b"\x00\xff",
    "table.parquet": b"PAR1 cut",
    "provenance.json": b"[]",
}


@pytest.fixture
def runs(explorer: Any) -> Iterator[Path]:
    """The runs folder; what a test adds to it goes away with the test."""
    root = explorer.folder / "runs"
    before = set(root.iterdir())
    yield root
    for path in set(root.iterdir()) - before:
        shutil.rmtree(path, ignore_errors=True)


def another(runs: Path, run_id: str, number: int) -> Path:
    """A finished run like this one."""
    good = load_run(runs / run_id)
    with open_run(runs, "head-scores", {"model": "planted", "copy": number}) as run:
        run.append("all", {"items": 8})
        return run.finish(good.table, {}, good.provenance)


def test_a_run_that_is_deleted_while_it_is_on_show(visits: Any, explorer: Any, runs: Path) -> None:
    other = another(runs, explorer.run_id, 1)
    visit = visits("runs", run=other.name)
    visit.see(WHOLE)
    visit.settle()
    shutil.rmtree(other)
    with suppress(NothingToClick):  # a page that runs again by itself has no such button any more
        visit.page.get_by_role("radio", name="context", exact=True).click(timeout=10_000)
    visit.see("Start it again on the page of its method.")
    visit.settle()
    visit.shoot("runs-deleted")
    link = visit.page.url
    visit.page.goto(link, timeout=WAIT)  # and once more, from the address
    visit.see("Start it again on the page of its method.")
    cell = visit.page.locator("td").filter(has_text=explorer.run_id).first  # drawn on a canvas
    cell.wait_for(state="attached", timeout=WAIT)
    visit.settle()
    assert exceptions(visit) == []


def test_a_damaged_run_is_named_and_the_others_stay(visits: Any, explorer: Any, runs: Path) -> None:
    damaged = {file: another(runs, explorer.run_id, i) for i, file in enumerate(DAMAGES, start=2)}
    for file, folder in damaged.items():
        (folder / file).write_bytes(DAMAGES[file])
    visit = visits("runs", run=explorer.run_id)
    visit.see(WHOLE)
    assert exceptions(visit) == []
    for file, folder in damaged.items():
        visit.page.goto(f"{explorer.url}/runs?run={folder.name}", timeout=WAIT)
        visit.page.locator('[data-testid="stAlert"]').first.wait_for(timeout=WAIT)
        visit.settle()
        said = " ".join(visit.page.locator('[data-testid="stAlert"]').all_inner_texts())
        assert file in said, f"what is wrong with {file} is said"
        assert exceptions(visit) == []
        visit.shoot(f"runs-damaged-{file}")


def test_pages_of_methods_pass_over_damaged_runs(visits: Any, explorer: Any, runs: Path) -> None:
    folder = another(runs, explorer.run_id, 9)
    (folder / "table.parquet").write_bytes(b"")
    for path, sight in (
        ("", "Save the list"),
        ("heads", "All scores as files"),
        ("neurons", "No run has looked for"),
    ):
        visit: Visit = visits(path, model="planted", source=folder.name)
        visit.see(sight)
        visit.settle()
        assert exceptions(visit) == []
        visit.shoot(f"damaged-source-{path or 'explore'}")


def exceptions(visit: Visit) -> list[str]:
    """Tracebacks on the page, and errors in the console."""
    raised = visit.page.locator('[data-testid="stException"]').all_inner_texts()
    return [*raised, *visit.own_complaints]
