"""Prune or rescale attention heads in a checkpoint folder, without building the model.

A head leaves the model when its slice of the attention output projection is zero. `plan_pruning`
says from headers alone which bytes those are, `prune_checkpoint` writes a new folder in which only
they differ, `verify_pruned` checks such a folder again later, `checkpoint_undo.undo_pruning` gives
the source back. Shapes and configuration stay as they are, so any engine loads the result; nothing
gets smaller or faster. The projection's bias stays, except in mode mean.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import BinaryIO

from ..models.checkpoint_files import file_sha256
from ..models.errors import CheckpointError
from ..results.provenance import JSON
from .checkpoint_verify import VerifyReport, check_written, verify_pruned
from .new_folder import can_share, existing_parent, new_folder, share_or_copy, write_file
from .prune_manifest import (
    CARD,
    MANIFEST_SCHEMA,
    Written,
    card,
    is_pruned,
    manifest_record,
    plain_json,
    raw_manifest,
)
from .pruning_changes import changes_of
from .pruning_plan import (
    BEFORE,
    DELTA,
    MANIFEST,
    UNDO,
    PruningPlan,
    ShardPlan,
    plan_pruning,
    planned_again,
)
from .safetensors_bytes import Change, copy_edited, kept_header

__all__ = [
    "DELTA",
    "MANIFEST",
    "MANIFEST_SCHEMA",
    "CheckpointError",
    "PruningPlan",
    "ShardPlan",
    "VerifyReport",
    "plan_pruning",
    "prune_checkpoint",
    "verify_pruned",
]


def prune_checkpoint(
    plan: PruningPlan,
    out: Path,
    *,
    force: bool = False,
    manifest_extra: Mapping[str, JSON] | None = None,
    copy_untouched: bool = False,
) -> Path:
    """Write the pruned checkpoint to the new folder `out` and return its resolved path.

    Touched shards are copied, edited and hashed in one pass; then their edited tensors are read
    again, by the safetensors library instead of by our offsets, and compared with the source.
    Untouched shards share their bytes with the source (reflink, else hard link: never edit such a
    file in place, write a new one; else a copy) and are hashed only if copied, which
    `copy_untouched` forces. `prune_undo/` keeps the old bytes of everything edited.

    The folder is built beside `out` and renamed once; whatever goes wrong, Ctrl-C included, nothing
    is left behind (after a kill a hidden sibling may be, which the next run removes). `force`
    replaces an earlier pruned folder (one with a manifest), nothing else. `manifest_extra` (head
    set hash, run id) is written into the manifest under "extra", its "scores" also at each head.
    Memory: a few chunks of `safetensors_bytes.CHUNK`.

    Raises `CheckpointError` for an unsuitable `out`, a source that changed after planning, a full
    disk or a copy that does not compare.
    """
    out = Path(out).resolve()
    extra = plain_json(manifest_extra or {})
    needed = _needed_bytes(plan, out, copy_untouched)
    with new_folder(out, plan.source, needed, force=force, replaceable=is_pruned) as folder:
        if planned_again(plan) != plan:
            raise CheckpointError(f"{plan.source} has changed since it was planned: plan again.")
        changes = changes_of(plan)
        written = _write_shards(plan, folder, changes, copy_untouched)
        for name in plan.files:
            written[name] = _copied(plan.source / name, folder / name)
        undo = _keep_what_is_replaced(plan, folder)
        record = manifest_record(plan, written, undo, extra)
        write_file(folder / MANIFEST, f"{json.dumps(record, indent=1)}\n".encode())
        write_file(folder / CARD, card(plan))
        check_written(plan, folder)
    return out


def _needed_bytes(plan: PruningPlan, out: Path, copy_untouched: bool) -> int:
    linked = not copy_untouched and can_share(plan.source, existing_parent(out))
    return plan.disk_bytes - (plan.untouched_bytes if linked else 0)


def _write_shards(
    plan: PruningPlan,
    folder: Path,
    changes: Mapping[str, tuple[Change, ...]],
    copy_untouched: bool,
) -> dict[str, Written]:
    """All weight files, and the delta with the old bytes in the order of `plan.all_edits`."""
    written = {}
    (folder / UNDO).mkdir()
    with (folder / DELTA).open("xb") as delta:
        about = {"format": "pt", "mnemoscope": "old blocks of the edited tensors, side by side"}
        delta.write(kept_header([edit for _, edit in plan.all_edits], about))
        for shard in plan.shards:
            source, target = plan.source / shard.name, folder / shard.name
            if shard.touched:
                both = copy_edited(source, target, changes[shard.name], delta)
                written[shard.name] = Written("edited", *both)
            elif copy_untouched:
                written[shard.name] = _copied(source, target)
            else:
                written[shard.name] = _shared(plan, source, target)
        _sync(delta)
    return written


def _shared(plan: PruningPlan, source: Path, target: Path) -> Written:
    how = share_or_copy(source, target)
    known = _known_sha256(plan.source, source)
    return Written(how, known, known)


def _known_sha256(folder: Path, shard: Path) -> str | None:
    """A hash that somebody has noted already: the hub's cache names its files by it, and a pruned
    source has a manifest. Reading every untouched shard would cost more than all the rest."""
    blob = shard.resolve()
    if blob.parent.name == "blobs" and re.fullmatch(r"[0-9a-f]{64}", blob.name):
        return blob.name
    try:
        noted = (raw_manifest(folder) or {})["shards"][shard.name]["sha256_after"]
    except (KeyError, TypeError):
        return None
    return noted if isinstance(noted, str) else None


def _copied(source: Path, target: Path) -> Written:
    target.parent.mkdir(parents=True, exist_ok=True)
    return Written("copied", *copy_edited(source, target))


def _keep_what_is_replaced(plan: PruningPlan, folder: Path) -> dict[str, str]:
    """Copy the source's card and, if it is pruned itself, its notes; SHA-256 of all undo files."""
    (folder / BEFORE).mkdir()
    notes = [path for path in (plan.source / UNDO).rglob("*") if path.is_file()]
    for path in (plan.source / CARD, plan.source / MANIFEST, *notes):
        if path.is_file():
            _copied(path, folder / BEFORE / path.relative_to(plan.source))
    kept = sorted(path for path in (folder / UNDO).rglob("*") if path.is_file())
    return {path.relative_to(folder).as_posix(): file_sha256(path) for path in kept}


def _sync(file: BinaryIO) -> None:
    file.flush()
    os.fsync(file.fileno())
