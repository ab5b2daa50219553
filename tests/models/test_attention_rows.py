"""`rows`: what the eager softmax of transformers gives, beside the model's own kernel."""

from __future__ import annotations

import copy
from functools import cache
from typing import Any

import plain
import pytest
import torch
import transformers as hf
from families import FAMILIES, ids, tiny
from mnemoscope.models import HeadId, HookedModel, MnemoscopeError, Site, TokenBatch, wrap
from mnemoscope.models.attention import seeing_attention
from mnemoscope.models.errors import UnitOutOfRangeError
from torch import Tensor
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

SIDES = ["none", "left", "right"]


@cache
def eager(family: str, dtype: torch.dtype) -> Any:
    """The same weights with eager attention; `copy`, as tiny models share their configuration."""
    module = copy.deepcopy(tiny(family, dtype=dtype))
    module.set_attn_implementation("eager")
    return module


@cache
def single(family: str) -> HookedModel:
    """The float32 model."""
    return wrap(tiny(family, dtype=torch.float32), name=family)


def setting(family: str, side: str) -> tuple[HookedModel, TokenBatch, Tensor]:
    """A model, a batch and its full patterns `[layer, batch, head, query, key]` by plain eager.

    Padded batches are in float32: eager attention of most families takes its softmax in float32,
    where the lowest float64 of a mask is -inf, and a query that sees only padding becomes NaN.
    """
    model = plain.model_of(family) if side == "none" else single(family)
    tokens, mask = (ids(), torch.ones(3, 9).long()) if side == "none" else plain.padded(side)
    out = plain.forward(eager(family, model.dtype), tokens, mask, output_attentions=True)
    return model, TokenBatch(tokens, mask.bool()), torch.stack(out.attentions).float()


def close(got: Tensor, want: Tensor, atol: float = 2e-5) -> None:
    torch.testing.assert_close(got, want, atol=atol, rtol=0)


@pytest.mark.parametrize("side", SIDES)
@pytest.mark.parametrize("family", list(FAMILIES))
def test_rows_are_the_eager_softmax(family: str, side: str) -> None:
    model, batch, patterns = setting(family, side)
    rows = model.rows(batch, "all")
    assert rows.dtype == torch.float32
    for row in range(3):
        real = batch.mask[row]
        close(rows[:, row][:, :, real], patterns[:, row][:, :, real])


@pytest.mark.parametrize("side", SIDES)
@pytest.mark.parametrize("family", list(FAMILIES))
def test_only_the_queries_asked_for_are_read(family: str, side: str) -> None:
    model, batch, patterns = setting(family, side)
    at_end = model.rows(batch)
    columns = torch.stack([batch.ends, batch.starts], dim=1)
    chosen = model.rows(batch, columns, layers=[2, 0])
    assert at_end.shape == (plain.LAYERS, 3, plain.HEADS, 1, 9)
    assert chosen.shape == (2, 3, plain.HEADS, 2, 9)
    for row in range(3):
        close(at_end[:, row, :, 0], patterns[:, row, :, batch.ends[row]])
        close(chosen[:, row], patterns[[2, 0], row][:, :, columns[row]])


@pytest.mark.parametrize("side", SIDES)
@pytest.mark.parametrize("family", list(FAMILIES))
def test_rows_are_distributions_over_the_past(family: str, side: str) -> None:
    model, batch, _ = setting(family, side)
    rows = model.rows(batch)[:, :, :, 0]
    close(rows.sum(-1), torch.ones(rows.shape[:-1]))
    for row in range(3):
        assert (rows[:, row][..., ~batch.mask[row]] == 0).all()


@pytest.mark.parametrize("family", ["mistral", "gemma2", "gemma3"])
def test_a_sliding_window_hides_what_is_behind_it(family: str) -> None:
    rows = plain.padded_model_of(family).rows(plain.padded_model_of(family).batch(ids().tolist()))
    far = rows[..., 0, :3]  # END is at 8 and sees 3..8 through a window of 6
    local = {"mistral": [0, 1, 2], "gemma2": [0, 2], "gemma3": [0, 2]}[family]
    for layer in range(plain.LAYERS):
        assert bool((far[layer] == 0).all()) == (layer in local)


@pytest.mark.parametrize("family", [f for f in FAMILIES if plain.kv_heads(f) == 2])
def test_heads_that_share_keys_have_rows_of_their_own(family: str) -> None:
    rows = plain.model_of(family).rows(plain.model_of(family).batch(ids().tolist()))
    assert (rows[:, :, 0] - rows[:, :, 1]).abs().max() > 1e-3


def test_gpt2_that_scales_by_layer() -> None:
    config = copy.deepcopy(FAMILIES["gpt2"])
    config.scale_attn_by_inverse_layer_idx = True
    torch.manual_seed(0)
    module = hf.AutoModelForCausalLM.from_config(config, attn_implementation="sdpa").eval()
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.3)
    model = wrap(module)
    rows = model.rows(model.batch(ids().tolist()), "all")
    module.set_attn_implementation("eager")
    patterns = plain.forward(module, ids(), output_attentions=True).attentions
    close(rows, torch.stack(patterns))


def test_rows_of_chosen_heads_of_one_layer() -> None:
    model = plain.model_of("llama")
    batch = model.batch(ids().tolist())
    every = model.rows(batch, "all")
    some = model.rows(batch, "all", heads=[HeadId(1, 3), HeadId(1, 0)])
    assert torch.equal(some, every[1:2][:, :, [3, 0]])


# -- the model goes on as if nobody looked --------------------------------------------------------


@pytest.mark.parametrize("family", list(FAMILIES))
def test_logits_do_not_change_while_rows_are_read(family: str) -> None:
    model = plain.model_of(family)
    batch = model.batch(ids().tolist())
    kept: list[Tensor] = []
    handle = model.module.register_forward_hook(lambda _, __, out: kept.append(out.logits))
    model.rows(batch)
    handle.remove()
    assert len(kept) == 1  # one pass
    assert torch.equal(kept[0], model.logits(batch, at="end"))


@pytest.mark.parametrize("family", ["llama", "gemma2", "gptj"])
def test_the_attention_implementation_is_put_back_also_after_an_error(family: str) -> None:
    model = plain.model_of(family)
    before = model.module.config._attn_implementation
    hooks, known = plain.hook_count(model.module), set(ALL_ATTENTION_FUNCTIONS)
    model.rows(model.batch(ids().tolist()))
    model.capture(model.batch([[5]]), [] if family == "gptj" else [Site.V])
    with pytest.raises(IndexError):
        model.rows(model.batch([[10**6]]))  # no such token
    assert model.module.config._attn_implementation == before
    assert plain.hook_count(model.module) == hooks
    assert set(ALL_ATTENTION_FUNCTIONS) == known


def test_two_models_that_are_read_at_once_see_their_own_attention() -> None:
    seen: dict[str, list[int]] = {"llama": [], "qwen2": []}
    one, other = plain.model_of("llama"), plain.model_of("qwen2")
    with (
        torch.no_grad(),
        seeing_attention(one.module, lambda layer, *_: seen["llama"].append(layer)),
        seeing_attention(other.module, lambda layer, *_: seen["qwen2"].append(layer)),
    ):
        one.module(ids())
    assert seen == {"llama": [0, 1, 2], "qwen2": []}


# -- errors ---------------------------------------------------------------------------------------


def test_what_does_not_exist_is_refused() -> None:
    model = plain.model_of("llama")
    batch = model.batch(ids().tolist())
    with pytest.raises(UnitOutOfRangeError, match="layers 0 to 2"):
        model.rows(batch, layers=[3])
    with pytest.raises(UnitOutOfRangeError, match="heads 0 to 3"):
        model.rows(batch, heads=[HeadId(0, 4)])
    with pytest.raises(MnemoscopeError, match="one layer at a time"):
        model.rows(batch, heads=[HeadId(0, 0), HeadId(1, 0)])
    with pytest.raises(MnemoscopeError, match="at least one layer"):
        model.rows(batch, layers=[])
    with pytest.raises(MnemoscopeError, match="positions"):
        model.rows(batch, torch.tensor([[9], [0], [0]]))
