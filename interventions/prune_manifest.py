"""The note that a pruned checkpoint carries: what was done, to which bytes, with which hashes."""

from __future__ import annotations

import json
import math
import platform
import re
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path, PurePosixPath
from typing import Any

from .. import __version__
from ..models.checkpoint_files import Header
from ..models.errors import CheckpointError, DamagedCheckpointError
from ..models.types import HeadId
from ..results.provenance import JSON, canonical_json, utc_now
from .pruning_plan import MANIFEST, PruningPlan
from .pruning_text import counted
from .safetensors_bytes import TensorEdit

MANIFEST_SCHEMA = "mnemoscope/prune-manifest/3"
CARD = "README.md"


@dataclass(frozen=True)
class Written:
    """One file of the new folder; `how` is `edited`, `copied`, `linked` or `reflinked`."""

    how: str
    before: str | None
    """Hash in the source (`file_digests`). None where bytes were shared, not read, and nobody had
    noted it."""
    after: str | None


@dataclass(frozen=True)
class Manifest:
    """What `read_manifest` found and checked; file names stay inside the folder."""

    raw: Mapping[str, Any]
    mode: str
    factor: float
    heads: tuple[HeadId, ...]
    mean_outputs: Mapping[HeadId, list[float]]
    projection: str | None
    all_shared: bool
    shards: Mapping[str, Written]
    sizes: Mapping[str, int]
    edits: Mapping[str, tuple[Mapping[str, Any], ...]]
    files: Mapping[str, str]
    undo: Mapping[str, str]


def plain_json(extra: Mapping[str, JSON]) -> Any:
    """The caller's additions as JSON data. Raises `CheckpointError` for anything else."""
    try:
        return json.loads(canonical_json(dict(extra)))
    except (TypeError, ValueError) as error:
        raise CheckpointError(f"manifest_extra is not plain JSON ({error}).") from error


def manifest_record(
    plan: PruningPlan, written: Mapping[str, Written], undo: Mapping[str, str], extra: Any
) -> dict[str, Any]:
    """The manifest as JSON data. `extra["scores"]` (`{"L12.H5": 0.3}`) goes to the heads too."""
    return {
        "schema": MANIFEST_SCHEMA,
        "tool": {"name": "mnemoscope", "version": __version__},
        "created": utc_now(),
        "command": list(sys.argv),
        "environment": _environment(),
        "mode": plan.mode,
        "factor": plan.factor,
        "projection": plan.projection,
        "all_shared": plan.all_shared,
        "heads": [_head_record(plan, head, extra) for head in plan.heads],
        "extra": extra,
        "source": source_record(plan),
        "shards": {
            shard.name: {
                "hash_before": written[shard.name].before,
                "hash_after": written[shard.name].after,
                "bytes": shard.size,
                "how": written[shard.name].how,
                "edits": [edit_record(edit) for name, edit in plan.all_edits if name == shard.name],
            }
            for shard in plan.shards
        },
        "files": {name: written[name].after for name in plan.files if name != CARD},
        "undo": dict(undo),
        "left_out": list(plan.left_out),
    }


def source_record(plan: PruningPlan) -> dict[str, Any]:
    """Where the checkpoint came from; the source's own manifest if it was pruned itself."""
    return {
        "path": str(plan.source),
        "hub_id": plan.hub_id,
        "revision": plan.revision,
        "model_type": plan.model_type,
        "licence": plan.licence,
        "manifest": raw_manifest(plan.source),
    }


def edit_record(edit: TensorEdit) -> dict[str, Any]:
    """One tensor; `ranges` are `[offset, stride, length, count]` in bytes of the file."""
    return {
        "tensor": edit.tensor.name,
        "dtype": edit.tensor.dtype,
        "shape": list(edit.tensor.shape),
        "axis": edit.axis,
        "blocks": [list(block) for block in edit.blocks],
        "ranges": [[r.offset, r.stride, r.length, r.count] for r in edit.ranges],
    }


def is_pruned(folder: Path) -> bool:
    """True for a folder that pruning or slicing wrote."""
    return (folder / MANIFEST).is_file()


def raw_manifest(folder: Path) -> dict[str, Any] | None:
    """The manifest's JSON object as it is; None where there is none."""
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


def read_manifest(folder: Path) -> Manifest:
    """The manifest of a pruned folder.

    Raises `CheckpointError` where there is none or it has another schema, `DamagedCheckpointError`
    where it cannot be what `prune_checkpoint` wrote.
    """
    raw = raw_manifest(folder)
    if raw is None:
        raise CheckpointError(
            f"{folder} has no {MANIFEST}: it was not written by prune_checkpoint."
        )
    try:
        if raw["schema"] != MANIFEST_SCHEMA:
            raise CheckpointError(
                f"{folder / MANIFEST} has schema {raw['schema']!r}, this version reads "
                f"{MANIFEST_SCHEMA!r}: use the Mnemoscope that wrote it, or prune again."
            )
        return _parsed(raw)
    except (TypeError, KeyError, AttributeError, ValueError) as error:
        raise DamagedCheckpointError(f"{folder / MANIFEST} is damaged ({error!r}).") from error


def edits_of(record: Manifest, shard: str, header: Header) -> tuple[TensorEdit, ...]:
    """The manifest's edits of one file, found again in the file's header.

    Raises `DamagedCheckpointError` where tensor, dtype, shape or byte ranges do not agree.
    """
    tensors = {tensor.name: tensor for tensor in header.tensors}
    edits = []
    for entry in record.edits[shard]:
        tensor = tensors.get(entry["tensor"])
        edit = None
        if tensor is not None:
            blocks = tuple((int(start), int(stop)) for start, stop in entry["blocks"])
            edit = TensorEdit(tensor, 0 if entry["axis"] == 0 else 1, blocks)
        if edit is None or edit_record(edit) != entry:
            raise DamagedCheckpointError(
                f"{MANIFEST} and {shard} disagree about {entry['tensor']}: restore one of them."
            )
        edits.append(edit)
    return tuple(edits)


def card(plan: PruningPlan) -> bytes:
    """The source's model card, or a new one, with a section on what was done."""
    name = plan.source.name if plan.hub_id is None else plan.hub_id
    done = "set to zero" if plan.factor == 0 else f"multiplied by {plan.factor:g}"
    mean = " Their mean outputs were added to the projections' biases." if plan.mean_outputs else ""
    section = (
        f"\n## Attention heads {done}\n\n"
        f"In this copy of `{name}` the output weights of "
        f"{counted(len(plan.heads), 'attention head')} were {done} by Mnemoscope {__version__}; "
        f"all other weights are unchanged.{mean} Layers and query heads, counted from zero: "
        f"{', '.join(map(str, plan.heads))}. Hashes and byte ranges are in `{MANIFEST}`.\n"
    )
    return with_section(_with_base_model(card_of(plan.source, name), plan.hub_id), section)


def card_of(source: Path, name: str) -> bytes:
    """The source's model card, or the beginning of a new one."""
    path = source / CARD
    return path.read_bytes() if path.is_file() else f"# {name}, edited\n".encode()


def with_section(text: bytes, section: str) -> bytes:
    """A card with one more section, which begins with an empty line."""
    return text + (b"" if text.endswith(b"\n") else b"\n") + section.encode()


def _with_base_model(text: bytes, hub_id: str | None) -> bytes:
    """Name the base model in the front matter, where its hub id is known and none is named."""
    if hub_id is None:
        return text
    line = f"base_model: {hub_id}\n".encode()
    front = re.match(rb"---[ \t]*\r?\n(.*?)^---[ \t]*$", text, re.DOTALL | re.MULTILINE)
    if front is None:
        return b"---\n" + line + b"---\n" + text
    if re.search(rb"^base_model:", front[1], re.MULTILINE):
        return text
    return text[: front.end(1)] + line + text[front.end(1) :]


def _head_record(plan: PruningPlan, head: HeadId, extra: Any) -> dict[str, Any]:
    record: dict[str, Any] = {
        "layer": head.layer,
        "head": head.head,
        "kv_head": plan.kv_head(head),
    }
    scores = extra.get("scores")
    if isinstance(scores, dict) and str(head) in scores:
        record["score"] = scores[str(head)]
    if plan.mean_outputs:
        record["mean_output"] = plan.mean_output(head).tolist()
    return record


def _environment() -> dict[str, str]:
    found = {"python": platform.python_version(), "system": platform.platform()}
    for package in ("torch", "transformers", "safetensors", "numpy"):
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = "not installed"
    return found


def _parsed(raw: Mapping[str, Any]) -> Manifest:
    heads = [(HeadId(int(e["layer"]), int(e["head"])), e) for e in raw["heads"]]
    shards = raw["shards"]
    for name in (*shards, *raw["files"], *raw["undo"]):
        _check_name(name)
    factor = float(raw["factor"])
    if raw["mode"] not in ("zero", "scale", "mean") or not math.isfinite(factor):
        raise ValueError(f"mode {raw['mode']!r} with factor {factor}")
    return Manifest(
        raw=raw,
        mode=raw["mode"],
        factor=factor,
        heads=tuple(head for head, _ in heads),
        mean_outputs={head: e["mean_output"] for head, e in heads if "mean_output" in e},
        projection=raw["projection"],
        all_shared=bool(raw["all_shared"]),
        shards={
            name: Written(
                str(entry["how"]), _hash(entry["hash_before"]), _hash(entry["hash_after"])
            )
            for name, entry in shards.items()
        },
        sizes={name: int(entry["bytes"]) for name, entry in shards.items()},
        edits={name: tuple(entry["edits"]) for name, entry in shards.items()},
        files={name: str(_hash(noted)) for name, noted in raw["files"].items()},
        undo={name: str(_hash(noted)) for name, noted in raw["undo"].items()},
    )


def _hash(noted: Any) -> str | None:
    if noted is not None and not re.fullmatch(r"(blake3|sha256):[0-9a-f]{64}", noted):
        raise ValueError(f"{noted[:20]!r} is no hash")
    return noted


def _check_name(name: str) -> None:
    path = PurePosixPath(name)
    if path.is_absolute() or ".." in path.parts or not path.parts or set(name) & {"\\", "\0", ":"}:
        raise ValueError(f"{name!r} does not stay inside the folder")
