"""Shards of a batch as one Slurm job array, by submitit.

    python docs/examples/slurm.py --shards 8 --partition gpu --gpus 1 \\
        -- sweep run sweep.yaml --runs /shared/runs

What stands behind `--` is a command of `mnemoscope` that takes `--shard`: `sweep run RECIPE` or
`prune run --recipe RECIPE`. Recipe, checkpoints and runs have to lie where all machines see them.
`--cluster local` starts the shards on this machine. A job that is preempted or runs out of time is
queued again and goes on (after time-outs three times at most); units that are done stay done.

Exit code: 0 if all shards ended well, else the first other one.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
from collections.abc import Sequence
from contextlib import suppress

import submitit
from submitit.helpers import DelayedSubmission


class ShardJob:
    """One shard: the command line in a process of its own."""

    def __init__(self, command: Sequence[str]) -> None:
        self.command = list(command)
        self.process: subprocess.Popen[bytes] | None = None

    def __call__(self, shard: str) -> int:
        """The command's exit code."""
        main = [sys.executable, "-m", "mnemoscope.cli.main"]
        self.process = subprocess.Popen([*main, *self.command, "--shard", shard])
        return self.process.wait()

    def checkpoint(self, shard: str) -> DelayedSubmission:
        """Called by submitit before the job is taken away: give the unit back, come again.

        Returns when the command has ended. The call comes from a signal handler, mostly in the
        middle of `self.process.wait()`: that holds a lock, for which a second one waits for ever.
        """
        if self.process is not None:
            self.process.terminate()  # the command answers with 130
            with suppress(ChildProcessError):  # it had ended already
                os.waitpid(self.process.pid, 0)
        return DelayedSubmission(ShardJob(self.command), shard)


def submit(given: argparse.Namespace) -> list[submitit.Job[int]]:
    """Submit all shards as one array."""
    executor = submitit.AutoExecutor(folder=given.logs, cluster=given.cluster)
    executor.update_parameters(
        name="mnemoscope",
        timeout_min=round(given.hours * 60),
        cpus_per_task=given.cpus,
        gpus_per_node=given.gpus,
        slurm_mem=f"{given.memory_gb}GB",
        slurm_array_parallelism=given.at_once or given.shards,
        slurm_signal_delay_s=90,  # what the command has to give its unit back in
    )
    if given.partition:
        executor.update_parameters(slurm_partition=given.partition)
    shards = [f"{index}/{given.shards}" for index in range(1, given.shards + 1)]
    return executor.map_array(ShardJob(given.command), shards)


def main() -> int:
    """Submit, say how it is going, and wait unless told not to."""
    options = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    options.add_argument("--shards", type=int, required=True)
    options.add_argument("--at-once", type=int, default=0, help="most that run at a time; 0: all")
    options.add_argument("--cluster", default="slurm", choices=("slurm", "local"))
    options.add_argument("--partition", default="")
    options.add_argument("--gpus", type=int, default=0, help="of each shard")
    options.add_argument("--cpus", type=int, default=4)
    options.add_argument("--memory-gb", type=int, default=32)
    options.add_argument("--hours", type=float, default=4.0)
    options.add_argument("--logs", default="slurm-logs/%j")
    options.add_argument("--no-wait", action="store_true", help="leave once all are submitted")
    options.add_argument("command", nargs="+", help="behind --: sweep run ..., prune run ...")
    given = options.parse_args()
    jobs = submit(given)
    for job in jobs:
        print(f"submitted {job.job_id}, log {job.paths.stdout}")
    if given.no_wait:
        return 0
    codes = [job.result() for job in jobs]
    print(f"exit codes of the shards: {codes}")
    return next((code for code in codes if code), 0)


if __name__ == "__main__":
    sys.exit(main())
