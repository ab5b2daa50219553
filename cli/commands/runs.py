"""`mnemoscope runs`: what was measured, and going on with what was interrupted."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from ..output import print_json, progress, say, show_table
from .heads import Runs
from .models import Json

app = typer.Typer(help="List, show, resume and cancel runs.", no_args_is_help=True)

RunId = Annotated[str, typer.Argument(help="The run's id, as `runs ls` shows it.")]


@app.callback()
def callback() -> None:
    """List, show, resume and cancel runs."""


@app.command()
def ls(runs: Runs = Path("runs"), json: Json = False) -> None:
    """List all runs, the latest first.

    Example: mnemoscope runs ls --runs runs
    """
    from ...results.queued_runs import settle_runs
    from ...results.run_reading import list_runs

    settle_runs(runs)
    infos = list_runs(runs)
    if json:
        fields = ("id", "kind", "status", "done", "total", "updated", "model_id", "message")
        print_json("runs", {"runs": [{f: getattr(i, f) for f in fields} for i in infos]})
        return
    if not infos:
        say(f"no runs in {runs}. Next: mnemoscope heads score engram")
        return
    rows = [
        (i.id, i.model_id, i.status, f"{i.done}/{i.total or '?'}", i.updated, i.message)
        for i in infos
    ]
    show_table(f"Runs in {runs}", ("id", "model", "status", "done", "updated (UTC)", ""), rows)


@app.command()
def show(run_id: RunId, runs: Runs = Path("runs"), json: Json = False) -> None:
    """Show a finished run: its configuration, where it came from and its table.

    Example: mnemoscope runs show head-scores-1a2b3c4d5e
    """
    from ...results.job_record import read_job_record
    from ...results.run_reading import load_run, verify_run

    folder = _folder(runs, run_id)
    verify_run(folder)
    run, job = load_run(folder), read_job_record(folder)
    if json:
        record = {"config": dict(run.config), "provenance": asdict(run.provenance)}
        print_json("run", {"id": run.id, **record, "job": None if job is None else asdict(job)})
        return
    show_table(run.id, ("configuration", "value"), list(run.config.items()))
    origin = run.provenance
    if job is not None:
        say(job.words)
    say(f"{origin.estimand}; {origin.model_id} {str(origin.weights_sha256)[:12]}; {origin.created}")
    table = run.table.head(20)
    show_table("First rows", tuple(table.columns), [tuple(row) for row in table.iter_rows()])
    for page in sorted([*(folder / "figures").iterdir(), *folder.glob("*.html")]):
        say(f"{page}")


@app.command()
def resume(
    run_id: RunId,
    runs: Runs = Path("runs"),
    queue: Annotated[
        bool, typer.Option("--queue", help="Wait until no other job uses the device.")
    ] = False,
) -> None:
    """Go on with an interrupted run; the result is that of an uninterrupted one.

    Example: mnemoscope runs resume head-scores-1a2b3c4d5e
    """
    from ...results.run import RunFolder
    from ..resuming import resume_run, run_config

    folder = RunFolder(runs, run_id)
    with progress("done") as tell:
        if queue and not folder.final.is_dir():
            from ...results.run_folder import queue_run
            from ..job_worker import work_on

            queue_run(runs, run_id.rpartition("-")[0], run_config(folder))
            work_on(folder, say=say, tell=tell)
            return
        result = resume_run(folder, say=say, tell=tell)
    if result.name != run_id:
        say(f"the model or the data has changed since: this is a new run, {result.name}.")
    say(f"finished: {result}")


@app.command()
def cancel(run_id: RunId, runs: Runs = Path("runs")) -> None:
    """Ask a running run to stop after its present unit; finished units are kept.

    Example: mnemoscope runs cancel head-scores-1a2b3c4d5e
    """
    from ...results.run_state import request_cancel

    request_cancel(_folder(runs, run_id))
    say(f"{run_id} will stop soon. Next: mnemoscope runs resume {run_id}")


def _folder(runs: Path, run_id: str) -> Path:
    """The run's folder, finished or not."""
    from ...results.errors import RunFolderError
    from ...results.run import RunFolder

    folder = RunFolder(runs, run_id).path
    if not folder.is_dir():
        raise RunFolderError(f"there is no run {run_id!r} in {runs}: see mnemoscope runs ls.")
    return folder
