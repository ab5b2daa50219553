"""Safetensors files as bytes: read headers, find the bytes of a block, copy files with edits.

No model is built and no weight file is held whole: files pass through in chunks of `CHUNK` bytes.
Format: 8-byte little-endian header length, JSON header, data (huggingface/safetensors, "Format").
"""

from __future__ import annotations

import hashlib
import json
import math
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, Literal

import numpy as np
import torch
from jaxtyping import Bool, UInt8

from ..models.errors import DamagedCheckpointError, MnemoscopeError

CHUNK = 4 * 2**20
"""Bytes held at once from one file; a multiple of every item size."""

FLOATS: dict[str, torch.dtype] = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
}
_BITS = {"F64": 64, "F32": 32, "F16": 16, "BF16": 16, "F8_E4M3": 8, "F8_E5M2": 8, "F8_E8M0": 8}
_BITS |= {"BOOL": 8, "U8": 8, "I8": 8, "U16": 16, "I16": 16, "U32": 32, "I32": 32, "F4": 4}
_BITS |= {"U64": 64, "I64": 64, "C64": 64}
_MAX_HEADER = 100_000_000  # the format's own limit


class CheckpointError(MnemoscopeError):
    """A checkpoint cannot be edited or written as asked; the message says how to go on."""


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


@dataclass(frozen=True)
class StridedBytes:
    """`count` runs of `length` bytes, their starts `stride` bytes apart, the first at `offset`."""

    offset: int
    stride: int
    length: int
    count: int

    @property
    def n_bytes(self) -> int:
        """Bytes in all runs."""
        return self.length * self.count

    def mask(self, start: int, stop: int) -> Bool[np.ndarray, " byte"]:
        """Which of the file's bytes `start <= i < stop` are in a run."""
        mask = np.zeros(stop - start, dtype=bool)
        end = self.offset + self.stride * (self.count - 1) + self.length
        first, last = max(start, self.offset), min(stop, end)
        if first < last:
            period = np.arange(self.stride) < self.length
            phase = (first - self.offset) % self.stride
            mask[first - start : last - start] = np.resize(np.roll(period, -phase), last - first)
        return mask


@dataclass(frozen=True)
class TensorEdit:
    """Blocks of a matrix that are multiplied: rows (`axis` 0) or columns (`axis` 1) of each
    `(start, stop)`."""

    tensor: TensorEntry
    axis: Literal[0, 1]
    blocks: tuple[tuple[int, int], ...]

    @property
    def ranges(self) -> tuple[StridedBytes, ...]:
        """The bytes of each block in the file: rows are one run, columns a run in each row."""
        n_rows, n_columns = self.tensor.shape
        item = FLOATS[self.tensor.dtype].itemsize
        row = n_columns * item
        if self.axis == 0:
            runs = ((start * row, (stop - start) * row) for start, stop in self.blocks)
            return tuple(StridedBytes(self.tensor.offset + at, n, n, 1) for at, n in runs)
        runs = ((start * item, (stop - start) * item) for start, stop in self.blocks)
        return tuple(StridedBytes(self.tensor.offset + at, row, n, n_rows) for at, n in runs)

    @property
    def n_bytes(self) -> int:
        """Bytes in all blocks."""
        return sum(part.n_bytes for part in self.ranges)

    def mask(self, start: int, stop: int) -> Bool[np.ndarray, " byte"]:
        """Which of the file's bytes `start <= i < stop` are edited."""
        mask = np.zeros(stop - start, dtype=bool)
        for part in self.ranges:
            mask |= part.mask(start, stop)
        return mask


def read_header(path: Path) -> Header:
    """Read and check one file's header; the data is not touched.

    Raises `DamagedCheckpointError` when the file is missing, truncated or contradicts itself.
    """
    try:
        size = path.stat().st_size
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


def scaled(
    data: UInt8[np.ndarray, " byte"], dtype: str, factor: float
) -> UInt8[np.ndarray, " byte"]:
    """Bytes of numbers times `factor`, multiplied in float64; factor 0 gives zero bytes.

    Raises `CheckpointError` where a finite number would pass the largest one of `dtype`.
    """
    if factor == 0 or len(data) == 0:
        return np.zeros_like(data)
    old = torch.from_numpy(np.array(data)).view(FLOATS[dtype])
    new = old.double() * factor
    largest = torch.finfo(old.dtype).max
    if bool((old.double().isfinite() & (new.abs() > largest)).any()):
        raise CheckpointError(
            f"factor {factor:g} takes weights beyond {largest:g}, the largest {dtype} number: take "
            "a smaller one."
        )
    return new.to(old.dtype).view(torch.uint8).numpy()


def copy_edited(
    source: Path, target: Path, edits: Sequence[TensorEdit] = (), factor: float = 0.0
) -> str:
    """Copy a file with the edits applied, and fsync it. Returns the SHA-256 of the *source*."""
    digest = hashlib.sha256()
    with source.open("rb") as reader, target.open("xb") as writer:
        size = os.fstat(reader.fileno()).st_size
        for start, stop, edit in _pieces(size, edits):
            chunk = _read(reader, stop - start, source)
            digest.update(chunk)
            writer.write(_edited(chunk, start, stop, edit, factor))
        writer.flush()
        os.fsync(writer.fileno())
    return digest.hexdigest()


def compare_edited(
    source: Path, target: Path, edits: Sequence[TensorEdit] = (), factor: float = 0.0
) -> str:
    """Prove that `target` is `source` except inside the edits, which hold the scaled numbers.

    Reads both files again. Returns the SHA-256 of the *target*; raises `CheckpointError`.
    """
    digest = hashlib.sha256()
    with source.open("rb") as old, target.open("rb") as new:
        size = os.fstat(old.fileno()).st_size
        if size != os.fstat(new.fileno()).st_size:
            raise CheckpointError(f"{target.name} has another length than its source: try again.")
        for start, stop, edit in _pieces(size, edits):
            before = _read(old, stop - start, source)
            after = _read(new, stop - start, target)
            digest.update(after)
            _check_piece(before, after, start, edit, factor, target.name)
    return digest.hexdigest()


def sha256_of_file(path: Path) -> str:
    """SHA-256 (hexadecimal) of a file, read in chunks."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(CHUNK):
            digest.update(chunk)
    return digest.hexdigest()


def _pieces(size: int, edits: Sequence[TensorEdit]) -> Iterator[tuple[int, int, TensorEdit | None]]:
    """The file in order, cut at the borders of edited tensors and then into chunks.

    Chunks of an edited tensor start at a multiple of `CHUNK` from its start, so no number is cut.
    """
    spans: list[tuple[int, int, TensorEdit | None]] = []
    done = 0
    for edit in sorted(edits, key=lambda edit: edit.tensor.offset):
        spans += [(done, edit.tensor.offset, None), (edit.tensor.offset, edit.tensor.end, edit)]
        done = edit.tensor.end
    spans.append((done, size, None))
    for first, last, which in spans:
        for start in range(first, last, CHUNK):
            yield start, min(start + CHUNK, last), which


def _read(file: BinaryIO, n_bytes: int, path: Path) -> bytes:
    data = file.read(n_bytes)
    if len(data) < n_bytes:
        raise _damaged(path, "became shorter while it was read: try again")
    return data


def _edited(
    chunk: bytes, start: int, stop: int, edit: TensorEdit | None, factor: float
) -> bytes | memoryview:
    if edit is None:
        return chunk
    data = np.frombuffer(chunk, np.uint8).copy()
    mask = edit.mask(start, stop)
    data[mask] = scaled(data[mask], edit.tensor.dtype, factor)
    return data.data


def _check_piece(
    before: bytes, after: bytes, start: int, edit: TensorEdit | None, factor: float, name: str
) -> None:
    if edit is None:
        if before != after:
            raise CheckpointError(f"{name} differs from its source outside the heads: try again.")
        return
    old, new = np.frombuffer(before, np.uint8), np.frombuffer(after, np.uint8)
    mask = edit.mask(start, start + len(old))
    if not np.array_equal(old[~mask], new[~mask]):
        raise CheckpointError(
            f"{edit.tensor.name} in {name} differs from its source outside the heads: try again."
        )
    if not np.array_equal(scaled(old[mask], edit.tensor.dtype, factor), new[mask]):
        raise CheckpointError(
            f"{edit.tensor.name} in {name} does not hold the edited numbers: try again."
        )


def _weight_map(index: Path) -> dict[str, str]:
    try:
        placed = json.loads(index.read_bytes())["weight_map"]
        good = all(Path(name).name == name for name in placed.values())
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise _damaged(index, f"is unreadable ({error}): download it again") from error
    if not good or not placed:
        raise _damaged(index, "must name files of its own folder: download it again")
    return dict(placed)


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
    others = [
        p.name for p in sorted(folder.glob("*")) if p.suffix in (".bin", ".gguf", ".pt", ".pth")
    ]
    if not others:
        return CheckpointError(f"{folder} holds no safetensors weights: give a checkpoint folder.")
    return CheckpointError(
        f"{folder} holds no safetensors weights, only {', '.join(others[:3])}: convert first, by "
        "loading it with transformers and calling save_pretrained."
    )


def _damaged(path: Path, what: str) -> DamagedCheckpointError:
    return DamagedCheckpointError(f"{path} {what}.")
