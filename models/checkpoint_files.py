"""Is a checkpoint folder whole? Answered from safetensors headers, before any weight is read.

Format: 8-byte little-endian header length, JSON header, data (huggingface/safetensors, "Format").
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from stat import S_ISREG
from typing import Any

from .errors import CheckpointError, DamagedCheckpointError, ModelNotFoundError

_BITS = {"F64": 64, "F32": 32, "F16": 16, "BF16": 16, "F8_E4M3": 8, "F8_E5M2": 8, "F8_E8M0": 8}
_BITS |= {"BOOL": 8, "U8": 8, "I8": 8, "U16": 16, "I16": 16, "U32": 32, "I32": 32, "F4": 4}
_BITS |= {"U64": 64, "I64": 64, "C64": 64}
_MAX_HEADER = 100_000_000  # the format's own limit


@dataclass(frozen=True)
class TensorEntry:
    """One tensor of a file; `offset` counts from the start of the file, in bytes."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    offset: int
    n_bytes: int

    @property
    def end(self) -> int:
        """Offset of the first byte after the tensor."""
        return self.offset + self.n_bytes


@dataclass(frozen=True)
class Header:
    """The header of one safetensors file: tensors in file order, and the file's size in bytes."""

    tensors: tuple[TensorEntry, ...]
    size: int


def check_folder(folder: Path) -> dict[str, Header]:
    """Headers of all weight files of a checkpoint folder, by file name.

    Raises `ModelNotFoundError` when it is no checkpoint, `DamagedCheckpointError` when files are
    missing or truncated, `CheckpointError` when the weights exist only in other formats (pickles
    can run code and are never opened).
    """
    if not (folder / "config.json").is_file():
        raise ModelNotFoundError(
            f"{folder} has no config.json, so it is no Hugging Face checkpoint folder."
        )
    return read_shards(folder)


def read_header(path: Path) -> Header:
    """Read and check one file's header; the data is not touched.

    Raises `DamagedCheckpointError` when the file is missing, truncated or contradicts itself.
    """
    try:
        status = path.stat()
        if not S_ISREG(status.st_mode):
            raise _damaged(path, "is no regular file: download it again")
        size = status.st_size
        with path.open("rb") as file:
            prefix = file.read(8)
            length = int.from_bytes(prefix, "little")
            if prefix == b"version ":
                raise _damaged(path, "is a Git LFS pointer: run `git lfs pull` to get the weights")
            if len(prefix) < 8 or length > min(size - 8, _MAX_HEADER):
                raise _damaged(path, "promises a header longer than the file: download it again")
            text = file.read(length)
    except FileNotFoundError:
        raise _damaged(path, "is missing: download the checkpoint again") from None
    try:
        entries = json.loads(text, object_pairs_hook=_unique)
        entries.pop("__metadata__", None)
        tensors = [_entry(name, entry, 8 + length) for name, entry in entries.items()]
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise _damaged(path, f"has an unreadable header ({error}): download it again") from error
    tensors.sort(key=lambda tensor: (tensor.offset, tensor.end))
    _check_layout(path, tensors, 8 + length, size)
    return Header(tuple(tensors), size)


def read_shards(folder: Path) -> dict[str, Header]:
    """Headers of the files that `from_pretrained` would load, by file name.

    Raises `CheckpointError` when there are no safetensors or it is unclear which are loaded, and
    `DamagedCheckpointError` when a file or a tensor of the index is missing.
    """
    single, index = folder / "model.safetensors", folder / "model.safetensors.index.json"
    if single.is_file() and index.is_file():
        raise CheckpointError(
            f"{folder} holds both {single.name} and {index.name}: remove the one that is not meant."
        )
    if single.is_file():
        return {single.name: read_header(single)}
    if not index.is_file():
        raise _no_safetensors(folder)
    placed = _weight_map(index)
    headers = {name: read_header(folder / name) for name in sorted(set(placed.values()))}
    present = {(t.name, name) for name, header in headers.items() for t in header.tensors}
    missing = sorted(set(placed.items()) - present)
    if missing:
        raise DamagedCheckpointError(
            f"{index} promises {missing[0][0]} in {missing[0][1]}, which does not hold it "
            f"({len(missing)} such tensors): download the checkpoint again."
        )
    return headers


def file_sha256(path: Path) -> str:
    """SHA-256 (hexadecimal) of a file's bytes, read in pieces."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _weight_map(index: Path) -> dict[str, str]:
    try:
        placed = json.loads(index.read_bytes())["weight_map"]
        good = all(_plain_name(name) for name in set(placed.values()))
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise _damaged(index, f"is unreadable ({error}): download it again") from error
    if not good or not placed:
        raise _damaged(index, "must name files of its own folder: download it again")
    return dict(placed)


def _plain_name(name: str) -> bool:
    """A weight file of the index's own folder, and nothing that a system reads as a path."""
    return name.endswith(".safetensors") and not set(name) & {"/", "\\", "\0", ":"}


def _entry(name: str, entry: Any, data_start: int) -> TensorEntry:
    begin, end = entry["data_offsets"]
    shape = tuple(entry["shape"])
    if not all(type(n) is int and n >= 0 for n in (begin, end, *shape)) or begin > end:
        raise ValueError(f"{name} has impossible numbers")
    bits = _BITS.get(entry["dtype"])
    if bits is not None and math.prod(shape) * bits != (end - begin) * 8:
        raise ValueError(f"{name} has another size than its shape")
    return TensorEntry(name, entry["dtype"], shape, data_start + begin, end - begin)


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    if len(dict(pairs)) < len(pairs):
        raise ValueError("a name is used twice")
    return dict(pairs)


def _check_layout(path: Path, tensors: Sequence[TensorEntry], start: int, size: int) -> None:
    """Tensors must fill the file exactly: no sharing of bytes, no gap, nothing cut off."""
    for tensor in tensors:
        if tensor.end > size:
            raise _damaged(
                path,
                f"is truncated: {tensor.name} ends at byte {tensor.end} of {size}; "
                "download it again",
            )
        if tensor.offset < start:
            raise _damaged(path, f"has shared bytes: {tensor.name} overlaps another tensor")
        if tensor.offset > start:
            raise _damaged(path, f"has unnamed bytes before {tensor.name}: download it again")
        start = tensor.end
    if start != size:
        raise _damaged(path, f"has {size - start} bytes after its last tensor: download it again")


def _no_safetensors(folder: Path) -> CheckpointError:
    names = sorted(path.name for path in folder.iterdir())
    pickles = [name for name in names if Path(name).suffix in (".bin", ".pt", ".pth")]
    gguf = [name for name in names if name.endswith(".gguf")]
    if gguf and not pickles:
        return CheckpointError(
            f"{folder} holds no safetensors weights, but {gguf[0]}: give that file, it will be "
            "converted."
        )
    if not pickles:
        return CheckpointError(f"{folder} holds no safetensors weights: give a checkpoint folder.")
    return CheckpointError(
        f"{folder} holds no safetensors weights, only {', '.join(pickles[:3])}, which can run code "
        "when opened and is left alone: convert first, by loading a copy that you trust with "
        "transformers and calling save_pretrained."
    )


def _damaged(path: Path, what: str) -> DamagedCheckpointError:
    return DamagedCheckpointError(f"{path} {what}.")
