"""The page about facts that hold both ways, on the packaged model and on one that knows none."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import polars
import pytest
import streamlit as st
from mnemoscope.app import binding_pair_section, binding_scene
from mnemoscope.app.binding_curves import QUANTITIES, READOUT
from mnemoscope.app.binding_pairs import TOLD, pair_set, relation_names
from mnemoscope.app.binding_recall import likeliest
from mnemoscope.app.binding_swaps import (
    CLEAN,
    LEAK,
    OTHER,
    PREDICTED,
    REWORDED,
    Swap,
    swap_all,
    swap_pair,
)
from mnemoscope.app.settings import VARIABLE, Settings, settings_for
from mnemoscope.models.errors import MnemoscopeError
from mnemoscope.models.hooked import HookedModel
from mnemoscope.models.load import load_model
from mnemoscope.organisms.engram.pairs import engram_pairs
from mnemoscope.probes.role_prompts import role_prompts
from mnemoscope.probes.role_states import RoleStates, role_states
from mnemoscope.probes.role_swaps import SwapConfig, measure_role_swaps
from mnemoscope.probes.swap_vectors import Arm
from page_at import button, page_at, texts
from streamlit.testing.v1 import AppTest

FEW = {"most_pairs": "32", "pairs": "capital"}


@pytest.fixture(scope="module", autouse=True)
def caches_of_this_file() -> Iterator[None]:
    st.cache_data.clear()
    yield
    st.cache_data.clear()
    st.cache_resource.clear()


@pytest.fixture(autouse=True)
def nothing_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    """However busy the machine is, no part waits for a click."""
    monkeypatch.setattr(binding_scene, "LONGEST_WAIT", 1e9)


@pytest.fixture
def served(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Settings:
    settings = settings_for(["engram"], tmp_path / "runs")
    monkeypatch.setenv(VARIABLE, settings.to_json())
    return settings


@pytest.fixture(scope="module")
def engram() -> HookedModel:
    return load_model("engram")


@pytest.fixture(scope="module")
def states(engram: HookedModel) -> RoleStates:
    few = pair_set(engram, "engram", "capital", 16).relation
    return role_states(engram, role_prompts(engram, few))


def opened(**address: str) -> AppTest:
    """The page at this address, run once."""
    return page_at("binding", **{**FEW, **address})


def metric(app: AppTest, label: str) -> list[str]:
    return [one.value for one in app.metric if one.label == label]


# -- the page -------------------------------------------------------------------------------


def test_a_pair_said_both_ways_is_shown_with_what_was_asked_and_said(served: Settings) -> None:
    app = opened()
    table = app.dataframe[0].value
    both = table[(table["fwd said"] == "✓") & (table["rev said"] == "✓")].iloc[0]
    app.selectbox(key="pair").set_value(f"{both['A']} – {both['B']}").run()
    forward, said, reverse, back = (code.value for code in app.code[:4])
    assert forward == f"The capital of {both['A']} is"
    assert said.startswith(both["B"])
    assert reverse == f"{both['B']} is the capital of"
    assert both["A"] in back
    assert metric(app, "Rank among all names") == [
        f"{both['fwd rank']:.0f} of 32",
        f"{both['rev rank']:.0f} of 32",
    ]
    assert "told both ways" in texts(app.markdown)
    assert not app.error


def test_pairs_told_one_way_and_both_are_told_apart(served: Settings) -> None:
    app = opened(pairs="town_mayor")
    table = app.dataframe[0].value
    assert len(table) == 32
    assert set(table["told"]) == set(TOLD.values()) - {"nobody knows"}
    assert "how each pair was told" in texts(app.caption)
    for words in set(table["told"]):
        app.segmented_control(key="told").set_value(words).run()
        assert set(app.dataframe[0].value["told"]) == {words}


def test_what_is_told_is_what_the_corpus_says(engram: HookedModel) -> None:
    planned = {
        pair.a: pair.told for pair in engram_pairs(relations=("town_mayor",))["town_mayor"].pairs
    }
    shown = pair_set(engram, "engram", "town_mayor", 48)
    assert {pair.told for pair in shown.pairs} == {"both", "forward", "reverse"}
    assert all(planned[pair.a] == pair.told for pair in shown.pairs)


def test_an_address_restores_the_view(served: Settings) -> None:
    app = opened(
        wording="3", quantity="CKA", roles="S-O", recall="MRR",
        form="mapped", rank="4", **{"from": "5", "into": "1"},
    )  # fmt: skip
    assert app.selectbox(key="wording").value == 3
    assert app.segmented_control(key="quantity").value == "CKA"
    assert app.segmented_control(key="rank").value == "4"
    assert [app.slider(key=name).value for name in ("from", "into")] == [5, 1]
    assert "De-biased linear CKA" in texts(app.caption)
    assert not app.error


@pytest.mark.parametrize(
    "address",
    [{"pairs": "nope"}, {"pair": "x"}, {"wording": "99"}, {"quantity": "x"},
     {"from": "99"}, {"whose": "x"}, {"told": "x"}, {"curves": "x"}, {"beside": "x"}],
)  # fmt: skip
def test_a_wrong_address_falls_back_to_what_there_is(
    served: Settings, address: dict[str, str]
) -> None:
    app = opened(**address)
    assert not app.error
    assert "Swap" in texts(app.header)


def test_every_quantity_is_drawn_and_explained(served: Settings) -> None:
    app = opened(pairs="capital")
    for quantity, (_, words) in QUANTITIES.items():
        app.segmented_control(key="quantity").set_value(quantity).run()
        assert not app.exception
        assert not app.error
        expected = "logit lens" if quantity == READOUT else words[0].upper() + words[1:]
        assert expected in texts(app.caption)
    notes = texts(app.markdown)
    assert "Binding gap" in notes
    assert "one table: the tie index is 1 by construction" in notes


def test_the_swap_warns_of_leakage_unless_the_state_is_anothers(served: Settings) -> None:
    app = opened(pairs="capital")
    assert "may carry A itself" in texts(app.warning)
    whose = app.selectbox(key="whose")
    whose.set_value(whose.options[3]).run()
    assert not app.exception
    assert "may carry A itself" not in texts(app.warning)
    assert f"prediction of {whose.options[3].split(' – ')[1]} written in" in texts(app.caption)


def test_long_work_waits_for_a_click(served: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(binding_scene, "LONGEST_WAIT", 0.0)
    app = opened(**{"from": "3"})
    assert not app.dataframe
    assert not app.slider
    assert "mnemoscope binding probe engram --pairs capital" in app.code[-1].value
    button(app, "Ask all 32 pairs both ways").click().run()
    assert len(app.dataframe[0].value) == 32
    button(app, "Read the states").click().run()
    assert app.slider(key="from").value == 3, "as the address says"
    assert re.search(r"about \d+ s", button(app, "Compare the roles").label)


def test_a_row_that_is_clicked_becomes_the_pair(monkeypatch: pytest.MonkeyPatch) -> None:
    state: dict[str, object] = {"pair_table": ("key", ("A – B", "C – D"))}
    monkeypatch.setattr(binding_pair_section.st, "session_state", state)
    state["key"] = {"selection": {"rows": []}}
    binding_pair_section.on_row()
    assert "pair" not in state
    state["key"] = {"selection": {"rows": [1]}}
    binding_pair_section.on_row()
    assert state["pair"] == "C – D"


def test_a_model_that_knows_no_pair_says_so(settings: Settings) -> None:
    app = opened()  # the planted checkpoint has never heard of France
    assert "take another relation" in texts(app.error)
    assert not app.exception


# -- what it computes -----------------------------------------------------------------------


def test_engrams_own_relations_are_for_engram_alone() -> None:
    assert relation_names("engram")[0] == "town_mayor"
    assert "town_mayor" not in relation_names("/models/other")
    assert relation_names("/models/other")[0] == "capital"
    assert len(set(relation_names("engram"))) == len(relation_names("engram"))


def test_the_pairs_on_show_are_the_first_that_the_commands_take(engram: HookedModel) -> None:
    few, more = (pair_set(engram, "engram", "capital", n) for n in (16, 64))
    assert more.pairs[:16] == few.pairs
    with pytest.raises(MnemoscopeError, match="needs 16"):
        pair_set(engram, "engram", "capital", 8)


def test_the_right_name_is_listed_however_unlikely() -> None:
    import numpy as np

    names = likeliest(np.arange(20.0), [str(i) for i in range(20)], 3)
    assert names["name"].to_list() == [*(str(i) for i in range(19, 11, -1)), "3"]
    assert names["rank"].to_list()[-1] == 17
    assert names["right"].to_list() == [False] * 8 + [True]


def test_one_pairs_swap_is_that_of_the_library(engram: HookedModel, states: RoleStates) -> None:
    swap = Swap(4, 2, "raw", None, 5, 5)
    ours = swap_pair(engram, states, swap)
    arm = Arm("predicted")
    grid = measure_role_swaps(
        engram, states, SwapConfig(source_layers=(4,), target_layers=(2,)), arms=[arm]
    )
    assert ours.change(PREDICTED) == pytest.approx(float(grid.gain(arm)[0, 0, 5]), abs=1e-4)
    assert ours.rows.filter(polars.col("what") == CLEAN)["change"].item() == 0


def test_the_state_of_another_entity_is_that_entitys(
    engram: HookedModel, states: RoleStates
) -> None:
    """Written at the embeddings, another name's own reading makes the prompt that name's."""
    other = swap_pair(engram, states, Swap(6, 1, "raw", None, 5, 9))
    own = swap_pair(engram, states, Swap(6, 1, "raw", None, 5, 5))
    assert other.change(PREDICTED) != own.change(PREDICTED)
    assert other.change(OTHER) == own.change(OTHER), "the control stays what it was"
    by_control = SwapConfig().vectors(states).other
    same = swap_pair(engram, states, Swap(6, 1, "raw", None, 5, int(by_control[5])))
    assert same.change(PREDICTED) == pytest.approx(same.change(OTHER), abs=1e-5)


def test_the_mean_of_all_pairs_is_the_mean_of_each(engram: HookedModel, states: RoleStates) -> None:
    every = swap_all(engram, states, (4, 2, "raw", None))
    rows = {row["what"]: row for row in every.iter_rows(named=True)}
    each = [swap_pair(engram, states, Swap(4, 2, "raw", None, i, i)) for i in range(16)]
    for what in (PREDICTED, OTHER, LEAK, REWORDED):
        mean = sum(float(one.change(what) or 0) for one in each) / 16
        assert rows[what]["gain"] == pytest.approx(mean, abs=1e-3)
    assert rows[PREDICTED]["beyond"] == pytest.approx(
        rows[PREDICTED]["gain"] - rows[OTHER]["gain"], abs=1e-6
    )
    assert rows[OTHER]["beyond"] is None
