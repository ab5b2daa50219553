"""Really remove attention heads: cut their rows and columns out of the weights (mode "slice").

Unlike masking this makes a smaller, faster model, which any engine loads that reads `head_dim`;
`slicing_plan` says which heads of which architectures can go. The heads that stay are renumbered.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from .. import __version__
from ..models.errors import CheckpointError, DamagedCheckpointError
from ..models.types import HeadId
from ..results.provenance import JSON, utc_now
from .checkpoint_verify import file_problem
from .edited_copies import compare_edited, copy_edited
from .file_digests import file_digest
from .new_folder import new_folder, write_file
from .prune_manifest import (
    CARD,
    card_of,
    is_pruned,
    plain_json,
    raw_manifest,
    source_record,
    with_section,
)
from .pruning_plan import MANIFEST
from .pruning_text import counted
from .safetensors_cuts import TensorCut, compare_cut, copy_cut
from .slicing_plan import SlicingPlan, new_config, plan_slicing

__all__ = ["SLICE_SCHEMA", "SlicingPlan", "plan_slicing", "slice_checkpoint", "verify_sliced"]

SLICE_SCHEMA = "mnemoscope/slice-manifest/2"

_CONFIG = "config.json"
_INDEX = "model.safetensors.index.json"


def slice_checkpoint(
    plan: SlicingPlan,
    out: Path,
    *,
    force: bool = False,
    manifest_extra: Mapping[str, JSON] | None = None,
) -> Path:
    """Write the smaller checkpoint to the new folder `out` and return its resolved path.

    Same file names, tensor names, dtypes and shard layout; only the attention projections shrink,
    config.json changes in its head counts and `head_dim`, the index in its totals. Built beside
    `out`, compared with the source and renamed once, as `prune_checkpoint` does; `force` replaces
    an earlier pruned or sliced folder. Memory: a few chunks of `safetensors_bytes.CHUNK` while
    writing; while comparing, one cut tensor of the source and of the result.

    Raises `CheckpointError` for an unsuitable `out`, a source that changed after planning, a full
    disk or a copy that does not compare.
    """
    out = Path(out).resolve()
    extra = plain_json(manifest_extra or {})
    with new_folder(
        out,
        plan.source,
        plan.masking.disk_bytes,
        force=force,
        replaceable=is_pruned,
    ) as folder:
        if _planned_again(plan) != plan:
            raise CheckpointError(f"{plan.source} has changed since it was planned: plan again.")
        record = _manifest(plan, _written(plan, folder), extra)
        write_file(folder / MANIFEST, f"{json.dumps(record, indent=1)}\n".encode())
        write_file(folder / CARD, _card(plan))
    return out


def verify_sliced(out: Path, source: Path | None = None) -> None:
    """Check a sliced folder against its manifest: every file's hash; the card may have changed.

    With `source`, also cut the heads out of it once more and compare every tensor. Raises
    `DamagedCheckpointError` listing what is wrong, `CheckpointError` when this is no sliced folder
    or the comparison with the source fails.
    """
    out = Path(out)
    record = raw_manifest(out)
    if record is None or record.get("schema") != SLICE_SCHEMA:
        raise CheckpointError(f"{out} has no {SLICE_SCHEMA}: it was not sliced by Mnemoscope.")
    try:
        expected = {name: entry["hash_after"] for name, entry in record["shards"].items()}
        expected |= record["files"]
        heads = [HeadId(entry["layer"], entry["head"]) for entry in record["heads"]]
    except (TypeError, KeyError, AttributeError) as error:
        raise DamagedCheckpointError(f"{out / MANIFEST} is damaged ({error!r}).") from error
    wrong = [found for name, noted in expected.items() if (found := file_problem(out, name, noted))]
    if wrong:
        raise DamagedCheckpointError(
            f"{out} is not what its manifest says: {'; '.join(sorted(wrong))}. Slice the source "
            "again."
        )
    if source is not None:
        plan = plan_slicing(source, heads, allow_no_tokenizer=True)
        for shard in plan.shards:
            compare_cut(plan.source / shard.name, out / shard.name, shard.cuts)


def _planned_again(plan: SlicingPlan) -> SlicingPlan:
    allow = plan.masking.allow_no_tokenizer
    return plan_slicing(plan.source, plan.heads, allow_no_tokenizer=allow)


# -- writing --------------------------------------------------------------------------------------


def _written(plan: SlicingPlan, folder: Path) -> dict[str, tuple[str, str]]:
    """Every file cut, rewritten or copied, and compared: name to its hash before and after."""
    hashes = {}
    for shard in plan.shards:
        source, target = plan.source / shard.name, folder / shard.name
        before = copy_cut(source, target, shard.cuts)
        hashes[shard.name] = before, compare_cut(source, target, shard.cuts)
    for name in plan.masking.files:
        source, target = plan.source / name, folder / name
        target.parent.mkdir(parents=True, exist_ok=True)
        if name in (_CONFIG, _INDEX):
            write_file(target, _rewritten(plan, name))
            hashes[name] = file_digest(source), file_digest(target)
        else:
            copy_edited(source, target)
            before, after, _ = compare_edited(source, target)
            hashes[name] = before, after
    return hashes


def _rewritten(plan: SlicingPlan, name: str) -> bytes:
    """config.json with the new counts, or the index with the new totals."""
    record = json.loads((plan.source / name).read_bytes())
    if name == _CONFIG:
        record = new_config(record, plan.n_heads, plan.n_kv_heads, plan.d_head)
    else:
        totals = record.get("metadata") or {}
        gone = {"total_size": plan.removed_bytes, "total_parameters": plan.removed_parameters}
        for key in gone.keys() & totals.keys():
            totals[key] -= gone[key]
    return f"{json.dumps(record, indent=2, ensure_ascii=False)}\n".encode()


def _manifest(
    plan: SlicingPlan, hashes: Mapping[str, tuple[str, str]], extra: Any
) -> dict[str, Any]:
    masking = plan.masking
    return {
        "schema": SLICE_SCHEMA,
        "tool": {"name": "mnemoscope", "version": __version__},
        "created": utc_now(),
        "mode": "slice",
        "heads": [
            {"layer": head.layer, "head": head.head, "kv_head": masking.kv_head(head)}
            for head in plan.heads
        ],
        "heads_per_layer": {"before": masking.n_heads, "after": plan.n_heads},
        "kv_heads_per_layer": {"before": masking.n_kv_heads, "after": plan.n_kv_heads},
        "head_dim": plan.d_head,
        "extra": extra,
        "source": source_record(masking),
        "shards": {
            shard.name: {
                "hash_before": hashes[shard.name][0],
                "hash_after": hashes[shard.name][1],
                "cuts": [_cut_record(cut) for cut in shard.cuts],
            }
            for shard in plan.shards
        },
        "files": {name: hashes[name][1] for name in masking.files if name != CARD},
        "left_out": list(masking.left_out),
    }


def _cut_record(cut: TensorCut) -> dict[str, Any]:
    """One tensor; `kept` are the blocks of rows or columns of the source that stay, in order."""
    return {
        "tensor": cut.tensor.name,
        "dtype": cut.tensor.dtype,
        "shape": {"before": list(cut.tensor.shape), "after": list(cut.shape)},
        "axis": cut.axis,
        "kept": [list(block) for block in cut.kept],
    }


def _card(plan: SlicingPlan) -> bytes:
    """The source's model card, or a new one, with a section on what was removed."""
    name = plan.source.name
    section = (
        f"\n## Attention heads removed\n\n"
        f"This copy of `{name}` lacks {counted(len(plan.heads), 'attention head')}, cut out of the "
        f"weights by Mnemoscope {__version__}: {plan.n_heads} query heads and "
        f"{counted(plan.n_kv_heads, 'key/value head')} are left in each layer, of width "
        f"{plan.d_head}, and renumbered. All other weights are unchanged. Removed, by layers and "
        f"query heads of the source, counted from zero: {', '.join(map(str, plan.heads))}. Hashes "
        f"are in `{MANIFEST}`.\n"
    )
    return with_section(card_of(plan.source, name), section)
