"""Prune or rescale attention heads in a checkpoint folder, without building the model.

A head leaves the model when its slice of the attention output projection is zero. `plan_pruning`
says from headers alone which bytes those are, `prune_checkpoint` writes a new folder in which only
they differ, `verify_pruned` checks such a folder again later, `checkpoint_undo.undo_pruning` gives
the source back. Shapes and configuration stay as they are, so any engine loads the result; nothing
gets smaller or faster. The projection's bias stays, except in mode mean.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from pathlib import Path

from ..models.errors import CheckpointError
from ..results.provenance import JSON
from .checkpoint_verify import VerifyReport, check_shard, verify_pruned
from .edited_copies import (
    Hashes,
    can_share,
    copying_threads,
    share_or_copy,
    start_copy,
    sync_file,
)
from .file_digests import file_digest
from .new_folder import existing_parent, new_folder, write_file
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
from .safetensors_bytes import kept_header

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

    Touched shards are copied and edited in the copy; then their edited tensors are read again, by
    the safetensors library instead of by our offsets, and compared with the source, while threads
    hash both files. Untouched shards share their bytes with the source (reflink, else hard link:
    never edit such a file in place, write a new one; else a copy) and are hashed only if copied,
    which `copy_untouched` forces. `prune_undo/` keeps the old bytes of everything edited.

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
        with copying_threads() as threads:
            pending = _start_shards(threads, plan, folder, copy_untouched)
            for name in plan.files:
                pending[name] = _start_file(threads, plan.source / name, folder / name)
            finish_undo = _start_keeping(threads, plan, folder)
            written = {name: finish() for name, finish in pending.items()}
            record = manifest_record(plan, written, finish_undo(), extra)
        write_file(folder / MANIFEST, f"{json.dumps(record, indent=1)}\n".encode())
        write_file(folder / CARD, card(plan))
    return out


def _needed_bytes(plan: PruningPlan, out: Path, copy_untouched: bool) -> int:
    linked = not copy_untouched and can_share(plan.source, existing_parent(out))
    return plan.disk_bytes - (plan.untouched_bytes if linked else 0)


def _start_shards(
    threads: ThreadPoolExecutor, plan: PruningPlan, folder: Path, copy_untouched: bool
) -> dict[str, Callable[[], Written]]:
    """All weight files, and the delta with the old bytes in the order of `plan.all_edits`."""
    pending: dict[str, Callable[[], Written]] = {}
    changes = changes_of(plan)
    (folder / UNDO).mkdir()
    with (folder / DELTA).open("xb") as delta:
        about = {"format": "pt", "mnemoscope": "old blocks of the edited tensors, side by side"}
        delta.write(kept_header([edit for _, edit in plan.all_edits], about))
        for shard in plan.shards:
            source, target = plan.source / shard.name, folder / shard.name
            if shard.touched:
                hashes = start_copy(threads, source, target, changes[shard.name], delta)
                checked = threads.submit(check_shard, plan, shard, folder)
                pending[shard.name] = partial(_finished, "edited", hashes, checked)
            elif copy_untouched:
                pending[shard.name] = _start_file(threads, source, target)
            else:
                pending[shard.name] = partial(_shared, plan, source, target)
    return pending


def _start_file(threads: ThreadPoolExecutor, source: Path, target: Path) -> Callable[[], Written]:
    target.parent.mkdir(parents=True, exist_ok=True)
    return partial(_finished, "copied", start_copy(threads, source, target))


def _finished(
    how: str, hashes: Callable[[], Hashes], checked: Future[None] | None = None
) -> Written:
    if checked is not None:
        checked.result()
    return Written(how, *hashes())


def _shared(plan: PruningPlan, source: Path, target: Path) -> Written:
    how = share_or_copy(source, target)
    known = _known_hash(plan.source, source)
    return Written(how, known, known)


def _known_hash(folder: Path, shard: Path) -> str | None:
    """A hash that somebody has noted already: the hub's cache names its files by it, and a pruned
    source has a manifest. Reading every untouched shard would cost more than all the rest."""
    blob = shard.resolve()
    if blob.parent.name == "blobs" and re.fullmatch(r"[0-9a-f]{64}", blob.name):
        return f"sha256:{blob.name}"
    try:
        noted = (raw_manifest(folder) or {})["shards"][shard.name]["hash_after"]
    except (KeyError, TypeError):
        return None
    return noted if isinstance(noted, str) else None


def _start_keeping(
    threads: ThreadPoolExecutor, plan: PruningPlan, folder: Path
) -> Callable[[], dict[str, str]]:
    """Copy the source's card and, if it is pruned itself, its notes; the result waits for the
    hashes of all undo files."""
    (folder / BEFORE).mkdir()
    notes = [path for path in (plan.source / UNDO).rglob("*") if path.is_file()]
    before = [plan.source / CARD, plan.source / MANIFEST, *notes]
    pending = {
        f"{BEFORE}/{name}": _start_file(threads, plan.source / name, folder / BEFORE / name)
        for name in (path.relative_to(plan.source).as_posix() for path in before if path.is_file())
    }
    synced = threads.submit(sync_file, folder / DELTA)

    def finish() -> dict[str, str]:
        synced.result()
        kept = {name: str(finish().after) for name, finish in pending.items()}
        return {DELTA: file_digest(folder / DELTA), **kept}

    return finish
