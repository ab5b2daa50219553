"""Safetensors files as bytes: find the bytes of a block, copy and compare files with edits.

No model is built and no weight file is held whole: files pass through in chunks of `CHUNK` bytes.
Format: 8-byte little-endian header length, JSON header, data (huggingface/safetensors, "Format").
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, Literal, TypeAlias

import numpy as np
import torch
from jaxtyping import Bool, Float, UInt8
from torch import Tensor

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

Bytes: TypeAlias = UInt8[np.ndarray, " byte"]
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

    def mask(self, start: int, stop: int) -> Bool[np.ndarray, " byte"]:
        """Which of the file's bytes `start <= i < stop` are edited."""
        mask = np.zeros(stop - start, dtype=bool)
        for part in self.ranges:
            mask |= part.mask(start, stop)
        return mask


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


def copy_edited(
    source: Path, target: Path, changes: Sequence[Change] = (), kept: BinaryIO | None = None
) -> tuple[str, str]:
    """Copy a file with the changes applied, and fsync it; the old bytes of the edited blocks are
    appended to `kept`. Returns the SHA-256 of source and target, taken in the same pass."""
    with source.open("rb") as reader, target.open("xb") as writer, _Hashes() as hashes:
        size = os.fstat(reader.fileno()).st_size
        for start, stop, change in _pieces(size, changes):
            old = read_exactly(reader, stop - start, source)
            new: bytes | memoryview = old
            if change is not None:
                new = _changed(old, start, change, kept)
            hashes.update(old, new)
            writer.write(new)
        writer.flush()
        os.fsync(writer.fileno())
        return hashes.digests()


def compare_edited(
    source: Path, target: Path, changes: Sequence[Change] = ()
) -> tuple[str, str, int]:
    """Prove that `target` is `source` except inside the edits, which hold the new numbers.

    Reads both files. Returns the SHA-256 of source and target and how many bytes differ; raises
    `CheckpointError` for any difference that was not planned.
    """
    differing = 0
    with source.open("rb") as old, target.open("rb") as new, _Hashes() as hashes:
        size = os.fstat(old.fileno()).st_size
        if size != os.fstat(new.fileno()).st_size:
            raise CheckpointError(f"{target.name} has another length than its source.")
        for start, stop, change in _pieces(size, changes):
            before = read_exactly(old, stop - start, source)
            after = read_exactly(new, stop - start, target)
            hashes.update(before, after)
            if change is not None:
                differing += _check_change(before, after, start, change, target.name)
            elif before != after:
                raise CheckpointError(f"{target.name} differs from its source outside the heads.")
        return *hashes.digests(), differing


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
        raise DamagedCheckpointError(f"{path} became shorter while it was read: try again.")
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


class _Hashes:
    """SHA-256 of two streams that are the same up to some point, computed beside reading and
    writing (hashlib lets go of the interpreter's lock): the common beginning is hashed once."""

    def __init__(self) -> None:
        self._digests = [hashlib.sha256()]
        self._pool = ThreadPoolExecutor(2)
        self._running: list[Future[None]] = []

    def __enter__(self) -> _Hashes:
        return self

    def __exit__(self, *_: object) -> None:
        self._pool.shutdown()

    def update(self, old: bytes, new: bytes | memoryview) -> None:
        self._wait()
        if old is not new and len(self._digests) == 1 and old != new:
            self._digests.append(self._digests[0].copy())
        both = zip(self._digests, (old, new), strict=False)
        self._running = [self._pool.submit(digest.update, data) for digest, data in both]

    def digests(self) -> tuple[str, str]:
        self._wait()
        return self._digests[0].hexdigest(), self._digests[-1].hexdigest()

    def _wait(self) -> None:
        for future in self._running:
            future.result()
        self._running = []


def _pieces(size: int, changes: Sequence[Change]) -> Iterator[tuple[int, int, Change | None]]:
    """The file in order, cut at the borders of edited tensors and then into chunks.

    Chunks of an edited tensor start at a multiple of `CHUNK` from its start, so no number is cut.
    """
    spans: list[tuple[int, int, Change | None]] = []
    done = 0
    for change in sorted(changes, key=lambda change: change.edit.tensor.offset):
        tensor = change.edit.tensor
        spans += [(done, tensor.offset, None), (tensor.offset, tensor.end, change)]
        done = tensor.end
    spans.append((done, size, None))
    for first, last, which in spans:
        for start in range(first, last, CHUNK):
            yield start, min(start + CHUNK, last), which


def _changed(chunk: bytes, start: int, change: Change, kept: BinaryIO | None) -> memoryview:
    data = np.frombuffer(chunk, np.uint8).copy()
    mask = change.edit.mask(start, start + len(chunk))
    old = data[mask]
    if kept is not None:
        kept.write(old.tobytes())
    data[mask] = change.rewrite(old, _edited_before(change.edit, start))
    return data.data


def _check_change(before: bytes, after: bytes, start: int, change: Change, name: str) -> int:
    """How many bytes differ in a chunk of an edited tensor. Raises `CheckpointError`."""
    old, new = np.frombuffer(before, np.uint8), np.frombuffer(after, np.uint8)
    tensor, mask = change.edit.tensor.name, change.edit.mask(start, start + len(old))
    if not np.array_equal(old[~mask], new[~mask]):
        raise CheckpointError(f"{tensor} in {name} differs from its source outside the heads.")
    expected = change.rewrite(old[mask], _edited_before(change.edit, start))
    if not np.array_equal(expected, new[mask]):
        raise CheckpointError(f"{tensor} in {name} does not hold the edited numbers.")
    return int(np.count_nonzero(old != new))


def _edited_before(edit: TensorEdit, position: int) -> int:
    """Edited bytes of the tensor that lie before `position` of the file."""
    total = 0
    for part in edit.ranges:
        whole, rest = divmod(max(0, position - part.offset), part.stride)
        total += min(part.n_bytes, whole * part.length + min(rest, part.length))
    return total
