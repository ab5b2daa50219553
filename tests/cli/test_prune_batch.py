"""Many checkpoints with many head sets: a row for each, and none stops the rest."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import polars
import pytest
from mnemoscope.results.ledger import read_ledger
from mnemoscope.results.run_reading import load_run
from mnemoscope.results.shards import Shard


def words(text: str) -> str:
    return " ".join(text.split())


@pytest.fixture
def recipe(world: Any, tmp_path: Path) -> Path:
    """Two checkpoints and three head sets, one of which no model has."""
    for name in ("a", "b"):
        shutil.copytree(world.checkpoint, tmp_path / name)
    path = tmp_path / "batch.yaml"
    path.write_text(
        "schema: prune-heads/1\n"
        "checkpoints: [a, b]\n"
        "head_sets:\n"
        '  - {name: one, list: ["1:2"]}\n'
        '  - {name: none, list: ["9:9"]}\n'
        "  - {name: any, random: {n: 2, seed: 1}}\n"
        "output: {path: out}\n",
        "utf-8",
    )
    return path


def attempts(root: Path = Path("runs")) -> dict[str, list[str]]:
    """How the attempts at each unit ended."""
    (folder,) = root.glob("prune-batch-*.ledger")
    tried = read_ledger(folder).attempts()
    return {unit: [str(one.outcome) for one in done] for unit, done in tried.items()}


def run_folder() -> Path:
    (folder,) = Path("runs").glob("prune-batch-*[!r]")
    return folder


def test_a_failed_unit_does_not_stop_the_rest(command: Any, recipe: Path) -> None:
    done = command("prune", "run", "--recipe", recipe, "--json")
    assert done.code == 1
    record = json.loads(done.out)
    status = {unit["unit"]: unit["status"] for unit in record["units"]}
    assert status == {
        "a/one": "done",
        "a/none": "failed",
        "a/any": "done",
        "b/one": "done",
        "b/none": "failed",
        "b/any": "done",
    }
    assert record["failed"] == ["a/none", "b/none"]
    table = polars.read_parquet(run_folder() / "table.parquet")
    (error,) = table.filter(polars.col("unit") == "a/none")["error"]
    assert "layer" in error
    for name in ("a/one", "a/any", "b/one", "b/any"):
        assert command("prune", "verify", f"out/{name}", "--source", name[0]).code == 0
    assert not Path("out/a/none").exists()


def test_people_see_a_table_and_how_to_go_on(command: Any, recipe: Path) -> None:
    done = command("prune", "run", "--recipe", recipe)
    assert done.code == 1
    assert "2 of 6 units failed. Next: " in words(done.err)
    assert "table.parquet" in done.err


def test_what_failed_is_tried_again_on_demand(command: Any, recipe: Path) -> None:
    command("prune", "run", "--recipe", recipe)
    before = Path("out/a/one/prune_manifest.json").stat().st_mtime_ns
    again = command("prune", "run", "--recipe", recipe)
    assert again.code == 1
    assert "is done already" in again.err
    assert "--retry" in again.err
    third = command("prune", "run", "--recipe", recipe, "--retry")
    assert third.code == 1
    said = third.err.splitlines()
    assert [line.split(":")[0] for line in said if ": failed" in line] == ["a/none", "b/none"]
    assert not any(line.endswith(": done") for line in said)
    assert Path("out/a/one/prune_manifest.json").stat().st_mtime_ns == before
    tried = attempts()
    assert tried["a/none"] == ["failed", "failed"]
    assert tried["a/one"] == ["done"]


@pytest.mark.parametrize("order", ["1/2 2/2", "2/3 1/3 3/3", "1/2 1/1"])
def test_shards_give_the_table_of_one_worker(command: Any, recipe: Path, order: str) -> None:
    assert command("prune", "run", "--recipe", recipe, "--runs", "whole").code == 1
    whole = next(Path("whole").glob("prune-batch-*[!r]/table.parquet")).read_bytes()
    shutil.rmtree("out")
    for shard in order.split():
        assert not list(Path("runs").glob("prune-batch-*[!r]")), "merged by the last one only"
        done = command("prune", "run", "--recipe", recipe, "--shard", shard, "--json")
        told = json.loads(done.out)
        mine = {
            unit.name for unit in Shard.parse(shard).of(read_ledger(Path(told["ledger"])).units)
        }
        assert done.code == int(any(unit in mine for unit in told["failed"]))
        failed = [unit["unit"] for unit in told["units"] if unit["status"] == "failed"]
        assert failed == told["failed"]
    assert (run_folder() / "table.parquet").read_bytes() == whole


def test_shards_are_for_batches(command: Any, recipe: Path) -> None:
    for bad in ("3/2", "half"):
        assert command("prune", "run", "--recipe", recipe, "--shard", bad).code == 2
    assert command("prune", "run", "--recipe", recipe, "--shard", "1/2", "--force").code == 2
    one = ("prune", "run", "a", "--heads", "1:2", "--out", "b")
    assert command(*one, "--shard", "1/2").code == 2
    assert command(*one, "--retry").code == 2


def test_a_batch_without_failures_is_done_once(command: Any, recipe: Path) -> None:
    recipe.write_text(recipe.read_text("utf-8").replace("9:9", "0:3"), "utf-8")
    first = command("prune", "run", "--recipe", recipe)
    assert first.code == 0, first.err
    again = command("prune", "run", "--recipe", recipe)
    assert again.code == 0
    assert "is done already" in again.err
    forced = command("prune", "run", "--recipe", recipe, "--force")
    assert forced.code == 0, forced.err
    assert "is done already" not in forced.err


def test_an_error_that_nobody_expected_is_a_row_too(
    command: Any, recipe: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from mnemoscope.cli import prune_run

    real = prune_run.prune_checkpoint

    def broken(plan: Any, out: Path, **options: Any) -> Path:
        if Path(out).parent.name == "a":
            raise RuntimeError("out of memory")
        return real(plan, out, **options)

    monkeypatch.setattr(prune_run, "prune_checkpoint", broken)
    record = json.loads(command("prune", "run", "--recipe", recipe, "--json").out)
    errors = {unit["unit"]: unit["error"] for unit in record["units"]}
    assert errors["a/one"] == "RuntimeError: out of memory"
    assert errors["b/one"] == ""


@pytest.mark.parametrize("moment", ["before the row", "after the row"])
def test_a_killed_batch_goes_on(moment: str, command: Any, recipe: Path, tmp_path: Path) -> None:
    """SIGKILL around the second row: its folder is there, its row may not be."""
    code = (
        "import os, signal\n"
        "from mnemoscope.results.ledger import Ledger\n"
        "settle = Ledger.settle\n"
        "def die(self, attempt, *given, **named):\n"
        "    if attempt.unit == 'a/any' and MOMENT == 'before the row':\n"
        "        os.kill(os.getpid(), signal.SIGKILL)\n"
        "    ended = settle(self, attempt, *given, **named)\n"
        "    if attempt.unit == 'a/any':\n"
        "        os.kill(os.getpid(), signal.SIGKILL)\n"
        "    return ended\n"
        "Ledger.settle = die\n"
        "from mnemoscope.cli.main import main\n"
        "main()\n"
    ).replace("MOMENT", repr(moment))
    args = [sys.executable, "-c", code, "prune", "run", "--recipe", str(recipe)]
    died = subprocess.run(args, cwd=tmp_path, env=dict(os.environ), check=False)
    assert died.returncode == -signal.SIGKILL
    written = Path("out/a/any/prune_manifest.json").stat().st_mtime_ns
    done = command("prune", "run", "--recipe", recipe, "--json")
    assert done.code == 1, done.err
    assert json.loads(done.out)["failed"] == ["a/none", "b/none"]
    assert Path("out/a/any/prune_manifest.json").stat().st_mtime_ns == written
    twice = ["claimed", "done"] if moment == "before the row" else ["done"]
    assert attempts()["a/any"] == twice
    assert len(load_run(run_folder()).rows) == 6


def test_a_folder_of_somebody_else_is_left_alone(command: Any, recipe: Path) -> None:
    foreign = Path("out/a/one")
    foreign.mkdir(parents=True)
    (foreign / "notes.txt").write_text("mine", "utf-8")
    record = json.loads(command("prune", "run", "--recipe", recipe, "--json").out)
    assert "a/one" in record["failed"]
    assert [path.name for path in foreign.iterdir()] == ["notes.txt"]


def test_a_dry_run_of_a_batch_plans_every_unit(command: Any, recipe: Path) -> None:
    done = command("prune", "run", "--recipe", recipe, "--dry-run", "--json")
    assert done.code == 1, "one head set names a head that no model has"
    units = {unit["unit"]: unit for unit in json.loads(done.out)["units"]}
    assert units["b/one"]["plan"]["plan"]["heads"][0]["head"] == 2
    assert units["b/none"]["plan"] is None
    assert "layer" in units["b/none"]["error"]
    assert not Path("out").exists()
    assert not Path("runs").exists()


def test_units_are_measured_and_gated(command: Any, world: Any, recipe: Path) -> None:
    text = (
        recipe.read_text("utf-8")
        .replace("9:9", "1:5")
        .replace("checkpoints: [a, b]", "checkpoints: [a]")
    )
    text += (
        f"evaluate: {{relation: {world.relation}}}\n"
        "controls: {matched_random: 1}\n"
        "gate: [{metric: closed, max_drop: 0.05}]\n"
    )
    recipe.write_text(text, "utf-8")
    done = command("prune", "run", "--recipe", recipe, "--json")
    assert done.code == 4, "all that failed, failed at a gate"
    units = {unit["unit"]: unit for unit in json.loads(done.out)["units"]}
    assert "gate closed" in units["a/one"]["error"]
    assert not Path("out/a/one").exists()
    context = units["a/none"]
    assert (context["status"], context["closed change"]) == ("done", 0.0)
    assert context["memory_rate.substitution change"] > 0
    assert len(list(Path("runs").glob("prune-eval-*"))) == 3
