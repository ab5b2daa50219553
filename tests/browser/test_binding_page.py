"""The page about facts that hold both ways, in a real browser."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
from visit import WAIT, Visit

pytest.importorskip("streamlit")
pytest.importorskip("playwright.sync_api")
pytestmark = pytest.mark.browser


FEW = {"model": "engram", "pairs": "town_mayor", "most_pairs": "32"}
WAITING = re.compile(r"\(about \d+ s at the present pace\)")


def all_parts(visit: Visit) -> None:
    """Click whatever waits, however busy the machine is, until the swap is there."""
    for _ in range(8):
        visit.settle()
        waiting = visit.page.get_by_role("button", name=WAITING)
        if waiting.count() == 0:
            return
        waiting.first.click()
        visit.page.wait_for_timeout(1000)
    raise AssertionError("a part of the page still waits for a click")


def test_a_pair_the_table_and_the_swap(visits: Any) -> None:
    visit = visits("binding", **FEW, quantity="CKA", recall="MRR", rank="4", into="1")
    visit.see("One pair, both ways")
    all_parts(visit)
    visit.see("De-biased linear CKA")
    visit.see("Dashed: chance")
    visit.see("told both ways")
    prompts = visit.code(4)
    assert prompts[0].startswith("The mayor of ")
    assert " is the mayor of" in prompts[2]
    visit.page.get_by_text("vocabulary read-out rank", exact=True).click()
    visit.see("logit lens")
    visit.settle()
    visit.see("may carry A itself")
    visit.page.get_by_role("radio", name="mapped", exact=True).click()
    visit.page.wait_for_url(re.compile("form=mapped"), timeout=WAIT)
    visit.settle()
    assert "quantity=vocabulary" in visit.page.url
    assert {"recall=MRR", "rank=4", "into=1"} <= set(visit.page.url.split("?")[1].split("&"))
    with visit.page.expect_download() as waiting:
        visit.page.get_by_role("button", name="Report (HTML)").click()
    report = Path(waiting.value.path()).read_text()
    assert "Binding gap" in report
    visit.shoot("binding")
    assert visit.own_complaints == []
