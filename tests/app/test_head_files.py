"""Head sets from the explorer are the files that everything else reads."""

from __future__ import annotations

import shlex
from pathlib import Path

import polars
import pytest
from mnemoscope.app.head_files import (
    chosen_set,
    dry_run,
    heads_of,
    prune_command,
    pruned_name,
    pruning,
    save_as,
    saved_sets,
)
from mnemoscope.app.run_scores import grid_frame, runs_with_scores
from mnemoscope.app.switched_off import HeadChange
from mnemoscope.cli.main import app
from mnemoscope.cli.prune_recipe import read_recipe
from mnemoscope.models.errors import MnemoscopeError
from mnemoscope.models.hooked import HookedModel
from mnemoscope.models.types import HeadId
from mnemoscope.results.errors import RunFolderError, UnitSetError
from mnemoscope.results.head_set import HeadSet, load_head_set
from typer.testing import CliRunner

HEADS = (HeadId(1, 2), HeadId(0, 3))


@pytest.fixture
def made(model: HookedModel, scored: Path) -> HeadSet:
    (run,) = runs_with_scores(scored, model.name)
    frame = grid_frame(run.table, "memory")
    return chosen_set(model, HEADS, frame, "memory", name="n", method="m", run_id=run.id)


def test_scores_q_and_intervals_come_from_the_grid(made: HeadSet, scored: Path) -> None:
    (run,) = runs_with_scores(scored)
    row = run.table.row(
        by_predicate=(polars.col("layer") == 1) & (polars.col("head") == 2), named=True
    )
    first = made.heads[0]
    assert (first.head, first.score, first.p) == (HEADS[0], row["memory"], row["memory_q"])
    assert first.ci == (row["memory_low"], row["memory_high"])
    assert made.run_id == run.id


def test_saved_and_loaded_back(made: HeadSet, tmp_path: Path, model: HookedModel) -> None:
    path = save_as(tmp_path / "sets", "mine", made, force=False)
    assert path == tmp_path / "sets" / "mine.json"
    assert load_head_set(path) == made
    assert saved_sets(tmp_path / "sets") == ["mine.json"]
    assert heads_of(tmp_path / "sets", "mine.json", model) == HEADS
    assert saved_sets(tmp_path / "nowhere") == []


def test_nothing_is_overwritten_unless_asked(made: HeadSet, tmp_path: Path) -> None:
    save_as(tmp_path, "mine.json", made, force=False)
    with pytest.raises(RunFolderError):
        save_as(tmp_path, "mine", made, force=False)
    save_as(tmp_path, "mine", made, force=True)


@pytest.mark.parametrize("name", ["", "../mine", "a/b", "/tmp/x", ".hidden", "a b"])
def test_only_plain_names_are_taken(name: str, made: HeadSet, tmp_path: Path) -> None:
    with pytest.raises(MnemoscopeError, match="plain file name"):
        save_as(tmp_path, name, made, force=False)
    assert list(tmp_path.iterdir()) == []


def test_a_name_from_the_page_never_leaves_the_folder(
    made: HeadSet, tmp_path: Path, model: HookedModel
) -> None:
    save_as(tmp_path, "outside", made, force=False)
    (tmp_path / "sets").mkdir()
    with pytest.raises(UnitSetError):
        heads_of(tmp_path / "sets", "../outside.json", model)


def test_no_heads_no_set(model: HookedModel) -> None:
    with pytest.raises(MnemoscopeError, match="no heads are chosen"):
        chosen_set(model, (), polars.DataFrame(), "memory", name="n", method="m", run_id=None)


def test_the_command_survives_a_shell() -> None:
    config = pruning("my model", Path("/a b/c.json"), Path("out"))
    said = shlex.split(prune_command(config, Path("my runs")))[3:]
    places = ["--out", "out", "--runs", "my runs"]
    assert said == ["my model", "--headset", "/a b/c.json", *places]


@pytest.mark.parametrize(
    "change",
    [
        HeadChange(),
        HeadChange("mean"),
        HeadChange("scale", 0.1 + 0.2),  # as sliders count
        HeadChange("scale", -1.0),
        HeadChange("scale", 0.0),
    ],
)
def test_the_command_asks_for_the_very_run_of_the_page(change: HeadChange, tmp_path: Path) -> None:
    config = pruning("engram", Path("/sets/a.json"), Path("/pruned/b"), change)
    command = shlex.split(prune_command(config, tmp_path))[1:]
    printed = CliRunner().invoke(app, [*command, "--print-config"])
    assert printed.exit_code == 0, printed.output
    (tmp_path / "recipe.yaml").write_text(printed.stdout)
    assert read_recipe(tmp_path / "recipe.yaml") == config


def test_the_dry_run_needs_no_file_and_is_that_of_the_saved_set(
    made: HeadSet, checkpoint: Path, tmp_path: Path
) -> None:
    half, out = HeadChange("scale", 0.5), tmp_path / "out"
    before = dry_run(pruning(str(checkpoint), HEADS, out, half))
    assert "multiply by 0.5 2 heads, L1.H2, L0.H3" in before
    path = save_as(tmp_path, "mine", made, force=False)
    assert dry_run(pruning(str(checkpoint), path, out, half)) == before
    assert not out.exists()


def test_a_factor_that_changes_nothing_and_a_change_of_edges_are_no_checkpoint() -> None:
    with pytest.raises(MnemoscopeError, match="changes nothing"):
        pruning("engram", HEADS, Path("out"), HeadChange("scale", 1.0))
    with pytest.raises(MnemoscopeError, match="no weights stand for"):
        pruning("engram", HEADS, Path("out"), HeadChange("edges off", hidden=(1,)))


def test_every_change_of_a_set_has_a_plain_folder_name_of_its_own() -> None:
    changes = [HeadChange(), HeadChange("mean"), HeadChange("scale", 0.5), HeadChange("scale", -1)]
    names = [pruned_name("/a/my model.gguf", Path("/b/readers.json"), one) for one in changes]
    assert names == [f"my-model-readers{end}" for end in ("", "-mean", "-x0.5", "-x-1")]
