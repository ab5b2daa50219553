"""`mnemoscope study`: run a scripted study and keep its page."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from ..output import say

app = typer.Typer(help="Run scripted studies.", no_args_is_help=True)


@app.callback()
def callback() -> None:
    """Run scripted studies."""


@app.command()
def run(
    study: Annotated[Path, typer.Argument(help="A percent script, for example studies/01_*.py.")],
    preset: Annotated[str, typer.Option(help="smoke, small or paper.")] = "smoke",
    html: Annotated[Path, typer.Option(help="Page to write.")] = Path("study.html"),
) -> None:
    """Run every cell of a study and write one self-contained page.

    Example: mnemoscope study run studies/01_memory_and_context_heads.py --html study.html
    """
    from ..study_page import run_study

    run_study(study, preset=preset, html=html)
    say(f"page     {html}")
