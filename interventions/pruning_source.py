"""What a checkpoint folder holds that pruning needs to know, from configuration and headers only.

Refuses, with the reason, whatever would be pruned wrongly: adapters, quantised weights, attention
without one output slice a head, matrices that several layers share.
"""

from __future__ import annotations

import json
import math
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from transformers import CONFIG_MAPPING

from ..models.anatomy import ARCHITECTURES, Anatomy, ArchSpec
from ..models.checkpoint_files import Header, TensorEntry, read_shards
from ..models.errors import CheckpointError, DamagedCheckpointError, UnsupportedModelError
from .safetensors_bytes import FLOATS

LAYER = "{layer}"
"""Stands for the layer's number in a projection's name."""

_TOKENIZERS = {"tokenizer.json", "tokenizer.model", "vocab.json", "vocab.txt", "spiece.model"}
_TOKENIZERS |= {"tekken.json", "sentencepiece.bpe.model"}
_QUANTISED_NOTES = ("quantize_config.json", "quant_config.json", "hf_quant_config.json")
_OTHER_WEIGHTS = {".safetensors", ".bin", ".pt", ".pth", ".ckpt", ".h5", ".msgpack", ".gguf"}
_OTHER_WEIGHTS |= {".onnx", ".onnx_data"}
_NOT_THE_MODEL = {".git", ".cache"}
_SOFTMAX_LAYERS = {"full_attention", "sliding_attention", "chunked_attention"}
_OTHER_ATTENTION = {
    "kv_lora_rank": "multi-head latent attention",
    "linear_num_value_heads": "linear attention layers",
    "hybrid_override_pattern": "hybrid layers",
    "mamba_d_state": "hybrid layers (Mamba)",
    "mamba_n_heads": "hybrid layers (Mamba)",
    "ssm_cfg": "state-space layers",
    "state_size": "state-space layers",
    "block_types": "recurrent layers",
    "rwkv_version": "recurrent layers",
}


@dataclass(frozen=True)
class Source:
    """One checkpoint: its anatomy and, layer by layer, the (file, tensor) that heads write
    through."""

    folder: Path
    anatomy: Anatomy
    shards: Mapping[str, Header]
    projections: tuple[tuple[str, TensorEntry], ...]
    biases: tuple[tuple[str, TensorEntry] | None, ...]
    block_scaled: bool
    """8-bit floats with a scale for each block of columns, no block in two heads."""

    @property
    def shared(self) -> bool:
        """All layers use one matrix."""
        return len(self.projections) > 1 and len(set(self.projections)) == 1


def read_source(folder: Path, *, projection: str | None, all_shared: bool) -> Source:
    """Read and check one folder; `projection` and `all_shared` as in `plan_pruning`.

    Raises `CheckpointError`, `DamagedCheckpointError`, `UnsupportedModelError`.
    """
    config, block = _read_config(folder)
    shards = read_shards(folder)
    found = _named(shards)
    n_layers = int(config.num_hidden_layers)
    spec = ARCHITECTURES[config.model_type]
    if projection is None:
        names = _names_of_table(spec, n_layers, found, all_shared, scaled=block is not None)
    else:
        names = _names_of_pattern(projection, n_layers, found, all_shared)
    projections = tuple(found[name][0] for name in names)
    anatomy = _anatomy(config, [tensor for _, tensor in projections])
    return Source(
        folder=folder,
        anatomy=anatomy,
        shards=shards,
        projections=projections,
        biases=tuple(_bias(name, found, anatomy.d_model) for name in names),
        block_scaled=_check_scales(names, found, anatomy, block),
    )


def other_files(
    folder: Path, shards: Mapping[str, Header], own: Sequence[str]
) -> tuple[tuple[str, ...], tuple[str, ...], int]:
    """Files that come along, what stays behind, and the bytes of the first; `own` (the notes of an
    earlier pruning) are neither."""
    files, left_out, n_bytes = [], [], 0
    for here, subfolders, names in os.walk(folder):
        dropped = [n for n in subfolders if n in _NOT_THE_MODEL or (Path(here) / n).is_symlink()]
        noted = [n for n in subfolders if (Path(here) / n).relative_to(folder).as_posix() in own]
        subfolders[:] = [name for name in subfolders if name not in (*dropped, *noted)]
        left_out += [f"{(Path(here) / name).relative_to(folder).as_posix()}/" for name in dropped]
        for path in [Path(here) / name for name in names]:
            relative = path.relative_to(folder).as_posix()
            if relative in shards or relative in own:
                continue
            if not path.is_file():
                raise DamagedCheckpointError(f"{path} is a broken link: download it again.")
            if path.suffix in _OTHER_WEIGHTS:
                left_out.append(relative)
            else:
                files.append(relative)
                n_bytes += path.stat().st_size
    return tuple(sorted(files)), tuple(sorted(left_out)), n_bytes


def check_tokenizer(folder: Path) -> None:
    """Raises `CheckpointError` when the folder has no tokenizer that would come along."""
    if not any((folder / name).is_file() for name in _TOKENIZERS) and not any(
        folder.glob("*.tiktoken")
    ):
        raise CheckpointError(
            f"{folder} has no tokenizer (tokenizer.json or the like): put it beside the weights, "
            "or say allow_no_tokenizer (--no-tokenizer) to go on without."
        )


def licence(folder: Path) -> str | None:
    """The licence that the model card's front matter names."""
    card = folder / "README.md"
    if not card.is_file():
        return None
    text = card.read_text("utf-8", errors="replace")
    front = re.match(r"---\s*\n(.*?)\n---\s*(\n|$)", text, re.DOTALL)
    named = re.search(r"^license:[ \t]*(\S.*)$", front[1], re.MULTILINE) if front else None
    return named[1].strip().strip("\"'") if named else None


def hub_origin(folder: Path) -> tuple[str | None, str | None]:
    """(hub id, revision) as far as the folder's place tells: a snapshot of the hub's cache, or a
    download into a local folder (which notes the revision but not the id)."""
    if folder.parent.name == "snapshots" and folder.parent.parent.name.startswith("models--"):
        return folder.parent.parent.name.removeprefix("models--").replace("--", "/"), folder.name
    note = folder / ".cache" / "huggingface" / "download" / "config.json.metadata"
    if note.is_file():
        first = note.read_text("utf-8", errors="replace").partition("\n")[0].strip()
        return None, first if re.fullmatch(r"[0-9a-f]{40}", first) else None
    return None, None


# -- config.json ----------------------------------------------------------------------------------


def _read_config(source: Path) -> tuple[Any, tuple[int, int] | None]:
    """The configuration as transformers understands it, and the block of 8-bit scales if any."""
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
    _check_attention(raw)
    if model_type not in ARCHITECTURES:
        raise UnsupportedModelError(
            f"architecture {model_type!r} is not in the table of known decoders "
            f"({', '.join(sorted(ARCHITECTURES))}). Add an entry to models/anatomy.py."
        )
    block = _scale_block(raw, source)
    if raw.get("pruned_heads"):
        raise UnsupportedModelError(
            f"{source.name} lists pruned_heads in its config.json, so its heads are renumbered: "
            "use the original checkpoint."
        )
    try:
        return CONFIG_MAPPING[model_type].from_dict(raw), block
    except Exception as error:  # each configuration class validates in its own way
        raise DamagedCheckpointError(f"{path} is not valid: {error}") from error


def _check_attention(raw: Mapping[str, Any]) -> None:
    kinds = raw.get("layer_types") or ()
    reasons = [f"{kind} layers" for kind in kinds if kind not in _SOFTMAX_LAYERS]
    reasons += [reason for key, reason in _OTHER_ATTENTION.items() if raw.get(key)]
    if reasons:
        raise UnsupportedModelError(
            f"{raw.get('model_type')!r} has {reasons[0]}: their heads are not slices of one output "
            "projection a layer, so they cannot be pruned here."
        )


def _scale_block(raw: Mapping[str, Any], source: Path) -> tuple[int, int] | None:
    """Rows and columns that share one scale (8-bit floats); None for unquantised weights.

    Raises `UnsupportedModelError` for every other quantisation.
    """
    notes = [name for name in _QUANTISED_NOTES if (source / name).is_file()]
    how = raw.get("quantization_config") or raw.get("compression_config")
    if not how and not notes:
        return None
    method = how.get("quant_method") if isinstance(how, dict) else None
    block = how.get("weight_block_size") if isinstance(how, dict) else None
    whole = isinstance(block, list) and len(block) == 2 and all(type(n) is int for n in block)
    if notes or method != "fp8" or not whole or not block or min(block) < 1:
        raise _quantised(f"{source.name} ({method or (notes and notes[0]) or 'unknown method'})")
    return block[0], block[1]


# -- which tensors --------------------------------------------------------------------------------


def _named(shards: Mapping[str, Header]) -> dict[str, list[tuple[str, TensorEntry]]]:
    found: dict[str, list[tuple[str, TensorEntry]]] = {}
    for shard, header in shards.items():
        for tensor in header.tensors:
            found.setdefault(tensor.name, []).append((shard, tensor))
    return found


def _names_of_table(
    spec: ArchSpec,
    n_layers: int,
    found: Mapping[str, Sequence[object]],
    all_shared: bool,
    *,
    scaled: bool,
) -> list[str]:
    """The output projection of each layer, found by name from the end of the path."""
    prefix, blocks = spec.blocks.rsplit(".", 1)
    pattern = re.compile(rf"(?:.*\.)?{blocks}\.(\d+)\.{re.escape(spec.o_proj)}\.(.+)")
    passed = {"bias", "weight_scale_inv"} if scaled else {"bias"}
    layers: dict[int, list[str]] = {}
    for name, places in found.items():
        match = pattern.fullmatch(name)
        if match and match[2] not in passed:
            layers.setdefault(int(match[1]), []).extend([name] * len(places))
    one = next(iter(layers)) if len(layers) == 1 and n_layers > 1 and all_shared else None
    for layer in range(n_layers) if one is None else [one]:
        path = f"{prefix}.{blocks}.{layer}.{spec.o_proj}.weight"
        _check_found(layer, path, layers.get(layer, []))
    if one is not None:
        return layers[one] * n_layers
    if len(layers) != n_layers:
        raise UnsupportedModelError(
            f"the configuration promises {n_layers} layers but the weights have {len(layers)}: "
            "the checkpoint and its config.json do not belong together."
        )
    return [layers[layer][0] for layer in range(n_layers)]


def _check_found(layer: int, path: str, names: Sequence[str]) -> None:
    """Exactly one weight, under its full path or, as base models are saved, without its first part.

    Raises `UnsupportedModelError` with the reason otherwise.
    """
    if not names:
        raise UnsupportedModelError(
            f"layer {layer} has no output projection ({path}) of its own: its block is shared "
            "with another layer and cannot be pruned alone, or the checkpoint is incomplete. If "
            "one matrix serves every layer, say all_shared (--all-shared) to prune it in all."
        )
    tail = path.rsplit(f".{layer}.", 1)[1]
    strange = sorted(name for name in names if not name.endswith(tail))
    if strange:
        raise UnsupportedModelError(
            f"layer {layer} stores {strange[0]}: it is quantised or has an unmerged adapter "
            "inside; save it dequantised and merged, and prune that."
        )
    hint = f"name the right one with projection (--projection), {LAYER} for the number"
    if len(names) > 1:
        raise UnsupportedModelError(
            f"layer {layer} has several output projections ({', '.join(sorted(names))}): it is "
            f"ambiguous which one the model uses, so {hint}."
        )
    if names[0] not in (path, path.split(".", 1)[1]):
        raise UnsupportedModelError(
            f"layer {layer}: expected {path} but found {names[0]}, so the architecture entry does "
            f"not fit this checkpoint; if you know what it is, {hint}."
        )


def _names_of_pattern(
    projection: str, n_layers: int, found: Mapping[str, Sequence[object]], all_shared: bool
) -> list[str]:
    names = [projection.replace(LAYER, str(layer)) for layer in range(n_layers)]
    for name in names:
        if len(found.get(name, ())) != 1:
            raise UnsupportedModelError(
                f"projection {projection!r}: the weights hold {name} {len(found.get(name, ()))} "
                f"times, not once; write a full tensor name with {LAYER} for the layer's number."
            )
    if len(set(names)) < n_layers and not all_shared:
        raise UnsupportedModelError(
            f"{projection} is one matrix that all layers share, so pruning it prunes them all: say "
            "all_shared (--all-shared) if that is meant."
        )
    return names


def _bias(
    name: str, found: Mapping[str, Sequence[tuple[str, TensorEntry]]], d_model: int
) -> tuple[str, TensorEntry] | None:
    places = found.get(f"{name.removesuffix('.weight')}.bias", ())
    good = [place for place in places if place[1].shape == (d_model,)]
    return good[0] if len(places) == 1 and good and good[0][1].dtype in FLOATS else None


def _check_scales(
    names: Sequence[str],
    found: Mapping[str, Sequence[tuple[str, TensorEntry]]],
    anatomy: Anatomy,
    block: tuple[int, int] | None,
) -> bool:
    """True when the projections carry block scales that stay within heads.

    A zero times any scale is zero, but a block in two heads is no place to edit one of them.
    """
    scaled = [name for name in names if f"{name}_scale_inv" in found]
    for name in scaled:
        rows, columns = found[name][0][1].shape
        fits = block is not None and anatomy.d_v % block[1] == 0 and not anatomy.spec.transposed
        if block is None or not fits:
            raise _quantised(f"{name} has a scale for each block, but {anatomy.d_v} wide heads; it")
        if found[f"{name}_scale_inv"][0][1].shape != (
            math.ceil(rows / block[0]),
            math.ceil(columns / block[1]),
        ):
            raise _quantised(f"{name} has scales of an unknown layout, so it")
    return bool(scaled)


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
        d_mlp=None,  # what follows is not read here; this object does not leave the floor
        d_vocab=int(config.vocab_size),
        max_context=None,
        parallel=False,
        post_ln=False,
    )


def _quantised(what: str) -> UnsupportedModelError:
    return UnsupportedModelError(
        f"{what} is quantised: its blocks span heads, so save it dequantised and prune that."
    )
