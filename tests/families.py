"""Tiny random models of every family that must work, in float64, built from configurations."""

from __future__ import annotations

from copy import deepcopy
from typing import Any

import torch
import transformers as hf

COMMON: dict[str, Any] = {
    "vocab_size": 61,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "max_position_embeddings": 64,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}

GATED = ("llama", "mistral", "qwen2", "qwen3", "gemma2", "gemma3", "phi3", "olmo2", "granite")
"""Families whose MLPs have a gate and no experts."""
GQA = {"num_key_value_heads": 2}
HEAD = {"head_dim": 12}  # heads x head_dim differs from the hidden size
_GPT = {"vocab_size": 61, "n_positions": 64, "n_embd": 32, "n_layer": 3, "n_head": 4}
_ENDS = {"bos_token_id": 1, "eos_token_id": 2}

FAMILIES: dict[str, hf.PretrainedConfig] = {
    "gpt2": hf.GPT2Config(**_GPT, **_ENDS),
    "gptj": hf.GPTJConfig(**_GPT, rotary_dim=4, **_ENDS),
    "neox": hf.GPTNeoXConfig(**COMMON),
    "neox-sequential": hf.GPTNeoXConfig(**COMMON, use_parallel_residual=False),
    "opt": hf.OPTConfig(**COMMON, ffn_dim=48, word_embed_proj_dim=32),
    "opt-post-ln": hf.OPTConfig(
        **COMMON, ffn_dim=48, word_embed_proj_dim=24, do_layer_norm_before=False
    ),
    "llama": hf.LlamaConfig(**COMMON, **GQA),
    "mistral": hf.MistralConfig(**COMMON, **GQA, sliding_window=6),
    "mixtral": hf.MixtralConfig(
        **COMMON,
        **GQA,
        num_local_experts=3,
        num_experts_per_tok=2,
        experts_implementation="eager",  # the grouped kernel knows no float64
    ),
    "qwen2": hf.Qwen2Config(**COMMON, **GQA),
    "qwen3": hf.Qwen3Config(**COMMON, **GQA, **HEAD),
    "gemma2": hf.Gemma2Config(
        **COMMON,
        **GQA,
        **HEAD,
        sliding_window=6,
        attn_logit_softcapping=5.0,
        final_logit_softcapping=7.0,
    ),
    "gemma3": hf.Gemma3TextConfig(
        **COMMON,
        **GQA,
        **HEAD,
        sliding_window=6,
        layer_types=["sliding_attention", "full_attention", "sliding_attention"],
    ),
    "phi": hf.PhiConfig(**COMMON, **GQA),
    "phi3": hf.Phi3Config(**COMMON, **GQA),
    "olmo2": hf.Olmo2Config(**COMMON, **GQA),
    "granite": hf.GraniteConfig(
        **COMMON,
        **GQA,
        residual_multiplier=0.7,
        attention_multiplier=0.4,
        embedding_multiplier=3.0,
        logits_scaling=0.5,
    ),
}


def tiny(family: str, seed: int = 0, dtype: torch.dtype = torch.float64) -> Any:
    """A random module of the family, weights large enough that heads matter; norms not trivial."""
    torch.manual_seed(seed)
    config = deepcopy(FAMILIES[family])  # a module may change its own configuration
    module = hf.AutoModelForCausalLM.from_config(config, attn_implementation=_kernel(family))
    with torch.no_grad():
        for parameter in module.parameters():
            scale = 0.3 if parameter.ndim > 1 else 0.1
            parameter.add_(torch.randn_like(parameter) * scale)
    return module.to(dtype).eval()


def _kernel(family: str) -> str:
    # transformers refuses SDPA for soft-capped attention; GPT-J knows only its own.
    return "eager" if family in ("gemma2", "gptj") else "sdpa"


def ids(batch: int = 3, length: int = 9, seed: int = 1, vocab: int = 61) -> torch.Tensor:
    """Random token ids without the special ones."""
    return torch.randint(3, vocab, (batch, length), generator=torch.Generator().manual_seed(seed))
