"""Safetensors files as bytes: read headers, find the bytes of a block, copy files with edits.

No model is built and no weight file is held whole: files pass through in chunks of `CHUNK` bytes.
Format: 8-byte little-endian header length, JSON header, data (huggingface/safetensors, "Format").
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, Literal

import numpy as np
import torch
from jaxtyping import Bool, UInt8

from ..models.checkpoint_files import TensorEntry
from ..models.errors import CheckpointError, DamagedCheckpointError

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
        raise DamagedCheckpointError(f"{path} became shorter while it was read: try again.")
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
