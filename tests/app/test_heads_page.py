"""The page "Heads by role" on the planted checkpoint: map, algebra, saving, empty states."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
import streamlit as st
from mnemoscope.app.role_sources import imports_folder
from mnemoscope.app.settings import Settings
from mnemoscope.models.types import HeadId
from mnemoscope.results.head_set import load_head_set
from page_at import button, page_at, texts
from planted_ground import CONTEXT_HEAD, MEMORY_HEAD
from streamlit.testing.v1 import AppTest


@pytest.fixture(autouse=True)
def empty_caches() -> Iterator[None]:
    st.cache_data.clear()
    yield
    st.cache_resource.clear()


@pytest.fixture
def served(settings: Settings, scored: Path) -> Settings:
    shutil.copytree(scored, settings.runs_root)
    return settings


def map_spec(app: AppTest) -> dict:
    (chart,) = app.get("arrow_vega_lite_chart") or app.get("vega_lite_chart")
    return json.loads(chart.proto.spec)


def test_a_first_visit_shows_the_latest_run_and_a_question(served: Settings) -> None:
    app = page_at("heads")
    (run,) = app.multiselect(key="sources").value
    assert run.startswith("head-scores-")
    assert app.multiselect(key="show").value == ["memory", "context"]
    assert app.text_input(key="expr").value == "memory and not context"
    assert len(map_spec(app)["layer"]) == 3
    assert "not better than random" in texts(app.caption)
    assert not app.error


def test_an_address_restores_rule_question_and_head(served: Settings) -> None:
    app = page_at("heads", expr="context - memory", by="rank", k="1", layer="1", head="5")
    assert f"Head {CONTEXT_HEAD}" in texts(app.subheader)
    assert "The set: 1 head" in texts(app.header)
    assert CONTEXT_HEAD in texts(app.markdown)
    roles = next(d.value for d in app.dataframe if "chosen by" in d.value)
    assert roles["chosen by"].tolist() == ["the 1 best positive scores"] * 2
    card = next(d.value for d in app.dataframe if "has it" in d.value)
    assert card["has it"].tolist() == [False, True]


def test_one_score_fills_the_map(served: Settings) -> None:
    app = page_at("heads", map="memory")
    assert "conflict heads, direct effect" in texts(app.caption)


def test_an_unreadable_question_leaves_the_rest_of_the_page(served: Settings) -> None:
    app = page_at("heads", expr="memory and nonsense")
    assert "no role 'nonsense' on show: use memory, context" in texts(app.error)
    assert "Do roles share heads?" in texts(app.header)
    app.text_input(key="expr").set_value("memory").run()
    assert not app.error


def test_the_set_is_saved_with_where_it_comes_from_and_the_dry_run_is_shown(
    served: Settings,
) -> None:
    app = page_at("heads", expr="memory and not context", by="rank", k="1")
    app.text_input(key="role_file").set_value("mine")
    button(app, "Save them").click().run()
    assert not app.error
    saved = load_head_set(served.head_sets / "mine.json")
    assert saved.ids == (HeadId.parse(MEMORY_HEAD),)
    assert saved.heads[0].score > 0
    run = app.multiselect(key="sources").value[0]
    assert saved.run_id == run
    assert saved.method.startswith("set algebra: memory and not context [memory: the 1 best")
    assert run in saved.method
    shown = texts(app.code)
    assert f"--headset {served.head_sets / 'mine.json'}" in shown
    assert MEMORY_HEAD in shown
    button(app, "Save them").click().run()
    assert "exists already" in texts(app.error)


def test_an_empty_set_and_an_empty_role_name_the_next_step(served: Settings) -> None:
    app = page_at("heads", expr="memory and not memory", q="0")
    assert "No head is left" in texts(app.info)
    assert "No head has memory, context by this rule" in texts(app.info)
    assert not [b for b in app.button if b.label.startswith("Save them")]


def test_nothing_measured_names_commands_and_the_folder(settings: Settings) -> None:
    app = page_at("heads")
    assert "Nothing has scored the heads" in texts(app.info)
    assert "mnemoscope retrieval gates" in texts(app.code)
    assert str(imports_folder(settings)) in texts(app.caption)


def test_a_damaged_file_says_so_and_leaves_the_others(served: Settings) -> None:
    folder = imports_folder(served)
    folder.mkdir()
    (folder / "broken.json").write_text("{")
    (folder / "<script>.json").write_text('{"1-2": [0.9], "0-0": [0.0]}')
    app = page_at("heads")
    sources = app.multiselect(key="sources")
    assert "broken.json" in sources.options
    app.multiselect(key="sources").set_value([*sources.value, "broken.json", "<script>.json"]).run()
    assert "broken.json is left out" in texts(app.error)
    assert app.multiselect(key="show").options == ["memory", "context", "script"]


def test_no_source_and_no_role_are_states_of_their_own(served: Settings) -> None:
    app = page_at("heads")
    app.multiselect(key="show").set_value([]).run()
    assert "No role is on show" in texts(app.info)
    app.multiselect(key="sources").set_value([]).run()
    assert "No source of scores is chosen" in texts(app.info)
    assert not app.exception
