"""NumPy arrays in safetensors files; nothing is ever unpickled."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load, save

from .errors import RunFolderError


def array_bytes(arrays: Mapping[str, np.ndarray]) -> bytes:
    """The arrays as one safetensors file, any shapes and memory order.

    Raises `RunFolderError` for values that are neither numbers nor booleans.
    """
    for name, array in arrays.items():
        if np.asarray(array).dtype.kind not in "biufc":
            raise RunFolderError(f"array {name!r} holds {array.dtype}, not numbers or booleans.")
    return save({name: np.asarray(array, order="C") for name, array in arrays.items()})


def read_arrays(path: Path) -> dict[str, np.ndarray]:
    """Name to array. Raises `RunFolderError` naming the file when it is missing or damaged."""
    try:
        return load(path.read_bytes())
    except (OSError, SafetensorError, ValueError, KeyError) as error:
        raise RunFolderError(f"{path} is missing or damaged ({error}).") from error
