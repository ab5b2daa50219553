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


def rows(root: Path = Path("runs")) -> list[dict[str, Any]]:
    (log,) = root.glob("*prune-batch-*/rows.jsonl")
    return [json.loads(line) for line in log.read_text("utf-8").splitlines()]


def run_folder() -> Path:
    (folder,) = Path("runs").glob("prune-batch-*")
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


def test_the_same_command_tries_only_what_failed(command: Any, recipe: Path) -> None:
    command("prune", "run", "--recipe", recipe)
    before = Path("out/a/one/prune_manifest.json").stat().st_mtime_ns
    again = command("prune", "run", "--recipe", recipe)
    assert again.code == 1
    said = again.err.splitlines()
    assert [line.split(":")[0] for line in said if ": failed" in line] == ["a/none", "b/none"]
    assert not any(line.endswith(": done") for line in said)
    assert Path("out/a/one/prune_manifest.json").stat().st_mtime_ns == before
    assert len(rows()) == 6


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
        "from mnemoscope.results.run import Run\n"
        "append = Run.append\n"
        "def die(self, key, row):\n"
        "    if key == 'a/any' and MOMENT == 'before the row':\n"
        "        os.kill(os.getpid(), signal.SIGKILL)\n"
        "    append(self, key, row)\n"
        "    if key == 'a/any':\n"
        "        os.kill(os.getpid(), signal.SIGKILL)\n"
        "Run.append = die\n"
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
    assert len(rows()) == 6


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
    assert done.code == 1
    units = {unit["unit"]: unit for unit in json.loads(done.out)["units"]}
    assert "gate closed" in units["a/one"]["error"]
    assert not Path("out/a/one").exists()
    context = units["a/none"]
    assert (context["status"], context["closed change"]) == ("done", 0.0)
    assert context["memory_rate.substitution change"] > 0
    assert len(list(Path("runs").glob("prune-eval-*"))) == 3
