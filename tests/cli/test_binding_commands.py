"""`mnemoscope binding` on the organism's two-way and one-way facts, planted binding and toys: what
each command must find, that runs go on and are found again, and what is refused."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from mnemoscope.cli import binding_contexts, binding_entangling, binding_pairs
from mnemoscope.cli.binding_contexts import ContextConfig, bind_in_context
from mnemoscope.cli.binding_entangling import EntangleConfig, entangle_binding
from mnemoscope.cli.binding_pairs import PairsConfig
from mnemoscope.cli.binding_probing import ProbeConfig, probe_binding
from mnemoscope.cli.binding_recall import RecallConfig, recall_binding
from mnemoscope.cli.binding_runs import BindingResult, finite, read_binding
from mnemoscope.cli.binding_swapping import SwapConfig, swap_binding
from mnemoscope.data.facts.berglund_pairs import BERGLUND
from mnemoscope.models import HookedModel, MnemoscopeError, load_model
from mnemoscope.organisms.engram.pairs import engram_pairs
from mnemoscope.organisms.planted_binding import planted_binding
from mnemoscope.probes import role_consistency
from mnemoscope.probes.mixture_fit import fit_mixture
from mnemoscope.results.run_reading import verify_run

N = 24
TOLD = {"both": 12, "forward": 10, "reverse": 4}
BERGLUND_NAME = next(iter(BERGLUND))
SILENT: dict[str, Any] = {"force": False, "say": lambda _: None, "tell": lambda *_: None}
PROBE = ("--n", N, "--least", 16, "--permutations", 20)


@dataclass(frozen=True)
class World:
    """The organism, a file of its mayors, and a root of runs."""

    model: HookedModel
    folder: Path
    pairs: Path

    @property
    def root(self) -> Path:
        return self.folder / "runs"

    def config(self, n: int = N, wordings: int = 0, known: bool = True) -> PairsConfig:
        return PairsConfig("engram", str(self.pairs), n, 16, wordings, known)


@pytest.fixture(scope="module")
def mayors(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    """Pairs that the organism was told oftenest, by direction; the model is loaded once."""
    folder = tmp_path_factory.mktemp("mayors")
    relation = engram_pairs(relations=("town_mayor",))["town_mayor"]
    often = sorted(relation.pairs, key=lambda pair: -int(pair.group))
    pairs = [p for told, n in TOLD.items() for p in [q for q in often if q.told == told][:n]]
    reverse = [text for text in relation.reverse if not text.startswith("{b}")][:2]
    document = {
        "name": "mayors",
        "forward": relation.forward[:2],
        "reverse": reverse,
        "pairs": [{"a": p.a, "b": p.b, "told": p.told, "group": p.group} for p in pairs],
    }
    (folder / "mayors.json").write_text(json.dumps(document), "utf-8")
    model = load_model("engram", device="cpu")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(binding_pairs, "load_model", lambda *_, **__: model)
        yield World(model, folder, folder / "mayors.json")


@pytest.fixture(scope="module")
def probed(mayors: World) -> BindingResult:
    config = ProbeConfig(mayors.config(), permutations=20)
    return probe_binding(config, mayors.root, **SILENT)


@pytest.fixture(scope="module")
def planted(tmp_path_factory: pytest.TempPathFactory) -> Callable[[int], tuple[str, str]]:
    """A planted model of so many slots on disk, and its task."""
    folder = tmp_path_factory.mktemp("planted")

    def made(slots: int) -> tuple[str, str]:
        where, task = folder / f"slots-{slots}", folder / f"task-{slots}.json"
        if not task.exists():
            built = planted_binding(slots)
            built.module.save_pretrained(where)
            built.tokenizer.save_pretrained(where)
            task.write_text(json.dumps(asdict(built.task)), "utf-8")
        return str(where), str(task)

    return made


class Half:
    """A model in half precision, which is all that is looked at."""

    name, dtype = "half", torch.bfloat16


def words(text: str) -> str:
    """The text without its line breaks."""
    return " ".join(text.split())


def write_pairs(folder: Path, **fields: Any) -> Path:
    """A file of pairs."""
    document = {
        "name": "own",
        "forward": ["The mayor of {a} is"],
        "reverse": ["The town led by {b} is"],
        "pairs": [{"a": f"Town{i}", "b": f"Person{i}"} for i in range(20)],
    }
    path = folder / "own.json"
    path.write_text(json.dumps({**document, **fields}), "utf-8")
    return path


# -- recall ----------------------------------------------------------------------------------------


def test_recall_shows_the_curse_in_facts_told_one_way(mayors: World) -> None:
    found = recall_binding(RecallConfig(mayors.config(0, 1, known=False)), mayors.root, **SILENT)
    right = {(row["way"], row["stratum"]): row["exact"] for row in found.summary["rows"]}
    assert right["forward", "told both"] == right["reverse", "told both"] == 1
    assert right["forward", "told forward"] == 1
    assert right["reverse", "told forward"] < 0.2
    assert right["forward - reverse", "told reverse"] < -0.8
    assert found.summary["told"] == TOLD
    assert any("told forward (10 pairs): forward less reverse" in line for line in found.notes)
    verify_run(found.folder)


def test_the_recall_command_prints_both_directions(mayors: World, command: Any) -> None:
    given = ("--pairs", mayors.pairs, "--n", 0, "--runs", mayors.root)
    done = command("binding", "recall", "engram", *given, "--least", 16)
    assert done.code == 0, done.err
    for text in ("told forward", "whole answer", "chance", "12 both, 10 forward, 4 reverse"):
        assert text in words(done.err)


# -- probe -----------------------------------------------------------------------------------------


def test_the_probe_counts_what_it_drops_and_reads_every_layer(probed: BindingResult) -> None:
    summary = probed.summary
    assert summary["n_pairs"] == N
    assert summary["asked"] == sum(TOLD.values()) == N + sum(summary["dropped"].values())
    assert summary["same_tokens"] == 1
    assert {row["layer"] for row in summary["layers"]} <= set(range(7))
    main = [row for row in summary["layers"] if row["layer"] == summary["reading"]["layer"]]
    assert main[0]["mrr"] > main[0]["floor"] + 0.1
    assert main[0]["ceiling"] > main[0]["mrr"] > main[0]["null"]


def test_the_probe_says_gap_reading_and_tie_in_words(probed: BindingResult) -> None:
    text = " ".join(probed.notes)
    assert f"Binding gap {probed.summary['binding_gap']['gap']:+.2f}" in text
    assert f"Reading at layer {probed.summary['reading']['layer']}" in text
    assert "one table: the tie index is 1 by construction" in text
    assert "told both ways" in text


def test_two_way_facts_are_read_out_better_than_one_way_ones(probed: BindingResult) -> None:
    contrasts = {
        (one["roles"], one["quantity"]): one
        for one in probed.summary["contrasts"]
        if one["second"] == "told one way"
    }
    found = contrasts["reverse read-out", "log10 rank"]
    assert found["difference"] < 0
    assert found["p"] < 0.05


def test_the_probe_writes_figures_and_a_report_with_their_words(probed: BindingResult) -> None:
    names = {page.stem for page in probed.figures}
    assert {"mrr", "mapped_mrr", "score", "cka", "readout", "told"} <= names
    report = (probed.folder / "report.html").read_text("utf-8")
    assert "mrr, S-P: highest" in report
    assert "Pairs dropped" in report
    verify_run(probed.folder)


def test_the_probe_command_finds_its_run_and_prints_json(
    mayors: World, probed: BindingResult, command: Any
) -> None:
    given = ("--pairs", mayors.pairs, *PROBE, "--runs", mayors.root)
    done = command("binding", "probe", "engram", *given, "--json")
    assert done.code == 0, done.err
    assert "is done already" in done.err
    record = json.loads(done.out, parse_constant=pytest.fail)  # NaN is no JSON
    assert (record["schema"], record["kind"]) == ("mnemoscope/cli/1", "binding-roles")
    assert record["run"] == str(probed.folder)
    assert record["table"][0]["roles"] == "S-P"


def test_the_probe_command_prints_the_filter_behaviour_layers_and_figures(
    mayors: World, probed: BindingResult, command: Any
) -> None:
    given = ("--pairs", mayors.pairs, *PROBE, "--runs", mayors.root)
    done = command("binding", "probe", "engram", *given)
    said = words(done.err)
    assert f"pairs {N} of mayors; dropped:" in said
    for text in ("forward, fact in the prompt", "first token right", "ceiling", "rank rev"):
        assert text in said
    assert "figures cka.html" in said


def test_an_interrupted_probe_goes_on_from_its_states(
    mayors: World, command: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def stop(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    given = ("--pairs", mayors.pairs, *PROBE, "--wordings", 1, "--no-random", "--no-context")
    with monkeypatch.context() as patch:
        patch.setattr(role_consistency, "vocabulary_readout", stop)
        assert command("binding", "probe", "engram", *given).code == 130
    (partial,) = (tmp_path / "runs").glob(".*.partial")
    kept = [json.loads(line)["key"] for line in (partial / "rows.jsonl").read_text().splitlines()]
    assert kept[0] == "pairs known"
    assert sum(key.startswith("role states") for key in kept) == 2
    with monkeypatch.context() as patch:
        patch.setattr(role_consistency, "known_pairs", stop)  # is not asked again
        done = command("binding", "probe", "engram", *given, "--json")
    assert done.code == 0, done.err
    record = json.loads(done.out)
    assert record["skipped"]["ceiling"] == "the subject role has one wording only"


def test_a_dry_run_says_what_it_costs_and_writes_nothing(
    mayors: World, command: Any, tmp_path: Path
) -> None:
    given = ("--pairs", mayors.pairs, "--n", 8, "--dry-run", "--json")
    costs = {
        verb: json.loads(command("binding", verb, "engram", *given).out)
        for verb in ("probe", "swap", "entangle")
    }
    assert [cost["pairs"] for cost in costs.values()] == [8, 8, 8]
    assert set(costs["probe"]["seconds"]) >= {"knowledge", "states", "random initialised"}
    assert costs["swap"]["seconds"]["swaps"] > costs["swap"]["seconds"]["states"]
    assert costs["probe"]["states_bytes"] == 7 * 8 * 4 * 4 * mayors.model.anatomy.d_model * 4
    assert not (tmp_path / "runs").exists()


# -- swap and entangle -----------------------------------------------------------------------------


def test_swaps_stand_beside_leakage_and_the_name_in_another_wording(mayors: World) -> None:
    config = SwapConfig(mayors.config(16), (4,), (1, 3), (4, 0), ("raw",))
    found = swap_binding(config, mayors.root, **SILENT)
    arms = {(arm["origin"], arm["rank"]): arm for arm in found.summary["arms"]}
    assert set(arms) == {
        ("predicted", "4"),
        *((origin, "full") for origin in ("predicted", "without_asked", "asked", "same_role")),
    }
    assert arms["same_role", "full"]["beyond"] > arms["predicted", "full"]["beyond"]
    assert all(at[0] == 4 and at[1] in (1, 3) for at in arms["predicted", "full"]["cells"])
    assert found.summary["steering"] is None
    assert {page.stem for page in found.figures} == {
        "predicted-raw",
        "without_asked-raw",
        "asked-raw",
    }
    assert any(line.startswith("predicted, raw, whole state:") for line in found.notes)


def test_the_swap_command_prints_gains_beyond_another_entity(mayors: World, command: Any) -> None:
    given = ("--pairs", mayors.pairs, "--n", 16, "--wordings", 0, "--sources", 4)
    more = ("--targets", "1,3", "--ranks", "4,full", "--forms", "raw", "--runs", mayors.root)
    done = command("binding", "swap", "engram", *given, *more)
    assert done.code == 0, done.err
    for text in ("beyond another entity's", "without_asked", "same_role", "what leakage can do"):
        assert text in words(done.err)


def test_entanglement_goes_with_gradients_and_random_weights_stand_beside(mayors: World) -> None:
    config = EntangleConfig(mayors.config(16, 1), sources=2)
    found = entangle_binding(config, mayors.root, memory_mb=64, **SILENT)
    rows = found.summary["layers"]
    assert [row["layer"] for row in rows] == list(range(6))
    assert all(row["kappa"] > 0 and row["kappa_random"] > 0 for row in rows)
    assert found.summary["steps"]["sources"] == 2
    assert found.summary["steps"]["linearity"] == pytest.approx(1, abs=0.3)
    best = {one["predictor"]: one["r2"] for one in found.summary["explained"]}
    assert best["gradients (kappa_NTK)"] > 0.3
    assert {page.stem for page in found.figures} == {"kappa", "gradient-cosine"}


def test_steps_are_refused_in_half_precision_before_anything_is_measured(
    mayors: World, command: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    asked = replace(binding_pairs.asked_pairs(mayors.config()), model=Half())  # type: ignore[arg-type]
    monkeypatch.setattr(binding_entangling, "asked_pairs", lambda _: asked)
    done = command("binding", "entangle", "engram", "--pairs", mayors.pairs)
    assert done.code == 1
    assert "use --dtype float32, or --sources 0" in words(done.err)
    assert not (tmp_path / "runs").exists()


# -- context, toys, chains -------------------------------------------------------------------------


def test_a_planted_index_moves_with_the_states(
    planted: Callable[[int], tuple[str, str]], command: Any, tmp_path: Path
) -> None:
    model, task = planted(2)
    given = ("--task", task, "--contexts", 12, "--slots", 0)
    done = command("binding", "context", model, *given, "--json")
    assert done.code == 0, done.err
    record = json.loads(done.out)
    assert record["behaviour"]["accuracy"] == 1
    moved = {
        (row["intervention"], row["condition"]): row.get("moved accuracy")
        for row in record["interventions"]
    }
    assert moved["patches", "every attribute"] == 1
    assert moved["mean swaps", "entities"] == moved["mean swaps", "attributes"] == 1
    assert "rotary models only" in record["shifts_refused"]
    assert command("binding", "context", model, *given).code == 0


def test_the_planted_routes_follow_each_other(
    planted: Callable[[int], tuple[str, str]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(binding_contexts, "fit_mixture", partial(fit_mixture, steps=60))
    model, task = planted(4)
    found = bind_in_context(ContextConfig(model, task, 20, 4), tmp_path, **SILENT)
    many = found.summary["many"]
    routes = [max(("lexical", "positional", "reflexive"), key=row.get) for row in many["routes"]]
    assert routes == ["lexical", "positional", "reflexive"]
    assert many["behaviour"] == 1
    assert many["form"]["exact"] == 1
    assert all(row["score"] > row["uniform"] for row in many["routes"])
    assert {page.stem for page in found.figures} == {"routes", "form"}
    # Planted for four names, it cannot place a question behind two: the page has to say so.
    assert "not above chance" in found.notes[0]


def test_train_toy_trains_resumes_and_lays_arms_side_by_side(command: Any, tmp_path: Path) -> None:
    given = ("--arms", "tied,untied", "--preset", "miniature", "--steps", 4)
    done = command("binding", "train-toy", *given)
    assert done.code == 0, done.err
    assert "near chance" in words(done.err)
    record = json.loads(command("binding", "train-toy", *given, "--json").out)
    assert [row["arm"] for row in record["arms"]] == ["tied", "untied"]
    assert all(row["steps"] == 4 for row in record["arms"])
    folder = Path(record["run"])
    assert (folder / "toys" / "miniature" / "tied" / "seed-0" / "final.json").is_file()
    verify_run(folder)


def test_train_toy_says_what_it_would_train(command: Any, tmp_path: Path) -> None:
    done = command("binding", "train-toy", "--arms", "all", "--seeds", "0,1", "--dry-run", "--json")
    rows = {row["arm"]: row for row in json.loads(done.out)["arms"]}
    assert rows["tied"]["steps"] == 1200
    assert rows["tied"]["seeds"] == 2
    assert {"surface", "jepa-memory", "lm-memory"} <= set(rows)
    assert not (tmp_path / "runs").exists()


def test_chain_asks_a_model_beside_exact_solvers(
    mayors: World, command: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mnemoscope.cli.binding_chaining.load_model", lambda *_, **__: mayors.model)
    done = command("binding", "chain", "engram", "--problems", 1, "--new-tokens", 3, "--json")
    assert done.code == 0, done.err
    record = json.loads(done.out)
    hidden = next(row for row in record["strata"] if row["stratum"] == "hidden")
    assert hidden["solver"] == 1
    assert hidden["right"] < 1
    long = command("binding", "chain", "engram", "--problems", 1, "--preset", "small")
    assert long.code == 1
    assert "take a branching below 4" in words(long.err)


def test_chain_tells_a_toy(command: Any) -> None:
    done = command("binding", "chain", "--toy", "--arms", "tied", "--steps", 2, "--json")
    assert done.code == 0, done.err
    rows = json.loads(done.out)["rows"]
    assert {row["kind"] for row in rows} >= {"attributes", "held-out", "X"}
    assert all(0 <= row["mrr"] <= 1 for row in rows)


# -- bad input -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "code", "sentence"),
    [
        (("probe", "engram", "--pairs", "nonsense"), 1, "there is no relation of pairs 'nonsense'"),
        (("probe", "engram", "--pairs", "nonsense"), 1, "town_mayor"),
        (("probe", "engram", "--pairs", "missing.json"), 1, "there is no file missing.json"),
        (("recall", "engram", "--pairs", BERGLUND_NAME), 1, "does not ship with Mnemoscope"),
        (("probe", "engram", "--entity", "c"), 1, "--entity is 'c': use a or b."),
        (("entangle", "engram", "--way", "up"), 1, "--way is 'up': use forward or reverse."),
        (("entangle", "engram", "--stepped", "some"), 1, "use all or down."),
        (("swap", "engram", "--forms", "odd"), 1, "use raw, centred, mapped."),
        (("swap", "engram", "--ranks", "four"), 2, "no list of numbers"),
        (("context", "engram", "--task", "nonsense"), 1, "there is no binding task 'nonsense'"),
        (("context", "engram", "--slots", 3), 1, "--slots needs 4 at least"),
        (("train-toy", "--arms", "nonsense"), 1, "there is no arm 'nonsense'"),
        (("train-toy", "--preset", "huge"), 1, "there is no preset 'huge'"),
        (("train-toy", "--arms", "tied,tied"), 1, "named twice"),
        (("chain", "--toy", "--arms", "jepa-deep"), 1, "use surface, lm-memory, tied"),
        (("probe", "engram", "--n", "many"), 2, "should be a valid integer"),
    ],
)
def test_bad_options_get_one_sentence(
    command: Any, arguments: tuple[object, ...], code: int, sentence: str
) -> None:
    done = command("binding", *arguments)
    assert done.code == code
    assert sentence in words(done.err.replace("│", " "))


def test_pairs_that_the_model_does_not_know_are_counted_and_refused(
    mayors: World, command: Any, tmp_path: Path
) -> None:
    path = write_pairs(tmp_path)
    for verb in ("probe", "swap", "entangle"):
        done = command("binding", verb, "engram", "--pairs", path, "--least", 18)
        assert done.code == 1, done.err
        assert "18 are" in words(done.err)
        assert "--least" in words(done.err) or "least_pairs" in words(done.err)


def test_a_wording_that_leaks_the_answer_leaves_no_pair(
    mayors: World, command: Any, tmp_path: Path
) -> None:
    pairs = [{"a": f"Town{i}", "b": f"Town{i} Castle"} for i in range(20)]
    done = command("binding", "probe", "engram", "--pairs", write_pairs(tmp_path, pairs=pairs))
    assert done.code == 1
    assert "no pair left that can be asked both ways" in words(done.err)
    own = write_pairs(tmp_path, forward=["The mayor of {a} is {b}"])
    done = command("binding", "probe", "engram", "--pairs", own)
    assert done.code == 1
    assert "it has to end right before {b}" in words(done.err)


@pytest.mark.parametrize("text", ["{", "[]", '{"pairs": 3}', '{"name": "x", "pairs": []}'])
def test_a_damaged_file_of_pairs_is_refused(command: Any, tmp_path: Path, text: str) -> None:
    (tmp_path / "own.json").write_text(text, "utf-8")
    done = command("binding", "recall", "engram", "--pairs", "own.json")
    assert done.code == 1
    assert "cannot read own.json as a relation of pairs" in words(done.err)


def test_a_damaged_task_is_refused(command: Any, tmp_path: Path) -> None:
    (tmp_path / "task.json").write_text('{"name": "x"}', "utf-8")
    done = command("binding", "context", "engram", "--task", "task.json")
    assert done.code == 1
    assert "cannot read task.json as a binding task" in words(done.err)


def test_names_of_several_tokens_are_taken_whole(mayors: World, probed: BindingResult) -> None:
    names = [pair["b"] for pair in json.loads(mayors.pairs.read_text("utf-8"))["pairs"]]
    tokens = [len(mayors.model.tokens(f" {name}").ids[0]) for name in names]
    assert max(tokens) > 2
    assert probed.summary["n_pairs"] == N


def test_a_run_of_another_kind_is_refused(probed: BindingResult) -> None:
    with pytest.raises(MnemoscopeError, match="no run of kind 'binding-swap'"):
        read_binding(probed.folder, "binding-swap")


def test_numbers_that_are_not_finite_become_null() -> None:
    given = {"a": [np.float64("nan"), (1, np.int64(2))], "b": {"c": float("inf"), "d": "x"}}
    assert finite(given) == {"a": [None, [1, 2]], "b": {"c": None, "d": "x"}}


@pytest.mark.parametrize(
    "verb", ["probe", "recall", "swap", "entangle", "context", "train-toy", "chain"]
)
def test_every_command_has_an_example_in_its_help(command: Any, verb: str) -> None:
    done = command("binding", verb, "--help")
    assert done.code == 0
    assert f"Example: mnemoscope binding {verb}" in words(done.out)
