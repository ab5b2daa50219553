"""Proofs in half precision: as strict as the model's own rounding allows, and no stricter."""

from __future__ import annotations

import pytest
import torch
from families import ids
from mnemoscope.interventions import end_total_effect, path_patching
from mnemoscope.interventions.end_total_effect import end_total_effects
from mnemoscope.interventions.path_patching import build_chain, end_states
from mnemoscope.interventions.rounding import half_precision_bound, shaken
from mnemoscope.models import HookedModel, load_model, wrap
from mnemoscope.models.errors import UnsupportedModelError
from transformers import LlamaConfig, LlamaForCausalLM

LAYERS = 32


def deep(dtype: torch.dtype, layers: int = LAYERS) -> HookedModel:
    """A Llama of many narrow layers whose blocks matter."""
    config = LlamaConfig(
        vocab_size=61,
        hidden_size=32,
        intermediate_size=96,
        num_hidden_layers=layers,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=64,
        bos_token_id=1,
        eos_token_id=2,
    )
    torch.manual_seed(0)
    module = LlamaForCausalLM(config)
    with torch.no_grad():
        for parameter in module.parameters():
            if parameter.ndim > 1:
                parameter.mul_(5)
    return wrap(module.eval().to(dtype))


@pytest.fixture(scope="module")
def half() -> HookedModel:
    return deep(torch.bfloat16)


def test_a_deep_model_in_half_precision_is_proved_up_to_its_rounding(half, monkeypatch):
    build_chain(half)
    monkeypatch.setattr(path_patching, "half_precision_bound", lambda *_: 0.0)
    with pytest.raises(UnsupportedModelError, match="not exact"):
        build_chain(half)  # the fixed number alone refuses it


def test_mixed_positions_are_refused_in_half_precision(half):
    """As in `test_path_patching`: a convolution over positions, here in one layer of many."""
    mlp = half.module.model.layers[LAYERS // 2].mlp
    inner = mlp.forward
    mlp.forward = lambda x: inner(x) + 0.5 * x.roll(1, dims=1)
    try:
        with pytest.raises(UnsupportedModelError, match="not exact"):
            build_chain(half)
    finally:
        del mlp.forward


def test_the_bound_is_of_the_size_of_what_rounding_does(half):
    """The pass in bfloat16 against the same weights in float64: half the bound lies above, not
    tenfold."""
    batch = half.batch(ids(6).tolist())
    exact = wrap(deep(torch.bfloat16).module.double())
    rounded = half.logits(batch).double()
    error = float((rounded - exact.logits(batch)).abs().max())
    bound = half_precision_bound(half, lambda: half.logits(batch).double(), rounded, 1.0)
    assert 0.5 * error < bound < 20 * error


def test_nothing_is_excused_in_float32():
    model = deep(torch.float32, layers=2)
    assert half_precision_bound(model, lambda: torch.zeros(1), torch.ones(1), 1.0) == 0.0


def test_shaking_is_taken_off(half):
    batch = half.batch(ids(2).tolist())
    before = half.logits(batch)
    with shaken(half):
        assert not torch.equal(half.logits(batch), before)
    assert torch.equal(half.logits(batch), before)


def test_total_effects_are_proved_the_same_way(half, monkeypatch):
    batch, other = half.batch(ids(3, seed=1).tolist()), half.batch(ids(3, seed=2).tolist())
    tokens = torch.arange(60).expand(3, -1)
    z = end_states(half, other).z
    end_total_effects(half, batch, z, tokens)
    monkeypatch.setattr(end_total_effect, "hooked_end_logits", _off)
    with pytest.raises(UnsupportedModelError, match="differs from the full pass"):
        end_total_effects(half, batch, z, tokens)


def _off(model, batch, replacement, token_ids, heads):
    return torch.ones(token_ids.shape)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_a_real_model_in_half_precision(dtype):
    build_chain(load_model("smollm2", dtype=dtype))
