"""`mnemoscope app`: open the explorer."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from .heads import Runs


def app(
    models: Annotated[
        list[str] | None,
        typer.Argument(help="Models to offer: engram (default), smollm2, folders, .gguf files."),
    ] = None,
    index: Annotated[
        list[Path] | None,
        typer.Option(help="Folder of an index to offer (`trace index`); may be given repeatedly."),
    ] = None,
    runs: Runs = Path("runs"),
    port: Annotated[int, typer.Option(min=1, max=65535, help="Port on this machine.")] = 8501,
    open_browser: Annotated[bool, typer.Option("--open/--no-open", help="Open a browser.")] = True,
) -> None:
    """Open the explorer in the browser. It listens on this machine only.

    Example: mnemoscope app engram ~/models/my-llama --port 8501
    """
    from ...app.launch import launch
    from ...app.settings import DEFAULT_MODELS

    launch(
        models or DEFAULT_MODELS,
        port=port,
        runs_root=runs,
        open_browser=open_browser,
        indexes=index or (),
    )
