"""Safetensors files as bytes: where a block's bytes lie, and what an edit writes there.

Format: 8-byte little-endian header length, JSON header, data (huggingface/safetensors, "Format").
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, Literal, TypeAlias

import numpy as np
import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from ..models.checkpoint_files import TensorEntry
from ..models.errors import CheckpointError
from .file_digests import shorter

CHUNK = 2**20
"""Bytes held at once from one file; a multiple of every item size."""

FLOATS: dict[str, torch.dtype] = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
}

Bytes: TypeAlias = UInt8[np.ndarray, " byte"]
Rows: TypeAlias = UInt8[np.ndarray, "row byte"]
Rewrite: TypeAlias = Callable[[Bytes, int], Bytes]
"""(edited bytes of a chunk, how many edited bytes of the tensor came before) to the new bytes."""


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


@dataclass(frozen=True)
class TensorEdit:
    """Blocks of a matrix or vector whose numbers change: rows (`axis` 0) or columns (`axis` 1) of
    each `(start, stop)`, in ascending order."""

    tensor: TensorEntry
    axis: Literal[0, 1]
    blocks: tuple[tuple[int, int], ...]

    @property
    def ranges(self) -> tuple[StridedBytes, ...]:
        """The bytes of each block in the file: rows are one run, columns a run in each row."""
        n_rows, n_columns = (*self.tensor.shape, 1)[:2]
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

    @property
    def kept_shape(self) -> tuple[int, ...]:
        """Shape of the blocks alone, laid side by side: their bytes are then in file order."""
        width = sum(stop - start for start, stop in self.blocks)
        shape = self.tensor.shape
        return (width, *shape[1:]) if self.axis == 0 else (shape[0], width)

    def old(self, rows: Rows, first: int) -> Bytes:
        """The edited bytes, in file order, among rows of the tensor that begin with row `first`."""
        return np.concatenate([rows[at] for at in self._places(rows, first)], self.axis).ravel()

    def put(self, rows: Rows, first: int, new: Bytes) -> None:
        """Write `new` where `old` was read."""
        blocks = [rows[at] for at in self._places(rows, first)]
        edges = np.cumsum([block.shape[self.axis] for block in blocks])
        shape = list(blocks[0].shape)
        shape[self.axis] = edges[-1]
        for block, values in zip(
            blocks, np.split(new.reshape(shape), edges[:-1], self.axis), strict=True
        ):
            block[:] = values

    def n_before(self, first: int) -> int:
        """Edited bytes in the rows before row `first`."""
        row = self.n_bytes // self.kept_shape[0]
        if self.axis == 1:
            return first * row
        return row * sum(min(max(0, first - start), stop - start) for start, stop in self.blocks)

    def _places(self, rows: Rows, first: int) -> list[tuple[slice, slice]]:
        item = FLOATS[self.tensor.dtype].itemsize
        if self.axis == 1:
            return [(slice(None), slice(start * item, stop * item)) for start, stop in self.blocks]
        ends = [(max(0, start - first), max(0, stop - first)) for start, stop in self.blocks]
        return [(slice(*end), slice(None)) for end in ends]


@dataclass(frozen=True)
class Change:
    """An edit and the numbers that it writes."""

    edit: TensorEdit
    rewrite: Rewrite


def scaling(edit: TensorEdit, factor: float) -> Change:
    """Multiply the blocks; factor 0 writes zeros."""
    return Change(edit, lambda old, done: scaled(old, edit.tensor.dtype, factor))


def shifting(edit: TensorEdit, shift: Float[np.ndarray, " number"]) -> Change:
    """Add one number to each number of the blocks, in file order."""
    dtype = edit.tensor.dtype
    item = FLOATS[dtype].itemsize

    def rewrite(old: Bytes, done: int) -> Bytes:
        return shifted(old, dtype, shift[done // item : (done + len(old)) // item])

    return Change(edit, rewrite)


def restoring(edit: TensorEdit, kept: BinaryIO, offset: int) -> Change:
    """Put back the bytes that `kept` holds from `offset` on, in file order."""

    def rewrite(old: Bytes, done: int) -> Bytes:
        kept.seek(offset + done)
        return np.frombuffer(read_exactly(kept, len(old), Path(kept.name)), np.uint8)

    return Change(edit, rewrite)


def scaled(data: Bytes, dtype: str, factor: float) -> Bytes:
    """Bytes of numbers times `factor`, multiplied in float64; factor 0 gives zero bytes.

    Raises `CheckpointError` where a finite number would pass the largest one of `dtype`.
    """
    if factor == 0 or len(data) == 0:
        return np.zeros_like(data)
    old = _numbers(data, dtype)
    return _stored(
        old.double() * factor, old, f"factor {factor:g} takes weights", "take a smaller one"
    )


def shifted(data: Bytes, dtype: str, shift: Float[np.ndarray, " number"]) -> Bytes:
    """Bytes of numbers plus `shift`, added in float64.

    Raises `CheckpointError` where a finite number would pass the largest one of `dtype`.
    """
    old = _numbers(data, dtype)
    new = old.double() + torch.from_numpy(np.array(shift))
    return _stored(new, old, "the mean outputs take a bias", "use mode zero")


def row_pieces(tensor: TensorEntry) -> Iterator[tuple[int, int]]:
    """Rows `(first, last)` of a tensor, at most about `CHUNK` bytes together (one row at least)."""
    n_rows = tensor.shape[0]
    step = max(1, CHUNK * n_rows // max(1, tensor.n_bytes))
    for first in range(0, n_rows, step):
        yield first, min(first + step, n_rows)


def kept_header(edits: Sequence[TensorEdit], about: dict[str, str]) -> bytes:
    """Length and header of a safetensors file that holds the blocks of the edits, in this order."""
    header: dict[str, Any] = {"__metadata__": about}
    end = 0
    for edit in edits:
        begin, end = end, end + edit.n_bytes
        header[edit.tensor.name] = {
            "dtype": edit.tensor.dtype,
            "shape": edit.kept_shape,
            "data_offsets": [begin, end],
        }
    return framed(json.dumps(header).encode())


def framed(header: bytes) -> bytes:
    """A JSON header as it stands in the file: padded to eight bytes, as the library pads it, behind
    its length."""
    header += b" " * (-len(header) % 8)
    return len(header).to_bytes(8, "little") + header


def read_exactly(file: BinaryIO, n_bytes: int, path: Path) -> bytes:
    """The next bytes of a file. Raises `DamagedCheckpointError` where there are fewer."""
    data = file.read(n_bytes)
    if len(data) < n_bytes:
        raise shorter(path)
    return data


def _numbers(data: Bytes, dtype: str) -> Float[Tensor, " number"]:
    return torch.from_numpy(np.array(data)).view(FLOATS[dtype])


def _stored(
    new: Float[Tensor, " number"], old: Float[Tensor, " number"], cause: str, remedy: str
) -> Bytes:
    """Bytes of `new` in the type of `old`. Raises `CheckpointError` where a finite number would
    pass the largest one of that type."""
    largest = torch.finfo(old.dtype).max
    if bool((old.double().isfinite() & (new.abs() > largest)).any()):
        name = next(name for name, dtype in FLOATS.items() if dtype == old.dtype)
        raise CheckpointError(f"{cause} beyond {largest:g}, the largest {name} number: {remedy}.")
    return new.to(old.dtype).view(torch.uint8).numpy()
