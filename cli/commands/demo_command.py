"""`mnemoscope demo`: the whole journey on one model."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from ..output import print_json, progress, say, show_table
from .heads import Force
from .models import Json


def demo(
    model: Annotated[str, typer.Option(help="A model that needs no network by default.")] = (
        "engram"
    ),
    relation: Annotated[str, typer.Option(help="The relation to ask about.")] = "capital",
    out: Annotated[Path, typer.Option(help="Folder for the run, the checkpoint and the page.")] = (
        Path("demo_out")
    ),
    subjects: Annotated[int, typer.Option(min=4, help="Facts to find heads with.")] = 40,
    role: Annotated[str, typer.Option(help="Which heads to prune: memory or context.")] = "memory",
    top: Annotated[int, typer.Option(min=1, max=10, help="How many of them.")] = 1,
    demonstrations: Annotated[
        int | None,
        typer.Option(min=0, help="Solved examples before a prompt (engram: none; others: 3)."),
    ] = None,
    force: Force = False,
    json: Json = False,
) -> None:
    """Score heads, prune the strongest of one role, reload, compare with random heads.

    Example: mnemoscope demo --role memory --top 1 --out demo_out
    """
    from ..journey import JourneyConfig, journey

    if role not in ("memory", "context"):
        raise typer.BadParameter(f"--role is {role!r}: use memory or context.")
    which: Literal["memory", "context"] = "memory" if role == "memory" else "context"
    if demonstrations is None:  # engram's corpus has single statements and questions only
        demonstrations = 0 if model == "engram" else 3
    config = JourneyConfig(model, relation, subjects, which, top, demonstrations)
    with progress("demo") as tell:
        result = journey(config, out, force=force, say=say, tell=tell)
    if json:
        print_json("demo", result.document())
        return
    show_table(
        f"Answers without {', '.join(result.heads)}, the best of the {role} heads",
        ("model", "condition", "memory (RM)", "context (RC)", "other (RO)", "items"),
        result.rate_rows(),
    )
    for line in result.verdict:
        say(line)
    say(f"pruned   {result.checkpoint}")
    say(f"figure   {result.figure}")
