"""The page about who reads the context, on the packaged model and on one without room."""

from __future__ import annotations

import shlex
from collections.abc import Iterator
from pathlib import Path

import pytest
import streamlit as st
from mnemoscope.app import atlas_section, background, needle_rates_section, needle_switched
from mnemoscope.app.atlas_maps import unpacked
from mnemoscope.app.needle_trial import SCORES
from mnemoscope.app.settings import VARIABLE, Settings, settings_for
from mnemoscope.models.types import HeadId
from mnemoscope.results.head_set import load_head_set
from page_at import button, page_at, texts
from streamlit.testing.v1 import AppTest

SHORT = {"length": "256"}


@pytest.fixture(scope="module", autouse=True)
def empty_caches() -> Iterator[None]:
    st.cache_data.clear()
    yield
    st.cache_resource.clear()


@pytest.fixture
def served(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Settings:
    settings = settings_for(["engram"], tmp_path / "runs")
    monkeypatch.setenv(VARIABLE, settings.to_json())
    return settings


def opened(**address: str) -> AppTest:
    """The page at this address, run once."""
    return page_at("retrieval", **{**SHORT, **address})


def picture(app: AppTest, key: str):
    """Header and cells that the canvas of this key was given."""
    (one,) = [e for e in app.get("bidi_component") if e.key == key]
    return unpacked(one.proto.bytes)


def test_a_first_visit_shows_a_needle_that_is_found(served: Settings) -> None:
    app = opened()
    statement, question, said = (code.value for code in app.code)
    answer = statement.rstrip(".").split(" is ")[1]
    assert answer in said
    assert question.startswith("What is the password of ")
    assert "answered from the needle" in texts(app.markdown)
    assert "also answered without" not in texts(app.markdown)
    assert "Hidden at tokens" in texts(app.caption)
    assert not app.error


def test_the_best_head_of_the_score_is_chosen_and_copied(served: Settings) -> None:
    app = opened()
    steps = app.dataframe[0].value
    assert steps["copied"].all()
    assert (steps["token"] == steps["read"]).all()
    assert f"It copied at {len(steps)} of {len(steps)} steps" in texts(app.caption)


def test_an_address_restores_the_trial_the_head_and_the_part(served: Settings) -> None:
    app = opened(
        depth="5", kind="non-literal", seed="3", rival="true", answer="free", reads="sink",
        layer="2", head="7", pool="mass", q0="200", k0="10", k1="50",
    )  # fmt: skip
    assert "Head L2.H7" in texts(app.subheader)
    assert "the rival" in texts(app.caption)
    assert app.select_slider(key="depth").value == 5
    assert app.selectbox(key="reads").value == "sink"
    header, cells = picture(app, "window")
    assert (header["pool"], header["keyEdges"][0], header["keyEdges"][-1]) == ("mass", 10, 50)
    assert header["queryEdges"][0] == 200
    assert cells.shape == (len(header["queryEdges"]) - 1, 40)
    assert header["chosen"] == {"layer": 2, "head": 7}


@pytest.mark.parametrize(
    "address",
    [{"length": "77"}, {"topic": "boat"}, {"depth": "9"}, {"seed": "x"}, {"layer": "99"},
     {"q0": "99999"}, {"answer": "x"}, {"reads": "x"}],
)  # fmt: skip
def test_a_wrong_address_falls_back_to_what_there_is(
    served: Settings, address: dict[str, str]
) -> None:
    app = opened(**address)
    assert not app.error
    assert picture(app, "window")[0]["queryEdges"][0] == 0


@pytest.mark.parametrize("score", list(SCORES))
def test_every_score_has_a_grid_and_a_file(served: Settings, score: str) -> None:
    app = opened(reads=score)
    assert SCORES[score][1].capitalize() in texts(app.caption)
    assert not app.error
    does_not_apply = score == "rival"  # there is none in this haystack
    assert ("does not apply" in texts(app.info)) == does_not_apply


def test_the_atlas_holds_every_head_and_leaves_the_sink_out(served: Settings) -> None:
    app = opened(layer="4", head="6")
    header, cells = picture(app, "atlas")
    sheet = header["sheet"]
    assert (sheet["layers"], sheet["heads"]) == (6, 8)
    assert cells.any()
    assert "they are left out" in texts(app.caption)
    assert (
        f"would rest {atlas_section.even_sink(len(picture(app, 'edges')[1])):.1%} there"
        in texts(app.caption)
    )
    narrower = header["width"]
    app.toggle(key="with_sink").set_value(True).run()
    assert picture(app, "atlas")[0]["width"] > narrower
    assert "they are left out" not in texts(app.caption)


def test_the_maps_of_all_heads_are_the_same_bytes_whichever_is_chosen(served: Settings) -> None:
    """What has not changed by a byte is not sent again."""
    app = opened(layer="4", head="6")

    def sent(key: str) -> bytes:
        (one,) = [e for e in app.get("bidi_component") if e.key == key]
        return bytes(one.proto.bytes)

    maps, window = sent("atlas"), sent("window")
    app.number_input(key="head").set_value(2).run()
    assert sent("atlas") == maps
    assert sent("window") != window
    assert picture(app, "window")[0]["chosen"] == {"layer": 4, "head": 2}


def test_even_attention_rests_on_the_sink_less_and_less() -> None:
    shares = [1, 1, 1, 1, 4 / 5, 4 / 6, 4 / 7, 4 / 8]
    assert atlas_section.even_sink(8) == pytest.approx(sum(shares) / 8)


def test_the_button_goes_to_the_needle_and_back(served: Settings) -> None:
    app = opened()
    button(app, "Answer, needle").click().run()
    header, _ = picture(app, "window")
    assert header["queryEdges"][0] == 256
    needle = next(mark for mark in header["marks"] if mark["colour"] == "#0072B2")
    assert header["keyEdges"][0] == needle["start"] - atlas_section.AROUND
    button(app, "Whole prompt").click().run()
    assert picture(app, "window")[0]["queryEdges"][0] == 0
    assert not app.exception


def test_a_click_in_the_atlas_chooses_the_head_and_a_drag_the_part(
    served: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    state: dict[str, object] = {}
    picked: list[HeadId] = []
    monkeypatch.setattr(atlas_section.st, "session_state", state)
    monkeypatch.setattr(atlas_section.selection, "pick_heads", picked.extend)
    atlas_section.on_picked()
    assert picked == [], "another event of the same canvas is none of ours"
    state[atlas_section.ATLAS] = {"picked": {"layer": 3, "head": 2}}
    atlas_section.on_picked()
    assert picked == [HeadId(3, 2)]
    state[atlas_section.WINDOW] = {"part": {"q0": 4, "q1": 9, "k0": 0, "k1": 7}}
    atlas_section.on_part()
    assert [state[name] for name, _ in atlas_section.EDGES] == [4, 9, 0, 7]
    state[atlas_section.WINDOW] = {"part": {"whole": True}}
    atlas_section.on_part()
    assert [state[name] for name, _ in atlas_section.EDGES] == [None] * 4


def test_a_long_trial_waits_for_a_click(served: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    from mnemoscope.app import background

    monkeypatch.setattr(background, "SOON", 60.0)
    monkeypatch.setattr(background, "LONGEST_WAIT", 0.0)
    app = opened()
    assert "waits for a click" in texts(app.info)
    assert not app.code
    button(app, "Run the trial").click().run()
    assert app.code
    assert [e.key for e in app.get("bidi_component")] == ["window", "edges"]
    button(app, "Draw the maps of all heads").click().run()
    assert [e.key for e in app.get("bidi_component")] == ["atlas", "window", "edges"]


def test_the_best_heads_are_saved_as_a_set_once(served: Settings) -> None:
    app = opened(reads="needle, answering")
    app.text_input(key="reader_file").set_value("mine")
    app.number_input(key="best").set_value(3)
    button(app, "Save them").click().run()
    path = served.head_sets / "mine.json"
    saved = load_head_set(path)
    scores = [one.score for one in saved.heads]
    assert len(scores) == 3
    assert scores == sorted(scores, reverse=True)
    assert {one.role for one in saved.heads} == {"retrieval"}
    assert "256 tokens, depth 3 of 5, forced" in saved.method
    told, dry = (code.value for code in app.code[-2:])
    command = shlex.split(told)
    assert command[:4] == ["mnemoscope", "prune", "run", "engram"]
    assert str(path) in command
    assert "set to zero 3 heads" in dry
    button(app, "Save them").click().run()
    assert "mine" in texts(app.error)
    assert "prune run" in texts(app.code), "the file of before"
    app.number_input(key="best").set_value(2).run()
    assert "prune run" not in texts(app.code)
    assert "set to zero" not in texts(app.code)
    button(app, "Load").click().run()
    assert app.multiselect(key="off").value == [str(head) for head in saved.ids]
    assert "set to zero 3 heads" in texts(app.code), "a dry run of what is changed"
    assert "Unchanged" in texts(app.subheader)


def test_a_model_without_room_for_a_haystack_says_so(settings: Settings) -> None:
    app = opened()  # the planted checkpoint reads too few tokens
    assert "too few tokens" in texts(app.error)
    assert not app.code


def test_the_edges_of_a_head_leave_the_sink_out_and_follow_the_part(served: Settings) -> None:
    app = opened(layer="4", head="6")
    header, body = picture(app, "edges")
    assert len(header["tokens"]) == len(body) > 256
    assert "rests on the first 4 tokens (the sink), which is left out" in texts(app.caption)
    assert "strongest of" in texts(app.caption)
    app.toggle(key="with_sink").set_value(True).run()
    assert "(the sink); of even attention" in texts(app.caption)
    button(app, "Answer, needle").click().run()
    assert "edges of queries 256 to" in texts(app.caption)


def test_a_changed_head_is_asked_again_kept_and_handed_to_prune(served: Settings) -> None:
    app = opened(off=["L4.H6"], mode="scale", factor="0.5")
    assert "Unchanged" in texts(app.subheader)
    assert "Change of log P of the gold answer" in texts(app.caption)
    assert "The same with random heads: " in texts(app.caption)
    app.text_input(key="reader_file").set_value("halved")
    button(app, "Save them").click().run()
    saved = load_head_set(served.head_sets / "halved.json")
    assert [str(head) for head in saved.ids] == ["L4.H6"]
    told, dry = (code.value for code in app.code[-2:])
    assert "--factor 0.5" in told
    assert "0.5" in dry


def test_a_needle_hidden_from_a_head_is_held_against_other_tokens(
    served: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in (needle_switched, needle_rates_section):
        monkeypatch.setattr(module, "DEPTHS", 2)
        monkeypatch.setattr(module, "SEEDS", 1)
    monkeypatch.setattr(background, "SOON", 60.0)  # the page waits for it
    app = opened(off=["L4.H6"], of="edges")
    assert "The same with other tokens: " in texts(app.caption)
    button(app, "Ask for 2 needles").click().run()
    rates = next(one.value for one in app.dataframe if "answered" in one.value)
    assert rates[["unchanged", "changed"]].sum().tolist() == [1, 1]
    assert "3 sets of as many other tokens of each haystack" in texts(app.caption)
    button(app, "Save them").click().run()
    assert "no weights stand for" in texts(app.error)


def test_a_long_trial_shows_how_far_it_is_and_can_be_stopped(
    served: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    import threading

    from mnemoscope.app import background, needle_scene

    go_on = threading.Event()

    def slow(model, asked, tell):
        tell(0.5, "token 128 of 256")
        assert go_on.wait(60)
        tell(0.6, "never")

    monkeypatch.setattr(background, "LONGEST_WAIT", 0.0)
    monkeypatch.setattr(background, "SOON", 0.2)
    monkeypatch.setattr(needle_scene, "run_trial", slow)
    app = opened(seed="7")
    button(app, "Run the trial").click().run()
    assert "Stop" in [one.label for one in app.button]
    assert not app.code
    button(app, "Stop").click().run()
    go_on.set()
    assert "waits for a click" in texts(app.info)
