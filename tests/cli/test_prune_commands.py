"""`prune run|verify|undo|diff` on the planted model, with every way in which they refuse."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from mnemoscope.cli.prune_recipe import read_recipe
from mnemoscope.models import HeadId, load_model, mean, scale, zero
from mnemoscope.results.head_set import HeadScore, HeadSet, save_head_set

MEMORY = HeadId(1, 2)


def words(text: str) -> str:
    return " ".join(text.split())


def manifest(folder: str) -> dict[str, Any]:
    return json.loads((Path(folder) / "prune_manifest.json").read_text("utf-8"))


def pruned(command: Any, world: Any, *more: object, out: str = "pruned") -> Any:
    return command("prune", "run", world.checkpoint, "--out", out, *more)


def logits_gap(a: Any, b: Any, edits: Any = ()) -> float:
    batch = a.tokens(["the capital of aland is"])
    with a.intervene(edits):
        hooked = a.logits(batch)
    return float((hooked - b.logits(batch)).abs().max())


@pytest.fixture
def headset(tmp_path: Path) -> Path:
    scores = [
        HeadScore(HeadId(1, 2), 3.0, "memory", 0.001),
        HeadScore(HeadId(0, 1), 1.0, "memory", 0.2),
        HeadScore(HeadId(1, 5), 5.0, "context", 0.002),
    ]
    path = tmp_path / "headset.json"
    save_head_set(path, HeadSet("s", "planted", 2, 8, 8, "direct", "run-1", tuple(scores)))
    return path


def test_heads_are_chosen_by_role_where_and_top(command: Any, world: Any, headset: Path) -> None:
    where = ("--where", "role = 'memory' AND q < 0.05")
    done = pruned(command, world, "--headset", headset, *where, "--json")
    assert done.code == 0, done.err
    record = json.loads(done.out)
    assert (record["kind"], record["heads"]) == ("pruned", ["L1.H2"])
    found = manifest("pruned")
    assert (found["extra"]["head_set"], found["extra"]["run_id"]) == ("s", "run-1")
    assert found["heads"][0]["score"] == 3.0
    assert found["extra"]["recipe"]["heads"]["where"] == where[1]
    best = pruned(command, world, "--headset", headset, "--top", "12%", "--json", out="best")
    assert json.loads(best.out)["heads"] == ["L1.H5", "L1.H2"]


@pytest.mark.parametrize(
    ("options", "edit"),
    [
        ((), lambda heads: zero(heads)),
        (("--mode", "scale", "--factor", "0.5"), lambda heads: scale(heads, 0.5)),
        (("--factor", "-1"), lambda heads: scale(heads, -1)),
    ],
)
def test_each_mode_does_what_its_edit_does(
    options: tuple[str, ...], edit: Any, command: Any, world: Any
) -> None:
    done = pruned(command, world, "--heads", "1:2", *options)
    assert done.code == 0, done.err
    assert "Next: mnemoscope prune verify" in done.err
    assert logits_gap(load_model(world.checkpoint), load_model("pruned"), [edit([MEMORY])]) < 1e-5


def test_mode_mean_leaves_the_mean_in_the_bias(command: Any, world: Any) -> None:
    import torch
    from mnemoscope.data.neutral import neutral_passages
    from mnemoscope.interventions.head_means import mean_head_outputs

    done = pruned(command, world, "--heads", "1:2", "--mode", "mean")
    assert done.code == 0, done.err
    model = load_model(world.checkpoint)
    means = mean_head_outputs(model, neutral_passages(), [MEMORY])
    edits = [mean([MEMORY], torch.stack([means[MEMORY]]))]
    assert logits_gap(model, load_model("pruned"), edits) < 1e-4
    assert manifest("pruned")["mode"] == "mean"


def test_random_heads_are_drawn_anew_by_seed(command: Any, world: Any) -> None:
    plans = [
        pruned(command, world, "--heads", "1:2", "--random", "1", "--seed", seed, "--dry-run")
        for seed in range(4)
    ]
    assert all(plan.code == 0 for plan in plans)
    assert len({plan.err for plan in plans}) > 1
    assert not any("L1.H2" in plan.err or "L0." in plan.err for plan in plans)
    assert pruned(command, world, "--random", "3", "--dry-run").code == 0


def test_a_dry_run_reads_headers_and_writes_nothing(
    command: Any, world: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*args: object, **options: object) -> None:
        raise AssertionError("a dry run loaded the model")

    monkeypatch.setattr("mnemoscope.cli.prune_run.load_model", refuse)
    for mode in ((), ("--mode", "mean"), ("--eval",)):
        done = pruned(command, world, "--heads", "1:2", "--dry-run", "--json", *mode)
        assert done.code == 0, done.err
        record = json.loads(done.out)
        assert record["kind"] == "prune-plan"
        assert record["plan"]["heads"][0]["layer"] == 1
        assert record["recipe"]["heads"] == {"list": [[1, 2]]}
    people = pruned(command, world, "--heads", "1:2", "--dry-run")
    assert people.out == ""
    assert "disk needed" in people.err
    assert "without --dry-run" in people.err
    assert not Path("pruned").exists()
    assert not Path("runs").exists()


def test_options_print_a_recipe_that_does_the_same(command: Any, world: Any, headset: Path) -> None:
    options = ("--headset", headset, "--role", "memory", "--top", "1", "--factor", "0.5")
    printed = pruned(command, world, *options, "--print-config")
    assert printed.code == 0
    assert not Path("pruned").exists()
    Path("recipe.yaml").write_text(printed.out, "utf-8")
    again = command("prune", "run", "--recipe", "recipe.yaml", "--print-config")
    assert again.out == printed.out
    done = command("prune", "run", "--recipe", "recipe.yaml")
    assert done.code == 0, done.err
    assert manifest("pruned")["factor"] == 0.5
    recipe: Any = read_recipe(Path("recipe.yaml"))
    assert manifest("pruned")["extra"]["recipe"] == recipe.document()


def test_evaluation_is_shown_kept_and_in_the_manifest(command: Any, world: Any) -> None:
    options = ("--heads", "1:2", "--eval", "--relation", world.relation, "--controls", "2")
    done = pruned(command, world, *options)
    assert done.code == 0, done.err
    said = words(done.err)
    assert "closed" in said
    assert "reloaded: logits equal" in said
    (run,) = Path("runs").glob("prune-eval-*")
    assert (run / "report.html").is_file()
    assert (run / "report.json").is_file()
    found = manifest("pruned")["extra"]["evaluation"]
    assert found["run"] == run.name
    told = {metric["name"]: metric for metric in found["metrics"]}
    assert (told["closed"]["before"], told["closed"]["after"]) == (1.0, 0.0)
    assert len(told["ppl"]["random"]) == 2


def test_a_gate_that_fails_stops_before_anything_is_written(command: Any, world: Any) -> None:
    gates = ("--gate", "closed_drop <= 0.05", "--relation", world.relation, "--controls", "1")
    failed = pruned(command, world, "--heads", "1:2", *gates)
    assert failed.code == 4, failed.err
    assert "gate closed: max drop is 0.05 but it is 1, off by 0.95" in words(failed.err)
    assert "Nothing was written" in words(failed.err)
    assert not Path("pruned").exists()
    held = pruned(command, world, "--heads", "1:5", *gates)
    assert held.code == 0, held.err
    assert "gates: 1 of 1 hold" in held.err


def test_verify_undo_and_diff(command: Any, world: Any) -> None:
    pruned(command, world, "--heads", "1:2,0:1")
    alone = command("prune", "verify", "pruned")
    assert alone.code == 0, alone.err
    assert "--source" in alone.err
    record = json.loads(
        command("prune", "verify", "pruned", "--source", world.checkpoint, "--json").out
    )
    assert 0 < record["differing_bytes"] <= record["declared_bytes"]
    assert set(record["heads"]) == {"L1.H2", "L0.H1"}

    difference = json.loads(command("prune", "diff", world.checkpoint, "pruned", "--json").out)
    assert {tuple(h) for t in difference["tensors"] for h in t["heads"]} == {(1, 2), (0, 1)}
    shown = command("prune", "diff", world.checkpoint, "pruned")
    assert "L1.H2" in shown.err
    assert "prune_manifest.json" in shown.err

    undone = command("prune", "undo", "pruned", "--out", "restored")
    assert undone.code == 0, undone.err
    for path in world.checkpoint.iterdir():
        assert (Path("restored") / path.name).read_bytes() == path.read_bytes()
    same = command("prune", "diff", world.checkpoint, "restored")
    assert "not one weight differs" in same.err
    again = command("prune", "undo", "pruned", "--out", "restored")
    assert again.code == 1
    assert "restored" in again.err


def test_verify_finds_a_changed_byte(command: Any, world: Any) -> None:
    pruned(command, world, "--heads", "1:2")
    path = Path("pruned/model.safetensors")
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    done = command("prune", "verify", "pruned")
    assert done.code == 1
    assert "model.safetensors has changed" in words(done.err)


def test_a_sliced_folder_is_smaller_and_says_the_same(command: Any, tmp_path: Path) -> None:
    from families import tiny

    module = tiny("llama")
    n_layers = module.config.num_hidden_layers
    size = module.config.num_attention_heads // module.config.num_key_value_heads
    module.save_pretrained(tmp_path / "llama")
    _tokenizer_of(tmp_path / "llama")
    heads = ",".join(f"{layer}:{head}" for layer in range(n_layers) for head in range(size))
    done = command("prune", "run", "llama", "--heads", heads, "--mode", "slice", "--out", "less")
    assert done.code == 0, done.err
    config = json.loads(Path("less/config.json").read_text("utf-8"))
    assert config["num_attention_heads"] == module.config.num_attention_heads - size
    for source in ((), ("--source", "llama")):
        assert command("prune", "verify", "less", *source).code == 0
    undone = command("prune", "undo", "less", "--out", "y")
    assert undone.code == 1
    assert "is sliced" in words(undone.err)
    plan = command(
        *("prune", "run", "llama", "--heads", heads, "--mode", "slice", "--out", "x"),
        *("--dry-run", "--json"),
    )
    assert json.loads(plan.out)["plan"]["mode"] == "slice"
    uneven = command("prune", "run", "llama", "--heads", "0:0", "--mode", "slice", "--out", "x")
    assert uneven.code in (1, 3)
    assert "slic" in uneven.err


def test_lm_eval_names_its_extra(command: Any, world: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    done = pruned(command, world, "--heads", "1:2", "--lm-eval", "piqa")
    assert done.code == 1
    assert "mnemoscope[lm-eval]" in words(done.err)
    assert not Path("pruned").exists()


def test_lm_eval_is_asked_before_and_after(
    command: Any, world: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    import importlib.util

    asked: list[dict[str, Any]] = []

    def simple_evaluate(**options: Any) -> dict[str, Any]:
        asked.append(options)
        return {"results": {"piqa": {"acc,none": 0.5 + 0.1 * len(asked), "alias": "piqa"}}}

    fake: Any = ModuleType("lm_eval")
    fake.simple_evaluate = simple_evaluate
    monkeypatch.setitem(sys.modules, "lm_eval", fake)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: object())
    done = pruned(command, world, "--heads", "1:2", "--lm-eval", "piqa", "--json")
    assert done.code == 0, done.err
    assert json.loads(done.out)["lm_eval"] == [["piqa", "acc,none", 0.6, 0.7]]
    folders = [Path(options["model_args"]["pretrained"]).name for options in asked]
    assert folders == [world.checkpoint.name, "pruned"]
    assert Path("pruned.lm-eval.json").is_file()


def test_a_recipe_can_ask_for_the_weights_it_means(command: Any, world: Any) -> None:
    from mnemoscope.models.checkpoint_files import file_sha256

    digest = file_sha256(world.checkpoint / "model.safetensors")
    recipe = (
        'schema: prune-heads/1\nsource: {{path: {0}, sha256: "{1}"}}\n'
        "heads: [[1, 2]]\noutput: {{path: {2}}}\n"
    )
    Path("right.yaml").write_text(recipe.format(world.checkpoint, digest, "a"), "utf-8")
    Path("wrong.yaml").write_text(recipe.format(world.checkpoint, "0" * 64, "b"), "utf-8")
    assert command("prune", "run", "--recipe", "right.yaml").code == 0
    wrong = command("prune", "run", "--recipe", "wrong.yaml")
    assert wrong.code == 1
    assert digest in words(wrong.err)
    assert not Path("b").exists()


def test_a_folder_without_a_tokenizer(command: Any, world: Any, tmp_path: Path) -> None:
    bare = tmp_path / "bare"
    bare.mkdir()
    for name in ("config.json", "model.safetensors"):
        shutil.copy(world.checkpoint / name, bare)
    refused = command("prune", "run", bare, "--heads", "1:2", "--out", "p")
    assert refused.code == 1
    assert "--no-tokenizer" in words(refused.err)
    done = command("prune", "run", bare, "--heads", "1:2", "--out", "p", "--no-tokenizer")
    assert done.code == 0, done.err


@pytest.mark.parametrize(
    ("args", "code", "message"),
    [
        (("--heads", "1:2", "--headset", "h.json", "--out", "p"), 2, "either --headset FILE"),
        (("--heads", "1:2"), 2, "--out DIR"),
        (("--heads", "1:2", "--top", "1", "--out", "p"), 1, "give one (from, --headset)"),
        (("--heads", "1:2", "--top", "none", "--out", "p"), 1, "neither a number of heads"),
        (("--heads", "1:2", "--mode", "mask", "--out", "p"), 1, "'zero', 'mean', 'scale'"),
        (("--heads", "1:2", "--mode", "scale", "--out", "p"), 1, "takes a factor"),
        (("--heads", "1:2", "--mode", "zero", "--factor", "2", "--out", "p"), 1, "takes a factor"),
        (("--heads", "1:2", "--factor", "1", "--out", "p"), 1, "changes nothing"),
        (("--heads", "1:2", "--random", "2", "--out", "p"), 1, "use --random 1"),
        (("--random", "17", "--out", "p"), 1, "has 16 heads"),
        (("--heads", "1:2", "--gate", "ppl < 1", "--out", "p"), 2, "ppl_increase <= 0.05"),
        (("--heads", "1:2", "--gate", "ppl_drop >= 1", "--out", "p"), 2, "cannot be read"),
        (("--heads", "1:2", "--gate", "ppl_increase <= 1.2.3", "--out", "p"), 2, "cannot be read"),
        (("--heads", "1:2", "--gate", "blue >= 1", "--out", "p"), 1, "is no metric"),
        (("--heads", "1:2", "--eval", "--relation", "captial", "--out", "p"), 1, "capital"),
        (("--heads", "1:2", "--mode", "slice", "--out", "p"), 3, "cannot be sliced"),
        (("--heads", "1:2", "--as", "delta", "--out", "p"), 2, "--as"),
    ],
)
def test_options_that_do_not_go_get_one_clear_error(
    args: Any, code: int, message: str, command: Any, world: Any
) -> None:
    done = command("prune", "run", world.checkpoint, *args)
    assert done.code == code, done.err
    assert message in words(done.err)
    assert "Traceback" not in done.err
    assert not Path("p").exists()


def test_a_recipe_and_options_do_not_mix(command: Any, world: Any) -> None:
    Path("r.yaml").write_text("schema: prune-heads/1\n", "utf-8")
    done = command("prune", "run", world.checkpoint, "--recipe", "r.yaml", "--top", "3")
    assert done.code == 2
    assert "--checkpoint" in done.err
    assert "--top" in done.err


def test_an_existing_folder_is_refused_before_anything_is_measured(
    command: Any, world: Any
) -> None:
    Path("pruned").mkdir()
    options = ("--heads", "1:2", "--eval", "--relation", world.relation)
    done = pruned(command, world, *options)
    assert done.code == 1
    assert "--force" in words(done.err)
    assert not Path("runs").exists()


@pytest.mark.parametrize("verb", ["run", "verify", "undo", "diff"])
def test_every_help_has_an_example(
    verb: str, command: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    done = command("prune", verb, "--help")
    assert done.code == 0
    assert f"Example: mnemoscope prune {verb}" in done.out


@pytest.mark.parametrize("verb", ["verify", "undo"])
def test_a_folder_that_is_not_pruned_is_refused(verb: str, command: Any, world: Any) -> None:
    more = ("--out", "x") if verb == "undo" else ()
    done = command("prune", verb, world.checkpoint, *more)
    assert done.code == 1
    assert "prune_manifest.json" in words(done.err)


def _tokenizer_of(folder: Path) -> None:
    from mnemoscope.organisms import planted_model

    planted_model().tokenizer.save_pretrained(folder)
