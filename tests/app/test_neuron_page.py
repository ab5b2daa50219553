"""The page about relation neurons, on a small run of the packaged model."""

from __future__ import annotations

import shlex
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import polars
import pytest
import streamlit as st
from mnemoscope.app.atlas_maps import unpacked
from mnemoscope.app.neuron_runs import (
    LENGTH,
    NEW,
    NeuronRun,
    check_run_fits,
    finished_neuron_runs,
    layer_table,
    neuron_run,
    precision_table,
    run_prompts,
    verdict_table,
)
from mnemoscope.app.settings import VARIABLE, Settings, settings_for
from mnemoscope.app.unit_text import unit_over_text
from mnemoscope.cli.neuron_finding import design_of
from mnemoscope.models.errors import MnemoscopeError
from mnemoscope.models.hooked import HookedModel
from mnemoscope.models.load import load_model
from mnemoscope.models.types import NeuronId
from mnemoscope.results.errors import UnitSetError
from mnemoscope.results.neuron_set import load_neuron_set
from page_at import button, page_at, texts
from planted_ground import NEURONS, RELATIONS, neuron_run_of_engram


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A runs root with one finished run of three relations."""
    root = tmp_path_factory.mktemp("neurons") / "runs"
    neuron_run_of_engram(root)
    return root


@pytest.fixture(scope="module")
def run(root: Path) -> NeuronRun:
    (info,) = finished_neuron_runs(root, "engram")
    return neuron_run(info.folder)


@pytest.fixture(scope="module", autouse=True)
def empty_caches() -> Iterator[None]:
    st.cache_data.clear()
    yield
    st.cache_resource.clear()


@pytest.fixture
def served(root: Path, monkeypatch: pytest.MonkeyPatch) -> Settings:
    settings = settings_for(["engram"], root)
    monkeypatch.setenv(VARIABLE, settings.to_json())
    return settings


# -- the run as the page reads it ---------------------------------------------------------------


def test_a_run_is_found_by_its_model_only(root: Path, run: NeuronRun) -> None:
    assert finished_neuron_runs(root, "another model") == ()
    assert finished_neuron_runs(root / "nowhere", "engram") == ()
    assert run.relations == RELATIONS
    assert all(len(one.ids) == NEURONS.k for one in run.sets.values())
    assert len(run.units) == len(set(run.units)) <= 5 * len(RELATIONS)


def test_counts_by_layer_are_those_of_the_sets(run: NeuronRun) -> None:
    counts = layer_table(run)
    assert counts.height == 6 * len(RELATIONS)
    for relation, one in run.sets.items():
        rows = counts.filter(polars.col("relation") == relation).sort("layer")
        layers = [unit.layer for unit in one.ids]
        assert rows["units"].to_list() == [layers.count(layer) for layer in range(6)]
        assert rows["down"].sum() == sum(scored.role == "low" for scored in one.neurons)


def test_the_best_unit_has_the_numbers_of_the_table(run: NeuronRun) -> None:
    best = run.sets["capital"].neurons[0]
    row = run.unit("capital", best.neuron)
    assert row["rank"] == 1
    assert row["score"] == pytest.approx(best.score)
    bars = {one["what"]: one["ap"] for one in precision_table(row).to_dicts()}
    found_by = [ap for what, ap in bars.items() if what[-1].isdigit()]
    assert min(found_by) == pytest.approx(row["score"], abs=1e-6)
    assert (bars[NEW], bars[LENGTH]) == (row["ap_new"], row["length_ap"])


def test_the_prompts_are_those_of_the_design_or_none(run: NeuronRun) -> None:
    assert run_prompts(run) == design_of(NEURONS).prompts
    changed = replace(run, config={**run.config, "design_sha256": "another"})
    with pytest.raises(MnemoscopeError, match="cannot be made again"):
        run_prompts(changed)


def test_a_run_of_a_model_of_another_size_is_refused(run: NeuronRun, model: HookedModel) -> None:
    check_run_fits(run, load_model("engram"))
    with pytest.raises(UnitSetError, match="model"):
        check_run_fits(run, model)


# -- the page -----------------------------------------------------------------------------------


def test_without_a_run_the_page_names_the_command(settings: Settings) -> None:
    app = page_at("neurons")
    command = shlex.split(texts(app.code))
    assert command[:3] == ["mnemoscope", "neurons", "find"]
    assert command[3] == settings.models["planted"]
    assert str(settings.runs_root) in command
    assert "relation neurons of planted" in texts(app.info)


def test_the_verdict_table_is_the_run_s(served: Settings, run: NeuronRun) -> None:
    app = page_at("neurons")
    shown = polars.from_pandas(app.dataframe[0].value)
    assert shown.equals(verdict_table(run))
    for one in run.summary["verdicts"]:
        words = shown.filter(polars.col("relation") == one["relation"])["verdict"][0]
        assert words == ("found" if one["found"] else "no relation-specific set found")
    assert app.selectbox(key="relation").value == RELATIONS[0]
    assert not app.error


def test_a_relation_without_a_set_is_said_to_have_none(
    served: Settings, run: NeuronRun, monkeypatch: pytest.MonkeyPatch
) -> None:
    from mnemoscope.app import neuron_cached

    def none(record: dict[str, object]) -> dict[str, object]:
        return {**record, "found": False, "text": "no relation-specific set found"}

    verdicts = [none(one) for one in run.summary["verdicts"]]
    nothing = replace(run, summary={**run.summary, "verdicts": verdicts})
    monkeypatch.setattr(neuron_cached, "run_of", lambda *_: nothing)
    app = page_at("neurons")
    assert "no relation-specific set found" in texts(app.warning)
    assert set(app.dataframe[0].value["verdict"]) == {"no relation-specific set found"}


def test_an_address_restores_relation_unit_and_change(served: Settings, run: NeuronRun) -> None:
    unit = str(run.sets["currency"].ids[2])
    app = page_at(
        "neurons",
        relation="currency",
        unit=unit,
        change="scale",
        unit_factor="3.0",
        top="2",
        ask="A word",
    )
    assert app.selectbox(key="unit").value == unit
    assert app.slider(key="top").value == 2
    assert app.text_area(key="ask").value == "A word"
    assert "multiplied by 3" in texts(app.caption)
    first_two = ", ".join(map(str, run.sets["currency"].ids[:2]))
    assert f"Changed: {first_two}." in texts(app.caption)


@pytest.mark.parametrize(
    "address",
    [{"neuron_run": "x"}, {"relation": "x"}, {"unit": "L99.N1"}, {"top": "99"}, {"change": "x"}],
)
def test_a_wrong_address_falls_back_to_what_there_is(
    served: Settings, run: NeuronRun, address: dict[str, str]
) -> None:
    app = page_at("neurons", **address)
    assert not app.error
    assert app.selectbox(key="unit").value == str(run.sets[RELATIONS[0]].ids[0])
    assert app.selectbox(key="neuron_run").value == run.id


def test_the_card_tells_direction_score_and_strongest_prompts(
    served: Settings, run: NeuronRun
) -> None:
    unit = run.sets["continent"].neurons[1]
    app = page_at("neurons", relation="continent", unit=str(unit.neuron))
    numbers = {metric.label: metric.value for metric in app.metric}
    assert numbers["Direction"] == {"high": "up", "low": "down"}[unit.role]
    assert numbers["Score"] == f"{unit.score:.3f}"
    prompts = app.dataframe[1].value
    falling = unit.role == "high"
    assert prompts["activation"].is_monotonic_decreasing == falling
    assert set(prompts["prompt"]) <= {prompt.text for prompt in run_prompts(run)}
    ours = int((prompts["relation"] == "continent").sum())
    assert f"{ours} of them ask about continent" in texts(app.caption)


def test_another_relation_brings_its_units_and_its_prompt_but_leaves_a_typed_one(
    served: Settings, run: NeuronRun
) -> None:
    app = page_at("neurons")
    assert "capital" in app.text_area(key="ask").value.lower()
    app.selectbox(key="relation").set_value("currency").run()
    assert app.selectbox(key="unit").value == str(run.sets["currency"].ids[0])
    assert "currency" in app.text_area(key="ask").value.lower()
    app.text_area(key="ask").set_value("Once upon a time").run()
    app.selectbox(key="relation").set_value("continent").run()
    assert app.text_area(key="ask").value == "Once upon a time"
    assert not app.exception


def test_answers_stand_before_and_after_and_beside_random_units(served: Settings) -> None:
    app = page_at("neurons", ask="The capital of France is", top="3", change="zero")
    assert len(app.code) == 3
    assert "Paris" in app.code[0].value
    names = [one.value for one in app.subheader]
    assert names[-3:] == ["Unchanged", "These units", "Random units"]
    assert "random units:" in texts(app.markdown)
    assert "20 sets of as many random units" in texts(app.caption)


def test_an_empty_prompt_is_told_and_the_rest_stays(served: Settings) -> None:
    app = page_at("neurons", ask=" ")
    assert "prompt is empty" in texts(app.error)
    assert app.metric


def test_chosen_units_are_saved_once_with_the_command_that_measures_them(
    served: Settings, run: NeuronRun
) -> None:
    app = page_at("neurons", relation="currency", top="4", change="zero")
    app.text_input(key="unit_file").set_value("mine")
    save = next(b for b in app.button if b.label == "Save 4 units of currency")
    save.click().run()
    path = served.neuron_sets / "mine.json"
    saved = load_neuron_set(path)
    assert saved.ids == run.sets["currency"].ids[:4]
    assert saved.name == "currency neurons of engram"
    assert saved.run_id == run.id
    command = shlex.split(app.code[-1].value)
    assert command[:4] == ["mnemoscope", "neurons", "ablate", "engram"]
    options = dict(zip(command[4::2], command[5::2], strict=True))
    assert options["--sets"] == str(path)
    assert options["--sizes"] == "1,2,4"
    assert options["--mode"] == "zero"
    button(app, "Save").click().run()
    assert "mine" in texts(app.error)
    assert load_neuron_set(path).ids == saved.ids
    assert "neurons ablate" in texts(app.code), "what was saved before"
    app.segmented_control(key="change").set_value("mean").run()
    assert "neurons ablate" not in texts(app.code)


def test_facts_that_changed_since_hide_the_prompts_and_nothing_else(
    served: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    from mnemoscope.app import neuron_cached

    def gone(*_: object) -> None:
        raise MnemoscopeError("the prompts cannot be made again.")

    monkeypatch.setattr(neuron_cached, "prompts_of", gone)
    app = page_at("neurons")
    assert "cannot be made again" in texts(app.error)
    assert app.metric
    assert len(app.code) == 3


def test_a_unit_is_read_over_any_text(served: Settings) -> None:
    app = page_at("neurons", over="The capital of France is Paris. <b>x</b>")
    (strip,) = [e for e in app.get("bidi_component") if e.key == "unit_text"]
    header, _ = unpacked(strip.proto.bytes)
    assert "␣France" in header["tokens"]
    assert len(header["values"]) == len(header["tokens"])
    assert max(map(abs, header["values"][1:])) == pytest.approx(header["most"], rel=1e-3)
    assert "Its mean on neutral text is" in texts(app.caption)
    app.text_area(key="over").set_value("").run()
    assert "empty" in texts(app.error)
    assert "capital" in page_at("neurons").text_area(key="over").value


def test_any_other_unit_is_read_too(served: Settings) -> None:
    text = "The capital of France is Paris."
    app = page_at("neurons", over=text, other="true", unit_layer="3", unit_index="17")
    (strip,) = [e for e in app.get("bidi_component") if e.key == "unit_text"]
    _, values = unit_over_text(load_model("engram"), text, NeuronId(3, 17))
    assert unpacked(strip.proto.bytes)[0]["values"] == pytest.approx(values, rel=1e-3)
    assert "L3.N17 is above zero" in texts(app.caption)


@pytest.mark.usefixtures("settings")
def test_a_unit_is_read_without_a_run() -> None:
    app = page_at("neurons")
    assert "L0.N0 is above zero" in texts(app.caption)
    app.number_input(key="unit_layer").set_value(1).run()
    app.number_input(key="unit_index").set_value(7).run()
    assert "L1.N7 is above zero" in texts(app.caption)
    assert not app.exception
