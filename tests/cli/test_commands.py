"""The command line on the planted model: every command, its exit codes and its refusals."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import polars
import pytest
from mnemoscope.models import HeadId
from mnemoscope.results.head_set import load_head_set


def score(command: Any, world: Any, *more: object) -> Any:
    return command(
        "heads", "score", world.checkpoint, "--relation", world.relation, "--templates", "0", *more
    )


def run_folder(root: Path = Path("runs")) -> Path:
    (folder,) = root.glob("head-scores-*")
    return folder


def words(text: str) -> str:
    """The text without its line breaks."""
    return " ".join(text.split())


def test_models_show_names_the_parts(command: Any, world: Any) -> None:
    done = command("models", "show", world.checkpoint, "--json")
    record = json.loads(done.out)
    assert done.code == 0
    assert (record["schema"], record["kind"]) == ("mnemoscope/cli/1", "model")
    assert (record["n_layers"], record["n_heads"], record["d_v"]) == (2, 8, 64)
    people = command("models", "show", world.checkpoint)
    assert people.out == ""
    assert "Next: mnemoscope heads score" in people.err


def test_heads_score_finds_the_planted_heads(command: Any, world: Any) -> None:
    done = score(command, world, "--top", "1")
    assert done.code == 0
    for role in ("memory", "context"):
        found = load_head_set(run_folder() / f"headset-{role}.json")
        assert found.ids == getattr(world.planted, f"{role}_heads")
        assert found.run_id == run_folder().name
    for name in ("config.json", "table.parquet", "arrays.safetensors", "provenance.json"):
        assert (run_folder() / name).is_file()
    page = (run_folder() / "figures" / "memory.html").read_text("utf-8")
    assert not re.search(r"<(script|link|img)[^>]+https?://", page)
    assert "Content-Security-Policy" in page


def test_a_second_time_is_found_and_force_measures_again(command: Any, world: Any) -> None:
    first = score(command, world)
    again = score(command, world)
    assert (first.code, again.code) == (0, 0)
    assert "is done already" in again.err
    assert "is done already" not in score(command, world, "--force").err


def test_json_is_one_document(command: Any, world: Any) -> None:
    done = score(command, world, "--json")
    record = json.loads(done.out)
    assert record["kind"] == "head-scores"
    assert len(record["heads"]) == 16
    assert record["superposed"] == []


def test_a_killed_run_resumes_to_the_same_result(command: Any, world: Any, tmp_path: Path) -> None:
    """SIGKILL after the first unit of work, as hard as it gets."""
    code = (
        "import os, signal\n"
        "from mnemoscope.results.run import Run\n"
        "append = Run.append\n"
        "def die(self, key, row):\n"
        "    append(self, key, row)\n"
        "    os.kill(os.getpid(), signal.SIGKILL)\n"
        "Run.append = die\n"
        "from mnemoscope.cli.main import main\n"
        "main()\n"
    )
    args = ["heads", "score", str(world.checkpoint), "--relation", str(world.relation)]
    args += ["--templates", "0", "--runs", "killed"]
    died = subprocess.run([sys.executable, "-c", code, *args], cwd=tmp_path, check=False)
    assert died.returncode == -signal.SIGKILL
    listing = command("runs", "ls", "--runs", "killed", "--json")
    (info,) = json.loads(listing.out)["runs"]
    assert info["status"] == "interrupted"
    (rows,) = Path("killed").glob(".*.partial/rows.jsonl")
    assert len(rows.read_text("utf-8").splitlines()) == 1
    resumed = command("runs", "resume", info["id"], "--runs", "killed")
    assert resumed.code == 0, resumed.err
    assert score(command, world).code == 0
    straight = polars.read_parquet(run_folder() / "table.parquet")
    assert polars.read_parquet(run_folder(Path("killed")) / "table.parquet").equals(straight)


def test_runs_are_listed_shown_and_cancelled(command: Any, world: Any) -> None:
    assert "no runs in" in command("runs", "ls").err
    score(command, world)
    run_id = run_folder().name
    assert run_id in command("runs", "ls").err
    shown = json.loads(command("runs", "show", run_id, "--json").out)
    assert shown["provenance"]["estimand"].startswith("direct, substitution")
    assert len(shown["provenance"]["weights_sha256"]) == 64
    assert "First rows" in command("runs", "show", run_id).err
    missing = command("runs", "show", "head-scores-0000000000")
    assert missing.code == 1
    assert "runs ls" in missing.err


def test_prune_writes_a_checkpoint_that_says_what_the_hooked_model_says(
    command: Any, world: Any
) -> None:
    from mnemoscope.models import load_model, zero

    score(command, world, "--top", "1")
    headset = run_folder() / "headset-context.json"
    done = command("prune", "run", world.checkpoint, "--headset", headset, "--out", "pruned")
    assert done.code == 0, done.err
    model, pruned = load_model(world.checkpoint), load_model("pruned")
    batch = model.tokens(["the capital of aland is"])
    with model.intervene([zero(world.planted.context_heads)]):
        hooked = model.logits(batch)
    assert (pruned.logits(batch) - hooked).abs().max() < 1e-5
    again = command("prune", "run", world.checkpoint, "--headset", headset, "--out", "pruned")
    assert again.code == 1
    assert "force" in again.err


def test_prune_dry_run_writes_nothing(command: Any, world: Any) -> None:
    done = command("prune", "run", world.checkpoint, "--heads", "1:2", "--out", "p", "--dry-run")
    assert done.code == 0
    assert not Path("p").exists()
    assert "L1.H2" in done.err


@pytest.mark.parametrize(
    ("args", "code", "message"),
    [
        (("models", "show", "no such model"), 1, "no folder, no GGUF file and no hub id"),
        (("models", "show", "./nothing-here"), 1, "nothing-here"),
        (("prune", "run", "WORLD", "--heads", "7:1", "--out", "p"), 2, "layer"),
        (("prune", "run", "WORLD", "--heads", "1:99", "--out", "p"), 2, "head"),
        (("prune", "run", "WORLD", "--heads", "1;9", "--out", "p"), 1, "layer:head"),
        (("prune", "run", "WORLD", "--heads", "1:2,1:2", "--out", "p"), 1, "twice"),
        (("prune", "run", "WORLD", "--out", "p"), 2, "--headset"),
        (("prune", "run", "WORLD", "--headset", "none.json", "--out", "p"), 1, "none.json"),
        (("heads", "score", "WORLD", "--relation", "captial"), 1, "capital"),
        (("heads", "score", "WORLD", "--form", "odd"), 1, "substitution or coherent"),
        (("heads", "score", "WORLD", "--templates", "one"), 2, "list of numbers"),
        (("heads", "score", "WORLD", "--templates", "0,9"), 1, "has wordings 0 to 2"),
        (("heads", "score", "WORLD", "--relation", "capital"), 1, "planted"),
        (("study", "run", "none.py"), 1, "no study"),
    ],
)
def test_bad_input_gets_one_clear_error(
    command: Any, world: Any, args: Any, code: int, message: str
) -> None:
    done = command(*[world.checkpoint if part == "WORLD" else part for part in args])
    assert done.code == code, done.err
    assert message in words(done.err)
    assert "Traceback" not in done.err


def test_an_unsupported_architecture_has_its_own_exit_code(command: Any, tmp_path: Path) -> None:
    from transformers import BloomConfig, BloomForCausalLM

    folder = tmp_path / "bloom"
    config = BloomConfig(hidden_size=16, n_head=2, n_layer=1, vocab_size=20)
    BloomForCausalLM(config).save_pretrained(folder)
    done = command("models", "show", folder)
    assert done.code == 3
    assert "bloom" in done.err


def test_an_interruption_says_how_to_go_on(
    command: Any, world: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    from mnemoscope.results.run import Run

    def interrupted(*_: object) -> None:
        os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr(Run, "progress", interrupted)
    done = score(command, world)
    assert done.code == 130
    assert "run the same command again" in words(done.err)


def test_a_full_disk_is_said_and_keeps_what_is_done(
    command: Any, world: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The second unit meets a full disk; after space is made the same command goes on."""
    import errno

    from mnemoscope.results import run as run_module

    real, calls = run_module.write_atomic, []

    def full(path: Path, content: bytes, *args: Any, **options: Any) -> None:
        calls.append(path)
        if "units" in path.parts and sum("units" in p.parts for p in calls) == 2:
            from mnemoscope.results.storage import storage_errors

            with storage_errors(path):
                raise OSError(errno.ENOSPC, "No space left on device")
        real(path, content, *args, **options)

    monkeypatch.setattr(run_module, "write_atomic", full)
    failed = score(command, world)
    assert failed.code == 1
    assert "run the same command again" in words(failed.err)
    monkeypatch.setattr(run_module, "write_atomic", real)
    going_on = score(command, world)
    assert going_on.code == 0, going_on.err


@pytest.mark.parametrize(
    ("role", "head", "form", "answer"),
    [("memory", HeadId(1, 2), "coherent", "context"), ("context", HeadId(1, 5), "qa", "memory")],
)
def test_demo_runs_the_journey_twice(
    command: Any, world: Any, role: str, head: HeadId, form: str, answer: str
) -> None:
    args = ("demo", "--model", world.checkpoint, "--relation", world.relation, "--role", role)
    first = command(*args, "--json")
    assert first.code == 0, first.err
    record = json.loads(first.out)
    assert record["heads"] == [str(head)]
    rates = {(r["label"], r["condition"], r["answer"]): r["rate"] for r in record["rates"]}
    assert 0 < rates["before", form, answer] < rates["pruned", form, answer] == 1
    assert rates["pruned", "closed", "memory"] == (1 if role == "context" else 0)
    assert Path(record["figure"]).is_file()
    second = command(*args)
    assert second.code == 0
    assert "is done already" in second.err
    assert "random heads, median of 5" in words(second.err)
