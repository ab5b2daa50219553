"""Can these heads be cut out of the weights? A plan made from configuration and headers only.

A configuration holds one head count for all layers, so every layer must lose the same number of
heads, in whole key/value groups, and the architecture must take `head_dim` from its configuration.
That last point is not believed but tried: the model class is built without weights (meta device)
from the old and the new configuration.

It works for Llama, Mistral, Mixtral, Qwen3, Gemma-2 and Gemma-3, whose configurations declare
`head_dim`, and for Qwen2, Phi and Granite, whose transformers classes obey it undeclared. It is
refused for GPT-2, GPT-NeoX and Phi-3 (queries, keys and values in one matrix), GPT-J and OPT (head
width always hidden_size / heads) and OLMo-2 (norms over all heads together).
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass, fields, is_dataclass, replace
from pathlib import Path
from typing import Any

import torch
from transformers import CONFIG_MAPPING, AutoModelForCausalLM

from ..models.anatomy import ARCHITECTURES
from ..models.checkpoint_files import Header, TensorEntry, read_shards
from ..models.errors import CheckpointError, UnsupportedModelError
from ..models.types import HeadId
from ..results.provenance import JSON
from .new_folder import SPARE
from .pruning_plan import PruningPlan, plan_pruning
from .pruning_text import counted
from .safetensors_bytes import FLOATS
from .safetensors_cuts import TensorCut

_INPUTS = ("q_proj", "k_proj", "v_proj")
_MASK = "Masking (mode zero) needs none of this."


@dataclass(frozen=True)
class ShardCuts:
    """One weight file and the tensors that are cut in it."""

    name: str
    cuts: tuple[TensorCut, ...]


@dataclass(frozen=True)
class SlicingPlan:
    """What slicing would do; counts are exact."""

    masking: PruningPlan
    """The plan that would only zero these heads: source, heads, head counts, other files."""
    n_heads: int
    """Query heads a layer afterwards."""
    n_kv_heads: int
    d_head: int
    declared: bool
    """The configuration class declares `head_dim`; otherwise transformers reads it, but another
    engine may not."""
    shards: tuple[ShardCuts, ...]

    @property
    def source(self) -> Path:
        """The checkpoint's folder."""
        return self.masking.source

    @property
    def heads(self) -> tuple[HeadId, ...]:
        """The heads that go."""
        return self.masking.heads

    @property
    def cuts(self) -> tuple[tuple[str, TensorCut], ...]:
        """(file name, cut) of every tensor that gets smaller."""
        return tuple((shard.name, cut) for shard in self.shards for cut in shard.cuts)

    @property
    def removed_bytes(self) -> int:
        """Bytes of weights that go."""
        return sum(cut.tensor.n_bytes - cut.n_bytes for _, cut in self.cuts)

    @property
    def removed_parameters(self) -> int:
        """Weights that go."""
        return sum(
            (cut.tensor.n_bytes - cut.n_bytes) // FLOATS[cut.tensor.dtype].itemsize
            for _, cut in self.cuts
        )

    def describe(self) -> str:
        """The plan for a person: heads, counts before and after, tensors, bytes."""
        return "\n".join(_described(self))

    def document(self) -> dict[str, JSON]:
        """The plan as plain JSON data."""
        return {
            "source": str(self.source),
            "mode": "slice",
            "heads": [str(head) for head in self.heads],
            "heads_per_layer": self.n_heads,
            "kv_heads_per_layer": self.n_kv_heads,
            "removed_parameters": self.removed_parameters,
            "removed_bytes": self.removed_bytes,
            "disk_bytes": self.masking.disk_bytes,
        }


def plan_slicing(
    checkpoint: Path, heads: Sequence[HeadId], *, allow_no_tokenizer: bool = False
) -> SlicingPlan:
    """Check that the heads can be cut out and find what stays of each tensor; reads no weights.

    Raises what `plan_pruning` raises; `CheckpointError` when layers lose different numbers of
    heads, a key/value group loses only a part of its heads or none is left; `UnsupportedModelError`
    where the architecture cannot state fewer heads of the same width.
    """
    masking = plan_pruning(checkpoint, heads, allow_no_tokenizer=allow_no_tokenizer)
    config = json.loads((masking.source / "config.json").read_bytes())
    if config.get("quantization_config") or config.get("compression_config"):
        raise UnsupportedModelError(
            f"{masking.source.name} is quantised and its scales would not fit what stays: save it "
            f"dequantised and slice that. {_MASK}"
        )
    shards = read_shards(masking.source)
    layers = _attention(masking.model_type, shards)
    _check_separate(masking.model_type, layers)
    d_head = layers[0][_o_proj(masking.model_type)][1].shape[1] // masking.n_heads
    _check_equal_layers(masking.heads, len(layers))
    _check_whole_groups(masking)
    gone = len(masking.heads) // len(layers)
    n_heads, n_kv = masking.n_heads - gone, masking.n_kv_heads - gone // masking.heads_per_kv
    if n_heads == 0:
        raise CheckpointError(f"no head would be left: keep one kv head in each layer. {_MASK}")
    cuts = [
        (name, cut)
        for layer, tensors in enumerate(layers)
        for name, cut in _cuts(masking, layer, tensors, d_head)
    ]
    new = new_config(config, n_heads, n_kv, d_head)
    declared = _check_class(config, new, {cut.tensor.name: cut for _, cut in cuts})
    return SlicingPlan(
        masking=replace(masking, disk_bytes=_disk_bytes(masking, shards, cuts)),
        n_heads=n_heads,
        n_kv_heads=n_kv,
        d_head=d_head,
        declared=declared,
        shards=tuple(
            ShardCuts(name, tuple(cut for shard, cut in cuts if shard == name)) for name in shards
        ),
    )


# -- what can be cut ------------------------------------------------------------------------------

_Layer = dict[str, tuple[str, TensorEntry]]
"""Attention tensors of one layer: name below the attention module to (file, tensor)."""


def _attention(model_type: str, shards: Mapping[str, Header]) -> list[_Layer]:
    """Layers in order; `plan_pruning` has seen that each has its own output projection."""
    spec = ARCHITECTURES[model_type]
    blocks = spec.blocks.rsplit(".", 1)[1]
    pattern = re.compile(rf"(?:.*\.)?{blocks}\.(\d+)\.{re.escape(spec.attn)}\.(.+)")
    layers: dict[int, _Layer] = {}
    for name, header in shards.items():
        for tensor in header.tensors:
            if match := pattern.fullmatch(tensor.name):
                layers.setdefault(int(match[1]), {})[match[2]] = (name, tensor)
    return [layers[layer] for layer in sorted(layers)]


def _o_proj(model_type: str) -> str:
    spec = ARCHITECTURES[model_type]
    return spec.o_proj.removeprefix(f"{spec.attn}.") + ".weight"


def _check_separate(model_type: str, layers: Sequence[_Layer]) -> None:
    for layer, tensors in enumerate(layers):
        missing = [name for name in _INPUTS if f"{name}.weight" not in tensors]
        if missing:
            others = sorted(set(tensors) - {_o_proj(model_type)})
            raise UnsupportedModelError(
                f"{model_type} cannot be sliced: layer {layer} has no {missing[0]} of its own but "
                f"{', '.join(others)}, where queries, keys and values are fused. {_MASK}"
            )


def _check_equal_layers(heads: Sequence[HeadId], n_layers: int) -> None:
    lost = Counter(head.layer for head in heads)
    most = max(range(n_layers), key=lambda layer: lost[layer])
    least = min(range(n_layers), key=lambda layer: lost[layer])
    if lost[most] != lost[least]:
        raise CheckpointError(
            f"layer {most} loses {counted(lost[most], 'head')}, layer {least} loses "
            f"{lost[least]}: a configuration holds one head count for all layers, so slicing "
            f"must take the same number from each. {_MASK}"
        )


def _check_whole_groups(masking: PruningPlan) -> None:
    size, named = masking.heads_per_kv, set(masking.heads)
    for head in masking.heads:
        kv = masking.kv_head(head)
        group = [HeadId(head.layer, kv * size + i) for i in range(size)]
        kept = [str(other) for other in group if other not in named]
        if kept:
            raise CheckpointError(
                f"layer {head.layer} loses {head} but keeps {', '.join(kept)}, which "
                f"{'shares' if len(kept) == 1 else 'share'} its kv head {kv}: slicing takes whole "
                f"key/value groups, here {', '.join(map(str, group))}. {_MASK}"
            )


def _cuts(
    masking: PruningPlan, layer: int, tensors: _Layer, d_head: int
) -> Iterator[tuple[str, TensorCut]]:
    """Rows of queries, keys, values and their biases; columns of the output projection."""
    gone = {head.head for head in masking.heads if head.layer == layer}
    size = masking.heads_per_kv
    gone_kv = {head // size for head in gone}
    for name in _INPUTS:
        count, lost = masking.n_kv_heads, gone_kv
        if name == "q_proj":
            count, lost = masking.n_heads, gone
        kept = _kept(count, lost, d_head)
        for form in ("weight", "bias"):
            if f"{name}.{form}" in tensors:
                file, tensor = tensors[f"{name}.{form}"]
                _check_rows(tensor, count * d_head)
                yield file, TensorCut(tensor, 0, kept)
    file, tensor = tensors[_o_proj(masking.model_type)]
    yield file, TensorCut(tensor, 1, _kept(masking.n_heads, gone, d_head))


def _kept(count: int, lost: set[int], d_head: int) -> tuple[tuple[int, int], ...]:
    return tuple((i * d_head, (i + 1) * d_head) for i in range(count) if i not in lost)


def _check_rows(tensor: TensorEntry, rows: int) -> None:
    if tensor.dtype not in FLOATS or tensor.shape[:1] != (rows,):
        raise UnsupportedModelError(
            f"{tensor.name} is {tensor.dtype} {list(tensor.shape)}, but slicing needs {rows} rows "
            f"of plain floats, one block for each head. {_MASK}"
        )


# -- what the architecture can state ---------------------------------------------------------------


def new_config(
    config: Mapping[str, Any], n_heads: int, n_kv_heads: int, d_head: int
) -> dict[str, Any]:
    new = {"num_attention_heads": n_heads, "num_key_value_heads": n_kv_heads, "head_dim": d_head}
    return {**config, **new}


def _check_class(
    config: Mapping[str, Any], new: Mapping[str, Any], cuts: Mapping[str, TensorCut]
) -> bool:
    """Build the class from both configurations, without weights, and compare every shape.

    True when the configuration class declares `head_dim`; raises `UnsupportedModelError` when the
    class would not take the cut weights, or would change others.
    """
    kind, n_heads = str(config["model_type"]), new["num_attention_heads"]
    before = _shapes(config)
    try:
        after = _shapes(new)
    except Exception as error:  # each configuration class refuses in its own way
        reason = str(error).strip().splitlines()[-1].strip()
        raise UnsupportedModelError(
            f"the configuration of {kind} does not accept {n_heads} heads ({reason}): choose a "
            f"number of heads to remove that it accepts. {_MASK}"
        ) from error
    short = {_below_blocks(name): cut for name, cut in cuts.items()}
    changed = {_below_blocks(n): after.get(n) for n in before if before[n] != after.get(n)}
    others = sorted(name for name in changed if name not in short)
    if others:
        raise UnsupportedModelError(
            f"{kind} cannot be sliced: {others[0]} spans all heads, and its norm over those that "
            f"stay would be another one. {_MASK}"
        )
    wrong = sorted(name for name, cut in short.items() if changed.get(name) != cut.shape)
    if wrong:
        raise UnsupportedModelError(
            f"{kind} cannot be sliced: its configuration cannot state head_dim, the class computes "
            f"it from hidden_size and would not take {wrong[0]} with {n_heads} heads. {_MASK}"
        )
    declaring = CONFIG_MAPPING[kind]
    return is_dataclass(declaring) and "head_dim" in {field.name for field in fields(declaring)}


def _shapes(config: Mapping[str, Any]) -> dict[str, tuple[int, ...]]:
    """Shapes of all weights of a model that is never given memory."""
    made = CONFIG_MAPPING[config["model_type"]].from_dict(deepcopy(dict(config)))
    with torch.device("meta"):
        module = AutoModelForCausalLM.from_config(made)
    return {name: tuple(weight.shape) for name, weight in module.state_dict().items()}


def _below_blocks(name: str) -> str:
    """`model.layers.3.self_attn...` to `3.self_attn...`, with or without leading parts."""
    match = re.search(r"(?:^|\.)(\d+\..+)", name)
    return match[1] if match else name


def _disk_bytes(
    masking: PruningPlan, shards: Mapping[str, Header], cuts: Sequence[tuple[str, TensorCut]]
) -> int:
    files = sum((masking.source / name).stat().st_size for name in masking.files)
    gone = sum(cut.tensor.n_bytes - cut.n_bytes for _, cut in cuts)
    return files + sum(header.size for header in shards.values()) - gone + SPARE


def _described(plan: SlicingPlan) -> Iterator[str]:
    masking = plan.masking
    yield (
        f"{plan.source.name} ({masking.model_type}): cut out {counted(len(plan.heads), 'head')}, "
        f"{', '.join(map(str, plan.heads))}"
    )
    yield (
        f"each layer keeps {plan.n_heads} of {masking.n_heads} query heads and {plan.n_kv_heads} "
        f"of {masking.n_kv_heads} kv heads, of width {plan.d_head}, and numbers them anew"
    )
    if not plan.declared:
        yield (
            f"warning: the configuration of {masking.model_type} does not declare head_dim; "
            "transformers obeys it, but check any other engine"
        )
    for name, cut in plan.cuts:
        yield f"{name}: {cut.tensor.name} {list(cut.tensor.shape)} becomes {list(cut.shape)}"
    yield f"{counted(plan.removed_parameters, 'weight')} in {plan.removed_bytes:,} bytes go"
    if masking.left_out:
        yield f"left behind (other formats hold the heads): {', '.join(masking.left_out)}"
    yield f"disk needed: {masking.disk_bytes / 1e6:,.1f} MB"
