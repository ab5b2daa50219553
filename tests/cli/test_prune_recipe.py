"""Recipes and options of `prune run`: one configuration, and mistakes named by field and line."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from mnemoscope.cli.prune_config import PruneBatch, PruneConfig
from mnemoscope.cli.prune_options import config_from_options
from mnemoscope.cli.prune_recipe import RecipeError, config_of, read_recipe, recipe_text

FULL = """\
schema: prune-heads/1
source: {path: models/my-llama, sha256: auto}
heads:
  from: runs/ph3/headset.json
  where: "role = 'memory' AND q < 0.05"
  top: 32
method: {mode: scale, factor: 0.5}
gate:
  - {metric: ppl, max_increase: 0.05}
  - {metric: context_rate, min_increase: 0.10}
controls: {matched_random: 7, seed: 3}
output: {path: out/my-llama-m32, shard_size: keep, card: true, delta: true}
"""
SMALL = """\
schema: prune-heads/1
source: folder
heads: [[1, 2]]
output: {path: out}
"""
BATCH = """\
schema: prune-heads/1
checkpoints: [models/a, {path: models/b, tokenizer: false}]
head_sets:
  - {name: memory, from: memory.json, top: 5%}
  - {name: by-hand, list: ["0:1", [1, 2]]}
method: {mode: mean}
evaluate: {relation: currency}
output: {path: out, copy: true}
"""


def read(text: str, tmp_path: Path) -> PruneConfig | PruneBatch:
    path = tmp_path / "recipe.yaml"
    path.write_text(text, "utf-8")
    return read_recipe(path)


def mistakes(text: str, tmp_path: Path) -> str:
    with pytest.raises(RecipeError) as error:
        read(text, tmp_path)
    return str(error.value)


def test_a_whole_recipe_is_read(tmp_path: Path) -> None:
    config = read(FULL, tmp_path)
    assert isinstance(config, PruneConfig)
    assert (config.source.path, config.source.tokenizer) == ("models/my-llama", True)
    assert (config.heads.from_, config.heads.top) == ("runs/ph3/headset.json", 32)
    assert (config.method.mode, config.method.factor) == ("scale", 0.5)
    assert [(gate.metric, gate.max_increase, gate.min_increase) for gate in config.gate] == [
        ("ppl", 0.05, None),
        ("context_rate", None, 0.1),
    ]
    assert (config.controls.matched_random, config.controls.seed) == (7, 3)
    assert config.evaluate is not None, "a gate cannot be held without asking"


@pytest.mark.parametrize("text", [FULL, SMALL, BATCH])
def test_what_is_printed_is_read_as_the_same(text: str, tmp_path: Path) -> None:
    config = read(text, tmp_path)
    printed = recipe_text(config)
    assert printed.startswith("schema: prune-heads/1\n")
    assert read(printed, tmp_path) == config


def test_a_list_of_heads_has_three_spellings(tmp_path: Path) -> None:
    for heads in ("[[12, 5], [14, 3]]", '["12:5", L14.H3]', "12:5,14:3"):
        config = read(SMALL.replace("[[1, 2]]", heads), tmp_path)
        assert isinstance(config, PruneConfig)
        assert config.heads.list_ == ((12, 5), (14, 3))


def test_a_batch_is_every_checkpoint_with_every_head_set(tmp_path: Path) -> None:
    batch = read(BATCH, tmp_path)
    assert isinstance(batch, PruneBatch)
    units = batch.units()
    assert list(units) == ["a/memory", "a/by-hand", "b/memory", "b/by-hand"]
    unit = units["b/by-hand"]
    assert (unit.source.path, unit.source.tokenizer) == ("models/b", False)
    assert unit.heads.list_ == ((0, 1), (1, 2))
    assert Path(unit.output.path) == Path("out/b/by-hand")
    assert (unit.output.copy_untouched, unit.method.mode) == (True, "mean")
    assert unit.evaluate is not None
    assert unit.evaluate.relation == "currency"


@pytest.mark.parametrize(
    ("old", "new", "line", "field", "message"),
    [
        ("metric: ppl", "metric: wikitext_ppl", 9, "gate.0.metric", "is no metric: use one of ppl"),
        ("max_increase: 0.05", 'max_increase: "a lot"', 9, "gate.0.max_increase", "valid number"),
        ("max_increase: 0.05", "max_drop: 0.1, min: 0.5", 9, "gate.0", "exactly one of"),
        ("method:", "metod:", 7, "metod", "there is no such field"),
        ("mode: scale", "mode: mask", 7, "method.mode", "'zero', 'mean', 'scale' or 'slice'"),
        ("factor: 0.5", "factor: 0.0", 7, "method", "factor 0 is mode zero"),
        (", factor: 0.5", "", 7, "method", "mode scale takes a factor"),
        ("mode: scale, ", "", 7, "method", "mode scale takes a factor"),
        ("factor: 0.5", "factor: .inf", 7, "method.factor", "finite"),
        ("top: 32", "top: 0", 6, "heads.top", "neither a number of heads"),
        ("top: 32", "top: 120%", 6, "heads.top", "nor a share"),
        ("top: 32", "top: true", 6, "heads.top", "neither a number of heads"),
        ("sha256: auto", "sha256: 1234", 2, "source.sha256", "in quotes"),
        ("sha256: auto", "sha256: abc", 2, "source.sha256", "pattern"),
        ("matched_random: 7", "matched_random: 0", 11, "controls.matched_random", "greater"),
        ("shard_size: keep", "shard_size: 1GB", 12, "output.shard_size", "'keep'"),
        ("delta: true", "delta: false", 12, "output.delta", "True"),
        ("schema: prune-heads/1", "schema: prune-heads/9", 1, "schema", "prune-heads/1"),
        ("  from: runs/ph3/headset.json", "  list: [[1, 2]]", 3, "heads", "give one (from"),
        ("path: out/my-llama-m32, ", "", 12, "output.path", "this field is missing"),
    ],
)
def test_a_mistake_is_named_by_field_and_line(
    old: str, new: str, line: int, field: str, message: str, tmp_path: Path
) -> None:
    assert old in FULL
    said = mistakes(FULL.replace(old, new), tmp_path)
    assert f"recipe.yaml, line {line}, {field}: " in said
    assert message in said
    assert "Next: " in said


@pytest.mark.parametrize(
    ("heads", "message"),
    [
        ("[[1, 2], [1, 2]]", "named twice"),
        ("[12:5]", "725 is no head"),  # YAML's numbers of base 60
        ("[[1, 2, 3]]", "is no head"),
        ("[[1, -2]]", "greater than or equal to 0"),
        ("[]", "no heads given"),
        ("1;9", "layer:head"),
        ("{}", "name heads"),
        ("{from: a.json, list: [[1, 2]]}", "not both"),
    ],
)
def test_heads_that_cannot_be(heads: str, message: str, tmp_path: Path) -> None:
    said = mistakes(SMALL.replace("[[1, 2]]", heads), tmp_path)
    assert "line 3, heads" in said
    assert message in said


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("schema: [", "no YAML"),
        ("- 1\n", "a recipe is a mapping"),
        ("", "a recipe is a mapping"),
        (SMALL + "source: other\n", "line 5: source is given twice"),
        ("a: &x 1\nb: *x\n", "line 2: aliases"),
        (SMALL.replace("folder", "2026-13-45"), "cannot be read"),
        (SMALL.replace("folder", "2026-11-20"), "source: "),
        ("? {a: 1}\n: 2\n", "line"),
        ("a: !!python/object:os.system {}\n", "no YAML"),
        (BATCH.replace("name: by-hand", "name: memory"), "twice"),
        (BATCH.replace("models/b", "other/a"), "checkpoints named a twice"),
        (BATCH.replace("models/b", ".."), "names a folder"),
        (BATCH.replace("models/b", "."), "names a folder"),
        (BATCH.replace("name: by-hand", "name: ../up"), "head_sets.1.name"),
        (BATCH.replace("head_sets:", "headsets:"), "head_sets: this field is missing"),
    ],
)
def test_a_file_that_is_no_recipe(text: str, message: str, tmp_path: Path) -> None:
    assert message in mistakes(text, tmp_path)


def test_a_recipe_that_is_not_there_is_said(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match=r"none\.yaml"):
        read_recipe(tmp_path / "none.yaml")


OPTIONS: dict[str, Any] = {
    "checkpoint": "folder",
    "out": Path("out"),
    "headset": None,
    "heads": "",
    "role": None,
    "where": None,
    "top": None,
    "random": None,
    "seed": 0,
    "mode": None,
    "factor": None,
    "projection": None,
    "all_shared": False,
    "evaluate": False,
    "relation": "capital",
    "subjects": 60,
    "controls": 5,
    "gate": None,
    "lm_eval": "",
    "copy": False,
    "no_tokenizer": False,
}


def test_options_and_recipe_give_the_same_configuration(tmp_path: Path) -> None:
    assert config_from_options({**OPTIONS, "heads": "1:2"}) == read(SMALL, tmp_path)
    options = {
        "checkpoint": "models/my-llama",
        "out": Path("out/my-llama-m32"),
        "headset": Path("runs/ph3/headset.json"),
        "where": "role = 'memory' AND q < 0.05",
        "top": "32",
        "factor": 0.5,
        "gate": ["ppl_increase <= 0.05", "context_rate_increase>=0.1"],
        "controls": 7,
        "seed": 3,
    }
    assert config_from_options({**OPTIONS, **options}) == read(FULL, tmp_path)


@pytest.mark.parametrize(
    ("text", "bound", "value"),
    [
        ("ppl_increase <= 0.05", "max_increase", 0.05),
        ("memory_rate.coherent_increase >= 0.1", "min_increase", 0.1),
        ("closed_drop<=5e-2", "max_drop", 0.05),
        ("agree >= 0.9", "min", 0.9),
    ],
)
def test_gates_are_read_from_words(text: str, bound: str, value: float) -> None:
    (gate,) = config_from_options({**OPTIONS, "heads": "1:2", "gate": [text]}).gate
    assert getattr(gate, bound) == value


def test_random_heads_keep_the_seed() -> None:
    config = config_from_options({**OPTIONS, "random": 3, "seed": 9})
    assert config == config_of(
        {
            "source": "folder",
            "heads": {"random": {"n": 3, "seed": 9}},
            "controls": {"seed": 9},
            "output": {"path": "out"},
        }
    )
