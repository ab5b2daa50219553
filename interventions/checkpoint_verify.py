"""Is a pruned folder what its manifest says? With the source at hand: down to the single byte."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from jaxtyping import UInt8
from safetensors import SafetensorError
from torch import Tensor

from ..models.errors import CheckpointError, DamagedCheckpointError
from ..models.types import HeadId
from .edited_copies import compare_edited
from .file_digests import has_digest
from .prune_manifest import Manifest, edit_record, read_manifest
from .pruning_changes import bias_shift, changes_of, read_rows
from .pruning_plan import DELTA, BiasShift, PruningPlan, ShardPlan, plan_pruning
from .safetensors_bytes import TensorEdit, row_pieces


@dataclass(frozen=True)
class VerifyReport:
    """What was found in order. Counts are bytes of weight files."""

    folder: Path
    mode: str
    heads: tuple[HeadId, ...]
    files: int
    """Files whose hash is the manifest's."""
    unhashed: tuple[str, ...]
    """Shared weight files without a noted hash: their size was checked, and with the source every
    byte."""
    declared_bytes: int
    """Bytes that the manifest says were edited."""
    source: Path | None
    differing_bytes: int | None
    """Bytes that differ from the source, all of them declared (an old zero stays zero, so they may
    be fewer); None without the source."""

    def describe(self) -> str:
        """The report for a person, in one line."""
        text = f"{self.folder}: {self.files} files have the manifest's hashes"
        if self.unhashed:
            text += f", {len(self.unhashed)} shared files were not hashed"
        if self.differing_bytes is None:
            return f"{text}; the source was not compared"
        return (
            f"{text}; {self.differing_bytes:,} bytes differ from {self.source}, all of them among "
            f"the {self.declared_bytes:,} that the manifest declares"
        )


def verify_pruned(out: Path, source: Path | None = None) -> VerifyReport:
    """Check a pruned folder against its manifest and, where given, byte by byte with its source.

    Alone: every file's hash, and that the heads' blocks are zero. With `source`: the edits are
    planned anew from the source's headers and must be the declared ones; every byte outside them
    must be the source's, inside them the planned number, and the delta must hold the old ones.
    The model card may have been edited since.

    Raises `DamagedCheckpointError` listing what is wrong, `CheckpointError` when the folder has no
    manifest or the source cannot be read.
    """
    out = Path(out)
    record = read_manifest(out)
    wrong, files, unhashed = _hashes(out, record)
    differing = None
    if not wrong:
        wrong = _blocks(out, record)
    if not wrong and source is not None:
        wrong, differing = _with_source(out, Path(source).resolve(), record)
    if wrong:
        raise DamagedCheckpointError(
            f"{out} is not what its manifest says: {'; '.join(wrong)}. Prune the source again."
        )
    declared = [part for edits in record.edits.values() for e in edits for part in e["ranges"]]
    return VerifyReport(
        folder=out,
        mode=record.mode,
        heads=record.heads,
        files=files,
        unhashed=unhashed,
        declared_bytes=sum(length * count for _, _, length, count in declared),
        source=None if source is None else Path(source).resolve(),
        differing_bytes=differing,
    )


def check_shard(plan: PruningPlan, shard: ShardPlan, folder: Path) -> None:
    """Read a file's edited tensors, of source and copy, by the safetensors library, never by our
    offsets, and require the planned numbers. Raises `CheckpointError`.

    What else was copied is not read again: it went through memory unchanged, and a second reading
    would be answered from the same cache. `verify_pruned(folder, source)` reads it all.
    """
    wrong = []
    source, target = plan.source / shard.name, folder / shard.name
    for edit in shard.edits:
        wrong += _differs(source, target, edit, plan.factor)
    for bias in shard.biases:
        wrong += _bias_differs(plan, bias, source, target)
    if wrong:
        raise CheckpointError(f"the copy failed its check: {'; '.join(wrong)}. Please report this.")


def _hashes(out: Path, record: Manifest) -> tuple[list[str], int, tuple[str, ...]]:
    """What is wrong, how many files are right, which were not hashed."""
    expected = {name: shard.after for name, shard in record.shards.items()}
    expected |= record.files
    expected |= record.undo
    wrong = [found for name, noted in expected.items() if (found := file_problem(out, name, noted))]
    unhashed = [name for name, noted in expected.items() if noted is None]
    for name, size in record.sizes.items():
        if (out / name).is_file() and (out / name).stat().st_size != size:
            wrong.append(f"{name} has another size")
    return list(dict.fromkeys(wrong)), len(expected) - len(unhashed) - len(wrong), tuple(unhashed)


def file_problem(folder: Path, name: str, noted: str | None) -> str | None:
    """What is wrong with one file: missing, unreadable or, where a hash is given, changed."""
    if not (folder / name).is_file():
        return f"{name} is missing"
    try:
        same = noted is None or has_digest(folder / name, noted)
    except (OSError, ValueError) as error:
        return f"{name} cannot be checked ({error})"
    return None if same else f"{name} has changed"


def _blocks(out: Path, record: Manifest) -> list[str]:
    """The heads' blocks in the folder itself: the declared ones, and zero unless scaled."""
    plan = _plan(out, record, means=False)
    wrong = _undeclared(plan, record, biases=False)
    return wrong or ([] if record.factor != 0 else _not_zero(plan, out))


def _plan(folder: Path, record: Manifest, *, means: bool) -> PruningPlan:
    return plan_pruning(
        folder,
        record.heads,
        factor=record.factor,
        mean_outputs=_tensors(record) if means and record.mode == "mean" else None,
        projection=record.projection,
        all_shared=record.all_shared,
        allow_no_tokenizer=True,
    )


def _tensors(record: Manifest) -> dict[HeadId, torch.Tensor]:
    return {
        head: torch.tensor(values, dtype=torch.float64)
        for head, values in record.mean_outputs.items()
    }


def _undeclared(plan: PruningPlan, record: Manifest, *, biases: bool) -> list[str]:
    """Edits that the heads call for and the manifest does not name, or the other way round."""
    planned: dict[str, list[object]] = {shard.name: [] for shard in plan.shards}
    for name, edit in plan.all_edits:
        planned[name].append(edit_record(edit))
    declared: dict[str, list[object]] = {
        name: [e for e in edits if biases or len(e["shape"]) == 2]
        for name, edits in record.edits.items()
    }
    return [
        f"its heads and its declared edits of {name} do not agree"
        for name in sorted(planned.keys() | declared.keys())
        if planned.get(name) != declared.get(name)
    ]


def _not_zero(plan: PruningPlan, folder: Path) -> list[str]:
    """Blocks that are not zero in `folder`, read by the safetensors library."""
    wrong = []
    for shard, edit in plan.edits:
        for first, last in row_pieces(edit.tensor):
            rows = read_rows(folder / shard, edit.tensor.name, first, last)
            for start, stop in edit.blocks:
                if _bits(_block(rows, edit, first, start, stop)).any():
                    place = f"{'rows' if edit.axis == 0 else 'columns'} {start}:{stop}"
                    wrong.append(f"{edit.tensor.name} is not zero in {place}")
    return list(dict.fromkeys(wrong))


def _with_source(out: Path, source: Path, record: Manifest) -> tuple[list[str], int | None]:
    """What is wrong, and how many bytes of weights differ."""
    plan = _plan(source, record, means=True)
    wrong = _undeclared(plan, record, biases=True)
    if wrong:
        return wrong, None
    differing, changes = 0, changes_of(plan)
    for name, shard in record.shards.items():
        if (out / name).samefile(source / name):
            continue  # one file with two names
        try:
            before, _, n_bytes = compare_edited(source / name, out / name, changes[name])
        except DamagedCheckpointError:
            raise
        except CheckpointError as error:
            wrong.append(str(error).rstrip("."))
            continue
        differing += n_bytes
        same = shard.before in (None, before) or has_digest(source / name, str(shard.before))
        if not same:
            wrong.append(f"{name} of {source} is not the file that was pruned")
    return wrong + _delta(out, source, plan), differing


def _delta(out: Path, source: Path, plan: PruningPlan) -> list[str]:
    """Does undoing give back the source's numbers?"""
    return [
        f"{DELTA} does not hold the old {edit.tensor.name}"
        for shard, edit in plan.all_edits
        if not _kept(source / shard, out / DELTA, edit)
    ]


def _kept(source: Path, delta: Path, edit: TensorEdit) -> bool:
    name = edit.tensor.name
    try:
        done = 0
        for first, last in row_pieces(edit.tensor):
            old = _side_by_side(read_rows(source, name, first, last), edit, first)
            if not len(old):
                continue  # a piece between two blocks of rows
            kept = read_rows(delta, name, done, done + len(old))
            done += len(old)
            if kept.shape != old.shape or not np.array_equal(_bits(kept), _bits(old)):
                return False
    except SafetensorError:
        return False
    return True


def _differs(source: Path, target: Path, edit: TensorEdit, factor: float) -> list[str]:
    """Does the copy hold the scaled blocks, and the source's numbers around them?"""
    for first, last in row_pieces(edit.tensor):
        old = read_rows(source, edit.tensor.name, first, last)
        new = read_rows(target, edit.tensor.name, first, last)
        for start, stop in edit.blocks:
            block = _block(old, edit, first, start, stop)
            if factor == 0:
                _bits(block)[:] = 0
            else:
                block.copy_(block.double() * factor)
        if not np.array_equal(_bits(old), _bits(new)):
            return [f"{edit.tensor.name} does not hold the planned numbers"]
    return []


def _bias_differs(plan: PruningPlan, bias: BiasShift, source: Path, target: Path) -> list[str]:
    name, n = bias.edit.tensor.name, bias.edit.tensor.shape[0]
    old, new = read_rows(source, name, 0, n), read_rows(target, name, 0, n)
    expected = (old.double() + torch.from_numpy(bias_shift(plan, bias))).to(old.dtype)
    same = np.array_equal(_bits(expected), _bits(new))
    return [] if same else [f"{name} does not hold the planned numbers"]


def _block(rows: Tensor, edit: TensorEdit, first: int, start: int, stop: int) -> Tensor:
    """A view of one block's part in rows that begin with row `first` (it may be empty)."""
    if edit.axis == 1:
        return rows[:, start:stop]
    return rows[max(0, start - first) : max(0, stop - first)]


def _side_by_side(rows: Tensor, edit: TensorEdit, first: int) -> Tensor:
    blocks = [_block(rows, edit, first, start, stop) for start, stop in edit.blocks]
    return torch.cat(blocks, dim=edit.axis)


def _bits(numbers: Tensor) -> UInt8[np.ndarray, "row byte"]:
    """The bytes themselves, not a copy. Numpy compares them in this thread: those of torch would
    spin beside the ones that hash."""
    return numbers.view(torch.uint8).numpy()
