"""`mnemoscope neurons` on the planted units: the units that carry a relation are found, and cost it
its answers; the paper's procedure; resumption and refusals."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import polars
import pytest
import torch
from mnemoscope.cli import neuron_paper
from mnemoscope.cli.neuron_ablating import AblateConfig, AblateResult, ablate_neurons
from mnemoscope.cli.neuron_finding import FindConfig, FindResult, find_neurons
from mnemoscope.cli.neuron_paper import PaperConfig, PaperResult, find_as_paper, relations_of
from mnemoscope.cli.neuron_sets import sets_in
from mnemoscope.cli.neuron_verdicts import (
    ALONE,
    CARRIES,
    HELPS,
    NO_WORSE,
    UNSPECIFIC,
    UNTESTED,
    verdict_of,
)
from mnemoscope.data.facts.items import relation_to_json
from mnemoscope.models import MnemoscopeError, NeuronId
from mnemoscope.models.types import Site
from mnemoscope.organisms.planted_units import PlantedUnits, planted_units_model
from mnemoscope.probes.paper_relations import PAPER_RELATIONS, PaperPreset
from mnemoscope.results.neuron_set import NeuronSet, load_neuron_set, save_neuron_set
from mnemoscope.results.run import Run
from mnemoscope.results.run_reading import verify_run

NAMES = ("capital", "currency", "teacher")
SMALL = ("--subjects", 6, "--pseudo", 19, "--resamples", 2, "--k", 3)
FEW = ("--facts", 6, "--candidates", 4, "--controls", 19)
# The planted models end an answer with a full stop: the second token is never the object's.
PRESET = partial(PaperPreset, held_out=8, new_tokens=1, k=12, sizes=(2, 12), random_draws=2)


@dataclass(frozen=True)
class Units:
    """The planted units on disk, a root of finished runs, and these runs."""

    planted: PlantedUnits
    checkpoint: Path
    relations: str
    root: Path
    found: FindResult
    ablated: AblateResult
    paper: PaperResult


@pytest.fixture(scope="module")
def units(tmp_path_factory: pytest.TempPathFactory) -> Units:
    """All three runs, by the functions behind the commands."""
    folder = tmp_path_factory.mktemp("units")
    planted = planted_units_model(dtype=torch.float32)
    planted.module.save_pretrained(folder / "units")
    planted.tokenizer.save_pretrained(folder / "units")
    files = []
    for relation in planted.relations:
        if relation.name in NAMES:
            files.append(folder / f"{relation.name}.json")
            files[-1].write_text(json.dumps(relation_to_json(relation)), "utf-8")
    model, names, root = str(folder / "units"), tuple(map(str, files)), folder / "runs"
    silent: Any = {"force": False, "say": lambda _: None, "tell": lambda *_: None}
    found = find_neurons(
        FindConfig(model, names, subjects=6, pseudo=19, resamples=2, k=3),
        root,
        memory_mb=64,
        **silent,
    )
    asked = AblateConfig(model, facts=6, candidates=4, controls=19)
    ablated = ablate_neurons(asked, sets_in([found.folder], root), root, **silent)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(neuron_paper, "PaperPreset", PRESET)
        paper = find_as_paper(
            PaperConfig(model, names, cumulativity=True), root, memory_mb=64, **silent
        )
    return Units(planted, folder / "units", ",".join(names), root, found, ablated, paper)


Neurons = Callable[..., Any]


@pytest.fixture
def neurons(command: Any, units: Units, monkeypatch: pytest.MonkeyPatch) -> Neurons:
    """`neurons VERB`, with the model, its relations and the small sizes, in the shared root."""
    monkeypatch.setattr(neuron_paper, "PaperPreset", PRESET)
    given: dict[str, tuple[object, ...]] = {
        "find": (units.checkpoint, "--relations", units.relations, *SMALL),
        "paper": (units.checkpoint, "--relations", units.relations, "--paper", "--cumulativity"),
        "ablate": (units.checkpoint, *FEW, "--sets", units.found.folder),
        "show": (units.found.folder,),
    }

    def run(verb: str, *more: object, root: Path | None = None) -> Any:
        where = () if verb == "show" else ("--runs", root or units.root)
        name = "find" if verb == "paper" else verb
        return command("neurons", name, *given[verb], *where, *more)

    return run


def words(text: str) -> str:
    """The text without its line breaks."""
    return " ".join(text.split())


# -- find and show ---------------------------------------------------------------------------------


def test_find_ranks_the_planted_units_first(units: Units) -> None:
    for name in NAMES:
        found = load_neuron_set(units.found.folder / f"neurons-{name}.json")
        assert len(found.ids) == 3
        assert found.ids[0] == units.planted.detectors[name]
        assert units.planted.carriers[name] in found.ids
        longer = load_neuron_set(units.found.folder / f"ranking-{name}.json")
        assert longer.ids[:3] == found.ids
        assert len(longer.ids) == 30
    verify_run(units.found.folder)


def test_the_command_finds_the_run_of_its_configuration(units: Units, neurons: Neurons) -> None:
    done = neurons("find", "--json")
    assert done.code == 0, done.err
    assert "is done already" in done.err
    record = json.loads(done.out)
    assert (record["schema"], record["kind"]) == ("mnemoscope/cli/1", "relation-neurons")
    assert record["run"] == str(units.found.folder)
    assert (record["units"], record["k"], record["site"]) == (512, 3, "neuron")
    assert [one["relation"] for one in record["verdicts"]] == list(NAMES)


def test_a_relation_without_a_set_is_told_in_json_table_and_report(
    units: Units, neurons: Neurons
) -> None:
    """Of 100 units, most are anybody's: no relation has so many of its own."""
    done = neurons("find", "--k", 100, "--resamples", 0, "--json")
    record = json.loads(done.out)
    texts = {one["relation"]: one["text"] for one in record["verdicts"]}
    assert "no relation-specific set found" in texts.values()
    report = (Path(record["run"]) / "report.html").read_text("utf-8")
    for name, text in texts.items():
        assert f"{name}: {text}" in report
    people = neurons("find", "--k", 100, "--resamples", 0)
    assert people.out == ""
    assert "set found" in people.err
    assert f"Next: mnemoscope neurons ablate {units.checkpoint}" in words(people.err)


def test_show_lists_verdicts_and_the_best_units_of_a_relation(
    units: Units, neurons: Neurons
) -> None:
    assert json.loads(neurons("show", "--json").out)["verdicts"]
    assert "verdict" in neurons("show").err
    record = json.loads(neurons("show", "--relation", "teacher", "--top", 2, "--json").out)
    assert (record["kind"], len(record["units"])) == ("relation-units", 2)
    best = record["units"][0]
    detector = units.planted.detectors["teacher"]
    assert (best["layer"], best["unit"], best["rank"]) == (detector.layer, detector.index, 1)
    people = neurons("show", "--relation", "teacher", "--top", 2)
    assert str(detector.index) in people.err


# -- ablate ----------------------------------------------------------------------------------------


def test_without_its_units_each_relation_loses_its_answers_and_others_keep_theirs(
    units: Units,
) -> None:
    summary = units.ablated.summary
    assert summary["sizes"] == [1, 3, 9]  # k / 2, k, 3 k
    before = summary["perplexity"]
    for one in summary["effects"]:
        assert one["text"] == CARRIES
        # Nine units hold some of other relations' facts too, and of currency's sibling the carrier.
        assert one["own loss"] > 5
        assert one["own loss"] > 2 * abs(one["others' loss"])
        assert one["right before"] == one["facts"] > one["right after"] == 0
        assert one["answer lost"] + one["type lost"] + one["format lost"] == one["facts"]
        assert one["perplexity"] == pytest.approx(before, rel=0.01)
        assert one["set"] in (
            "relation-specific set found",
            "no relation-specific set found",
        )
    verify_run(units.ablated.folder)


def test_losses_grow_with_the_dose_and_beyond_the_controls(units: Units) -> None:
    table = units.ablated.table
    assert set(table["relation"]) == set(NAMES)
    assert set(table["by"]) == {"size", "factor"}
    largest = table.filter(by="size", dose=9.0)
    assert (largest["loss"] > largest["control_mean"] + 5).all()
    assert (largest["n_controls"] == 19).all()


def test_facts_come_from_the_subjects_that_the_search_kept_apart(
    units: Units, neurons: Neurons
) -> None:
    """Another seed of the ablation must not mix the parts that the run split."""
    (one, *_) = sets_in([units.found.folder], units.root, ["capital"])
    assert one.split_seed == units.found.config["seed"]
    assert one.k == 3
    assert {fact.subject for fact in one.relation.facts} == {
        fact.subject for fact in units.planted.relations[0].facts
    }  # the invented world's capitals, not the shipped ones of the same name


def test_ablate_says_its_numbers_in_json_and_in_a_table(units: Units, neurons: Neurons) -> None:
    record = json.loads(neurons("ablate", "--json").out)
    assert record["kind"] == "neuron-effects"
    assert record["run"] == str(units.ablated.folder)
    assert record["effects"] == units.ablated.summary["effects"]
    people = neurons("ablate")
    assert "is done already" in people.err
    assert "specific loss" in people.err
    assert "perplexity of neutral text" in words(people.err)
    report = (units.ablated.folder / "report.html").read_text("utf-8")
    assert "General damage" in report
    assert CARRIES in report


def test_only_and_sizes_narrow_the_measurement(
    units: Units, neurons: Neurons, tmp_path: Path
) -> None:
    done = neurons("ablate", "--only", "teacher", "--sizes", "2,4", "--json", root=tmp_path / "r")
    assert done.code == 0, done.err
    record = json.loads(done.out)
    (one,) = record["effects"]
    assert (one["relation"], one["text"], record["sizes"]) == ("teacher", ALONE, [2, 4])
    assert "specificity" not in one


def row(low: float, high: float, p: float, p_gain: float) -> dict[str, float]:
    return {"low": low, "high": high, "p": p, "p gain": p_gain}


@pytest.mark.parametrize(
    ("effect", "specific", "controls", "text"),
    [
        (row(0.1, 0.9, 0.05, 1.0), 0.2, 19, CARRIES),
        (row(0.1, 0.9, 0.05, 1.0), -0.1, 19, UNSPECIFIC),
        (row(0.1, 0.9, 0.05, 1.0), None, 19, ALONE),
        (row(0.1, 0.9, 0.2, 0.8), 0.2, 19, NO_WORSE),
        (row(-0.1, 0.9, 0.05, 1.0), 0.2, 19, NO_WORSE),
        (row(-0.9, -0.1, 1.0, 0.05), 0.2, 19, HELPS),
        (row(0.1, 0.9, 1 / 19, 1.0), 0.2, 18, UNTESTED),
    ],
)
def test_a_verdict_says_no_more_than_the_numbers(
    effect: dict[str, float], specific: float | None, controls: int, text: str
) -> None:
    assert verdict_of(effect, specific, controls) == text


def test_units_of_other_weights_are_used_and_that_is_said(
    units: Units, command: Any, tmp_path: Path
) -> None:
    given = load_neuron_set(units.found.folder / "neurons-teacher.json")
    moved = tmp_path / "sets" / "teacher.json"
    moved.parent.mkdir()
    save_neuron_set(moved, replace(given, model_id="another model"))
    args = ("--sets", moved, "--runs", units.root, "--facts", 4, "--candidates", 2)
    done = command("neurons", "ablate", units.checkpoint, *args, "--controls", 2, "--json")
    record = json.loads(done.out)
    assert any("in another model" in note for note in record["notes"])
    assert record["effects"][0]["text"] == UNTESTED
    assert record["sizes"] == [1, 3]  # a set of three has no ranking behind it


# -- the paper's procedure -------------------------------------------------------------------------


def test_paper_mode_finds_and_ablates_in_one_run(units: Units, neurons: Neurons) -> None:
    done = neurons("paper", "--json")
    assert done.code == 0, done.err
    record = json.loads(done.out)
    assert record["kind"] == "paper-relation-neurons"
    assert record["run"] == str(units.paper.folder)
    assert units.paper.folder.name.startswith("paper-relation-neurons-")
    assert (record["k"], record["units"]) == (12, 2 * (2 * 256 + 384))
    for one in record["effects"]:
        assert (one["held out"], one["right before"]) == (16, 1)  # 8 facts in 2 templates
        assert one["drop"] > 50 > abs(one["drop, random"])
        assert one["lost"] == round(one["drop"] / 100 * one["held out"])
        assert sum(one["forms"].values()) == one["lost"]
    cells = {(cell["asked"], cell["ablated"]): cell["drop"] for cell in record["matrix"]}
    assert len(cells) == len(NAMES) ** 2
    for one in record["effects"]:
        assert cells[one["relation"], one["relation"]] == pytest.approx(one["drop"])
    assert [one["relation"] for one in record["cumulativity"]][: len(NAMES)] == list(NAMES)
    verify_run(units.paper.folder)


def test_paper_sets_hold_units_of_all_three_sites_and_the_report_says_what_is_missing(
    units: Units, neurons: Neurons
) -> None:
    ids = load_neuron_set(units.paper.folder / "neurons-capital.json").ids
    assert len(ids) == 12
    assert {unit.site for unit in ids} <= {Site.GATE_PRE, Site.UP, Site.MLP_OUT}
    report = (units.paper.folder / "report.html").read_text("utf-8")
    assert "no null for a relation" in report
    assert "random (mean of 2)" in (units.paper.folder / "figures/drops.html").read_text("utf-8")
    assert "Cumulativity" in report
    people = neurons("paper")
    assert "random %" in people.err


@pytest.mark.parametrize(
    ("option", "value"),
    [("--site", "up"), ("--subjects", 40), ("--k", 9), ("--pseudo", 3), ("--resamples", 1)],
)
def test_what_the_paper_decides_is_refused(neurons: Neurons, option: str, value: object) -> None:
    done = neurons("paper", option, value)
    assert done.code == 2
    assert f"--paper decides {option}" in words(done.err)


def test_lre_and_cumulativity_belong_to_the_paper(neurons: Neurons, tmp_path: Path) -> None:
    for more in (("--lre", tmp_path), ("--cumulativity",)):
        done = neurons("find", *more)
        assert done.code == 2
        assert "belong to --paper" in words(done.err)


def test_lre_has_to_be_a_whole_copy(neurons: Neurons, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    for folder, message in (("none", "check the path"), ("empty", "holds no lre relation")):
        done = neurons("paper", "--lre", tmp_path / folder)
        assert done.code == 1
        assert message in words(done.err)
        assert "Traceback" not in done.err


def test_some_of_the_papers_relations_can_be_chosen(tmp_path: Path) -> None:
    """A small model may know nothing of the others."""
    for name, file, templates in PAPER_RELATIONS:
        record = {
            "name": name,
            "prompt_templates": [text.replace("{s}", "{}") for text in templates],
            "prompt_templates_zs": ["Tell me of {}. It is"],
            "properties": {"relation_type": "factual"},
            "samples": [{"subject": f"thing {i}", "object": f"answer {i}"} for i in range(4)],
        }
        (tmp_path / f"{file}.json").write_text(json.dumps(record), "utf-8")
    every = PaperConfig("engram", lre=str(tmp_path))
    assert [one.name for one in relations_of(every)] == [name for name, *_ in PAPER_RELATIONS]
    two = replace(every, relations=("person_father", "company_ceo"))
    assert [one.name for one in relations_of(two)] == ["person_father", "company_ceo"]
    with pytest.raises(MnemoscopeError, match=r"^capital: with --lre choose among .*company_ceo"):
        relations_of(replace(every, relations=("capital", "company_ceo")))


# -- resumption ------------------------------------------------------------------------------------


@pytest.mark.parametrize(("verb", "after"), [("find", 1), ("ablate", 30), ("paper", 4)])
def test_an_interrupted_run_goes_on_by_its_id_to_the_same_result(
    units: Units,
    neurons: Neurons,
    command: Any,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    verb: str,
    after: int,
) -> None:
    append, kept = Run.append, []

    def stop(self: Run, key: str, row: Any) -> None:
        append(self, key, row)
        kept.append(key)
        if len(kept) == after:
            raise KeyboardInterrupt

    monkeypatch.setattr(Run, "append", stop)
    stopped = neurons(verb, root=tmp_path / "r")
    assert stopped.code == 130
    assert "run the same command again" in words(stopped.err)
    straight = {"find": units.found, "ablate": units.ablated, "paper": units.paper}[verb]
    again = command("runs", "resume", straight.folder.name, "--runs", tmp_path / "r")
    assert again.code == 0, again.err
    assert len(kept) == len(set(kept))  # nothing was measured twice
    resumed = tmp_path / "r" / straight.folder.name
    assert polars.read_parquet(resumed / "table.parquet").equals(straight.table)
    last = (resumed / "rows.jsonl").read_text("utf-8").splitlines()[-1]
    assert json.loads(last)["row"] == straight.summary


# -- refusals --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("verb", "more", "code", "message"),
    [
        ("find", ("--relations", "captial,currency"), 1, "capital"),
        ("find", ("--site", "z"), 1, "--site is 'z': use neuron, gate_pre, up, mlp_out"),
        ("find", ("--pooling", "sum"), 1, "--pooling is 'sum': use mean_nobos"),
        ("find", ("--k", 513), 1, "513"),
        ("show", ("--relation", "colour"), 1, "choose among capital, currency, teacher"),
        ("ablate", ("--only", "teacher,colour"), 1, "--only colour: the sets are of capital"),
        ("ablate", ("--sizes", "3,1"), 1, "growing whole numbers from 1"),
        ("ablate", ("--sizes", "0,1"), 1, "growing whole numbers from 1"),
        ("ablate", ("--sizes", "many"), 2, "list of numbers"),
        ("ablate", ("--sizes", "1.5"), 2, "list of whole numbers"),
        ("ablate", ("--sizes", "3,4000"), 1, "ask for fewer"),
        ("ablate", ("--factors", "2,1"), 1, "growing numbers"),
        ("ablate", ("--mode", "odd"), 1, "use mean or zero"),
        ("ablate", ("--wording", "cloze 9"), 1, "has no wording 'cloze 9': use one of cloze 0"),
    ],
)
def test_bad_input_gets_one_clear_error(
    neurons: Neurons, verb: str, more: tuple[object, ...], code: int, message: str, tmp_path: Path
) -> None:
    done = neurons(verb, *more, root=tmp_path / "r")
    assert done.code == code, done.err
    assert message in words(done.err)
    assert "Traceback" not in done.err


def small_set(relation: str, **changes: Any) -> NeuronSet:
    given = {
        "name": f"{relation} neurons of units",
        "model_id": "units",
        "n_layers": 2,
        "d_mlp": 256,
        "method": "by hand",
        "run_id": None,
        "neurons": (),
    }
    return NeuronSet(**{**given, **changes})


def test_sets_that_cannot_be_ablated_are_refused(
    units: Units, command: Any, tmp_path: Path
) -> None:
    from mnemoscope.results.neuron_set import NeuronScore

    hidden = (NeuronScore(NeuronId(0, 1), 1.0),)
    up = (NeuronScore(NeuronId(0, 1, Site.UP), 1.0),)
    ranking = units.found.folder / "ranking-capital.json"
    cases: list[tuple[str, list[Path]]] = [
        ("holds no ranking-*.json", [tmp_path]),
        ("holds no ranking-*.json", [units.paper.folder]),
        ("two sets are of capital", [units.found.folder, ranking]),
        ("several sites", [units.paper.folder / "neurons-capital.json"]),
        ("none.json cannot be read", [tmp_path / "none.json"]),
    ]
    made = {
        "does not say whose units": small_set("capital", name="mine", neurons=hidden),
        "is for 2 layers of 512": small_set("capital", d_mlp=512, neurons=hidden),
        "hold no units": small_set("capital"),
        "several sites ": small_set("capital", neurons=(*hidden, *up)),
    }
    for number, (message, one) in enumerate(made.items()):
        cases.append((message, [tmp_path / f"{number}.json"]))
        save_neuron_set(cases[-1][1][0], one)
    for message, paths in cases:
        given = [part for path in paths for part in ("--sets", path)]
        done = command("neurons", "ablate", units.checkpoint, *given)
        assert done.code == 1, (message, done.err)
        assert message.strip() in words(done.err), (message, done.err)
        assert "Traceback" not in done.err


def test_folders_of_other_runs_are_refused(units: Units, command: Any) -> None:
    for folder in (units.ablated.folder, units.paper.folder):
        done = command("neurons", "show", folder)
        assert done.code == 1
        assert "is not a run of `neurons find`" in words(done.err)
    missing = command("neurons", "show", units.root / "relation-neurons-0000000000")
    assert missing.code == 1
    assert "is no finished run" in words(missing.err)


def test_every_help_text_has_an_example(command: Any) -> None:
    for verb in ("find", "ablate", "show"):
        done = command("neurons", verb, "--help")
        assert done.code == 0
        assert f"Example: mnemoscope neurons {verb}" in words(done.out)
