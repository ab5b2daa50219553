"""Random weights in the shape of a model, made where they are used: no copy on the host."""

from __future__ import annotations

import torch
from costs import Shape
from mnemoscope.models import HookedModel, wrap
from transformers import AutoModelForCausalLM, LlamaConfig


def random_module(shape: Shape, device: str, dtype: torch.dtype, context: int) -> torch.nn.Module:
    """A Hugging Face Llama of this shape that reads `context` tokens, freshly initialised."""
    config = LlamaConfig(
        vocab_size=shape.vocab,
        hidden_size=shape.d_model,
        intermediate_size=shape.d_mlp,
        num_hidden_layers=shape.layers,
        num_attention_heads=shape.heads,
        num_key_value_heads=shape.kv_heads,
        max_position_embeddings=context,
        tie_word_embeddings=shape.tied,
        bos_token_id=1,
        eos_token_id=2,
    )
    torch.manual_seed(0)
    with torch.device(device):
        return AutoModelForCausalLM.from_config(config, dtype=dtype, attn_implementation="sdpa")


def random_model(shape: Shape, device: str, dtype: torch.dtype, context: int) -> HookedModel:
    """The same, wrapped."""
    module = random_module(shape, device, dtype, context)
    return wrap(module, name=shape.name, source="random weights")
