"""The heads that are picked: the grid, the list of heads to change and the address say the same."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest
import streamlit as st
from mnemoscope.app.settings import Settings
from mnemoscope.models.types import HeadId
from page_at import gone_to, page_at, texts
from planted_ground import CONTEXT, CONTEXT_HEAD, MEMORY_HEAD, PROMPT
from streamlit.testing.v1 import AppTest

CONFLICT = {"prompt": PROMPT, "context": CONTEXT}


@pytest.fixture(autouse=True)
def empty_caches(settings: Settings) -> Iterator[None]:
    st.cache_data.clear()
    yield
    st.cache_resource.clear()


def grid(app: AppTest) -> Any:
    """The grid of heads: the chart that can be clicked."""
    (chart,) = [one for one in app.get("vega_lite_chart") if one.proto.id]
    return chart


def framed(app: AppTest) -> list[str]:
    """The heads that the grid frames from its start."""
    (choice,) = json.loads(grid(app).proto.spec)["params"]
    return [str(HeadId(one["layer"], one["head"])) for one in choice["value"]]


def clicked(app: AppTest, *heads: str) -> AppTest:
    """The page after a click in the grid that leaves these heads picked."""
    points = [{"layer": head.layer, "head": head.head} for head in map(HeadId.parse, heads)]
    states = app._tree.get_widget_states()
    picks = json.dumps({"selection": {"heads": points}})
    states.widgets.add(id=grid(app).proto.id, string_value=picks)
    return app._run(states)


def test_a_grid_frames_the_list_of_its_address_so_that_the_next_shift_click_adds_to_it() -> None:
    listed = [MEMORY_HEAD, CONTEXT_HEAD]
    app = page_at("explore", **CONFLICT, off=[*listed, "L9.H9"], layer="1", head="2")
    assert framed(app) == listed
    clicked(app, *framed(app), "L0.H3")
    assert app.multiselect(key="off").value == ["L0.H3", *listed]
    assert "Head L0.H3" in texts(app.subheader), "the one that was added"
    assert framed(app) == listed, "a chart is not drawn anew for its own click"


def test_without_a_list_the_grid_frames_the_head_on_show() -> None:
    app = page_at("explore", **CONFLICT, layer="0", head="4")
    assert framed(app) == ["L0.H4"]
    assert clicked(app, "L0.H5").multiselect(key="off").value == ["L0.H5"]


def test_a_page_that_is_come_back_to_frames_the_list_that_it_was_left_with() -> None:
    app = clicked(page_at("explore", **CONFLICT), "L0.H3")
    for other in ("about", "retrieval"):
        gone_to(app, other)
        gone_to(app, "explore")
        assert app.multiselect(key="off").value == framed(app) == ["L0.H3"]


def test_a_question_from_the_entry_page_forgets_the_heads_of_the_one_before() -> None:
    app = clicked(page_at("explore", **CONFLICT), "L0.H3", "L0.H4")
    gone_to(app, "ask")
    gone_to(app, "explore", **CONFLICT, layer="1", head="5")
    assert app.multiselect(key="off").value == []
    assert framed(app) == [CONTEXT_HEAD]
    assert f"Head {CONTEXT_HEAD}" in texts(app.subheader)
