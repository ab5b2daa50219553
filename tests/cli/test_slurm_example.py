"""`docs/examples/slurm.py` and the plain job array of docs/batch.md."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import polars
import pytest

pytest.importorskip("submitit")

ROOT = Path(__file__).parents[2]
EXAMPLE = ROOT / "docs" / "examples" / "slurm.py"


def stub(folder: Path, name: str, text: str) -> None:
    path = folder / name
    path.write_text(f"#!/bin/sh\n{text}\n", "utf-8")
    path.chmod(0o755)


def test_the_example_submits_one_array(tmp_path: Path) -> None:
    """A stand-in for `sbatch` keeps the script that submitit hands it."""
    stub(tmp_path, "sbatch", 'cat "$1" > submitted.sh; echo Submitted batch job 12')
    stub(tmp_path, "srun", "exit 0")
    path = f"{tmp_path}{os.pathsep}{os.environ['PATH']}"
    args = ("--shards", "8", "--at-once", "3", "--gpus", "1", "--partition", "big", "--no-wait")
    done = subprocess.run(
        [sys.executable, EXAMPLE, *args, "--", "sweep", "run", "sweep.yaml", "--retry"],
        cwd=tmp_path,
        env={**os.environ, "PATH": path},
        capture_output=True,
        text=True,
        check=True,
    )
    script = (tmp_path / "submitted.sh").read_text("utf-8")
    for line in ("--array=0-7%3", "--gpus-per-node=1", "--partition=big", "--time=240"):
        assert f"#SBATCH {line}\n" in script
    assert done.stdout.count("submitted 12_") == 8


def test_the_plain_array_of_the_guide_gives_each_task_its_shard(tmp_path: Path) -> None:
    text = (ROOT / "docs" / "batch.md").read_text("utf-8")
    (script,) = (
        block for block in re.findall(r"```sh\n(.*?)```", text, re.S) if "#SBATCH" in block
    )
    stub(tmp_path, "mnemoscope", 'echo "$@"')
    stub(tmp_path, "srun", '"$@"')
    (array,) = re.findall(r"#SBATCH --array=0-(\d+)", script)
    env = {
        "PATH": f"{tmp_path}{os.pathsep}{os.environ['PATH']}",
        "SLURM_ARRAY_TASK_ID": "1",
        "SLURM_ARRAY_TASK_COUNT": str(int(array) + 1),
    }
    done = subprocess.run(
        ["bash", "-c", script], cwd=tmp_path, env=env, capture_output=True, text=True, check=True
    )
    assert f"--shard 2/{int(array) + 1}" in done.stdout


@pytest.mark.slow
def test_the_example_runs_shards_on_this_machine(world: Any, tmp_path: Path) -> None:
    for name in ("a", "b"):
        shutil.copytree(world.checkpoint, tmp_path / name)
    (tmp_path / "batch.yaml").write_text(
        "schema: prune-heads/1\ncheckpoints: [a, b]\noutput: {path: out}\n"
        'head_sets: [{name: one, list: ["1:2"]}]\n',
        "utf-8",
    )
    command = ("prune", "run", "--recipe", "batch.yaml")
    done = subprocess.run(
        [sys.executable, EXAMPLE, "--shards", "2", "--cluster", "local", "--", *command],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "exit codes of the shards: [0, 0]" in done.stdout
    (table,) = (tmp_path / "runs").glob("prune-batch-*/table.parquet")
    assert polars.read_parquet(table)["unit"].to_list() == ["a/one", "b/one"]
    assert (tmp_path / "out" / "b" / "one" / "prune_manifest.json").is_file()
