"""How much memory a model's weights may take, and where: what a machine has, not what it measures.

Kept apart from any result: the same numbers come out wherever the weights are. So the command line
hands these limits on by the environment, which jobs and resumed runs inherit.
"""

from __future__ import annotations

from collections.abc import Mapping

from .errors import PlacementError

Memory = Mapping[int | str, int | str]
"""Most memory for weights on each CUDA device (its number) and in host memory ("cpu"), in bytes or
as "20GiB"."""

MAX_MEMORY = "MNEMOSCOPE_MAX_MEMORY"
"""Environment variable with limits as `parse_memory` reads them."""
OFFLOAD_FOLDER = "MNEMOSCOPE_OFFLOAD_FOLDER"
"""Environment variable with the folder for weights that are rewritten on loading."""


def parse_memory(text: str) -> dict[int | str, int | str] | None:
    """`0=20GiB,cpu=30GiB` as a mapping; None for an empty text. Raises `PlacementError`."""
    found: dict[int | str, int | str] = {}
    for piece in filter(None, (part.strip() for part in text.split(","))):
        where, equals, size = (part.strip() for part in piece.partition("="))
        if not equals or not size:
            raise PlacementError(f"{piece!r} is no limit of memory: write 0=20GiB,cpu=30GiB.")
        found[int(where) if where.isdecimal() else where] = size
    return found or None
