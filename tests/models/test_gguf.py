"""A GGUF file gives the model that was written into it, once, and every later load the same."""

from __future__ import annotations

from pathlib import Path

import gguf
import numpy as np
import pytest
import torch
from families import tiny
from mnemoscope.models import load_model
from transformers import LlamaForCausalLM

LETTERS = [*"abcdefghijklmnopqrstuvwxyz", "Ġ"]
TOKENS = [
    "<pad>",
    "<s>",
    "</s>",
    *LETTERS,
    "th",
    "the",
    *(f"Ġ{one}" for one in LETTERS),
    "in",
    "an",
]
PARTS = {
    "input_layernorm": "attn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "post_attention_layernorm": "ffn_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}
"""The format's name of each part of a block."""


@pytest.fixture(scope="module")
def module() -> LlamaForCausalLM:
    return tiny("llama", dtype=torch.float32)


@pytest.fixture(scope="module")
def written(module: LlamaForCausalLM, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("gguf") / "little.gguf"
    write_gguf(module, path)
    return path


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("MNEMOSCOPE_CACHE", str(tmp_path))
    return tmp_path


def write_gguf(module: LlamaForCausalLM, path: Path) -> None:
    """The model in float32, query and key rows in the order of the format's rotary embedding."""
    config = module.config
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_context_length(config.max_position_embeddings)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_embedding_length(config.hidden_size)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_dimension_count(config.head_dim)
    writer.add_rope_freq_base(10_000.0)
    writer.add_vocab_size(config.vocab_size)
    writer.add_tokenizer_model("gpt2")
    writer.add_token_list(TOKENS)
    writer.add_token_types(
        [gguf.TokenType.CONTROL] * 3 + [gguf.TokenType.NORMAL] * (len(TOKENS) - 3)
    )
    writer.add_token_merges(["t h", "th e"])
    writer.add_bos_token_id(config.bos_token_id)
    writer.add_eos_token_id(config.eos_token_id)
    for name, weights in module.state_dict().items():
        heads = {"q_proj": config.num_attention_heads, "k_proj": config.num_key_value_heads}
        turned = next((count for part, count in heads.items() if part in name), None)
        array = weights.numpy()
        writer.add_tensor(gguf_name(name), array if turned is None else paired(array, turned))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def gguf_name(name: str) -> str:
    """What the format calls this tensor."""
    whole = {
        "model.embed_tokens": "token_embd",
        "model.norm": "output_norm",
        "lm_head": "output",
    }
    stem = name.removesuffix(".weight")
    if stem in whole:
        return f"{whole[stem]}.weight"
    layer, part = stem.removeprefix("model.layers.").split(".", 1)
    return f"blk.{layer}.{PARTS[part]}.weight"


def paired(weights: np.ndarray, heads: int) -> np.ndarray:
    """Rows that are rotated together side by side, where Hugging Face has halves."""
    d_head = len(weights) // heads
    halves = weights.reshape(heads, 2, d_head // 2, -1)
    return np.ascontiguousarray(halves.swapaxes(1, 2).reshape(weights.shape))


def test_the_model_is_the_one_that_was_written(module: LlamaForCausalLM, written: Path) -> None:
    model = load_model(written)
    assert model.pieces(model.tokens("the path").ids[0].tolist())[0] == "the"
    for name, weights in module.state_dict().items():
        torch.testing.assert_close(model.module.state_dict()[name], weights, rtol=0, atol=0)
    ids = torch.tensor([[1, 5, 9, 28, 3, 7]])
    batch = model.batch(ids.tolist())
    want = module(ids).logits[:, -1]
    torch.testing.assert_close(model.logits(batch, at="end")[:, 0], want, rtol=0, atol=1e-5)


def test_it_is_converted_once(written: Path, cache: Path) -> None:
    first = load_model(written)
    (folder,) = cache.glob("gguf-*/")
    made = {path.name: path.stat().st_mtime_ns for path in folder.iterdir()}
    again = load_model(written)
    assert {path.name: path.stat().st_mtime_ns for path in folder.iterdir()} == made
    assert again.weights_sha256 == first.weights_sha256
    assert written.name in again.source


def test_a_fresh_conversion_gives_the_same(
    written: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = load_model(written)
    monkeypatch.setenv("MNEMOSCOPE_CACHE", str(tmp_path / "another"))
    fresh = load_model(written)
    assert list((tmp_path / "another").glob("gguf-*/"))
    assert fresh.weights_sha256 == first.weights_sha256
    assert fresh.tokenizer_sha256 == first.tokenizer_sha256
