"""The page "Heads by role" on the planted checkpoint: map, algebra, saving, empty states."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import parse_qs

import numpy as np
import pytest
import streamlit as st
from mnemoscope.app import role_set_section
from mnemoscope.app.cached import Loaded
from mnemoscope.app.role_export_section import zip_later
from mnemoscope.app.role_exports import head_vis_tree
from mnemoscope.app.role_scores import RoleScores, frame_of
from mnemoscope.app.role_sources import imports_folder
from mnemoscope.app.settings import VARIABLE, Settings, settings_for
from mnemoscope.models.errors import MnemoscopeError
from mnemoscope.models.hooked import HookedModel
from mnemoscope.models.types import HeadId
from mnemoscope.results.head_set import load_head_set
from page_at import button, gone_to, page_at, texts
from planted_ground import CONTEXT_HEAD, MEMORY_HEAD, PROMPT
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
    assert "prune run" in texts(app.code), "the file of before"
    app.text_input(key="expr").set_value("context and not memory").run()
    assert "prune run" not in texts(app.code)
    assert f"set to zero 1 head, {CONTEXT_HEAD}" in texts(app.code)


def live_links(app: AppTest) -> dict[str, dict[str, list[str]]]:
    """Page to address of the links that switch the set off."""
    found = [one.proto for one in app.get("page_link") if one.proto.label.startswith("Switch")]
    return {one.page: parse_qs(one.query_string, keep_blank_values=True) for one in found}


@pytest.mark.parametrize("page", ["explore", "retrieval"])
def test_a_link_switches_off_exactly_the_set(
    served: Settings, monkeypatch: pytest.MonkeyPatch, page: str
) -> None:
    """On a page that was left with other heads, another change and a unit."""
    both = settings_for([*served.models.values(), "engram"], served.runs_root)
    monkeypatch.setenv(VARIABLE, both.to_json())
    left = {"off": ["L0.H0"], "of": "edges", "mode": "scale", "units": "L0.N1"}
    serves = {"explore": "planted", "retrieval": "engram"}[page]  # with room for a haystack
    app = page_at(page, model=serves, length="128", prompt=PROMPT, context="", **left)
    assert app.multiselect(key="off").value == ["L0.H0"]
    app = gone_to(app, "heads", model="planted", expr="memory or context", by="rank", k="1")
    links = live_links(app)
    assert set(links) == {"explore", "retrieval"}
    assert links[page]["off"] == [MEMORY_HEAD, CONTEXT_HEAD]
    assert links[page]["model"] == ["planted"]
    app = gone_to(app, page, **{**links[page], "model": [serves]})
    assert not app.exception
    assert app.multiselect(key="off").value == [MEMORY_HEAD, CONTEXT_HEAD]
    assert app.segmented_control(key="of").value == "output"
    assert app.segmented_control(key="mode").value == "zero"
    assert app.text_input(key="units").value == ""


def test_a_set_too_large_for_an_address_names_the_other_way(
    served: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(role_set_section, "MOST", 1)
    app = page_at("heads", expr="memory or context", by="rank", k="1")
    assert live_links(app) == {}
    assert "2 heads are more than the 1 that a link carries" in texts(app.caption)


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
    found = {one.proto.page: one.proto.query_string for one in app.get("page_link")}
    assert found == dict.fromkeys(("explore", "retrieval"), "model=planted")
    for page in found:
        assert "Start as a job" in [one.label for one in page_at(page, model="planted").button]


def test_a_tree_is_zipped_when_it_is_asked_for_and_keeps_no_model(model: HookedModel) -> None:
    anatomy = model.anatomy
    scores = np.zeros((anatomy.n_layers, anatomy.n_heads))
    role = RoleScores("copy", "retrieval", "a file", "by hand", frame_of(scores))
    tree = head_vis_tree(model, [role], scores > 0, "copy")
    loaded = Loaded(model, "key")
    plain, deep = zip_later(tree, None), zip_later(tree, loaded)
    assert 0 < len(plain()) < len(deep()), "attention comes on top"
    del loaded
    assert plain()
    with pytest.raises(MnemoscopeError, match="no longer loaded"):
        deep()


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
