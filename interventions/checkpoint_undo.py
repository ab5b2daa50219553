"""Give back the checkpoint that a pruned folder was made from, byte for byte, from its delta."""

from __future__ import annotations

from pathlib import Path

from ..models.checkpoint_files import TensorEntry, read_header, read_shards
from ..models.errors import DamagedCheckpointError
from .edited_copies import can_share, copy_edited, share_or_copy
from .file_digests import file_digest, has_digest
from .new_folder import SPARE, existing_parent, new_folder
from .prune_manifest import Manifest, edits_of, is_pruned, read_manifest
from .pruning_plan import BEFORE, DELTA, MANIFEST
from .safetensors_bytes import TensorEdit, restoring


def undo_pruning(pruned: Path, out: Path, *, force: bool = False) -> Path:
    """Write to the new folder `out` what `pruned` was before, and return its resolved path.

    Edited shards get their old bytes back from the delta and must then have the hash that the
    manifest gives for "before"; the other files are shared or copied; the model card and, if the
    source was pruned itself, its manifest and delta return as they were. Weights in other formats
    had been left out by the pruning and stay away; files added since do not come along.

    `force` replaces an earlier result: a folder with exactly the files that this one will have, or
    a pruned folder. Atomic as `prune_checkpoint`. Raises `CheckpointError` (unsuitable `out`, no
    manifest, full disk) and `DamagedCheckpointError` (files that are not the manifest's).
    """
    pruned, out = Path(pruned).resolve(), Path(out).resolve()
    record = read_manifest(pruned)
    _check_files(pruned, record)
    returning = [name.removeprefix(f"{BEFORE}/") for name in record.undo if name != DELTA]
    names = {*record.shards, *record.files, *returning}
    needed = _needed_bytes(pruned, record, out)
    with new_folder(
        out, pruned, needed, force=force, replaceable=lambda old: _is_ours(old, names)
    ) as folder:
        _restore_shards(pruned, record, folder)
        for name, noted in record.files.items():
            _copy(pruned / name, folder / name, noted)
        for name in returning:
            _copy(pruned / BEFORE / name, folder / name, record.undo[f"{BEFORE}/{name}"])
    return out


def _check_files(pruned: Path, record: Manifest) -> None:
    """Everything that undoing needs is there, before anything is written."""
    missing = [
        name
        for name in (*record.shards, *record.files, *record.undo, DELTA)
        if not (pruned / name).is_file()
    ]
    if missing:
        raise DamagedCheckpointError(
            f"{pruned} lacks {missing[0]}, so it cannot be undone: take the source again."
        )
    if file_digest(pruned / DELTA) != record.undo.get(DELTA):
        raise _changed(pruned / DELTA)


def _needed_bytes(pruned: Path, record: Manifest, out: Path) -> int:
    linked = can_share(pruned, existing_parent(out))
    shards = [n for n in record.shards if record.edits[n] or not linked]
    names = (*shards, *record.files, *record.undo)
    return sum((pruned / name).stat().st_size for name in names) + SPARE


def _is_ours(old: Path, names: set[str]) -> bool:
    found = {path.relative_to(old).as_posix() for path in old.rglob("*") if not path.is_dir()}
    return is_pruned(old) or found == names


def _restore_shards(pruned: Path, record: Manifest, folder: Path) -> None:
    headers = read_shards(pruned)
    kept = {tensor.name: tensor for tensor in read_header(pruned / DELTA).tensors}
    with (pruned / DELTA).open("rb") as delta:
        for name, shard in record.shards.items():
            source, target = pruned / name, folder / name
            if name not in headers:
                raise DamagedCheckpointError(f"{pruned} does not load {name} any more.")
            edits = edits_of(record, name, headers[name])
            if not edits:
                _share(source, target, shard.after)
                continue
            changes = [restoring(edit, delta, _offset(edit, kept)) for edit in edits]
            after, before = copy_edited(source, target, changes)
            if after != shard.after:
                raise _changed(source)
            if before != shard.before:
                raise DamagedCheckpointError(
                    f"{source} with its old bytes back is not the source's file: {DELTA} or "
                    f"{MANIFEST} is damaged; take the source again."
                )


def _offset(edit: TensorEdit, kept: dict[str, TensorEntry]) -> int:
    entry = kept.get(edit.tensor.name)
    if entry is None or (entry.dtype, entry.shape) != (edit.tensor.dtype, edit.kept_shape):
        raise DamagedCheckpointError(
            f"{DELTA} does not hold the old blocks of {edit.tensor.name}: take the source again."
        )
    return entry.offset


def _share(source: Path, target: Path, noted: str | None) -> None:
    share_or_copy(source, target)
    if noted is not None and not has_digest(target, noted):
        raise _changed(source)


def _copy(source: Path, target: Path, noted: str) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    _, found = copy_edited(source, target)
    if found != noted:
        raise _changed(source)


def _changed(path: Path) -> DamagedCheckpointError:
    return DamagedCheckpointError(
        f"{path} has changed since it was written, so its source cannot be restored from it: take "
        "the source again."
    )
