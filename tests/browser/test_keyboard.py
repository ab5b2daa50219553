"""Without a mouse: menu, fields, switches and small menus of the explorer by keys alone.

That Tab comes to every control of every page stands in `test_every_page`.
"""

from __future__ import annotations

import re
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


FOCUSED = """() => {
  let here = document.activeElement;
  while (here?.shadowRoot?.activeElement) here = here.shadowRoot.activeElement;
  return [here?.dataset.ready, here?.ariaLabel, getComputedStyle(here).outlineStyle];
}"""
"""Of a canvas of ours that has the focus: its name, its words, and whether that is seen."""


def test_a_head_of_the_maps_is_chosen_by_keys(visits: Any) -> None:
    part = {"q0": "200", "q1": "210", "k0": "10", "k1": "30"}
    visit = visits("retrieval", model="engram", length="256", layer="2", head="3", **part)
    visit.page.locator('canvas[data-ready="window"]').wait_for(timeout=WAIT)
    visit.settle()

    def focus_on(name: str) -> list[str]:
        for _ in range(150):
            visit.page.keyboard.press("Tab")
            here: list[str] = visit.page.evaluate(FOCUSED)
            if here[0] == name:
                return here
        raise AssertionError(f"Tab does not come to the {name}")

    assert focus_on("atlas") == [
        "atlas",
        "Attention maps of all heads, one row a layer. L2.H3 is framed.",
        "solid",
    ]
    for key, told in (("ArrowRight", "L2.H4"), ("ArrowDown", "L3.H4"), ("ArrowUp", "L2.H4")):
        visit.page.keyboard.press(key)
        visit.see(f"{told}: Enter chooses it.")
    visit.page.keyboard.press("Enter")
    assert visit.page.evaluate(FOCUSED)[1].endswith("L2.H4 is framed."), "at once"
    visit.see("Map of L2.H4")
    visit.settle()
    assert "layer=2&head=4" in visit.page.url

    assert focus_on("window")[1].startswith("Attention map of L2.H4")
    read = visit.page.locator('.atlas:has(canvas[data-ready="window"]) .readout')
    visit.page.keyboard.press("ArrowDown")
    first = read.inner_text()
    told = re.match(r"peak ≈ (\S+) \((\S+)× even\) · query 200 .* key 10 ", first)
    assert told, first
    assert float(told[2]) == pytest.approx(201 * float(told[1]), rel=0.1), "of 201 keys in sight"
    visit.page.keyboard.press("ArrowDown")
    assert read.inner_text() != first
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
