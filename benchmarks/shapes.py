"""Random models of known shapes, so that the figures need no checkpoint."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from mnemoscope.models import HookedModel, wrap
from mnemoscope.models.anatomy import part
from mnemoscope.models.tokens import TokenBatch
from torch import nn
from transformers import AutoModelForCausalLM, GPT2Config, LlamaConfig, PretrainedConfig

_ENDS = {"bos_token_id": 1, "eos_token_id": 2}

GPT2_SMALL = "GPT-2 small (12 x 12 x 768)"
LLAMA = "Llama (16 x 16, 4 kv, x 1024)"
TINY_GPT2 = "tiny GPT-2 (3 x 4 x 32)"
TINY_LLAMA = "tiny Llama (3 x 4, 2 kv, x 32)"

CONFIGS: dict[str, PretrainedConfig] = {
    GPT2_SMALL: GPT2Config(**_ENDS),
    LLAMA: LlamaConfig(
        vocab_size=32000,
        hidden_size=1024,
        intermediate_size=2816,
        num_hidden_layers=16,
        num_attention_heads=16,
        num_key_value_heads=4,
        max_position_embeddings=2048,
        **_ENDS,
    ),
    TINY_GPT2: GPT2Config(vocab_size=61, n_positions=64, n_embd=32, n_layer=3, n_head=4, **_ENDS),
    TINY_LLAMA: LlamaConfig(
        vocab_size=61,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=3,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=64,
        **_ENDS,
    ),
}


@dataclass(frozen=True)
class LayerWeights:
    """Weights of one block that a token is multiplied with."""

    attention: int
    mlp: int


def random_model(name: str, seed: int = 0) -> HookedModel:
    """The shape with random float32 weights, three times the usual size so that heads matter."""
    torch.manual_seed(seed)
    module = AutoModelForCausalLM.from_config(CONFIGS[name], attn_implementation="sdpa")
    with torch.no_grad():
        for parameter in module.parameters():
            if parameter.ndim > 1:
                parameter.mul_(3)
    return wrap(module.float(), name=name)


def random_batch(model: HookedModel, rows: int, length: int, seed: int) -> TokenBatch:
    """Random prompts of one length."""
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(3, model.anatomy.d_vocab, (rows, length), generator=generator)
    return model.batch(ids.tolist())


def layer_weights(model: HookedModel) -> LayerWeights:
    """Matrix weights of attention and MLP in one block (the blocks are alike)."""
    block = part(model.module, model.anatomy.spec.blocks)[0]
    spec = model.anatomy.spec
    return LayerWeights(_matrices(part(block, spec.attn)), _matrices(part(block, spec.mlp_out)))


def _matrices(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters() if p.ndim > 1)
