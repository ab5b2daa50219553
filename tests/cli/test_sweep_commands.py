"""`mnemoscope sweep`: recipes of probes, shards, status, and tables laid together."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import polars
import pytest
from mnemoscope.cli.recipe_files import RecipeError
from mnemoscope.cli.sweep_config import PROBES, Sweep, read_sweep
from mnemoscope.cli.sweep_run import _numbers
from mnemoscope.results.ledger import read_ledger
from mnemoscope.results.run_reading import verify_run

RECIPE = """\
schema: probe-sweep/1
checkpoints: [a, {{path: models/other, name: b}}]
probes:
  - {{probe: heads score, relation: {relation}, templates: [0], subjects: 6}}
  - {{name: coherent, probe: heads score, relation: {relation}, templates: [0], form: coherent}}
"""


@pytest.fixture
def recipe(world: Any, tmp_path: Path) -> Path:
    """The planted model under two names, scored in two ways."""
    for name in ("a", "models/other"):
        shutil.copytree(world.checkpoint, tmp_path / name)
    path = tmp_path / "sweep.yaml"
    path.write_text(RECIPE.format(relation=world.relation), "utf-8")
    return path


def merged(root: str) -> dict[str, bytes]:
    """Every table of the merged run."""
    (folder,) = Path(root).glob("probe-sweep-*[!r]")
    verify_run(folder)
    names = [*(path.name for path in folder.glob("*.parquet")), "rows.jsonl"]
    return {name: (folder / name).read_bytes() for name in names}


def test_a_sweep_lays_the_tables_of_all_checkpoints_together(command: Any, recipe: Path) -> None:
    done = command("sweep", "run", recipe, "--json")
    assert done.code == 0, done.err
    told = json.loads(done.out)
    units = ["a/heads-score", "a/coherent", "b/heads-score", "b/coherent"]
    assert [unit["unit"] for unit in told["units"]] == units
    assert (told["failed"], told["open"]) == ([], [])
    run = Path(told["run"])
    for probe in ("heads-score", "coherent"):
        both = polars.read_parquet(run / f"{probe}.parquet")
        for name in ("a", "b"):
            (unit,) = (one for one in told["units"] if one["unit"] == f"{name}/{probe}")
            own = polars.read_parquet(run.parent / unit["run"] / "table.parquet")
            assert both.filter(checkpoint=name).drop("checkpoint").equals(own)
            numbers = polars.read_parquet(run / "numbers.parquet").filter(unit=unit["unit"])
            assert numbers.filter(name="items")["value"].item() > 0, "of the run's own summary"
    assert (run / "report.html").is_file()
    again = command("sweep", "run", recipe)
    assert again.code == 0
    assert "is done already" in again.err


@pytest.mark.parametrize("order", ["2/2 1/2", "1/3 1/2 1/1"])
def test_shards_give_the_tables_of_one_worker(command: Any, recipe: Path, order: str) -> None:
    assert command("sweep", "run", recipe, "--runs", "whole").code == 0
    for shard in order.split():
        done = command("sweep", "run", recipe, "--shard", shard)
        assert done.code == 0, done.err
    assert merged("runs") == merged("whole")
    (folder,) = Path("runs").glob("*.ledger")
    assert {len(tried) for tried in read_ledger(folder).attempts().values()} == {1}


def test_a_checkpoint_that_cannot_be_measured_is_one_row(command: Any, recipe: Path) -> None:
    text = recipe.read_text("utf-8").replace("checkpoints: [a", "checkpoints: [odd, ./nowhere, a")
    recipe.write_text(text, "utf-8")
    Path("odd").mkdir()
    Path("odd/config.json").write_text('{"model_type": "odd"}', "utf-8")
    done = command("sweep", "run", recipe, "--json")
    told = json.loads(done.out)
    assert done.code == 1
    assert {unit["unit"] for unit in told["units"] if unit["status"] == "done"} == {
        *("a/heads-score", "a/coherent"),
        *("b/heads-score", "b/coherent"),
    }
    errors = {unit["unit"]: unit["error"] for unit in told["units"]}
    assert all(errors[unit] for unit in told["failed"])
    table = polars.read_parquet(Path(told["run"]) / "table.parquet")
    assert table.filter(status="failed")["unit"].to_list() == told["failed"]

    status = command("sweep", "status", told["ledger"], "--json")
    assert json.loads(status.out)["counts"] == {"failed": 4, "done": 4}
    assert "4 failed" in command("sweep", "status", told["ledger"]).err

    shutil.rmtree("odd")
    shutil.copytree("a", "odd")
    assert command("sweep", "run", recipe).code == 1, "on demand only"
    again = command("sweep", "run", recipe, "--retry", "--json")
    assert {unit.split("/")[0] for unit in json.loads(again.out)["failed"]} == {"nowhere"}


def test_status_tells_who_has_what(command: Any, recipe: Path) -> None:
    command("sweep", "run", recipe, "--shard", "1/2")
    (folder,) = Path("runs").glob("*.ledger")
    ledger = read_ledger(folder)
    (waiting,) = {unit.group for unit in ledger.units} - {
        unit.group for unit in ledger.units if unit.name in ledger.attempts()
    }
    mine, dead = (unit.name for unit in ledger.units if unit.group == waiting)
    with ledger.worker() as worker:
        ledger.claim(mine, 1, worker.name)
        ledger.claim(dead, 1, "somebody-who-left")
        told = json.loads(command("sweep", "status", folder, "--json").out)
    units = {unit["unit"]: unit for unit in told["units"]}
    assert (units[mine]["status"], units[mine]["worker"]) == ("running", worker.name)
    assert units[dead]["status"] == "abandoned"
    assert told["counts"]["done"] == 2


def test_a_dry_run_shows_units_and_shards(command: Any, recipe: Path) -> None:
    done = command("sweep", "run", recipe, "--shard", "1/2", "--dry-run", "--json")
    units = json.loads(done.out)["units"]
    assert [unit["shard"] for unit in units] == ["1/2", "1/2", "2/2", "2/2"]
    weights = Path("a/model.safetensors").stat().st_size
    assert {unit["size"] for unit in units} == {weights}
    assert not Path("runs").exists()


def test_a_sweep_is_resumed_by_its_id(command: Any, recipe: Path) -> None:
    command("sweep", "run", recipe, "--shard", "1/2")
    (listed,) = (
        run
        for run in json.loads(command("runs", "ls", "--json").out)["runs"]
        if run["kind"] == "probe-sweep"
    )
    assert listed["status"] == "interrupted"
    done = command("runs", "resume", listed["id"])
    assert done.code == 0, done.err
    assert set(merged("runs")) == {
        *("table.parquet", "numbers.parquet", "rows.jsonl"),
        *("heads-score.parquet", "coherent.parquet"),
    }


@pytest.mark.parametrize("shard", ["3/2", "0/1", "half"])
def test_a_shard_that_cannot_be_is_wrong_use(command: Any, recipe: Path, shard: str) -> None:
    assert command("sweep", "run", recipe, "--shard", shard).code == 2
    assert not Path("runs").exists()


def test_force_is_for_all_shards(command: Any, recipe: Path) -> None:
    done = command("sweep", "run", recipe, "--shard", "1/2", "--force")
    assert done.code == 2
    assert "without --shard" in " ".join(done.err.replace("│", " ").split())


@pytest.mark.parametrize(
    ("old", "new", "line", "message"),
    [
        ("form: coherent", "form: odd", 5, "substitution or coherent"),
        ("form: coherent", "fom: coherent", 5, "has no field fom: it has answers"),
        ("form: coherent", "model: a", 5, "leave it out"),
        ("subjects: 6", "subjects: many", 4, "subjects: Input should be a valid integer"),
        ("probe: heads score, relation", "probe: heads scores, relation", 5, "is no probe: use"),
        ("name: coherent, ", "", 1, "named heads-score twice"),
        ("name: coherent, ", "name: numbers, ", 5, "choose another name"),
        ("name: b", "name: a", 1, "named a twice"),
        ("name: b", "name: ../b", 2, "pattern"),
        ("checkpoints: [a", "checkpoint: [a", 2, "no such field"),
        ("probe-sweep/1", "prune-heads/1", 1, "probe-sweep/1"),
    ],
)
def test_a_mistake_is_named_with_its_line(
    recipe: Path, old: str, new: str, line: int, message: str
) -> None:
    text = recipe.read_text("utf-8")
    assert old in text
    lines = text.splitlines()
    place = max(i for i, one in enumerate(lines) if old in one)
    lines[place] = lines[place].replace(old, new)
    recipe.write_text("\n".join(lines), "utf-8")
    with pytest.raises(RecipeError) as error:
        read_sweep(recipe)
    assert f"sweep.yaml, line {line}, " in str(error.value)
    assert message in str(error.value)
    assert "docs/batch.md" in str(error.value)


def test_every_probe_takes_its_own_fields() -> None:
    """A model and a seed, which all have; those of `pairs` and of memory lie elsewhere."""
    sweep = Sweep.model_validate(
        {
            "schema": "probe-sweep/1",
            "checkpoints": ["engram"],
            "probes": [{"probe": probe, "seed": 7} for probe in PROBES],
        }
    )
    for _, probe in sweep.units().values():
        config = probe.config_for("some-model")
        own = getattr(config, "pairs", config) if probe.probe.startswith("binding") else config
        assert (own.model, own.seed) == ("some-model", 7), probe.probe
    again = Sweep.model_validate(sweep.document())
    assert again == sweep


def test_times_are_no_result() -> None:
    """They would differ from one attempt at a unit to the next."""
    summary = {"items": 3, "seconds": {"states": 1.5}, "deep": {"seconds": 2.0, "x": 1}, "ok": True}
    assert _numbers(summary) == {"items": 3.0, "deep.x": 1.0}


def test_options_beside_the_numbers_are_handed_on() -> None:
    sweep = Sweep.model_validate(
        {
            "schema": "probe-sweep/1",
            "checkpoints": ["engram"],
            "probes": [{"probe": "neurons find", "memory_mb": 64, "relations": ["capital"]}],
        }
    )
    (probe,) = sweep.probes
    assert probe.more == {"memory_mb": 64}
    assert probe.config_for("engram").relations == ("capital",)
