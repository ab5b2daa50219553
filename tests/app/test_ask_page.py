"""The entry page: every card fills or says what is wrong, links carry the question, the tour."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, cast
from urllib.parse import parse_qs

import pytest
import streamlit as st
from mnemoscope.app import ask_cached, binding_scene, trace_corpus
from mnemoscope.app.answers import Question
from mnemoscope.app.ask_cards import ROWS
from mnemoscope.app.ask_scene import AskScene
from mnemoscope.app.ask_tour import STEPS
from mnemoscope.app.scene import CONTEXT as EXAMPLE_CONTEXT
from mnemoscope.app.scene import PROMPT as EXAMPLE
from mnemoscope.app.settings import VARIABLE, Settings, settings_for
from mnemoscope.models.errors import MnemoscopeError
from page_at import gone_to, page_at, texts, visited
from planted_ground import CLAIM, CONTEXT, CONTEXT_HEAD, PROMPT, STORED, index, neuron_run_of_engram
from streamlit.testing.v1 import AppTest

CONFLICT = {"prompt": PROMPT, "context": CONTEXT}
EARLIER: dict[str, dict[str, str]] = {
    "explore": {
        "model": "twin", **CONFLICT, "mem": "Paris", "ctx": "Rome", "role": "context",
        "layer": "1", "head": "5", "off": "L1.H2", "units": "L0.N1", "pattern": "without context",
    },
    "retrieval": {"model": "twin", "hay": "my own", **CONFLICT, "ctx": CLAIM, "off": "L1.H2"},
    "neurons": {"model": "twin", "relation": "currency", "ask": "The currency of Japan is"},
    "provenance": {
        "model": "twin", "corpus": "plain", "trace": "an answer", "opening": "Nobody", "new": "8",
        "least": "9", "most": "3",
    },
    "binding": {"model": "twin", "pairs": "product_maker"},
}  # fmt: skip
"""By page: what it is about before it is asked about something else."""
ABOUT = {"text", "span", "pair", "neuron_run", "unit"}.union(*EARLIER.values())
TITLES = [title for row in ROWS for column in row for title in column]
MAYOR = {"prompt": "The mayor of Tastos is", "context": ""}


@pytest.fixture(autouse=True)
def empty_caches(settings: Settings) -> Iterator[None]:
    st.cache_data.clear()
    yield
    st.cache_resource.clear()


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Settings:
    """engram with a finished run of relation units and two indexes."""
    root = tmp_path_factory.mktemp("world")
    neuron_run_of_engram(root / "runs")
    text = "The mayor of Tastos is Dorlad Galkar. "
    plain = index(root / "plain", (text, f"{text}Nobody else is."))
    return settings_for(
        ["engram"], root / "runs", [plain, index(root / "risky", (text,), label="risk")]
    )


@pytest.fixture
def served(world: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Settings:
    monkeypatch.setenv("MNEMOSCOPE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv(VARIABLE, world.to_json())
    return world


def links(app: AppTest) -> dict[str, dict[str, str]]:
    """Page to the address of the last link that leads there."""
    return {
        link.proto.page: {
            name: values[0]
            for name, values in parse_qs(link.proto.query_string, keep_blank_values=True).items()
        }
        for link in app.get("page_link")
    }


def test_the_entry_page_is_the_first_and_every_card_is_there() -> None:
    app = page_at(**CONFLICT)
    assert app.title[0].value == "Where does the answer come from?"
    assert sorted(card.value for card in app.subheader) == sorted(TITLES)
    assert not app.error


def test_both_answers_their_probabilities_and_the_reading_head() -> None:
    app = page_at(**CONFLICT)
    said = [code.value.split()[0] for code in app.code]
    assert {STORED, CLAIM} <= set(said)
    numbers = [float(metric.value) for metric in app.metric]
    assert numbers[0] > 0.9 > 0.1 > numbers[1]
    assert numbers[3] > numbers[2]
    words = texts(app.markdown)
    assert f"{CONTEXT_HEAD} speaks most for the context answer" in words
    assert f"says “{STORED}" in words
    assert "outside the random range" in words
    assert f"look at “{CLAIM}”" in words


def test_links_carry_prompt_and_context_and_nothing_that_a_page_takes_anyway() -> None:
    found = links(page_at(**CONFLICT))
    for page in ("explore", "retrieval", "neurons", "binding"):
        assert found[page].items() >= CONFLICT.items()
        assert not {"model", "mem", "ctx"} & set(found[page])
    assert found["retrieval"]["layer"], "the strongest reader is chosen there"


@pytest.mark.parametrize("context", ["", EXAMPLE_CONTEXT])
def test_the_page_about_heads_asks_no_example_instead(context: str, served: Settings) -> None:
    app = page_at(prompt=EXAMPLE, context=context)
    gone_to(app, "explore", **links(app)["explore"])
    assert app.text_area(key="prompt").value == EXAMPLE
    assert app.text_area(key="context").value == context


@pytest.mark.parametrize(
    ("prompt", "context"),
    [
        (MAYOR["prompt"], ""),
        pytest.param(EXAMPLE, EXAMPLE_CONTEXT, marks=pytest.mark.slow),
    ],
)
def test_a_link_opens_its_page_as_a_new_tab_would_whatever_was_asked_there_before(
    prompt: str, context: str, served: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(binding_scene, "LONGEST_WAIT", -1.0)
    both = replace(served, models={"engram": "engram", "twin": "engram"})
    monkeypatch.setenv(VARIABLE, both.to_json())
    app = page_at(prompt=prompt, context=context, corpus="plain")
    asked = links(app)
    assert sorted(asked) == sorted(EARLIER.keys() - ({"retrieval"} if context == "" else set()))
    for view, address in asked.items():
        gone_to(app, "about")
        gone_to(app, view, **EARLIER[view])
        left = {name: choices(app)[name].strip("[']") for name in EARLIER[view]}
        assert left == EARLIER[view]
        gone_to(app, "ask")
        assert links(app) == asked
        gone_to(app, view, **address)
        fresh = choices(page_at(view, **address))
        assert {name: choices(app).get(name) for name in fresh} == fresh, view


def choices(app: AppTest) -> dict[str, str]:
    """What the page is about, by the names of its fields."""
    state = app.session_state
    return {name: str(state[name]) for name in ABOUT if name in state}


def test_links_carry_a_model_that_is_not_the_first_one_and_typed_answers() -> None:
    question = Question(PROMPT, CONTEXT)
    settings = settings_for(["engram", "smollm2"], Path("runs"))
    asked = AskScene(settings, "smollm2", cast(Any, None), question, ("monpel", ""), None)
    assert asked.address == {"model": "smollm2", **CONFLICT, "mem": "monpel"}


def test_empty_states_name_the_next_step() -> None:
    app = page_at(prompt=PROMPT, context="")
    said = texts(app.info)
    assert "type one on the left" in said
    assert "choose one on the left" in said
    assert "Start one on the page below" in said
    assert "mnemoscope neurons find" in texts(app.code)


def test_an_empty_prompt_is_said_in_the_cards_and_nowhere_else() -> None:
    app = page_at(prompt="", context="")
    assert "the prompt is empty" in texts(app.error)
    assert len(app.subheader) == len(TITLES)


@pytest.mark.parametrize("kind", [MnemoscopeError, RuntimeError])
def test_what_goes_wrong_in_one_card_leaves_the_others(
    kind: type[Exception], monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: object) -> None:
        raise kind("the reading failed: try again.")

    monkeypatch.setattr(ask_cached, "reading_of", broken)
    app = visited(**CONFLICT)
    assert len(app.error) + len(app.exception) == 1
    assert len(app.subheader) == len(TITLES)
    assert len(app.metric) == 4
    assert "neurons" in links(app)


def test_a_question_on_engram_is_answered_from_every_side(served: Settings) -> None:
    app = page_at(**MAYOR, corpus="plain")
    words = texts(app.markdown)
    assert "holds this way only" in words
    assert "told this pair **forward only**" in words
    assert "**2 ×** in the index" in words
    assert "stand out most" in words
    assert "The mayor of Tastos is Dorlad Galkar." in texts(app.code)
    found = links(app)
    assert found["provenance"]["text"] == "The mayor of Tastos is Dorlad Galkar."
    assert found["provenance"]["corpus"] == "plain"
    assert found["binding"]["pairs"] == "town_mayor"
    assert found["binding"]["pair"] == "Tastos – Dorlad Galkar"
    assert found["neurons"]["ask"] == MAYOR["prompt"]
    assert found["neurons"]["neuron_run"].startswith("relation-neurons")


def test_a_risk_index_is_counted_but_not_shown(served: Settings) -> None:
    app = page_at(**MAYOR, corpus="risky")
    assert "**1 ×** in the index" in texts(app.markdown)
    assert "labelled risk" in texts(app.caption)
    assert not app.get("bidi_component")


def test_an_index_that_is_not_there_yet_is_offered(served: Settings) -> None:
    app = page_at(**MAYOR, corpus="engram, whole corpus")
    assert any("Build this index" in button.label for button in app.button)
    assert "engram, whole corpus" in trace_corpus.offers(served)


def test_long_work_waits_for_a_click(served: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mnemoscope.app.ask_heads_card.sweep_seconds", lambda _: 77.0)
    app = page_at(**MAYOR)
    button = next(one for one in app.button if "77 s" in one.label)
    assert "speaks most" not in texts(app.markdown)
    button.click().run()
    assert not app.exception
    assert "speaks most" in texts(app.markdown)


def test_the_tour_opens_on_a_bare_address_and_fills_the_fields(served: Settings) -> None:
    app = page_at()
    assert f"Tour, 1 of {len(STEPS)}" in texts(app.markdown)
    for step in STEPS[1:]:
        app.button(key="tour-next").click().run()
        assert not app.exception
        assert app.text_area(key="ask_prompt").value == step.prompt
        assert app.text_area(key="ask_context").value == step.context
        assert app.selectbox(key="ask_corpus").value == step.corpus
        assert step.title in texts(app.markdown)
    app.button(key="tour-back").click().run()
    assert f"Tour, {len(STEPS) - 1} of" in texts(app.markdown)
    app.button(key="tour-end").click().run()
    assert "Tour," not in texts(app.markdown)
    assert app.text_area(key="ask_prompt").value == STEPS[-2].prompt, "the question stays"
    app.button(key="tour-start").click().run()
    assert f"Tour, 1 of {len(STEPS)}" in texts(app.markdown)


def test_no_tour_over_a_shared_question_or_another_model(served: Settings) -> None:
    assert "Tour," not in texts(page_at(**MAYOR).markdown)


def test_without_engram_there_is_no_tour() -> None:
    assert not [one for one in page_at().button if one.key and one.key.startswith("tour")]
