"""Every page, in the light and in the dark: it opens, it fits, it is named, the keyboard gets in.

One server serves all of it; the network is blocked throughout.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pytest
from mnemoscope import app
from mnemoscope.app.answers import NEW_TOKENS, Question, resolve_answers
from mnemoscope.app.switched_off import OFF, edits_of, readings
from mnemoscope.models.hooked import HookedModel
from mnemoscope.models.load import load_model
from mnemoscope.models.types import HeadId
from planted_ground import CONTEXT, CONTEXT_HEAD, MEMORY_HEAD, PROMPT
from visit import WAIT, Visit

pytest.importorskip("streamlit")
pytest.importorskip("playwright.sync_api")
pytestmark = pytest.mark.browser

ASKED, TOLD = "The capital of France is", "The capital of France is Rome."
LAST_SIGHTS = {
    "ask": "Does the reverse hold?",
    "explore": "Save the list",
    "neurons": "Save 5 units of capital",
    "retrieval": "Save them as a head set",
    "heads": "Import scores of other projects",
    "provenance": "made once from the corpus",
    "binding": "One pair, both ways",
    "runs": "Provenance",
    "about": "What the numbers mean",
}
"""By page: what stands there when the page has got to its end."""

UNNAMED = """() => [...document.querySelectorAll(
  '[data-testid=stVegaLiteChart], [data-testid=stMain] canvas, [data-testid=stMain] svg[role=img], '
  + '[data-testid=stMain] img')].filter(drawn => {
    const hidden = drawn.closest('[aria-hidden=true], [data-testid=stDataFrame]');
    const chart = drawn.closest('[data-testid=stVegaLiteChart]') ?? drawn;
    return !hidden && !(chart.getAttribute('aria-label') || chart.getAttribute('alt'));
  }).map(drawn => drawn.outerHTML.slice(0, 200))"""
TOO_WIDE = """() => [document.documentElement, document.querySelector('[data-testid=stMain]')]
  .map(part => part.scrollWidth - part.clientWidth)"""
IS_PAINTED = """scheme => {
  const paint = getComputedStyle(document.querySelector('[data-testid=stApp]')).backgroundColor;
  const [red, green, blue] = paint.match(/\\d+/g).map(Number);
  return (red + green + blue < 384) === (scheme === 'dark');
}"""
IN_FIRST_CONTROL = """() => {
  const found = document.activeElement;
  const controls = [...document.querySelectorAll(['SidebarUserContent', 'Main'].map(place =>
    ['input', 'textarea', 'button', 'a[href]', '[tabindex="0"]']
      .map(kind => `[data-testid=st${place}] ${kind}`)).flat().join(','))];
  return controls.find(one => one.checkVisibility() && one.tabIndex >= 0) === found;
}"""


def test_every_page_is_visited() -> None:
    main = (Path(app.__file__).parent / "main.py").read_text()
    assert set(re.findall(r'url_path="(\w+)"', main)) == set(LAST_SIGHTS)


@pytest.mark.parametrize("path", LAST_SIGHTS)
def test_a_page_opens_and_fits(visits: Any, path: str) -> None:
    visit = visits(path, model="engram")
    visit.see(LAST_SIGHTS[path])
    visit.settle()
    keyboard_gets_in(visit)
    for scheme in ("light", "dark"):
        if scheme == "dark":
            visit.page.emulate_media(color_scheme=scheme)
            visit.page.reload(timeout=WAIT)
            visit.see(LAST_SIGHTS[path])
            visit.settle()
        assert visit.page.evaluate(IS_PAINTED, scheme)
        assert visit.page.locator('[data-testid="stException"]').all_inner_texts() == []
        assert visit.page.evaluate(UNNAMED) == [], "a chart has words for who does not see it"
        assert visit.page.evaluate(TOO_WIDE) == [0, 0], "nothing has to be scrolled sideways"
        visit.shoot(f"every-{path}-{scheme}")
    assert visit.own_complaints == []


def keyboard_gets_in(visit: Visit) -> None:
    """Tab from the top of the page comes to the first control of the sidebar or of the page."""
    visit.page.evaluate("document.activeElement.blur()")
    for _ in range(20):
        visit.page.keyboard.press("Tab")
        if visit.page.evaluate(IN_FIRST_CONTROL):
            return
    raise AssertionError("twenty Tabs did not come to the first control")


def test_two_people_do_not_mix(visits: Any, explorer: Any) -> None:
    """Two browser contexts, other models, other heads off, at the same time: each sees what the
    library says of its own. `Visit` opens a context of its own each time."""
    one = Person(load_model(explorer.folder / "planted"), Question(PROMPT, CONTEXT))
    two = Person(load_model("engram"), Question(ASKED, TOLD))
    first = visits(model="planted", off=CONTEXT_HEAD, layer="1", head="5")
    second = visits(
        model="engram",
        prompt=two.question.prompt,
        context=two.question.context,
        off="L4.H2",
        layer="4",
        head="2",
    )
    assert first.page.context != second.page.context
    for visit in (first, second):
        visit.see("random range")
        visit.settle()
    assert changes(first) == pytest.approx(one.changes(CONTEXT_HEAD), abs=0.002)
    assert changes(second) == pytest.approx(two.changes("L4.H2"), abs=0.002)

    first.cell(MEMORY_HEAD).click(timeout=WAIT)
    second.cell("L4.H6").click(timeout=WAIT)
    for visit, person, head in ((first, one, MEMORY_HEAD), (second, two, "L4.H6")):
        visit.see(f"Head {head}")
        visit.settle()
        assert parse_qs(urlsplit(visit.page.url).query)["off"] == [head]
        assert changes(visit) == pytest.approx(person.changes(head), abs=0.002)
        assert visit.own_complaints == []


@dataclass(frozen=True)
class Person:
    """What somebody asks of a model of their own."""

    model: HookedModel
    question: Question

    def changes(self, head: str) -> list[float]:
        """By how much the contrast of each text moves without the head: no page, nobody else."""
        said = self.model.continuations(self.question.texts, NEW_TOKENS)
        answers = resolve_answers(self.question, said, "", "")
        before, after = (
            readings(self.model, self.question, answers, edits)
            for edits in ((), edits_of(OFF, [HeadId.parse(head)]))
        )
        return [(b.contrast or 0) - (a.contrast or 0) for a, b in zip(before, after, strict=True)]


def changes(visit: Visit) -> list[float]:
    """What the page says of the same."""
    shown = visit.page.get_by_text(re.compile(r"^Change of log P\(memory\)")).all_inner_texts()
    return [float(text.split(": ")[1].rstrip(".")) for text in shown]
