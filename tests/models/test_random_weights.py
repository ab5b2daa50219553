"""The control with fresh weights: same shape, same tokenizer, nothing learned."""

from __future__ import annotations

import pytest
import torch
from families import FAMILIES, ids, tiny
from mnemoscope.models import load_model, wrap
from mnemoscope.models.random_weights import random_initialised
from mnemoscope.models.tokens import pad


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_can_be_initialised_anew(family: str) -> None:
    model = wrap(tiny(family))
    fresh = random_initialised(model)
    shapes = {name: (p.shape, p.dtype) for name, p in model.module.named_parameters()}
    assert {name: (p.shape, p.dtype) for name, p in fresh.module.named_parameters()} == shapes
    assert fresh.module.config._attn_implementation == model.module.config._attn_implementation
    batch = pad(ids(2, 5).tolist())
    assert not torch.allclose(fresh.logits(batch), model.logits(batch))


def test_the_seed_fixes_the_weights_and_nothing_else_is_drawn() -> None:
    model = wrap(tiny("llama"))
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    first, again, other = (random_initialised(model, seed) for seed in (1, 1, 2))
    assert torch.equal(torch.rand(3), expected)
    assert first.weights_sha256 == again.weights_sha256 != other.weights_sha256
    assert first.name != model.name


def test_tokenizer_and_tying_stay() -> None:
    model = load_model("engram")
    fresh = random_initialised(model)
    assert fresh.tokenizer is model.tokenizer
    tied = [
        m.module.get_input_embeddings().weight is m.module.get_output_embeddings().weight
        for m in (model, fresh)
    ]
    assert tied[0] == tied[1]
