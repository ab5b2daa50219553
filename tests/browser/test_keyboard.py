"""Without a mouse: menu, fields, switches and small menus of the explorer by keys alone.

That Tab comes to every control of every page stands in `test_every_page`.
"""

from __future__ import annotations

from typing import Any

import pytest
from planted_ground import CONTEXT_HEAD, MEMORY_HEAD
from visit import WAIT, Visit

pytest.importorskip("streamlit")
pytest.importorskip("playwright.sync_api")
pytestmark = pytest.mark.browser


NAMES = """() => {
  const one = document.activeElement;
  const label = one.closest('label') ?? one.labels?.[0];
  return [one.ariaLabel, one.innerText, label?.innerText].filter(Boolean).map(text => text.trim());
}"""
"""What the control that has the focus is called."""


def tab_to(visit: Visit, name: str, most: int = 150) -> None:
    """Press Tab until the control with this name has the focus."""
    passed: list[str] = []
    for _ in range(most):
        visit.page.keyboard.press("Tab")
        here = visit.page.evaluate(NAMES)
        if name in here:
            return
        passed.append(" ".join(here[:1]))
    raise AssertionError(f"{most} Tabs did not come to {name}, but to {passed}")


def test_a_head_is_chosen_switched_off_and_its_scores_saved(visits: Any) -> None:
    visit = visits(model="planted")
    visit.see(f"Head {MEMORY_HEAD}")
    visit.settle()
    tab_to(visit, "Layer")
    visit.page.keyboard.press("Control+a")
    visit.page.keyboard.type("1")
    visit.page.keyboard.press("Enter")
    visit.settle()
    tab_to(visit, "Head")
    visit.page.keyboard.press("Control+a")
    visit.page.keyboard.type("5")
    visit.page.keyboard.press("Enter")
    visit.see(f"Head {CONTEXT_HEAD}")
    visit.see("outside the random range")
    visit.settle()
    assert f"off={CONTEXT_HEAD}" in visit.page.url, "the list follows what is typed too"

    visit.page.evaluate("document.activeElement.blur()")
    tab_to(visit, "With the sink (first token)")
    visit.page.keyboard.press("Space")
    visit.page.wait_for_url("**with_sink=true**", timeout=WAIT)
    visit.settle()

    save = visit.page.get_by_role("button", name="Save", exact=False).filter(has_text="Save").first
    save.focus()
    visit.page.keyboard.press("Enter")
    visit.page.get_by_role("button", name="CSV").first.wait_for(timeout=WAIT)
    with visit.page.expect_download(timeout=WAIT) as waiting:
        tab_to(visit, "CSV")  # Streamlit puts what is opened behind the rest of the page
        visit.page.keyboard.press("Enter")
    assert waiting.value.suggested_filename.endswith(".csv")
    visit.page.keyboard.press("Escape")
    visit.page.get_by_role("button", name="CSV").first.wait_for(state="hidden", timeout=WAIT)
    assert visit.own_complaints == []


def test_the_menu_goes_by_keys(visits: Any) -> None:
    visit = visits("about")
    visit.see("What the numbers mean")
    visit.settle()
    tab_to(visit, "Runs")
    visit.page.keyboard.press("Enter")
    visit.see("Run folders under")
    visit.settle()
    assert visit.name == "runs"
    assert visit.own_complaints == []
