"""Prune or rescale attention heads in a checkpoint folder, without building the model.

A head leaves the model when its slice of the attention output projection is zero. `plan_pruning`
says from headers alone which bytes those are, `prune_checkpoint` writes a new folder in which only
they differ, `verify_pruned` checks such a folder again later. Shapes and configuration stay as they
are, so any engine loads the result; nothing gets smaller or faster. The projection's bias stays.
"""

from __future__ import annotations

import json
import os
import secrets
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from errno import EDQUOT, ENOSPC
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open

from .. import __version__
from ..models.checkpoint_files import file_sha256
from ..models.errors import CheckpointError, DamagedCheckpointError
from ..models.types import HeadId
from ..results.provenance import JSON, canonical_json, utc_now
from ..results.storage import sync_folder
from .pruning_plan import MANIFEST, PruningPlan, ShardPlan, counted, plan_pruning
from .safetensors_bytes import TensorEdit, compare_edited, copy_edited

__all__ = [
    "MANIFEST",
    "MANIFEST_SCHEMA",
    "CheckpointError",
    "PruningPlan",
    "ShardPlan",
    "plan_pruning",
    "prune_checkpoint",
    "verify_pruned",
]

MANIFEST_SCHEMA = "mnemoscope/prune-manifest/1"

_CARD = "README.md"


def prune_checkpoint(
    plan: PruningPlan,
    out: Path,
    *,
    force: bool = False,
    manifest_extra: Mapping[str, JSON] | None = None,
) -> Path:
    """Write the pruned checkpoint to the new folder `out` and return its resolved path.

    The folder is built beside `out`, compared with the source byte for byte and renamed once;
    whatever goes wrong, Ctrl-C included, nothing is left behind. `force` replaces an earlier
    pruned folder (one with a manifest), nothing else. `manifest_extra` (head set hash, run id) is
    written into the manifest under "extra". Memory: a few chunks of `safetensors_bytes.CHUNK`.

    Raises `CheckpointError` for an unsuitable `out`, a source that changed after planning, a full
    disk or a copy that does not compare.
    """
    out = Path(out).resolve()
    extra = _plain_json(manifest_extra or {})
    _check_target(plan, out, force)
    if plan_pruning(plan.source, plan.heads, factor=plan.factor) != plan:
        raise CheckpointError(f"{plan.source} has changed since it was planned: plan again.")
    try:
        with _folder_beside(out) as folder:
            record = _manifest(plan, _copy(plan, folder), extra)
            _write(folder / MANIFEST, f"{json.dumps(record, indent=1)}\n".encode())
            _write(folder / _CARD, _card(plan))
            _require_zeros(plan, folder)
            _publish(folder, out)
    except OSError as error:
        raise _write_error(plan, out, error) from error
    return out


def verify_pruned(out: Path) -> None:
    """Check a pruned folder against its manifest: every file's SHA-256, and that heads are zero.

    The model card may have been edited since. Raises `DamagedCheckpointError` listing what is
    wrong, `CheckpointError` when the folder has no manifest.
    """
    out = Path(out)
    record = _read_manifest(out)
    if record is None:
        raise CheckpointError(f"{out} has no {MANIFEST}: it was not written by prune_checkpoint.")
    try:
        if record["schema"] != MANIFEST_SCHEMA:
            raise CheckpointError(
                f"{out / MANIFEST} has schema {record['schema']!r}, this version reads "
                f"{MANIFEST_SCHEMA!r}: use the Mnemoscope that wrote it."
            )
        expected = {name: entry["sha256_after"] for name, entry in record["shards"].items()}
        expected |= record["files"]
        heads = [HeadId(entry["layer"], entry["head"]) for entry in record["heads"]]
        factor = float(record["factor"])
    except (TypeError, KeyError, AttributeError, ValueError) as error:
        raise DamagedCheckpointError(f"{out / MANIFEST} is damaged ({error!r}).") from error
    wrong = [found for name, sha in expected.items() if (found := _problem(out, name, sha))]
    if not wrong and factor == 0:
        wrong = _not_zero(plan_pruning(out, heads, factor=factor), out)
    if wrong:
        raise DamagedCheckpointError(
            f"{out} is not what its manifest says: {'; '.join(wrong)}. Prune the source again."
        )


# -- before anything is written -------------------------------------------------------------------


def _check_target(plan: PruningPlan, out: Path, force: bool) -> None:
    source = plan.source
    same = out.exists() and out.samefile(source)  # two spellings of one folder
    if same or source in (out, *out.parents) or out in source.parents:
        raise CheckpointError(
            f"{out} is, contains or lies inside the source {source}: choose a folder beside it."
        )
    if out.exists() and not force:
        raise CheckpointError(f"{out} exists already: choose another name, or use force.")
    if out.exists() and not (out / MANIFEST).is_file():
        raise CheckpointError(
            f"{out} is not a pruned checkpoint, so force does not replace it: choose another name."
        )
    place = next(folder for folder in out.parents if folder.exists())
    if not place.is_dir():
        raise CheckpointError(f"{place} is a file, so {out} cannot be made: choose another place.")
    free = shutil.disk_usage(place).free
    if free < plan.disk_bytes:
        raise CheckpointError(
            f"{out} needs {plan.disk_bytes / 1e6:,.1f} MB but {free / 1e6:,.1f} MB are free in "
            f"{place}: free some space or choose another disk."
        )


def _plain_json(extra: Mapping[str, JSON]) -> Any:
    try:
        return json.loads(canonical_json(dict(extra)))
    except (TypeError, ValueError) as error:
        raise CheckpointError(f"manifest_extra is not plain JSON ({error}).") from error


# -- writing --------------------------------------------------------------------------------------


@contextmanager
def _folder_beside(out: Path) -> Iterator[Path]:
    """A temporary sibling of `out`; it and the parents made for it go when anything is raised."""
    made = [folder for folder in out.parents if not folder.exists()]
    folder = out.with_name(f".{out.name}.{secrets.token_hex(4)}.partial")
    try:
        folder.mkdir(parents=True)
        yield folder
    except BaseException:
        shutil.rmtree(folder, ignore_errors=True)
        for parent in made:
            with suppress(OSError):  # not ours alone any more
                parent.rmdir()
        raise


def _copy(plan: PruningPlan, folder: Path) -> dict[str, tuple[str, str]]:
    """Copy, edit and compare every file: name to SHA-256 before and after."""
    edits = {shard.name: shard.edits for shard in plan.shards}
    hashes = {}
    for name in (*edits, *plan.files):
        source, target = plan.source / name, folder / name
        target.parent.mkdir(parents=True, exist_ok=True)
        before = copy_edited(source, target, edits.get(name, ()), plan.factor)
        after = compare_edited(source, target, edits.get(name, ()), plan.factor)
        hashes[name] = before, after
    return hashes


def _publish(folder: Path, out: Path) -> None:
    """Give the finished folder its name by one rename; an old one steps aside and is removed."""
    for path in (folder, *(path for path in folder.rglob("*") if path.is_dir())):
        sync_folder(path)
    if not out.exists():
        os.rename(folder, out)
    else:
        old = folder.with_suffix(".old")
        try:
            os.rename(out, old)
            os.rename(folder, out)
        except BaseException:
            if old.exists() and not out.exists():
                os.rename(old, out)
            raise
        shutil.rmtree(old, ignore_errors=True)
    sync_folder(out.parent)


def _write(path: Path, content: bytes) -> None:
    with path.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())


def _write_error(plan: PruningPlan, out: Path, error: OSError) -> CheckpointError:
    if error.errno in (ENOSPC, EDQUOT):
        return CheckpointError(
            f"the disk of {out} is full ({plan.disk_bytes / 1e6:,.1f} MB are needed): free some "
            "space and try again; nothing was left behind."
        )
    return CheckpointError(
        f"cannot write {out} ({error}): make its folder writable or choose another place; nothing "
        "was left behind."
    )


# -- manifest and model card ----------------------------------------------------------------------


def _manifest(
    plan: PruningPlan, hashes: Mapping[str, tuple[str, str]], extra: Any
) -> dict[str, Any]:
    return {
        "schema": MANIFEST_SCHEMA,
        "tool": {"name": "mnemoscope", "version": __version__},
        "created": utc_now(),
        "mode": "zero" if plan.factor == 0 else "scale",
        "factor": plan.factor,
        "heads": [
            {"layer": head.layer, "head": head.head, "kv_head": plan.kv_head(head)}
            for head in plan.heads
        ],
        "extra": extra,
        "source": {
            "path": str(plan.source),
            "model_type": plan.model_type,
            "manifest": _read_manifest(plan.source),
        },
        "shards": {
            shard.name: {
                "sha256_before": hashes[shard.name][0],
                "sha256_after": hashes[shard.name][1],
                "edits": [_edit_record(edit) for edit in shard.edits],
            }
            for shard in plan.shards
        },
        "files": {name: hashes[name][1] for name in plan.files if name != _CARD},
        "left_out": list(plan.left_out),
    }


def _edit_record(edit: TensorEdit) -> dict[str, Any]:
    """One tensor; `ranges` are `[offset, stride, length, count]` in bytes of the file."""
    return {
        "tensor": edit.tensor.name,
        "dtype": edit.tensor.dtype,
        "shape": list(edit.tensor.shape),
        "ranges": [[r.offset, r.stride, r.length, r.count] for r in edit.ranges],
    }


def _read_manifest(folder: Path) -> dict[str, Any] | None:
    path = folder / MANIFEST
    if not path.is_file():
        return None
    try:
        record = json.loads(path.read_bytes())
    except ValueError as error:
        raise DamagedCheckpointError(
            f"{path} is not JSON ({error}): restore or remove it."
        ) from error
    if not isinstance(record, dict):
        raise DamagedCheckpointError(f"{path} is no JSON object: restore or remove it.")
    return record


def _card(plan: PruningPlan) -> bytes:
    """The source's model card, or a new one, with a section on what was done."""
    path = plan.source / _CARD
    name, done = plan.source.name, "set to zero"
    if plan.factor != 0:
        done = f"multiplied by {plan.factor:g}"
    card = path.read_bytes() if path.is_file() else f"# {name}, edited\n".encode()
    section = (
        f"\n## Attention heads {done}\n\n"
        f"In this copy of `{name}` the output weights of "
        f"{counted(len(plan.heads), 'attention head')} were {done} by Mnemoscope {__version__}; "
        "all other weights are unchanged. Layers and query heads, counted from zero: "
        f"{', '.join(map(str, plan.heads))}. Hashes and byte ranges are in `{MANIFEST}`.\n"
    )
    return card + (b"" if card.endswith(b"\n") else b"\n") + section.encode()


# -- checking -------------------------------------------------------------------------------------


def _require_zeros(plan: PruningPlan, folder: Path) -> None:
    wrong = _not_zero(plan, folder) if plan.factor == 0 else []
    if wrong:
        raise CheckpointError(f"the copy failed its check: {'; '.join(wrong)}. Please report this.")


def _not_zero(plan: PruningPlan, folder: Path) -> list[str]:
    """Blocks that are not zero in `folder`, read by the safetensors library, not by our offsets."""
    wrong = []
    for shard, edit in plan.edits:
        with safe_open(folder / shard, "pt") as file:
            weight = file.get_slice(edit.tensor.name)
            for start, stop in edit.blocks:
                block = weight[start:stop] if edit.axis == 0 else weight[:, start:stop]
                if bool(block.contiguous().view(torch.uint8).any()):
                    place = f"{'rows' if edit.axis == 0 else 'columns'} {start}:{stop}"
                    wrong.append(f"{edit.tensor.name} is not zero in {place}")
    return wrong


def _problem(folder: Path, name: str, sha256: str) -> str | None:
    if not (folder / name).is_file():
        return f"{name} is missing"
    try:
        return None if file_sha256(folder / name) == sha256 else f"{name} has changed"
    except OSError as error:
        return f"{name} cannot be read ({error})"
