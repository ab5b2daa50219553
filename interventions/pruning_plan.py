"""Which bytes of a checkpoint hold which heads: a plan made from configuration and headers only."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from jaxtyping import Float
from torch import Tensor

from ..models.errors import CheckpointError, UnsupportedModelError
from ..models.types import HeadId, unique_heads
from ..results.provenance import JSON
from . import pruning_text
from .new_folder import SPARE
from .pruning_source import (
    Source,
    check_tokenizer,
    hub_origin,
    licence,
    other_files,
    read_source,
)
from .safetensors_bytes import FLOATS, TensorEdit

MANIFEST = "prune_manifest.json"
UNDO = "prune_undo"
"""Folder inside a pruned checkpoint with what undoing needs. A folder of its own: some engines load
every .safetensors file that lies beside the weights."""
DELTA = f"{UNDO}/prune_delta.safetensors"
BEFORE = f"{UNDO}/before"
"""The source's files that were replaced: its card and, if it was pruned itself, its notes."""

Mode = Literal["zero", "scale", "mean"]


@dataclass(frozen=True)
class BiasShift:
    """A projection's bias, which takes over the mean output of the heads that are zeroed."""

    edit: TensorEdit
    layer: int
    weight_shard: str
    weight: TensorEdit


@dataclass(frozen=True)
class ShardPlan:
    """One weight file and the edits in it (none: the file stays as it is)."""

    name: str
    edits: tuple[TensorEdit, ...]
    size: int
    biases: tuple[BiasShift, ...] = ()

    @property
    def touched(self) -> bool:
        """True when bytes of the file change."""
        return bool(self.edits or self.biases)


@dataclass(frozen=True)
class PruningPlan:
    """What pruning would do. Byte ranges and counts are exact, times and memory are estimates."""

    source: Path
    model_type: str
    heads: tuple[HeadId, ...]
    factor: float
    mean_outputs: tuple[tuple[float, ...], ...]
    """Mean z of each head, `[head][d_v]`, in mode mean; empty otherwise."""
    projection: str | None
    all_shared: bool
    allow_no_tokenizer: bool
    shared: bool
    """One matrix serves all layers, so `heads` names each head in all of them."""
    n_heads: int
    n_kv_heads: int
    shards: tuple[ShardPlan, ...]
    files: tuple[str, ...]
    """Other files that come along, relative to the folder."""
    left_out: tuple[str, ...]
    """What stays behind: weights in other formats, which would still hold the heads."""
    disk_bytes: int
    """Free bytes that the new folder needs at most (when untouched shards cannot be linked)."""
    licence: str | None
    hub_id: str | None
    revision: str | None

    @property
    def mode(self) -> Mode:
        """`zero`, `scale` (any other factor) or `mean` (zero, and the bias shifted)."""
        if self.mean_outputs:
            return "mean"
        return "zero" if self.factor == 0 else "scale"

    @property
    def edits(self) -> tuple[tuple[str, TensorEdit], ...]:
        """(file name, edit) of every output projection that changes, in file order."""
        return tuple((shard.name, edit) for shard in self.shards for edit in shard.edits)

    @property
    def all_edits(self) -> tuple[tuple[str, TensorEdit], ...]:
        """(file name, edit) of projections and biases, in file order: the order of the delta."""
        found = []
        for shard in self.shards:
            edits = (*shard.edits, *(bias.edit for bias in shard.biases))
            found += [(shard.name, e) for e in sorted(edits, key=lambda e: e.tensor.offset)]
        return tuple(found)

    @property
    def edited_bytes(self) -> int:
        """Bytes of weights and biases that change."""
        return sum(edit.n_bytes for _, edit in self.all_edits)

    @property
    def parameters(self) -> int:
        """Weights that are set to zero or multiplied."""
        return sum(edit.n_bytes // FLOATS[edit.tensor.dtype].itemsize for _, edit in self.edits)

    @property
    def untouched_bytes(self) -> int:
        """Bytes of shards that can be linked instead of copied."""
        return sum(shard.size for shard in self.shards if not shard.touched)

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

    def mean_output(self, head: HeadId) -> Float[np.ndarray, " d_v"]:
        """The mean z that mode mean puts in a head's place."""
        return np.array(self.mean_outputs[self.heads.index(head)], dtype=np.float64)

    def describe(self) -> str:
        """The plan for a person: heads, tensors, byte ranges, shared key/value heads, disk, time,
        memory, licence."""
        return "\n".join(pruning_text.described(self))

    def document(self) -> dict[str, JSON]:
        """The plan as plain JSON data, everything that `describe` says and every byte range."""
        return pruning_text.documented(self)


def plan_pruning(
    checkpoint: Path,
    heads: Sequence[HeadId],
    *,
    factor: float = 0.0,
    mean_outputs: Mapping[HeadId, Float[np.ndarray | Tensor, " d_v"]] | None = None,
    projection: str | None = None,
    all_shared: bool = False,
    allow_no_tokenizer: bool = False,
) -> PruningPlan:
    """Find the bytes that hold the heads' output weights; `factor` will multiply them (0 prunes).

    `mean_outputs` (mean z a head, all heads) makes it mode mean: the columns are zeroed and the
    projection's bias takes `W_O[:, head] @ mean`, so the head's mean stays in the stream (mean
    ablation). `projection` names the output projection where the table cannot, `{layer}` standing
    for the number; `all_shared` edits a matrix that all layers share (the head then goes from
    every layer); `allow_no_tokenizer` accepts a folder without one.

    In models that normalise z before the projection the zeroed head still counts in the norm's
    statistics, unlike in a hook on z before it.

    Reads config.json and safetensors headers, never weights. Raises `CheckpointError` for a folder
    that cannot be edited (no safetensors, an adapter, no tokenizer), `DamagedCheckpointError` for
    broken files, `UnsupportedModelError` for unknown, quantised or shared blocks and other kinds of
    attention, `UnitOutOfRangeError` for heads that the model lacks.
    """
    heads = unique_heads(heads)
    if not heads:
        raise CheckpointError("no heads given: name at least one, for example 12:5.")
    if not math.isfinite(factor) or factor == 1:
        raise CheckpointError(f"factor {factor:g} makes no new model: use 0 to prune, 0.5 or -1.")
    folder = Path(checkpoint).resolve()
    try:
        source = read_source(folder, projection=projection, all_shared=all_shared)
        for head in heads:
            source.anatomy.check_head(head)
        if not allow_no_tokenizer:
            check_tokenizer(folder)
        if source.block_scaled and (factor != 0 or mean_outputs is not None):
            raise UnsupportedModelError(
                f"{folder.name} is quantised with scales: use mode zero, the only exact one."
            )
        means = _means(source, heads, mean_outputs, factor)
        every = _in_every_layer(source, heads) if source.shared else heads
        return _plan(
            source, every, float(factor), means, projection, all_shared, allow_no_tokenizer
        )
    except OSError as error:
        raise CheckpointError(f"cannot read {folder} ({error}): make it readable.") from error


def planned_again(plan: PruningPlan) -> PruningPlan:
    """The same request, read from the folder once more. Raises as `plan_pruning`."""
    means = {head: plan.mean_output(head) for head in plan.heads} if plan.mean_outputs else None
    return plan_pruning(
        plan.source,
        plan.heads,
        factor=plan.factor,
        mean_outputs=means,
        projection=plan.projection,
        all_shared=plan.all_shared,
        allow_no_tokenizer=plan.allow_no_tokenizer,
    )


def _plan(
    source: Source,
    heads: tuple[HeadId, ...],
    factor: float,
    means: tuple[tuple[float, ...], ...],
    projection: str | None,
    all_shared: bool,
    allow_no_tokenizer: bool,
) -> PruningPlan:
    files, left_out, n_bytes = other_files(source.folder, source.shards, (MANIFEST, UNDO))
    shards = _shard_plans(source, heads, with_biases=bool(means))
    kept = sum(p.n_bytes for s in shards for e in s.edits for p in e.ranges)
    hub_id, revision = hub_origin(source.folder)
    earlier = [path for path in (source.folder / UNDO).rglob("*") if path.is_file()]
    return PruningPlan(
        source=source.folder,
        model_type=source.anatomy.model_type,
        heads=heads,
        factor=factor,
        mean_outputs=means,
        projection=projection,
        all_shared=all_shared,
        allow_no_tokenizer=allow_no_tokenizer,
        shared=source.shared,
        n_heads=source.anatomy.n_heads,
        n_kv_heads=source.anatomy.n_kv_heads,
        shards=shards,
        files=files,
        left_out=left_out,
        disk_bytes=n_bytes
        + kept
        + sum(shard.size for shard in shards)
        + sum(path.stat().st_size for path in earlier)
        + SPARE,
        licence=licence(source.folder),
        hub_id=hub_id,
        revision=revision,
    )


def _means(
    source: Source,
    heads: Sequence[HeadId],
    mean_outputs: Mapping[HeadId, Float[np.ndarray | Tensor, " d_v"]] | None,
    factor: float,
) -> tuple[tuple[float, ...], ...]:
    """Mean z in the order of `heads`; empty when it is not mode mean."""
    if mean_outputs is None:
        return ()
    anatomy = source.anatomy
    if factor != 0:
        raise CheckpointError("mean outputs and a factor exclude each other: give one of them.")
    if source.shared:
        raise UnsupportedModelError(
            "one matrix serves all layers, whose heads have different means: use zero."
        )
    if set(mean_outputs) != set(heads):
        odd = sorted(set(mean_outputs) ^ set(heads))
        raise CheckpointError(f"mean outputs must be given for exactly the heads: see {odd[0]}.")
    for layer in sorted({head.layer for head in heads}):
        if source.biases[layer] is None:
            raise UnsupportedModelError(
                f"{anatomy.model_type} stores no bias for the output projection of layer {layer}, "
                "so there is no place for a mean: use zero."
            )
    means = []
    for head in heads:
        value = np.asarray(mean_outputs[head], dtype=np.float64)
        if value.shape != (anatomy.d_v,) or not np.isfinite(value).all():
            raise CheckpointError(
                f"the mean output of {head} must be {anatomy.d_v} finite numbers, not an array of "
                f"shape {list(value.shape)}."
            )
        means.append(tuple(value.tolist()))
    return tuple(means)


def _in_every_layer(source: Source, heads: Sequence[HeadId]) -> tuple[HeadId, ...]:
    numbers = sorted({head.head for head in heads})
    return tuple(HeadId(i, h) for i in range(source.anatomy.n_layers) for h in numbers)


def _shard_plans(
    source: Source, heads: Sequence[HeadId], *, with_biases: bool
) -> tuple[ShardPlan, ...]:
    """One edit for each projection (and bias) that has heads to prune, in file order."""
    edits: dict[str, list[TensorEdit]] = {name: [] for name in source.shards}
    biases: dict[str, list[BiasShift]] = {name: [] for name in source.shards}
    axis: Literal[0, 1] = 0 if source.anatomy.spec.transposed else 1
    d_v = source.anatomy.d_v
    layers = {head.layer for head in heads}
    for layer in [0] if source.shared else sorted(layers):
        shard, tensor = source.projections[layer]
        here = sorted(head.head for head in heads if head.layer == layer)
        edit = TensorEdit(tensor, axis, tuple((h * d_v, (h + 1) * d_v) for h in here))
        edits[shard].append(edit)
        place = source.biases[layer] if with_biases else None
        if place is not None:
            bias = TensorEdit(place[1], 0, ((0, place[1].shape[0]),))
            biases[place[0]].append(BiasShift(bias, layer, shard, edit))
    return tuple(
        ShardPlan(
            name,
            tuple(sorted(edits[name], key=lambda edit: edit.tensor.offset)),
            header.size,
            tuple(sorted(biases[name], key=lambda bias: bias.edit.tensor.offset)),
        )
        for name, header in source.shards.items()
    )
