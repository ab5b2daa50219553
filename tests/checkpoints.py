"""Tiny checkpoint folders for tests of surgery, and looks into them."""

from __future__ import annotations

import json
from copy import deepcopy
from pathlib import Path
from typing import Any

import torch
import transformers as hf
from blake3 import blake3
from families import FAMILIES, ids, tiny
from mnemoscope.interventions.checkpoint_surgery import plan_pruning, prune_checkpoint
from mnemoscope.models import HeadId, TokenBatch, wrap
from mnemoscope.models.anatomy import ARCHITECTURES
from safetensors.torch import load_file, save_file

HEADS = (HeadId(0, 1), HeadId(2, 3), HeadId(2, 0))


ASKED = ("factor", "mean_outputs", "projection", "all_shared", "allow_no_tokenizer")


def hash_of(content: bytes) -> str:
    """As manifests write it."""
    return f"blake3:{blake3(content).hexdigest()}"


def save(
    folder: Path,
    family: str,
    dtype: torch.dtype = torch.float32,
    shard: str = "20KB",
    **changes: Any,
) -> Path:
    """A tiny random checkpoint with what else such folders hold; `changes` as in `changed`."""
    module = changed(family, **changes).to(dtype) if changes else tiny(family, dtype=dtype)
    module.save_pretrained(folder, max_shard_size=shard)
    (folder / "tokenizer.json").write_text('{"version": "1.0"}')
    (folder / "chat_template.jinja").write_text("{{ messages }}\n")
    (folder / "code").mkdir()
    (folder / "code" / "modeling.py").write_text("x = 1\n")
    return folder


def changed(family: str, **changes: Any) -> Any:
    """A random model of a family whose configuration says something else in places."""
    config = type(FAMILIES[family])(**{**deepcopy(FAMILIES[family]).to_dict(), **changes})
    torch.manual_seed(0)
    module = hf.AutoModelForCausalLM.from_config(config)
    for parameter in module.parameters():
        parameter.data += 0.3 * torch.randn_like(parameter)
    return module


def save_wide(folder: Path) -> int:
    """A Llama whose tensors are many small chunks long; the size of its one weight file."""
    config = hf.LlamaConfig(
        vocab_size=8000,
        hidden_size=256,
        intermediate_size=256,
        num_hidden_layers=2,
        num_attention_heads=8,
        num_key_value_heads=2,
    )
    hf.LlamaForCausalLM(config).save_pretrained(folder)
    (folder / "tokenizer.json").write_text("{}")
    return (folder / "model.safetensors").stat().st_size


def prune(source: Path, out: Path, heads=HEADS, **how) -> Path:
    """Plan and prune; keywords of both."""
    asked = {name: how.pop(name) for name in ASKED if name in how}
    return prune_checkpoint(plan_pruning(source, heads, **asked), out, **how)


def load(folder: Path, family: str = "llama", *, self_test: bool = False):
    kernel = "eager" if family in ("gemma2", "gptj") else "sdpa"
    module, info = hf.AutoModelForCausalLM.from_pretrained(
        folder, dtype=torch.float32, attn_implementation=kernel, output_loading_info=True
    )
    assert not info["missing_keys"]
    assert not info["unexpected_keys"]
    return wrap(module, name=str(folder), self_test=self_test)


def batch() -> TokenBatch:
    tokens = ids(batch=2, length=8)
    mask = torch.ones_like(tokens, dtype=torch.bool)
    mask[0, :3] = False
    return TokenBatch(tokens.masked_fill(~mask, 0), mask)


def files(folder: Path) -> dict[str, bytes]:
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file()
    }


def weights(folder: Path) -> dict[str, torch.Tensor]:
    loaded = [load_file(path) for path in sorted(folder.glob("*.safetensors"))]
    return {name: tensor for shard in loaded for name, tensor in shard.items()}


def head_block(weight: torch.Tensor, family: str, head: int, n_heads: int = 4) -> torch.Tensor:
    """The head's `[d_v, d_model]` output weights, taken the long way round."""
    rows = weight if family == "gpt2" else weight.T
    d_v = rows.shape[0] // n_heads
    return rows[head * d_v : (head + 1) * d_v]


def bits(tensor: torch.Tensor) -> bytes:
    return tensor.contiguous().view(torch.uint8).numpy().tobytes()


def projection_name(family: str, layer: int) -> str:
    spec = ARCHITECTURES[FAMILIES[family].model_type]
    return f"{spec.blocks}.{layer}.{spec.o_proj}.weight"


def edit_config(folder: Path, **changes) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def rewrite(single: Path, change) -> None:
    """Save the one-file checkpoint again with `change` applied to its tensors."""
    tensors = weights(single)
    change(tensors)
    save_file(tensors, single / "model.safetensors", metadata={"format": "pt"})


O_PROJ = "model.layers.1.self_attn.o_proj.weight"
