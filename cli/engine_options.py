"""`--backend` and `--remote`: what runs the passes of a model, for all loads of a command."""

from __future__ import annotations

import os
from typing import Annotated

import typer


def _engine(value: str | None) -> str | None:
    if value is not None:
        os.environ["MNEMOSCOPE_BACKEND"] = value
    return value


def _server(value: str | None) -> str | None:
    if value is not None:
        os.environ["MNEMOSCOPE_REMOTE"] = value
    return value


Backend = Annotated[
    str | None,
    typer.Option(
        "--backend",
        envvar="MNEMOSCOPE_BACKEND",
        callback=_engine,
        help="local (hooks; the default) or nnsight (traces).",
        show_default=False,
    ),
]
Remote = Annotated[
    str | None,
    typer.Option(
        "--remote",
        envvar="MNEMOSCOPE_REMOTE",
        callback=_server,
        help="Let a server run the passes, through nnsight: ndif, or http://host:port.",
        show_default=False,
    ),
]
