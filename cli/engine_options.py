"""`--backend` and `--remote`: what runs the passes of a model, for all loads of a command."""

from __future__ import annotations

from typing import Annotated

import typer

from .placement_options import into_environment

Backend = Annotated[
    str | None,
    typer.Option(
        "--backend",
        envvar="MNEMOSCOPE_BACKEND",
        callback=into_environment("MNEMOSCOPE_BACKEND"),
        help="local (hooks; the default) or nnsight (traces).",
        show_default=False,
    ),
]
Remote = Annotated[
    str | None,
    typer.Option(
        "--remote",
        envvar="MNEMOSCOPE_REMOTE",
        callback=into_environment("MNEMOSCOPE_REMOTE"),
        help="Let a server run the passes, through nnsight: ndif, or http://host:port.",
        show_default=False,
    ),
]
