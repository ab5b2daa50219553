"""Which files, tensors and heads differ between two checkpoint folders, in bounded memory."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np

from ..models.anatomy import Anatomy
from ..models.checkpoint_files import Header, TensorEntry, read_shards
from ..models.errors import CheckpointError, MnemoscopeError
from ..models.types import HeadId
from ..results.provenance import JSON
from .pruning_source import read_source
from .pruning_text import counted
from .safetensors_bytes import CHUNK, read_exactly, row_pieces

Kind = Literal["changed", "only in a", "only in b", "other shape"]


@dataclass(frozen=True)
class TensorDiff:
    """One tensor that is not the same in both folders."""

    name: str
    kind: Kind
    differing_bytes: int
    """Bytes that differ; all bytes of a tensor that one folder lacks or shapes otherwise."""
    heads: tuple[HeadId, ...]
    """For output projections: the heads whose slices differ."""


@dataclass(frozen=True)
class CheckpointDiff:
    """Everything that differs. Tensors are compared by name, in whichever shard they lie."""

    a: Path
    b: Path
    only_in_a: tuple[str, ...]
    only_in_b: tuple[str, ...]
    changed_files: tuple[str, ...]
    """Files of both folders with other bytes, weight files among them."""
    tensors: tuple[TensorDiff, ...]

    @property
    def same(self) -> bool:
        """True when not one byte differs."""
        return not (self.only_in_a or self.only_in_b or self.changed_files or self.tensors)

    @property
    def heads(self) -> tuple[HeadId, ...]:
        """All heads whose output weights differ."""
        return tuple(sorted({head for tensor in self.tensors for head in tensor.heads}))

    def describe(self) -> str:
        """The difference for a person, one line a file or tensor."""
        lines = [f"only in {self.a}: {name}" for name in self.only_in_a]
        lines += [f"only in {self.b}: {name}" for name in self.only_in_b]
        lines += [f"differs: {name}" for name in self.changed_files]
        for tensor in self.tensors:
            heads = f" (heads {', '.join(map(str, tensor.heads))})" if tensor.heads else ""
            n_bytes = counted(tensor.differing_bytes, "byte")
            lines.append(f"{tensor.name}: {tensor.kind}, {n_bytes}{heads}")
        return "\n".join(lines) or "no difference"

    def document(self) -> dict[str, JSON]:
        """The difference as plain JSON data."""
        return {
            "schema": "mnemoscope/checkpoint-diff/1",
            "a": str(self.a),
            "b": str(self.b),
            "same": self.same,
            "only_in_a": list(self.only_in_a),
            "only_in_b": list(self.only_in_b),
            "changed_files": list(self.changed_files),
            "tensors": [
                {
                    "name": tensor.name,
                    "kind": tensor.kind,
                    "differing_bytes": tensor.differing_bytes,
                    "heads": [[head.layer, head.head] for head in tensor.heads],
                }
                for tensor in self.tensors
            ],
        }


def diff_checkpoints(a: Path, b: Path) -> CheckpointDiff:
    """Compare two folders file by file and tensor by tensor, in chunks.

    Heads are named where both folders have an architecture of the table. Raises `CheckpointError`
    and `DamagedCheckpointError` for folders without readable safetensors.
    """
    a, b = Path(a).resolve(), Path(b).resolve()
    try:
        shards = read_shards(a), read_shards(b)
        files = _files(a), _files(b)
        changed = [name for name in sorted(files[0] & files[1]) if not _same(a / name, b / name)]
        return CheckpointDiff(
            a=a,
            b=b,
            only_in_a=tuple(sorted(files[0] - files[1])),
            only_in_b=tuple(sorted(files[1] - files[0])),
            changed_files=tuple(changed),
            tensors=tuple(_tensor_diffs(a, b, *shards)),
        )
    except OSError as error:
        raise CheckpointError(f"cannot read {a} or {b} ({error}): make them readable.") from error


def _files(folder: Path) -> set[str]:
    return {p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file()}


def _same(a: Path, b: Path) -> bool:
    if a.samefile(b):
        return True
    if a.stat().st_size != b.stat().st_size:
        return False
    with a.open("rb") as first, b.open("rb") as second:
        while True:
            left, right = first.read(CHUNK), second.read(CHUNK)
            if left != right:
                return False
            if not left:
                return True


def _tensor_diffs(
    a: Path, b: Path, left: Mapping[str, Header], right: Mapping[str, Header]
) -> Iterator[TensorDiff]:
    first, second = _by_name(left), _by_name(right)
    heads_of = _projection_layers(a, b)
    for name in sorted(first.keys() | second.keys()):
        if name not in second:
            yield TensorDiff(name, "only in a", first[name][1].n_bytes, ())
        elif name not in first:
            yield TensorDiff(name, "only in b", second[name][1].n_bytes, ())
        else:
            (shard_a, old), (shard_b, new) = first[name], second[name]
            if (old.dtype, old.shape) != (new.dtype, new.shape):
                yield TensorDiff(name, "other shape", max(old.n_bytes, new.n_bytes), ())
            elif not (a / shard_a).samefile(b / shard_b):
                n_bytes, parts = _differing(a / shard_a, old, b / shard_b, new, heads_of.get(name))
                if n_bytes:
                    yield TensorDiff(name, "changed", n_bytes, parts)


def _by_name(shards: Mapping[str, Header]) -> dict[str, tuple[str, TensorEntry]]:
    return {t.name: (shard, t) for shard, header in shards.items() for t in header.tensors}


def _projection_layers(a: Path, b: Path) -> dict[str, tuple[Anatomy, tuple[int, ...]]]:
    """Output projections by name, with the layers that use them; none where one is unknown."""
    try:
        sources = [read_source(folder, projection=None, all_shared=True) for folder in (a, b)]
    except MnemoscopeError:
        return {}
    first, second = (source.anatomy for source in sources)
    if first != second:
        return {}
    names: dict[str, tuple[int, ...]] = {}
    for layer, (_, tensor) in enumerate(sources[0].projections):
        names[tensor.name] = (*names.get(tensor.name, ()), layer)
    return {name: (first, layers) for name, layers in names.items()}


def _differing(
    path_a: Path,
    old: TensorEntry,
    path_b: Path,
    new: TensorEntry,
    heads_of: tuple[Anatomy, tuple[int, ...]] | None,
) -> tuple[int, tuple[HeadId, ...]]:
    """How many bytes differ and, for an output projection, in which heads."""
    total, found = 0, set()
    with path_a.open("rb") as first, path_b.open("rb") as second:
        for start, stop, row in _pieces(old):
            first.seek(old.offset + start)
            second.seek(new.offset + start)
            left = read_exactly(first, stop - start, path_a)
            right = read_exactly(second, stop - start, path_b)
            if left == right:
                continue
            differs = np.frombuffer(left, np.uint8) != np.frombuffer(right, np.uint8)
            total += int(np.count_nonzero(differs))
            if heads_of is not None:
                found |= _heads(differs, old, row, heads_of[0])
    layers = heads_of[1] if heads_of is not None else ()
    return total, tuple(HeadId(layer, head) for layer in layers for head in sorted(found))


def _pieces(tensor: TensorEntry) -> Iterator[tuple[int, int, int]]:
    """(first byte, last byte, first row) of pieces of whole rows."""
    if not tensor.shape or not tensor.n_bytes:
        yield 0, tensor.n_bytes, 0
        return
    row = tensor.n_bytes // tensor.shape[0]
    for first, last in row_pieces(tensor):
        yield first * row, last * row, first


def _heads(differs: np.ndarray, tensor: TensorEntry, row: int, anatomy: Anatomy) -> set[int]:
    """Heads with a differing number in rows from `row` on."""
    n_rows, n_columns = tensor.shape
    matrix = differs.reshape(-1, tensor.n_bytes // n_rows)
    if anatomy.spec.transposed:
        units = np.flatnonzero(matrix.any(axis=1)) + row
    else:
        units = np.flatnonzero(matrix.any(axis=0)) // (tensor.n_bytes // n_rows // n_columns)
    return {int(unit) // anatomy.d_v for unit in units}
