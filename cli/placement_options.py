"""Options for models larger than one device; the same on every command that loads a model.

They say what the machine has, so they are no part of a run's configuration: the environment carries
them to `load_model`, also in the processes of jobs.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Annotated

import typer

from ..models.errors import PlacementError
from ..models.memory_limits import MAX_MEMORY, OFFLOAD_FOLDER, parse_memory


def into_environment(variable: str) -> Callable[[str | None], str | None]:
    """A callback of an option: what is given is put into an environment variable."""

    def keep(value: str | None) -> str | None:
        if value is not None:
            os.environ[variable] = value
        return value

    return keep


def _keep_memory(value: str | None) -> str | None:
    try:
        parse_memory(value or "")
    except PlacementError as error:
        raise typer.BadParameter(str(error)) from None
    return into_environment(MAX_MEMORY)(value)


MaxMemory = Annotated[
    str | None,
    typer.Option(
        "--max-memory",
        envvar=MAX_MEMORY,
        callback=_keep_memory,
        help="Most memory for weights, for example 0=20GiB,cpu=30GiB; the rest stays on disk.",
        show_default=False,
    ),
]
OffloadFolder = Annotated[
    str | None,
    typer.Option(
        "--offload-folder",
        envvar=OFFLOAD_FOLDER,
        callback=into_environment(OFFLOAD_FOLDER),
        help="For weights that are rewritten on loading (fused experts) and do not fit.",
        show_default=False,
    ),
]
