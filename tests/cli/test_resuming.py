"""Runs are gone on with by their id alone, from any folder: what a folder must say for that.

The kinds of `neurons`, `retrieval` and `binding` are resumed by id beside the tests of their
commands.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import polars
import pytest
from mnemoscope.cli import prune_batch, prune_run, tracing_index_run
from mnemoscope.cli.resuming import WORKS, device_of, models_of, resume_run, run_config, work_of
from mnemoscope.cli.tracing_index import IndexPlan
from mnemoscope.cli.tracing_index_run import index_corpus
from mnemoscope.models.errors import MnemoscopeError
from mnemoscope.results.errors import RunFolderError
from mnemoscope.results.run import Run, RunFolder
from mnemoscope.results.run_folder import open_run
from mnemoscope.results.run_inputs import note_inputs, read_inputs
from mnemoscope.results.run_reading import verify_run

Stop = Callable[[str], None]


def quiet(*_: object) -> None:
    pass


@pytest.fixture
def stop(monkeypatch: pytest.MonkeyPatch) -> Stop:
    """The next run of a test stops when it has kept this unit."""

    def stop_after(unit: str) -> None:
        append = Run.append

        def stopping(self: Run, key: str, row: Any) -> None:
            append(self, key, row)
            if key == unit:
                monkeypatch.setattr(Run, "append", append)
                raise KeyboardInterrupt

        monkeypatch.setattr(Run, "append", stopping)

    return stop_after


def unfinished(command: Any, kind: str) -> str:
    """The id of the only interrupted run of this kind."""
    listed = json.loads(command("runs", "ls", "--json").out)["runs"]
    (found,) = [one for one in listed if one["kind"] == kind]
    assert found["status"] == "interrupted"
    return str(found["id"])


def table(folder: Path) -> polars.DataFrame:
    return polars.read_parquet(folder / "table.parquet")


def test_every_kind_finds_its_command() -> None:
    from importlib import import_module

    for kind, one in WORKS.items():
        module = import_module(f"mnemoscope.cli.{one.module}")
        assert callable(getattr(module, one.function)), kind
        assert isinstance(getattr(module, one.config), type), kind


def test_a_pruning_with_questions_goes_on_where_it_stopped(
    command: Any, world: Any, stop: Stop, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = ("prune", "run", world.checkpoint, "--heads", "1:2", "--eval", "--controls", 2)
    asked += ("--relation", world.relation, "--out", "pruned")
    stop("random 1")
    assert command(*asked).code == 130
    assert not Path("pruned").exists()
    run_id = unfinished(command, "prune")
    part = unfinished(command, "prune-eval")
    belongs = command("runs", "resume", part)
    assert (belongs.code, "belongs to a run of `prune`" in belongs.err) == (1, True)
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    done = command("runs", "resume", run_id, "--runs", "../runs")
    assert done.code == 0, done.err
    monkeypatch.chdir(tmp_path)
    assert command("prune", "verify", "pruned", "--source", world.checkpoint).code == 0
    verify_run(tmp_path / "runs" / run_id)
    verify_run(tmp_path / "runs" / part)
    asked_rows = (tmp_path / "runs" / part / "rows.jsonl").read_text("utf-8").splitlines()
    assert len(asked_rows) == 4  # before, pruned and two draws, each once
    assert table(tmp_path / "runs" / run_id).rows() == [(1, 2)]


def test_a_pruned_folder_whose_run_was_killed_before_it_could_say_so_is_taken_as_it_is(
    command: Any, world: Any, stop: Stop
) -> None:
    asked = ("prune", "run", world.checkpoint, "--heads", "1:2", "--out", "pruned")
    stop("pruned")
    assert command(*asked).code == 130
    written = Path("pruned/prune_manifest.json").stat().st_mtime_ns
    done = command("runs", "resume", unfinished(command, "prune"))
    assert done.code == 0, done.err
    assert "written and checked before" in done.err
    assert Path("pruned/prune_manifest.json").stat().st_mtime_ns == written
    again = command(*asked)
    assert (again.code, "exists already" in again.err) == (1, True)


def test_a_checkpoint_that_was_deleted_is_pruned_anew(command: Any, world: Any) -> None:
    asked = ("prune", "run", world.checkpoint, "--heads", "1:2", "--out", "pruned", "--json")
    first = json.loads(command(*asked).out)
    Path("pruned").rename("moved")
    second = command(*asked)
    assert second.code == 0, second.err
    assert json.loads(second.out)["run"] == first["run"]
    assert command("prune", "verify", "pruned", "--source", world.checkpoint).code == 0


def test_a_batch_goes_on_after_the_units_that_are_done(
    command: Any, world: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    Path("batch.yaml").write_text(
        f"schema: prune-heads/1\ncheckpoints: [{world.checkpoint}]\noutput: {{path: out}}\n"
        'head_sets:\n  - {name: one, list: ["1:2"]}\n  - {name: two, list: ["0:3"]}\n',
        "utf-8",
    )
    pruned: list[str] = []

    def second_stops(planned: Any, **more: Any) -> Any:
        pruned.append(planned.config.output.path)
        if len(pruned) == 2:
            raise KeyboardInterrupt
        return prune_run.prune(planned, **more)

    monkeypatch.setattr(prune_batch, "prune", second_stops)
    assert command("prune", "run", "--recipe", "batch.yaml").code == 130
    done = command("runs", "resume", unfinished(command, "prune-batch"))
    assert done.code == 0, done.err
    for name in ("one", "two"):
        assert command("prune", "verify", f"out/planted/{name}").code == 0
    assert pruned == ["out/planted/one", "out/planted/two", "out/planted/two"]


def test_a_demo_goes_on_where_it_stopped(command: Any, world: Any, stop: Stop) -> None:
    asked = ("demo", "--model", world.checkpoint, "--relation", world.relation, "--subjects", 8)
    stop("random 2")
    assert command(*asked).code == 130
    (partial,) = Path("demo_out/runs").glob(".demo-*.partial")
    run_id = partial.name[1:].removesuffix(".partial")
    done = command("runs", "resume", run_id, "--runs", "demo_out/runs")
    assert done.code == 0, done.err
    kept = (Path("demo_out/runs") / run_id / "rows.jsonl").read_text("utf-8").splitlines()
    labels = [json.loads(line)["key"] for line in kept]
    assert labels == ["before", "pruned", *(f"random {i}" for i in range(1, 6)), "verdict"]


def corpus(folder: Path) -> None:
    """Thirty documents of a line each."""
    lines = [json.dumps({"text": f"Ship {n} left port {n * 7}."}) for n in range(30)]
    folder.mkdir()
    (folder / "ships.jsonl").write_text("\n".join(lines), "utf-8")


def digest(folder: Path) -> dict[str, str]:
    """Every data file of an index; the record beside them tells when it was made."""
    return {
        path.name: hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.iterdir())
        if path.suffix != ".json"
    }


@pytest.fixture
def told_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tracing_index_run, "TELL_SECONDS", 0.0)


@pytest.mark.usefixtures("told_at_once")
def test_an_index_is_a_run_that_is_cancelled_and_gone_on_with_from_another_folder(
    command: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    corpus(tmp_path / "corpus")
    plan = IndexPlan(("corpus",), Path("ix"), shard_tokens=120, any_path=True)
    runs = tmp_path / "runs"

    def cancel(done: int, total: int) -> None:
        if done == 20:
            (folder,) = runs.glob(".trace-index-*.partial")
            assert command("runs", "cancel", folder.name[1:].removesuffix(".partial")).code == 0

    with pytest.raises(KeyboardInterrupt):
        index_corpus(plan, runs, force=False, say=quiet, tell=cancel)
    (info,) = json.loads(command("runs", "ls", "--json").out)["runs"]
    assert info["status"] == "cancelled"
    assert not Path("ix").exists()

    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    folder = RunFolder(runs, info["id"])
    assert device_of(folder) == "cpu"
    assert resume_run(folder, say=quiet, tell=quiet) == folder.final
    monkeypatch.chdir(tmp_path)
    verify_run(folder.final)
    straight = replace(plan, out=Path("straight"))
    whole = index_corpus(straight, runs, force=False, say=quiet, tell=quiet)
    assert whole.index["n_documents"] == 30
    assert whole.index["n_shards"] > 3
    assert digest(Path("ix")) == digest(Path("straight"))
    assert set(table(folder.final)["file"]) >= set(digest(Path("ix"))) - {"README.md"}


def test_an_index_that_was_deleted_is_built_anew_and_one_that_is_there_refused(
    command: Any, tmp_path: Path
) -> None:
    corpus(tmp_path / "corpus")
    asked = ("trace", "index", "corpus", "--out", "ix", "--any-path", "--json")
    first = json.loads(command(*asked).out)
    refused = command(*asked)
    assert (refused.code, "exists already" in refused.err) == (1, True)
    Path("ix").rename("moved")
    again = command(*asked)
    assert again.code == 0, again.err
    assert json.loads(again.out)["run"] == first["run"]
    assert digest(Path("ix")) == digest(Path("moved"))


def test_a_finished_run_is_left_as_it_is(command: Any, world: Any) -> None:
    done = command("prune", "run", world.checkpoint, "--heads", "1:2", "--out", "p", "--json")
    again = command("runs", "resume", Path(json.loads(done.out)["run"]).name)
    assert again.code == 0
    assert "is finished already" in again.err


@pytest.mark.parametrize(
    ("kind", "way"),
    [
        ("other", "its own command"),
        ("study-01", "run its study again"),
        ("prune-eval", "resume that one"),
        ("neuron-effects", "does not say where its inputs are"),
    ],
)
def test_runs_that_an_id_is_not_enough_for_name_the_way(
    tmp_path: Path, kind: str, way: str
) -> None:
    with open_run(tmp_path, kind, {"model": "m"}) as run:
        folder = RunFolder(tmp_path, run.id)
    with pytest.raises(RunFolderError, match=way):
        resume_run(folder, say=quiet, tell=quiet)
    with pytest.raises(RunFolderError, match=way):
        work_of(folder)
    assert run_config(folder) == {"model": "m"}


def test_inputs_are_read_as_they_were_noted_and_damage_is_named(tmp_path: Path) -> None:
    assert read_inputs(tmp_path) == {}
    note_inputs(tmp_path, {"paths": ["a", "b"]})
    assert read_inputs(tmp_path) == {"paths": ["a", "b"]}
    (tmp_path / "inputs.json").write_text("[")
    with pytest.raises(RunFolderError, match=r"inputs\.json cannot be read"):
        read_inputs(tmp_path)


def test_a_configuration_of_another_version_is_refused_in_one_sentence(tmp_path: Path) -> None:
    with open_run(tmp_path, "head-scores", {"model": "m", "subjects": "many"}) as run:
        folder = RunFolder(tmp_path, run.id)
    with pytest.raises(MnemoscopeError, match="does not fit its command"):
        resume_run(folder, say=quiet, tell=quiet)


def test_models_are_found_wherever_a_configuration_names_them() -> None:
    assert models_of({"model": "a"}, {}) == ("a",)
    assert models_of({"model": ""}, {}) == ()
    assert models_of({"pairs": {"model": "a"}}, {}) == ("a",)
    assert models_of({"source": {"path": "a"}}, {}) == ("a",)
    assert models_of({"checkpoints": [{"path": "a"}, {"path": "b"}]}, {}) == ("a", "b")
    assert models_of({"k": 10}, {"model": "a"}) == ("a",)
