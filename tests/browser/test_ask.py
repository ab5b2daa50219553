"""The entry page in a browser: cards fill by themselves, links carry the question, keyboard only.

Screenshots go to the folder named in MNEMOSCOPE_SCREENSHOTS, where a person can look at them.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any
from urllib.parse import urlencode

import pytest
from planted_ground import CLAIM, CONTEXT, CONTEXT_HEAD, HOSTILE, PROMPT, STORED
from visit import WAIT, Visit

pytest.importorskip("streamlit")
pytest.importorskip("playwright.sync_api")

pytestmark = pytest.mark.browser
CONFLICT = {"prompt": PROMPT, "context": CONTEXT}


@pytest.fixture
def visits(browser: Any, explorer: Any) -> Iterator[Any]:
    """Opens the entry page; at the end nothing may have been asked for outside."""
    opened: list[Visit] = []

    def visit(*, dark: bool = False, **address: str) -> Visit:
        url = f"{explorer.url}/?{urlencode(address)}"
        opened.append(Visit(browser, url, dark=dark))
        return opened[-1]

    yield visit
    for one in opened:
        one.page.close()
    assert [one.outside for one in opened] == [[]] * len(opened)
    assert [one.own_complaints for one in opened] == [[]] * len(opened)


def test_cards_fill_and_a_link_keeps_the_question(visits: Any) -> None:
    visit = visits(**CONFLICT, dark=True)
    visit.see(f"{CONTEXT_HEAD} speaks most for the context answer")
    visit.see(f"look at “{CLAIM}”")
    visit.settle()
    assert "ask_prompt=" in visit.page.url, "the address can be shared"
    visit.shoot("ask-dark")

    link = visit.page.get_by_role("link", name=f"All heads of this prompt, {CONTEXT_HEAD}")
    link.focus()
    visit.page.keyboard.press("Enter")
    visit.see(f"Head {CONTEXT_HEAD}")
    visit.settle()
    assert "/explore?" in visit.page.url
    fields = [visit.page.get_by_role("textbox", name=name) for name in ("Prompt", "Context, put")]
    assert [field.first.input_value() for field in fields] == [PROMPT, CONTEXT]
    assert [code.split()[0] for code in visit.code(2)[:2]] == [STORED, CLAIM]


def test_back_from_a_card_s_page_is_the_same_question_again(visits: Any) -> None:
    visit = visits(**CONFLICT)
    visit.see(f"{CONTEXT_HEAD} speaks most for the context answer")
    visit.settle()
    asked = visit.page.url
    visit.page.get_by_role("link", name=f"Follow {CONTEXT_HEAD} through this context").click()
    visit.see("Which heads read it?")
    visit.settle()
    assert visit.name == "retrieval"
    visit.see(f"the sentence of your text that says “{CLAIM}”")
    visit.page.go_back(timeout=WAIT)
    visit.see(f"{CONTEXT_HEAD} speaks most for the context answer")
    visit.settle()
    assert visit.page.url == asked
    prompt = visit.page.get_by_role("textbox", name="Prompt").first
    assert prompt.input_value() == PROMPT
    visit.page.go_forward(timeout=WAIT)
    visit.see(f"the sentence of your text that says “{CLAIM}”")


def test_the_tour_goes_by_keyboard_alone(visits: Any) -> None:
    visit = visits(model="engram", prompt="The capital of France is")
    visit.see("Does the reverse hold?")
    visit.settle()
    for name, sight in (
        ("Take the two-minute tour", "Tour, 1 of 5"),
        ("Next: from the context", "Tour, 2 of 5"),
        ("Next: told one way", "holds this way only"),
    ):
        visit.page.get_by_role("button", name=name).focus()
        visit.page.keyboard.press("Enter")
        visit.see(sight)
        visit.settle()
    visit.see("forward only")
    visit.shoot("ask-tour")
    visit.page.get_by_role("button", name="End the tour").press("Enter")
    visit.settle()
    assert visit.page.get_by_text(re.compile("^Tour, ")).count() == 0
    assert "tour=off" in visit.page.url


def test_hostile_text_stays_text_and_a_narrow_page_does_not_scroll_sideways(visits: Any) -> None:
    prompt = "First, mix the florpin with the"
    visit = visits(model="engram", prompt=prompt, context=HOSTILE, corpus="risky")
    visit.see("Verbatim occurrence is no cause")
    visit.settle()
    visit.shoot("ask-risk")
    assert visit.page.locator("img[src*=evil], script:text('z')").count() == 0
    width = (
        "[document.querySelector('[data-testid=stMain]')].map(m => m.scrollWidth - m.clientWidth)"
    )
    visit.page.set_viewport_size({"width": 1024, "height": 768})
    visit.settle()
    assert visit.page.evaluate(width) == [0]
    charts = visit.page.locator('[data-testid="stVegaLiteChart"]')
    charts.first.wait_for(timeout=WAIT)
    assert all(chart.get_attribute("aria-label") for chart in charts.all())
