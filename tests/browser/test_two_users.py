"""Two people at once, in browser contexts of their own: what one switches does not reach the other.

Each must see what the library says of their own question, without any page and anybody else.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pytest
from mnemoscope.app.answers import NEW_TOKENS, Question, resolve_answers
from mnemoscope.app.switched_off import NOTHING, Switched
from mnemoscope.app.switched_readings import readings
from mnemoscope.models.hooked import HookedModel
from mnemoscope.models.load import load_model
from mnemoscope.models.types import HeadId
from planted_ground import CLAIM, CONTEXT, CONTEXT_HEAD, MEMORY_HEAD, PROMPT, STORED
from visit import WAIT, Visit

pytest.importorskip("streamlit")
pytest.importorskip("playwright.sync_api")
pytestmark = pytest.mark.browser

ASKED, TOLD = "The capital of France is", "The capital of France is Rome."


@dataclass(frozen=True)
class Person:
    """What somebody asks of a model, and the heads that they switch off, one after the other."""

    model: HookedModel
    label: str
    question: Question
    heads: tuple[str, str]

    @property
    def address(self) -> dict[str, str]:
        """Where they begin: with the first head switched off."""
        head = HeadId.parse(self.heads[0])
        return {
            "model": self.label,
            "prompt": self.question.prompt,
            "context": self.question.context,
            "off": self.heads[0],
            "layer": str(head.layer),
            "head": str(head.head),
        }

    def changes(self, head: str) -> list[float]:
        """By how much the contrast of each text moves without the head."""
        said = self.model.continuations(self.question.texts, NEW_TOKENS)
        answers = resolve_answers(self.question, said, "", "")
        before, after = (
            readings(self.model, self.question, answers, switched)
            for switched in (NOTHING, Switched((HeadId.parse(head),)))
        )
        return [(b.contrast or 0) - (a.contrast or 0) for a, b in zip(before, after, strict=True)]


def test_two_models_do_not_mix(visits: Any, explorer: Any) -> None:
    planted = load_model(explorer.folder / "planted")
    at_once(
        visits,
        Person(planted, "planted", Question(PROMPT, CONTEXT), (CONTEXT_HEAD, MEMORY_HEAD)),
        Person(load_model("engram"), "engram", Question(ASKED, TOLD), ("L4.H2", "L4.H6")),
    )


def test_two_sets_of_heads_of_one_model_do_not_mix(visits: Any, explorer: Any) -> None:
    planted = load_model(explorer.folder / "planted")
    question = Question(PROMPT, CONTEXT)
    at_once(
        visits,
        Person(planted, "planted", question, (CONTEXT_HEAD, MEMORY_HEAD)),
        Person(planted, "planted", question, (MEMORY_HEAD, CONTEXT_HEAD)),
    )


def test_a_third_person_sees_the_model_untouched(visits: Any) -> None:
    """While somebody's heads are off, another tab's plain question is answered by all of them."""
    visits(model="planted", off=CONTEXT_HEAD)  # works in the background
    plain = visits(model="planted")
    plain.see("Save the list")
    plain.settle()
    assert [code.split()[0] for code in plain.code(2)[:2]] == [STORED, CLAIM]


def at_once(visits: Any, *people: Person) -> None:
    """Both begin, then both click another head, each before either has an answer."""
    tabs: list[Visit] = [visits(**person.address) for person in people]
    assert tabs[0].page.context != tabs[1].page.context
    for turn in (0, 1):
        if turn:
            for tab, person in zip(tabs, people, strict=True):
                tab.cell(person.heads[turn]).click(timeout=WAIT)
        for tab, person in zip(tabs, people, strict=True):
            head = person.heads[turn]
            tab.see(f"Head {head}")
            tab.see(re.compile("outside the random range|not better than random"))
            tab.settle()
            assert parse_qs(urlsplit(tab.page.url).query)["off"] == [head]
            assert changes(tab) == pytest.approx(person.changes(head), abs=0.002)
            assert tab.own_complaints == []


def changes(visit: Visit) -> list[float]:
    """What the page says of the changes."""
    shown = visit.page.get_by_text(re.compile(r"^Change of log P\(memory\)")).all_inner_texts()
    return [float(text.split(": ")[1].rstrip(".")) for text in shown]
