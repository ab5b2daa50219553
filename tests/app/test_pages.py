"""Each page on the planted checkpoint: what it shows, its address, its empty and error states."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import parse_qsl

import pytest
import streamlit as st
from mnemoscope.app.atlas_maps import unpacked
from mnemoscope.app.settings import VARIABLE, Settings, settings_for
from mnemoscope.results.bundle import Words
from mnemoscope.results.head_set import load_head_set
from mnemoscope.results.run_folder import load_run, open_run, queue_run
from page_at import button, page_at, texts
from planted_ground import CLAIM, CONTEXT, CONTEXT_HEAD, ESTIMAND, MEMORY_HEAD, PROMPT, STORED
from streamlit.testing.v1 import AppTest

EDGES = "edges"
CONFLICT = {"prompt": PROMPT, "context": CONTEXT}


@pytest.fixture(autouse=True)
def empty_caches(settings: Settings) -> Iterator[None]:
    st.cache_data.clear()
    yield
    st.cache_resource.clear()


def test_the_first_page_shows_both_answers_and_their_probabilities() -> None:
    app = page_at("explore", **CONFLICT)
    assert [code.value.split()[0] for code in app.code] == [STORED, CLAIM]
    assert STORED in texts(app.markdown)
    assert CLAIM in texts(app.markdown)
    assert [m.label for m in app.metric] == ["P(memory answer)", "P(context answer)"] * 2
    closed_memory, closed_context, given_memory, given_context = (
        float(m.value) for m in app.metric
    )
    assert closed_memory > 0.9 > 0.1 > closed_context
    assert given_context > given_memory
    assert not app.error


def test_without_context_one_side_is_shown_and_the_next_step_is_named() -> None:
    app = page_at("explore", **CONFLICT)
    app.text_area(key="context").set_value("").run()
    assert len(app.code) == 1
    assert "Type a context" in texts(app.info)
    assert len(app.metric) == 1


def test_a_first_visit_chooses_the_best_head_of_the_score() -> None:
    app = page_at("explore", **CONFLICT)
    assert f"Head {MEMORY_HEAD}" in texts(app.subheader)
    assert "reads kv head 2, which no other query head reads" in texts(app.caption)


def test_an_address_restores_prompt_head_role_and_list() -> None:
    shown = {"layer": "1", "head": "5", "role": "context", "off": [MEMORY_HEAD, "L0.H0"]}
    app = page_at("explore", **CONFLICT, **shown)
    assert f"Head {CONTEXT_HEAD}" in texts(app.subheader)
    assert app.multiselect(key="off").value == [MEMORY_HEAD, "L0.H0"]
    assert app.text_area(key="prompt").value == PROMPT
    assert "speaks for the context answer" in texts(app.caption)


@pytest.mark.parametrize(
    "address", [{"layer": "99"}, {"head": "x"}, {"off": "L9.H9"}, {"model": "/etc"}, {"role": "x"}]
)
def test_a_wrong_address_falls_back_to_what_there_is(address: dict[str, str]) -> None:
    app = page_at("explore", **{**CONFLICT, **address})
    assert not app.error
    assert app.selectbox(key="model").value == "planted"
    assert app.multiselect(key="off").value == []


def test_switching_the_copying_head_off_brings_the_stored_answer_back() -> None:
    app = page_at("explore", **CONFLICT, off=[CONTEXT_HEAD])
    change = app.code[3].value
    assert f"before: '{CLAIM}" in change
    assert f"after:  '{STORED}" in change
    assert "outside the random range" in texts(app.markdown)


def test_switching_a_noise_head_off_is_called_not_better_than_random() -> None:
    app = page_at("explore", **CONFLICT, off=["L0.H0"])
    assert "not better than random" in texts(app.markdown)


def test_scaling_takes_the_factor_of_the_address() -> None:
    app = page_at("explore", **CONFLICT, off=[CONTEXT_HEAD], mode="scale", factor="1.0")
    assert "+0.000" in texts(app.caption)


def test_too_many_heads_for_a_control_is_said_where_it_happens() -> None:
    every = [f"L{layer}.H{head}" for layer in (0, 1) for head in range(8)]
    app = page_at("explore", **CONFLICT, off=every)
    assert "choose fewer" in texts(app.error)
    assert texts(app.code).count("before: ") == 2, "the change itself is still shown"


def test_a_typed_head_is_picked_and_the_list_follows_until_edited() -> None:
    app = page_at("explore", **CONFLICT)
    app.number_input(key="head").set_value(5).run()
    assert app.multiselect(key="off").value == [CONTEXT_HEAD]
    app.multiselect(key="off").set_value(["L0.H0"]).run()
    app.number_input(key="head").set_value(2).run()
    assert f"Head {MEMORY_HEAD}" in texts(app.subheader)
    assert app.multiselect(key="off").value == ["L0.H0"]


def test_errors_of_the_library_are_shown_as_text() -> None:
    app = page_at("explore", **CONFLICT, mem=STORED, ctx=STORED)
    assert "start with the same token" in texts(app.error)
    app = page_at("explore", prompt=" ")
    assert "prompt is empty" in texts(app.error)


def test_a_prompt_with_markdown_reaches_no_markdown() -> None:
    image = "![x](http://example.org/x.png)"
    app = page_at("explore", **CONFLICT, mem=image, ctx=image)
    shown = "\n".join(str(element.value) for element in [*app.error, *app.markdown])
    assert "example" in shown
    assert "](http" not in shown


def test_a_head_set_is_saved_once_and_loaded_back(settings: Settings) -> None:
    app = page_at("explore", **CONFLICT, off=[MEMORY_HEAD])
    app.text_input(key="file_name").set_value("mine")
    save = button(app, "Save")
    save.click().run()
    saved = load_head_set(settings.head_sets / "mine.json")
    assert [str(head) for head in saved.ids] == [MEMORY_HEAD]
    assert saved.heads[0].role == "memory"
    assert saved.heads[0].score > 5
    assert "mnemoscope prune run" in texts(app.code)
    assert "set to zero 1 head, L1.H2" in texts(app.code)  # the dry run
    button(app, "Save").click().run()
    assert "mine" in texts(app.error)
    app = page_at("explore", **CONFLICT)
    next(b for b in app.button if b.label == "Load").click().run()
    assert app.multiselect(key="off").value == [MEMORY_HEAD]


def test_command_and_dry_run_stay_until_the_set_changes(settings: Settings) -> None:
    app = page_at("explore", **CONFLICT, off=[MEMORY_HEAD])
    assert "set to zero 1 head, L1.H2" in texts(app.code), "a dry run before anything is written"
    assert "prune run" not in texts(app.code)
    button(app, "Save the list").click().run()

    def handed() -> bool:
        shown = [one for one in app.code if "mnemoscope prune run" in one.value]
        return bool(shown) and "Prune now" in [one.label for one in app.button]

    assert handed()
    app.segmented_control(key="role").set_value("context").run()
    assert handed(), "another interaction"
    assert "set to zero 1 head, L1.H2" in texts(app.code)
    kept = app.session_state["kept_view"].bundle().parts
    said = [part.text for part in kept if isinstance(part, Words)]
    assert any("mnemoscope prune run" in one for one in said)
    assert any("set to zero 1 head, L1.H2" in one for one in said)
    app.segmented_control(key="mode").set_value("scale").run()
    assert not handed(), "another change"
    assert "multiply by 0.5 1 head" in texts(app.code)
    app.segmented_control(key="mode").set_value("zero").run()
    assert handed()
    app.multiselect(key="off").set_value([MEMORY_HEAD, "L0.H0"]).run()
    assert not handed(), "other heads"
    app.multiselect(key="off").set_value([MEMORY_HEAD]).run()
    assert handed()
    (settings.head_sets / "my-heads.json").write_text("{}")
    app.run()
    assert not handed(), "another file of that name"


def test_the_command_of_changed_units_stays_until_they_change(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(VARIABLE, settings_for(["engram"], tmp_path / "runs").to_json())
    app = page_at("explore", prompt="The capital of France is", context="", units="L3.N17")
    button(app, "Save the units").click().run()
    app.toggle(key="follow").set_value(False).run()
    assert "neurons ablate" in texts(app.code)
    app.text_input(key="units").set_value("L3.N18").run()
    assert "neurons ablate" not in texts(app.code)


def test_a_damaged_head_set_is_named(settings: Settings) -> None:
    settings.head_sets.mkdir()
    (settings.head_sets / "bad.json").write_text("{}")
    app = page_at("explore", **CONFLICT)
    next(b for b in app.button if b.label == "Load").click().run()
    assert "bad" in texts(app.error)


@pytest.fixture
def with_run(checkpoint: Path, scored: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """The app with a runs root that holds one finished run; its id."""
    settings = settings_for([str(checkpoint)], scored)
    monkeypatch.setenv(VARIABLE, settings.to_json())
    (run,) = scored.glob("[!.]*")
    return run.name


def test_a_finished_run_is_a_source_of_scores(with_run: str) -> None:
    app = page_at("explore", **CONFLICT, source=with_run, role="context")
    assert app.selectbox(key="source").value == with_run
    assert f"Head {CONTEXT_HEAD}" in texts(app.subheader)
    assert "One prompt" not in texts(app.caption)


def test_without_runs_the_page_of_runs_names_the_command() -> None:
    assert "mnemoscope heads score" in texts(page_at("runs").info)


def test_a_finished_run_is_listed_and_opened(with_run: str) -> None:
    app = page_at("runs", run=with_run)
    assert app.dataframe[0].value["run"].to_list() == [with_run]
    assert app.dataframe[1].value.shape[0] == 16
    assert ESTIMAND in texts(app.caption)
    (record,) = [code.value for code in app.code if "weights_sha256" in code.value]
    assert json.loads(record)["model_id"] == "planted"


def links(app: AppTest) -> list[tuple[str, dict[str, str]]]:
    """Page and address of each link on show."""
    found = [one.proto for one in app.get("page_link")]
    return [(one.page, dict(parse_qsl(one.query_string))) for one in found]


def another_of(kind: str, root: Path, run_id: str) -> str:
    """A finished run of this kind with the table of another one; returns its id."""
    like = load_run(root / run_id)
    with open_run(root, kind, {"model": "planted", "n": 2}) as run:
        run.append("all", {})
        run.finish(like.table, {}, like.provenance)
        return run.id


@pytest.mark.parametrize(
    ("kind", "shown_on"),
    [
        ("head-scores", [("explore", "source"), ("heads", "sources")]),
        ("relation-neurons", [("neurons", "neuron_run")]),
        ("retrieval-scores", [("heads", "sources")]),
        ("retrieval-gates", [("heads", "sources")]),
        ("binding-roles", [("binding", "curves")]),
        ("trace", []),
    ],
)
def test_a_finished_run_links_to_the_pages_that_show_it(
    settings: Settings, scored: Path, kind: str, shown_on: list[tuple[str, str]]
) -> None:
    shutil.copytree(scored, settings.runs_root)
    (first,) = (path.name for path in settings.runs_root.glob("[!.]*"))
    run_id = another_of(kind, settings.runs_root, first)
    found = links(page_at("runs", run=run_id))
    assert found == [(page, {"model": "planted", name: run_id}) for page, name in shown_on]
    for page, name in shown_on:
        app = page_at(page, model="planted", **{name: run_id})
        (chosen,) = (one.value for one in (*app.selectbox, *app.multiselect) if one.key == name)
        assert chosen in (run_id, [run_id])


def test_such_a_link_is_heeded_on_a_page_that_was_left_with_another_model(
    checkpoint: Path, scored: Path, with_run: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(VARIABLE, settings_for([str(checkpoint), "engram"], scored).to_json())
    app = page_at("explore", model="engram")
    go_to(app, "runs", {"run": with_run})
    ((page, address), _) = links(app)
    go_to(app, page, address)
    assert app.selectbox(key="model").value == "planted"
    assert app.selectbox(key="source").value == with_run


def go_to(app: AppTest, page: str, address: dict[str, str]) -> None:
    """Follow a link."""
    app.switch_page(f"views/{page}.py")
    app.query_params.clear()
    app.query_params.update(address)
    app.run()
    assert not app.exception, app.exception


def test_a_run_of_a_model_that_is_not_served_links_nowhere(
    with_run: str, scored: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(VARIABLE, settings_for(["engram"], scored).to_json())
    assert links(page_at("runs", run=with_run)) == []


def test_unfinished_runs_say_how_to_go_on(settings: Settings) -> None:
    queued = queue_run(settings.runs_root, "head-scores", {"model": "planted", "n": 1})
    with pytest.raises(RuntimeError), open_run(settings.runs_root, "other", {"model": "m"}):
        raise RuntimeError("out of luck")
    app = page_at("runs", run=queued.id)
    assert sorted(app.dataframe[0].value["status"]) == ["failed", "queued"]
    assert [button.label for button in app.button] == ["Cancel"]


def test_the_about_page_tells_the_limits() -> None:
    app = page_at("about")
    assert "Limits" in texts(app.markdown)
    assert "direct effect" in texts(app.markdown)


def test_hiding_begins_with_what_end_reads_most_and_the_answer_follows() -> None:
    app = page_at("explore", **CONFLICT, off=[CONTEXT_HEAD], of=EDGES, mode="zero")
    (hidden,) = app.multiselect(key="hidden").value
    assert CLAIM in hidden
    assert f"after:  '{STORED}" in app.code[3].value
    assert "outside the random range" in texts(app.markdown)
    assert "The same with other tokens: " in texts(app.caption)
    assert "Nothing is changed here" in texts(app.caption)
    app.multiselect(key="hidden").set_value([]).run()
    assert "No token is chosen" in texts(app.info)


def test_a_head_is_set_to_its_mean() -> None:
    app = page_at("explore", **CONFLICT, off=[MEMORY_HEAD], mode="mean")
    assert "The same with random heads: " in texts(app.caption)
    assert not app.error


def test_the_strongest_edge_and_the_layers_are_shown_for_the_chosen_text() -> None:
    app = page_at("explore", **CONFLICT, layer="1", head="5", lens="3")
    (strip,) = [e for e in app.get("bidi_component") if e.key == "edges"]
    header, body = unpacked(strip.proto.bytes)
    tokens, k = header["tokens"], header["k"]
    assert CLAIM in tokens[int(body[-1, k]) | int(body[-1, k + 1]) << 8]
    assert "(the sink), which is left out" in texts(app.caption)
    assert "Logit lens, with context" in texts(app.caption)
    app = page_at("explore", **CONFLICT, layer="1", head="5", pattern="without context")
    assert "Logit lens, without context" in texts(app.caption)


def test_a_change_is_handed_to_prune_as_it_is(settings: Settings) -> None:
    app = page_at("explore", **CONFLICT, off=[MEMORY_HEAD], mode="scale", factor="0.5")
    app.text_input(key="file_name").set_value("half")
    button(app, "Save the list").click().run()
    assert "--factor 0.5" in texts(app.code)
    app = page_at("explore", **CONFLICT, off=[MEMORY_HEAD], of=EDGES, mode="mean")
    app.text_input(key="file_name").set_value("even")
    button(app, "Save the list").click().run()
    assert "no weights stand for" in texts(app.error)


def test_a_word_that_is_no_unit_is_told_where_it_was_typed() -> None:
    app = page_at("explore", **CONFLICT, units="L0.N")
    assert "as a unit" in texts(app.error)


def test_rates_wait_for_a_click_and_tell_what_the_model_does_not_know() -> None:
    app = page_at("explore", **CONFLICT, off=[MEMORY_HEAD], facts="capital")
    button(app, "Ask 24 facts").click().run()
    assert "planted knows none" in texts(app.error) or "can be told apart" in texts(app.error)
