"""`docs/examples/slurm.py` and the plain job array of docs/batch.md."""

from __future__ import annotations

import os
import re
import runpy
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
COMMAND = ("sweep", "run", "sweep.yaml", "--retry")


def stub(folder: Path, name: str, text: str) -> None:
    path = folder / name
    path.write_text(f"#!/bin/sh\n{text}\n", "utf-8")
    path.chmod(0o755)


def submitted(folder: Path, *args: str) -> tuple[str, dict[str, str]]:
    """What the example prints when it submits to a stand-in for Slurm, and the environment for it.

    `sbatch` keeps the script that submitit hands it, `scontrol` writes down what it is told.
    """
    stub(folder, "sbatch", 'cat "$1" > submitted.sh; echo Submitted batch job 12')
    stub(folder, "srun", "exit 0")
    stub(folder, "scontrol", 'echo "$@" >> log')
    env = {**os.environ, "PATH": f"{folder}{os.pathsep}{os.environ['PATH']}"}
    done = subprocess.run(
        [sys.executable, EXAMPLE, *args, "--no-wait", "--", *COMMAND],
        cwd=folder,
        env=env,
        capture_output=True,
        text=True,
        check=True,
    )
    return done.stdout, env


def test_the_example_submits_one_array(tmp_path: Path) -> None:
    args = ("--shards", "8", "--at-once", "3", "--gpus", "1", "--partition", "big")
    printed, _ = submitted(tmp_path, *args)
    script = (tmp_path / "submitted.sh").read_text("utf-8")
    lines = ("--array=0-7%3", "--gpus-per-node=1", "--partition=big", "--time=240")
    for line in (*lines, "--signal=USR2@90"):
        assert f"#SBATCH {line}\n" in script
    assert printed.count("submitted 12_") == 8


STOPPED = """
import os, pathlib, signal, sys, time

def note(what):
    with open("log", "a") as log:
        print(what, *sys.argv[1:], file=log)

def stop(*_):
    time.sleep(0.2)  # a job that does not wait is queued again before
    note("gave back")
    sys.exit(130)

if pathlib.Path("log").exists():
    note("went on")
else:
    signal.signal(signal.SIGTERM, stop)
    time.sleep(0.3)  # until the job waits
    os.kill(os.getppid(), signal.SIGUSR2)
    time.sleep(60)
"""
"""A stand-in for `mnemoscope` that tells its job, as Slurm does, that the time is nearly up."""


def test_a_job_whose_time_is_up_gives_its_unit_back_and_is_queued_again(tmp_path: Path) -> None:
    """The task of an array is run as `srun` would, before and after `scontrol requeue`."""
    _, env = submitted(tmp_path, "--shards", "3")
    package = tmp_path / "mnemoscope" / "cli"  # `python -m` looks into the working directory first
    package.mkdir(parents=True)
    for path in (package.parent / "__init__.py", package / "__init__.py"):
        path.touch()
    (package / "main.py").write_text(STOPPED, "utf-8")
    ids = {"SLURM_JOB_ID": "13", "SLURM_ARRAY_JOB_ID": "12", "SLURM_ARRAY_TASK_ID": "1"}
    codes = [
        subprocess.run(  # returns when the command, which shares its output, has ended too
            [sys.executable, "-m", "submitit.core._submit", "slurm-logs/%j"],
            cwd=tmp_path,
            env={**env, **ids, "SUBMITIT_EXECUTOR": "slurm"},
            capture_output=True,
            timeout=20,
            check=False,
        ).returncode
        for _ in range(2)
    ]
    assert codes == [255, 0]
    assert (tmp_path / "log").read_text("utf-8").splitlines() == [
        "gave back sweep run sweep.yaml --retry --shard 2/3",
        "requeue 12_1",
        "went on sweep run sweep.yaml --retry --shard 2/3",
    ]


def test_a_job_whose_command_has_just_ended_is_queued_again_too() -> None:
    job = runpy.run_path(str(EXAMPLE))["ShardJob"](COMMAND)
    job.process = subprocess.Popen(["true"])
    job.process.wait()
    again = job.checkpoint("2/3")
    assert (again.function.command, again.args) == ([*COMMAND], ("2/3",))


@pytest.mark.parametrize(("task", "tasks"), [(1, 8), (3, 1)], ids=["whole", "a part again"])
def test_the_plain_array_of_the_guide_gives_each_task_its_shard(
    tmp_path: Path, task: int, tasks: int
) -> None:
    """Slurm's count of tasks is that of the part submitted."""
    text = (ROOT / "docs" / "batch.md").read_text("utf-8")
    (script,) = (
        block for block in re.findall(r"```sh\n(.*?)```", text, re.S) if "#SBATCH" in block
    )
    header, body = script.split("SHARDS=")
    assert "#SBATCH --array=0-7\n" in header
    assert "#SBATCH" not in body  # Slurm reads none behind the first command
    stub(tmp_path, "mnemoscope", 'echo "$@"')
    stub(tmp_path, "srun", '"$@"')
    env = {
        "PATH": f"{tmp_path}{os.pathsep}{os.environ['PATH']}",
        "SLURM_ARRAY_TASK_ID": str(task),
        "SLURM_ARRAY_TASK_COUNT": str(tasks),
    }
    done = subprocess.run(
        ["bash", "-c", script], cwd=tmp_path, env=env, capture_output=True, text=True, check=True
    )
    assert done.stdout.endswith(f"--shard {task + 1}/8\n")


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
