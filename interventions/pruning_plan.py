"""Which bytes of a checkpoint hold which heads: a plan made from configuration and headers only."""

from __future__ import annotations

import json
import math
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from transformers import CONFIG_MAPPING

from ..models.anatomy import ARCHITECTURES, Anatomy
from ..models.checkpoint_files import Header, TensorEntry, read_shards
from ..models.errors import CheckpointError, DamagedCheckpointError, UnsupportedModelError
from ..models.types import HeadId, unique_heads
from .safetensors_bytes import FLOATS, TensorEdit

MANIFEST = "prune_manifest.json"

_OTHER_WEIGHTS = {".safetensors", ".bin", ".pt", ".pth", ".ckpt", ".h5", ".msgpack", ".gguf"} | {
    ".onnx",
    ".onnx_data",
}
_NOT_THE_MODEL = {".git", ".cache"}
_SPARE = 2**20  # bytes for manifest, card and folder entries


@dataclass(frozen=True)
class ShardPlan:
    """One weight file and the edits in it (none: the file is copied as it is)."""

    name: str
    edits: tuple[TensorEdit, ...]


@dataclass(frozen=True)
class PruningPlan:
    """What pruning would do. Byte ranges and counts are exact."""

    source: Path
    model_type: str
    heads: tuple[HeadId, ...]
    factor: float
    n_heads: int
    n_kv_heads: int
    shards: tuple[ShardPlan, ...]
    files: tuple[str, ...]
    """Other files that come along, relative to the folder."""
    left_out: tuple[str, ...]
    """What stays behind: weights in other formats, which would still hold the heads."""
    disk_bytes: int
    """Free bytes that the new folder needs; all of them are written."""

    @property
    def edits(self) -> tuple[tuple[str, TensorEdit], ...]:
        """(file name, edit) of every output projection that changes, in file order."""
        return tuple((shard.name, edit) for shard in self.shards for edit in shard.edits)

    @property
    def edited_bytes(self) -> int:
        """Bytes of weights that change."""
        return sum(edit.n_bytes for _, edit in self.edits)

    @property
    def parameters(self) -> int:
        """Weights that are set to zero or multiplied."""
        return sum(edit.n_bytes // FLOATS[edit.tensor.dtype].itemsize for _, edit in self.edits)

    @property
    def heads_per_kv(self) -> int:
        """Query heads that share one key/value head."""
        return self.n_heads // self.n_kv_heads

    def kv_head(self, head: HeadId) -> int:
        """The key/value head that a query head reads."""
        return head.head // self.heads_per_kv

    def whole_groups(self) -> tuple[tuple[int, int], ...]:
        """(layer, kv head) of every shared key/value head of which all query heads are named."""
        groups = [(head.layer, self.kv_head(head)) for head in self.heads]
        size = self.heads_per_kv
        return tuple(sorted({g for g in groups if size > 1 and groups.count(g) == size}))

    def describe(self) -> str:
        """The plan for a person: heads, tensors, byte ranges, shared key/value heads, disk."""
        return "\n".join(_described(self))


def plan_pruning(checkpoint: Path, heads: Sequence[HeadId], *, factor: float = 0.0) -> PruningPlan:
    """Find the bytes that hold the heads' output weights; `factor` will multiply them (0 prunes).

    Reads config.json and safetensors headers, never weights. Raises `CheckpointError` for a folder
    that cannot be edited (no safetensors, an adapter), `DamagedCheckpointError` for broken files,
    `UnsupportedModelError` for unknown, quantised or shared blocks, `UnitOutOfRangeError` for heads
    that the model lacks.
    """
    heads = unique_heads(heads)
    if not heads:
        raise CheckpointError("no heads given: name at least one, for example 12:5.")
    if not math.isfinite(factor) or factor == 1:
        raise CheckpointError(f"factor {factor:g} makes no new model: use 0 to prune, 0.5 or -1.")
    source = Path(checkpoint).resolve()
    try:
        return _planned(source, heads, float(factor))
    except OSError as error:
        raise CheckpointError(f"cannot read {source} ({error}): make it readable.") from error


def _planned(source: Path, heads: tuple[HeadId, ...], factor: float) -> PruningPlan:
    config = _read_config(source)
    shards = read_shards(source)
    projections = _projections(config, shards)
    anatomy = _anatomy(config, [tensor for _, tensor in projections])
    for head in heads:
        anatomy.check_head(head)
    files, left_out, n_bytes = _other_files(source, shards)
    return PruningPlan(
        source=source,
        model_type=anatomy.model_type,
        heads=heads,
        factor=factor,
        n_heads=anatomy.n_heads,
        n_kv_heads=anatomy.n_kv_heads,
        shards=tuple(
            ShardPlan(name, _shard_edits(name, projections, heads, anatomy)) for name in shards
        ),
        files=files,
        left_out=left_out,
        disk_bytes=n_bytes + sum(header.size for header in shards.values()) + _SPARE,
    )


def _read_config(source: Path) -> Any:
    """The configuration as transformers understands it: attribute names and defaults resolved."""
    if (source / "adapter_config.json").is_file():
        raise CheckpointError(
            f"{source} is an adapter: merge it into its base model first (PEFT's merge_and_unload)."
        )
    path = source / "config.json"
    if not path.is_file():
        raise CheckpointError(f"{source} has no config.json: give the folder of a checkpoint.")
    try:
        raw = json.loads(path.read_bytes())
        model_type = raw.get("model_type")
    except (ValueError, AttributeError) as error:
        raise DamagedCheckpointError(f"{path} is no JSON object: download it again.") from error
    if model_type not in ARCHITECTURES:
        raise UnsupportedModelError(
            f"architecture {model_type!r} is not in the table of known decoders "
            f"({', '.join(sorted(ARCHITECTURES))}). Add an entry to models/anatomy.py."
        )
    if raw.get("quantization_config") or raw.get("compression_config"):
        raise _quantised(source.name)
    if raw.get("pruned_heads"):
        raise UnsupportedModelError(
            f"{source.name} lists pruned_heads in its config.json, so its heads are renumbered: "
            "use the original checkpoint."
        )
    try:
        return CONFIG_MAPPING[model_type].from_dict(raw)
    except Exception as error:  # each configuration class validates in its own way
        raise DamagedCheckpointError(f"{path} is not valid: {error}") from error


def _projections(config: Any, shards: Mapping[str, Header]) -> list[tuple[str, TensorEntry]]:
    """(file, output projection) of each layer, found by name from the end of the path."""
    spec = ARCHITECTURES[config.model_type]
    prefix, blocks = spec.blocks.rsplit(".", 1)
    pattern = re.compile(rf"(?:.*\.)?{blocks}\.(\d+)\.{re.escape(spec.o_proj)}\.(.+)")
    found: dict[int, list[tuple[str, TensorEntry]]] = {}
    for name, header in shards.items():
        for tensor in header.tensors:
            match = pattern.fullmatch(tensor.name)
            if match and match[2] != "bias":
                found.setdefault(int(match[1]), []).append((name, tensor))
    n_layers = int(config.num_hidden_layers)
    for layer in range(n_layers):
        path = f"{prefix}.{blocks}.{layer}.{spec.o_proj}.weight"
        _check_found(layer, path, [tensor.name for _, tensor in found.get(layer, [])])
    if len(found) != n_layers:
        raise UnsupportedModelError(
            f"the configuration promises {n_layers} layers but the weights have {len(found)}: "
            "the checkpoint and its config.json do not belong together."
        )
    return [found[layer][0] for layer in range(n_layers)]


def _check_found(layer: int, path: str, names: Sequence[str]) -> None:
    """Exactly one weight, under its full path or, as base models are saved, without its first part.

    Raises `UnsupportedModelError` with the reason otherwise.
    """
    if not names:
        raise UnsupportedModelError(
            f"layer {layer} has no output projection ({path}) of its own: its block is "
            "shared with another layer and cannot be pruned alone, or the checkpoint is incomplete."
        )
    tail = path.rsplit(f".{layer}.", 1)[1]
    strange = sorted(name for name in names if not name.endswith(tail))
    if strange:
        raise UnsupportedModelError(
            f"layer {layer} stores {strange[0]}: it is quantised or has an unmerged adapter "
            "inside; save it dequantised and merged, and prune that."
        )
    if len(names) > 1:
        raise UnsupportedModelError(
            f"layer {layer} has several output projections ({', '.join(sorted(names))}): it is "
            "ambiguous which one the model uses, so remove the one that it does not."
        )
    if names[0] not in (path, path.split(".", 1)[1]):
        raise UnsupportedModelError(
            f"layer {layer}: expected {path} but found {names[0]}, so the architecture entry does "
            "not fit this checkpoint."
        )


def _anatomy(config: Any, projections: Sequence[TensorEntry]) -> Anatomy:
    """Head counts, confirmed by dtype and shape of every output projection."""
    n_heads, d_model = int(config.num_attention_heads), int(config.hidden_size)
    d_v = int(getattr(config, "head_dim", None) or d_model // n_heads)
    expected = (d_model, n_heads * d_v)
    if ARCHITECTURES[config.model_type].transposed:
        expected = expected[::-1]
    for tensor in projections:
        if tensor.dtype not in FLOATS:
            raise _quantised(f"{tensor.name} ({tensor.dtype})")
        if tensor.shape != expected:
            raise UnsupportedModelError(
                f"{tensor.name} is {list(tensor.shape)}, but {n_heads} heads of width {d_v} in a "
                f"stream of {d_model} need {list(expected)}: the checkpoint and its config.json do "
                "not belong together."
            )
    return Anatomy(
        model_type=config.model_type,
        spec=ARCHITECTURES[config.model_type],
        n_layers=len(projections),
        n_heads=n_heads,
        n_kv_heads=int(getattr(config, "num_key_value_heads", None) or n_heads),
        d_model=d_model,
        d_v=d_v,
        d_mlp=None,  # what follows is not read here; this object does not leave the module
        d_vocab=int(config.vocab_size),
        max_context=None,
        parallel=False,
        post_ln=False,
    )


def _shard_edits(
    shard: str,
    projections: Sequence[tuple[str, TensorEntry]],
    heads: Sequence[HeadId],
    anatomy: Anatomy,
) -> tuple[TensorEdit, ...]:
    """One edit for each projection in this file that has heads to prune, in file order."""
    edits = []
    for layer, (name, tensor) in enumerate(projections):
        here = sorted(head.head for head in heads if head.layer == layer)
        if name == shard and here:
            blocks = tuple((h * anatomy.d_v, (h + 1) * anatomy.d_v) for h in here)
            axis: Literal[0, 1] = 0 if anatomy.spec.transposed else 1
            edits.append(TensorEdit(tensor, axis, blocks))
    return tuple(sorted(edits, key=lambda edit: edit.tensor.offset))


def _other_files(
    source: Path, shards: Mapping[str, Header]
) -> tuple[tuple[str, ...], tuple[str, ...], int]:
    """Files that come along, what stays behind, and the bytes of the first."""
    files, left_out, n_bytes = [], [], 0
    for folder, subfolders, names in os.walk(source):
        here = Path(folder)
        dropped = [n for n in subfolders if n in _NOT_THE_MODEL or (here / n).is_symlink()]
        subfolders[:] = [name for name in subfolders if name not in dropped]
        left_out += [f"{(here / name).relative_to(source).as_posix()}/" for name in dropped]
        for name in names:
            path = here / name
            relative = path.relative_to(source).as_posix()
            if relative in shards or relative == MANIFEST:
                continue
            if not path.is_file():
                raise DamagedCheckpointError(f"{path} is a broken link: download it again.")
            if path.suffix in _OTHER_WEIGHTS:
                left_out.append(relative)
            else:
                files.append(relative)
                n_bytes += path.stat().st_size
    return tuple(sorted(files)), tuple(sorted(left_out)), n_bytes


def _quantised(what: str) -> UnsupportedModelError:
    return UnsupportedModelError(
        f"{what} is quantised: its blocks span heads, so save it dequantised and prune that."
    )


def _described(plan: PruningPlan) -> Iterator[str]:
    action = "set to zero" if plan.factor == 0 else f"multiply by {plan.factor:g}"
    yield (
        f"{plan.source.name} ({plan.model_type}, {plan.n_heads} query heads and "
        f"{plan.n_kv_heads} kv heads a layer): {action} {counted(len(plan.heads), 'head')}, "
        f"{', '.join(map(str, plan.heads))}"
    )
    for name, edit in plan.edits:
        yield f"{name}: {edit.tensor.name} {edit.tensor.dtype} {list(edit.tensor.shape)}"
        for part in edit.ranges:
            every = f", every {part.stride}" if part.count > 1 else ""
            runs = counted(part.count, "run")
            yield f"  from byte {part.offset}: {runs} of {part.length} bytes{every}"
    yield from _sharing(plan)
    yield f"{counted(plan.parameters, 'weight')} in {plan.edited_bytes:,} bytes change"
    if plan.left_out:
        yield f"left behind (weights here would still hold the heads): {', '.join(plan.left_out)}"
    yield f"disk needed: {plan.disk_bytes / 1e6:,.1f} MB"


def _sharing(plan: PruningPlan) -> Iterator[str]:
    """Grouped-query attention said out loud: who else reads this key/value head."""
    size = plan.heads_per_kv
    for head in plan.heads if size > 1 else ():
        kv = plan.kv_head(head)
        others = [str(h) for h in range(kv * size, (kv + 1) * size) if h != head.head]
        yield (
            f"query head {head.head} of layer {head.layer} shares kv head {kv} with query "
            f"head{'s' if len(others) > 1 else ''} {', '.join(others)}"
        )
    for layer, kv in plan.whole_groups():
        yield (
            f"warning: all query heads of kv head {kv} in layer {layer} are named; its keys and "
            "values are still computed and cached, since one kv head count holds for all layers"
        )


def counted(n: int, noun: str) -> str:
    """`1 head`, `2 heads`, `1,024 heads`."""
    return f"{n:,} {noun}{'' if n == 1 else 's'}"
