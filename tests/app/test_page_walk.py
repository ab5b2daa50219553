"""From any page about a method to any other in one session: what one page was left with breaks no
other, and each finds what it was left with itself."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import streamlit as st
from mnemoscope.app import (
    binding_scene,
    lens_section,
    needle_switch_section,
    neuron_switch_section,
    switch_section,
)
from mnemoscope.app.settings import VARIABLE, settings_for, settings_from_environment
from mnemoscope.models.types import HeadId
from mnemoscope.results.head_set import HeadScore, HeadSet, save_head_set
from page_at import gone_to, page_at
from planted_ground import RITE, TOWN, index, neuron_run_of_engram
from streamlit.testing.v1 import AppTest

CHANGED: dict[str, dict[str, str | list[str]]] = {
    "explore": {
        "role": "context", "layer": "4", "head": "6", "pattern": "without context", "lens": "4",
        "off": ["L4.H6", "L1.H2"], "of": "output", "mode": "scale", "factor": "-1.5",
        "units": "L3.N17", "unit_mode": "scale", "unit_factor": "5",
    },
    "neurons": {
        "relation": "currency", "ask": "The currency of Japan is", "top": "2", "change": "scale",
        "unit_factor": "4",
    },
    "retrieval": {
        "length": "128", "kind": "non-literal", "answer": "free", "reads": "sink", "layer": "2",
        "head": "7", "off": ["L2.H7"], "of": "edges", "mode": "zero", "edges_to": "answer",
    },
    "heads": {"by": "rank", "k": "1", "layer": "1", "head": "2", "map": "memory"},
    "provenance": {
        "corpus": "plain", "text": f"{RITE} Is that so? {TOWN}", "span": "2", "most": "5",
    },
    "binding": {"pairs": "capital", "most_pairs": "32", "wording": "2"},
}  # fmt: skip
"""By page: a view that is none of those that it begins with."""
TIMES = Counter(name for address in CHANGED.values() for name in address)
OWN = {
    view: {name: value for name, value in address.items() if TIMES[name] == 1}
    for view, address in CHANGED.items()
}
"""By page: what no other page of these changes."""
RESULTS = (
    (lens_section, "show_found"),
    (switch_section, "show_change"),
    (neuron_switch_section, "show_readings"),
    (needle_switch_section, "show_trials"),
)
"""What takes long and holds no field that could be left changed."""


@pytest.fixture
def served(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """engram, with something to choose on every page; what takes long is not shown."""
    neuron_run_of_engram(tmp_path / "runs")
    settings = settings_for(["engram"], tmp_path / "runs", [index(tmp_path / "plain")])
    settings.head_sets.mkdir()
    heads = (HeadScore(HeadId(1, 2), 2.0, "memory"),)
    mine = HeadSet("mine", "engram", 6, 8, 4, "by hand", None, heads)
    save_head_set(settings.head_sets / "mine.json", mine)
    monkeypatch.setenv(VARIABLE, settings.to_json())
    monkeypatch.setattr(binding_scene, "LONGEST_WAIT", -1.0)
    for section, result in RESULTS:
        monkeypatch.setattr(section, result, lambda *_: None)
    st.cache_data.clear()
    yield
    st.cache_data.clear()
    st.cache_resource.clear()


def test_any_page_opens_after_any_other_and_changes_nothing_there(served: None) -> None:
    app = page_at("about")
    for view in CHANGED:
        changed(app, view)
    for before in CHANGED:
        changed(app, before)
        for view in (view for view in CHANGED if view != before):
            gone_to(app, view)
            assert not app.error, (before, view, app.error)
            assert held(app, OWN[view]) == OWN[view], (before, view)
            gone_to(app, before)
            assert held(app, CHANGED[before]) == CHANGED[before], (before, view)


def test_heads_of_another_model_are_forgotten_wherever_the_model_is_changed(
    served: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    both = replace(settings_from_environment(), models={"engram": "engram", "twin": "engram"})
    monkeypatch.setenv(VARIABLE, both.to_json())
    app = page_at("explore", off=["L4.H6", "L1.H2"])
    gone_to(app, "neurons")
    app.selectbox(key="model").set_value("twin").run()
    gone_to(app, "explore")
    assert app.selectbox(key="model").value == "twin"
    assert app.multiselect(key="off").value == []


def changed(app: AppTest, view: str) -> None:
    """Open the page by its address, from one whose fields have none of its names (a page strips
    those from links that leave it), and run it once more, as any click does."""
    gone_to(app, "about")
    gone_to(app, view, **CHANGED[view])
    app.run()


def held(app: AppTest, names: Iterable[str]) -> dict[str, str | list[str]]:
    """What the fields of these names hold, as an address says it."""
    values = {name: app.session_state[name] for name in names}
    return {
        name: value if isinstance(value, list) else str(value).removesuffix(".0")
        for name, value in values.items()
    }
