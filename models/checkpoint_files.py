"""Is a checkpoint folder whole? Answered from headers, before any weight is read."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .errors import DamagedCheckpointError, ModelNotFoundError

_MAX_HEADER = 100_000_000  # the format's own limit, in bytes


@dataclass(frozen=True)
class SafetensorsHeader:
    """The header of one safetensors file: tensors by name, and where their bytes start."""

    path: Path
    tensors: dict[str, Any]
    data_start: int


def read_header(path: Path) -> SafetensorsHeader:
    """Read and check one header. Raises `DamagedCheckpointError` for a short or broken file."""
    size = path.stat().st_size
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if size < 8 or length > min(_MAX_HEADER, size - 8):
            raise _damaged(path, "its header is cut off")
        try:
            tensors = json.loads(file.read(length))
            tensors.pop("__metadata__", None)
            end = max((int(entry["data_offsets"][1]) for entry in tensors.values()), default=0)
        except (ValueError, LookupError, TypeError, AttributeError, RecursionError):
            raise _damaged(path, "its header is not one of safetensors") from None
    if 8 + length + end != size:
        raise _damaged(path, f"it has {size} bytes where its header promises {8 + length + end}")
    return SafetensorsHeader(path, tensors, 8 + length)


def check_folder(folder: Path) -> tuple[SafetensorsHeader, ...]:
    """Headers of all weight files of a checkpoint folder.

    Raises `ModelNotFoundError` when it is no checkpoint, `DamagedCheckpointError` when files are
    missing or truncated, or the weights exist only as pickles, which are never opened.
    """
    if not (folder / "config.json").is_file():
        raise ModelNotFoundError(
            f"{folder} has no config.json, so it is no Hugging Face checkpoint folder."
        )
    shards = _shards(folder)
    if not shards:
        raise DamagedCheckpointError(_no_weights(folder))
    missing = [name for name in shards if not (folder / name).is_file()]
    if missing:
        raise DamagedCheckpointError(
            f"{folder} lacks {len(missing)} of {len(shards)} weight files (first: {missing[0]}): "
            "the download did not finish. Fetch the folder again."
        )
    return tuple(read_header(folder / name) for name in shards)


def _shards(folder: Path) -> list[str]:
    index = folder / "model.safetensors.index.json"
    if not index.is_file():
        return sorted(path.name for path in folder.glob("*.safetensors"))
    try:
        return sorted(set(json.loads(index.read_text("utf-8"))["weight_map"].values()))
    except (ValueError, LookupError, TypeError, AttributeError):
        raise _damaged(index, "it is not a weight index") from None


def _no_weights(folder: Path) -> str:
    if any(folder.glob("*.bin")):
        return (
            f"{folder} holds pickled weights (.bin), which can run code when opened: save the "
            "model again with save_pretrained(safe_serialization=True) and use that folder."
        )
    return f"{folder} has a config.json but no .safetensors file: the download did not finish."


def _damaged(path: Path, reason: str) -> DamagedCheckpointError:
    return DamagedCheckpointError(f"{path} is damaged: {reason}. Fetch or copy the file again.")
