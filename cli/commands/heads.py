"""`mnemoscope heads`: which heads answer from memory and which from the context."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from ..engine_options import Backend, Remote
from ..option_lists import whole_numbers
from ..output import print_json, progress, say, show_table
from ..placement_options import MaxMemory, OffloadFolder
from .models import Json, Model

app = typer.Typer(help="Score attention heads.", no_args_is_help=True)

Runs = Annotated[Path, typer.Option("--runs", help="Folder of runs.")]
Force = Annotated[bool, typer.Option("--force", help="Throw away an earlier result.")]


@app.callback()
def callback() -> None:
    """Score attention heads."""


@app.command()
def score(
    model: Model,
    relation: Annotated[
        str, typer.Option(help="A shipped relation (capital, currency, ...) or a JSON file.")
    ] = "capital",
    subjects: Annotated[
        int, typer.Option(min=2, help="Facts to ask, from the part of the split kept for finding.")
    ] = 60,
    form: Annotated[str, typer.Option(help="Conflict form: substitution or coherent.")] = (
        "substitution"
    ),
    estimand: Annotated[
        str, typer.Option(help="direct (path patching) or total_end (END only, downstream free).")
    ] = "direct",
    answers: Annotated[
        str, typer.Option(help="first: first tokens; whole: whole answers, teacher-forced.")
    ] = "first",
    templates: Annotated[str, typer.Option(help="Wordings, for example 0,1,2.")] = "0,1,2",
    demonstrations: Annotated[int, typer.Option(min=0, help="True statements before each.")] = 3,
    top: Annotated[int, typer.Option(min=1, help="Heads in each head set that is written.")] = 10,
    seed: Annotated[int, typer.Option(help="Seed of conflicts and bootstrap.")] = 0,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:1.")] = "auto",
    dtype: Annotated[str, typer.Option(help="auto, float32, bfloat16 or float16.")] = "auto",
    backend: Backend = None,
    remote: Remote = None,
    max_memory: MaxMemory = None,
    offload_folder: OffloadFolder = None,
    memory_mb: Annotated[int, typer.Option(min=16, help="Memory for the sweep's rows.")] = 512,
    runs: Runs = Path("runs"),
    force: Force = False,
    json: Json = False,
) -> None:
    """Score every head as a memory head and as a context head, by exact path patching.

    Interrupted? The same command goes on where it stopped.

    Example: mnemoscope heads score engram --relation capital --top 10
    """
    from ..scoring import ScoreConfig, score_heads

    config = ScoreConfig(
        model=model,
        relation=relation,
        subjects=subjects,
        form=form,
        estimand=estimand,
        answers=answers,
        templates=tuple(whole_numbers(templates)),
        demonstrations=demonstrations,
        top=top,
        seed=seed,
        device=device,
        dtype=dtype,
        memory_mb=memory_mb,
    )
    with progress("heads") as tell:
        result = score_heads(config, runs, force=force, say=say, tell=tell)
    if json:
        print_json("head-scores", result.document())
        return
    for role in ("memory", "context"):
        show_table(
            f"{role} heads of {model} (higher: speaks more for the {role} answer)",
            ("head", "score", "95 % interval", "q"),
            result.top_rows(role, top),
        )
    say(f"run      {result.folder}")
    say(f"figures  {result.folder / 'figures'}")
    say(f"report   {result.folder / 'report.html'}")
    say(
        f"Next: mnemoscope prune run {model} --headset {result.folder / 'headset-context.json'} "
        "--out pruned"
    )
