"""Cut rows or columns out of tensors of a safetensors file, as bytes.

Files pass through in chunks of whole rows of at most `CHUNK` bytes. Everything else of a file
stays: the order of its tensors, their dtypes and the header's metadata. The result is what
`safetensors.torch.save_file` writes for the smaller tensors.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, Literal

import numpy as np
import torch
from blake3 import blake3
from jaxtyping import Bool
from safetensors import safe_open
from torch import Tensor

from ..models.checkpoint_files import TensorEntry, read_header
from ..models.errors import CheckpointError
from .file_digests import file_digest, named
from .safetensors_bytes import CHUNK, FLOATS, framed, read_exactly


@dataclass(frozen=True)
class TensorCut:
    """What stays of a tensor: rows (`axis` 0) or columns (`axis` 1) of each `(start, stop)`."""

    tensor: TensorEntry
    axis: Literal[0, 1]
    kept: tuple[tuple[int, int], ...]

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape after cutting."""
        shape = list(self.tensor.shape)
        shape[self.axis] = sum(stop - start for start, stop in self.kept)
        return tuple(shape)

    @property
    def n_bytes(self) -> int:
        """Bytes that stay."""
        return math.prod(self.shape) * FLOATS[self.tensor.dtype].itemsize

    @property
    def row_bytes(self) -> int:
        """Bytes of one row before cutting; of one number, for a bias."""
        return self.tensor.n_bytes // self.tensor.shape[0]

    def kept_rows(self, start: int, stop: int) -> Bool[np.ndarray, " row"]:
        """Which rows from `start` to `stop` stay."""
        rows = np.arange(start, stop)
        if self.axis == 1:
            return np.ones(len(rows), dtype=bool)
        return np.any([(a <= rows) & (rows < b) for a, b in self.kept], axis=0)

    def kept_bytes_of_row(self) -> Bool[np.ndarray, " byte"]:
        """Which bytes of a row stay."""
        item = FLOATS[self.tensor.dtype].itemsize
        places = np.arange(self.row_bytes) // item
        if self.axis == 0:
            return np.ones(len(places), dtype=bool)
        return np.any([(a <= places) & (places < b) for a, b in self.kept], axis=0)


def copy_cut(source: Path, target: Path, cuts: Sequence[TensorCut]) -> str:
    """Write `target` with the cuts made, and fsync it. Returns the hash of the *source*.

    Memory: a few times `CHUNK`, or one row where that is longer.
    """
    digest = blake3()
    by_name = {cut.tensor.name: cut for cut in cuts}
    with source.open("rb") as reader, target.open("xb") as writer:
        prefix = read_exactly(reader, 8, source)
        text = read_exactly(reader, int.from_bytes(prefix, "little"), source)
        digest.update(prefix + text)
        writer.write(_new_header(text, by_name) if cuts else prefix + text)
        for tensor in read_header(source).tensors:  # in file order, without gaps
            for chunk, kept in _chunks(reader, tensor, by_name.get(tensor.name), source):
                digest.update(chunk)
                writer.write(kept)
        writer.flush()
        os.fsync(writer.fileno())
    return named(digest)


def compare_cut(source: Path, target: Path, cuts: Sequence[TensorCut]) -> str:
    """Prove that `target` holds the cut tensors, and all others and the metadata unchanged.

    The cut tensors of both files are read again by the safetensors library, one at a time, not by
    our offsets. Returns the hash of the *target*; raises `CheckpointError`.
    """
    old = {tensor.name: tensor for tensor in read_header(source).tensors}
    new = {tensor.name: tensor for tensor in read_header(target).tensors}
    by_name = {cut.tensor.name: cut for cut in cuts}
    same = set(old) == set(new)
    with safe_open(source, "pt") as before, safe_open(target, "pt") as after:
        same = same and before.metadata() == after.metadata()
        for name, cut in by_name.items():
            same = same and _same_bits(_kept(before.get_slice(name), cut), after.get_tensor(name))
    with source.open("rb") as reader, target.open("rb") as other:
        for name in old.keys() - by_name.keys():
            same = same and _same_bytes(reader, old[name], other, new[name])
    if not same:
        raise CheckpointError(
            f"{target.name} is not its source with the heads cut out: slice the source again."
        )
    return file_digest(target)


def _new_header(text: bytes, cuts: Mapping[str, TensorCut]) -> bytes:
    """The header with new shapes and offsets."""
    entries: dict[str, Any] = json.loads(text)
    tensors = {name: entry for name, entry in entries.items() if name != "__metadata__"}
    end = 0
    for name in sorted(tensors, key=lambda name: tensors[name]["data_offsets"]):
        begin, old_end = tensors[name]["data_offsets"]
        n_bytes = old_end - begin
        if name in cuts:
            tensors[name]["shape"], n_bytes = list(cuts[name].shape), cuts[name].n_bytes
        tensors[name]["data_offsets"] = [end, end + n_bytes]
        end += n_bytes
    new = json.dumps(entries, separators=(",", ":"), ensure_ascii=False).encode()
    return framed(new)


def _chunks(
    reader: BinaryIO, tensor: TensorEntry, cut: TensorCut | None, path: Path
) -> Iterator[tuple[bytes, bytes]]:
    """(bytes read, bytes that stay) of one tensor, the reader standing at its start."""
    if cut is None:
        for start in range(0, tensor.n_bytes, CHUNK):
            chunk = read_exactly(reader, min(CHUNK, tensor.n_bytes - start), path)
            yield chunk, chunk
        return
    n_rows, width = tensor.shape[0], cut.row_bytes
    step = max(1, CHUNK // width)
    columns = cut.kept_bytes_of_row()
    for start in range(0, n_rows, step):
        stop = min(start + step, n_rows)
        chunk = read_exactly(reader, (stop - start) * width, path)
        rows = np.frombuffer(chunk, np.uint8).reshape(-1, width)
        yield chunk, rows[cut.kept_rows(start, stop)][:, columns].tobytes()


def _kept(weight: Any, cut: TensorCut) -> Tensor:
    parts = [weight[a:b] if cut.axis == 0 else weight[:, a:b] for a, b in cut.kept]
    return torch.cat(parts, dim=cut.axis)


def _same_bits(a: Tensor, b: Tensor) -> bool:
    if (a.shape, a.dtype) != (b.shape, b.dtype):
        return False
    return torch.equal(a.contiguous().view(torch.uint8), b.contiguous().view(torch.uint8))


def _same_bytes(a: BinaryIO, at: TensorEntry, b: BinaryIO, bt: TensorEntry) -> bool:
    if (at.dtype, at.shape, at.n_bytes) != (bt.dtype, bt.shape, bt.n_bytes):
        return False
    a.seek(at.offset)
    b.seek(bt.offset)
    sizes = (min(CHUNK, at.n_bytes - start) for start in range(0, at.n_bytes, CHUNK))
    return all(a.read(size) == b.read(size) for size in sizes)
