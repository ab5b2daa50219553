"""`capture`: every site is what plain hooks on the Hugging Face modules see, in every family."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import plain
import pytest
import torch
from families import FAMILIES, ids, tiny
from mnemoscope.models import HeadId, HookedModel, MnemoscopeError, Site, TokenBatch, wrap, zero
from mnemoscope.models.errors import UnitOutOfRangeError, UnsupportedSiteError
from plain import close
from torch import Tensor

PARALLEL = ("gptj", "neox", "phi")
NO_MIDDLE = (*PARALLEL, "opt-post-ln")
STREAMS = (Site.RESID_PRE, Site.RESID_POST, Site.Z, Site.ATTN_OUT, Site.MLP_OUT)


IDS = ids()
FULL = TokenBatch(IDS, torch.ones_like(IDS, dtype=torch.bool))


def batch_of(side: str) -> TokenBatch:
    tokens, mask = plain.padded(side)
    return TokenBatch(tokens, mask.bool())


@pytest.fixture(params=list(FAMILIES))
def family(request: Any) -> str:
    return request.param


@pytest.fixture
def model(family: str) -> HookedModel:
    return plain.model_of(family)


# -- the sites ------------------------------------------------------------------------------------


def test_residual_streams_are_the_hidden_states(family: str, model: HookedModel) -> None:
    states = plain.forward(model.module, IDS, output_hidden_states=True).hidden_states
    seen = model.capture(FULL, [Site.RESID_PRE, Site.RESID_POST])
    for layer in range(plain.LAYERS):
        assert torch.equal(seen[Site.RESID_PRE, layer], states[layer])
    for layer in range(plain.LAYERS - 1):
        assert torch.equal(seen[Site.RESID_POST, layer], states[layer + 1])
    path = plain.parts_of(family).norm
    if path is not None:  # the last hidden state of transformers is the normed one
        norm = model.module.get_submodule(path)
        with torch.no_grad():
            close(norm(seen[Site.RESID_POST, plain.LAYERS - 1]), states[-1])


def test_sites_are_the_inputs_and_outputs_of_their_modules(family: str, model: HookedModel) -> None:
    sites = [Site.Z, Site.ATTN_OUT, Site.MLP_OUT]
    has_neurons = plain.parts_of(family).down is not None
    seen = model.capture(FULL, [*sites, *[Site.NEURON] * has_neurons])
    for layer in range(plain.LAYERS):
        targets = {
            "attn": plain.o_proj(model.module, family, layer),
            "mlp": plain.mlp(model.module, family, layer),
            "down": plain.down(model.module, family, layer) if has_neurons else None,
        }
        given, made = plain.inputs_and_outputs(model.module, targets, IDS)
        heads = torch.stack(given["attn"].chunk(plain.HEADS, dim=-1), dim=2)
        assert torch.equal(seen[Site.Z, layer], heads)
        assert torch.equal(seen[Site.ATTN_OUT, layer], made["attn"])
        assert torch.equal(seen[Site.MLP_OUT, layer], made["mlp"].view(*IDS.shape, -1))
        if has_neurons:
            assert torch.equal(seen[Site.NEURON, layer], given["down"].view(*IDS.shape, -1))


def test_attn_out_is_what_the_attention_module_returns(family: str, model: HookedModel) -> None:
    seen = model.capture(FULL, [Site.ATTN_OUT])
    attn = plain.block(model.module, family, 1).get_submodule(plain.parts_of(family).attn)
    kept: list[Tensor] = []
    handle = attn.register_forward_hook(lambda _, __, out: kept.append(out[0]))
    plain.forward(model.module, IDS)
    handle.remove()
    close(seen[Site.ATTN_OUT, 1], kept[0])


def test_heads_add_up_to_attn_out(family: str, model: HookedModel) -> None:
    seen = model.capture(FULL, [Site.Z, Site.ATTN_OUT])
    for layer in range(plain.LAYERS):
        projection = plain.o_proj(model.module, family, layer)
        w = projection.weight if family == "gpt2" else projection.weight.T
        z = seen[Site.Z, layer]
        width = z.shape[-1]
        total = sum(z[:, :, h] @ w[h * width : (h + 1) * width] for h in range(plain.HEADS))
        if getattr(projection, "bias", None) is not None:
            total = total + projection.bias
        close(seen[Site.ATTN_OUT, layer], total.detach())


@pytest.mark.parametrize("family", [f for f in FAMILIES if f != "gptj"])
def test_queries_keys_and_values_make_z(family: str, model: HookedModel) -> None:
    inside = (Site.ROT_Q, Site.ROT_K, Site.V)
    seen = model.capture(FULL, [*inside, Site.Z])
    rows = model.rows(FULL, "all")
    for layer in range(plain.LAYERS):
        q, k, v = (seen[site, layer] for site in inside)
        assert q.shape[2] == plain.HEADS
        assert k.shape[2] == v.shape[2] == plain.kv_heads(family)
        shared = v.repeat_interleave(plain.HEADS // v.shape[2], dim=2)
        z = torch.einsum("bhqk,bkhd->bqhd", rows[layer].double(), shared)
        close(seen[Site.Z, layer], z, plain.SINGLE)  # rows are float32
    if plain.kv_heads(family) == 2 and family != "phi3":
        attn = plain.block(model.module, family, 0).self_attn
        _, made = plain.inputs_and_outputs(model.module, {"v": attn.v_proj}, IDS)
        assert torch.equal(seen[Site.V, 0], made["v"].unflatten(-1, (2, -1)))


# -- the equations of docs/sites.md ---------------------------------------------------------------

Into = Callable[[Any, Tensor], Tensor]
"""What a family does to a part's output before it adds it to the stream: (block, output)."""

AS_IT_IS: tuple[Into, Into] = (lambda _, a: a, lambda _, m: m)
ADDED: dict[str, tuple[Into, Into]] = {
    "gemma2": (
        lambda b, a: b.post_attention_layernorm(a),
        lambda b, m: b.post_feedforward_layernorm(m),
    ),
    "gemma3": (
        lambda b, a: b.post_attention_layernorm(a),
        lambda b, m: b.post_feedforward_layernorm(m),
    ),
    "olmo2": (
        lambda b, a: b.post_attention_layernorm(a),
        lambda b, m: b.post_feedforward_layernorm(m),
    ),
    "granite": (lambda _, a: 0.7 * a, lambda _, m: 0.7 * m),
}


@torch.no_grad()
def test_residual_equations(family: str, model: HookedModel) -> None:
    middle = [] if family in NO_MIDDLE else [Site.RESID_MID]
    seen = model.capture(FULL, [*STREAMS, *middle])
    into_mid, into_post = ADDED.get(family, AS_IT_IS)
    for layer in range(plain.LAYERS):
        b = plain.block(model.module, family, layer)
        before, after = seen[Site.RESID_PRE, layer], seen[Site.RESID_POST, layer]
        attn, mlp = seen[Site.ATTN_OUT, layer], seen[Site.MLP_OUT, layer]
        if family in PARALLEL:
            close(after, before + attn + mlp)
        elif family == "opt-post-ln":
            between = b.self_attn_layer_norm(before + attn)
            close(after, b.final_layer_norm(between + mlp))
        else:
            close(seen[Site.RESID_MID, layer], before + into_mid(b, attn))
            close(after, seen[Site.RESID_MID, layer] + into_post(b, mlp))


@torch.no_grad()
def test_neurons_of_a_gated_mlp_by_hand() -> None:
    model = plain.model_of("llama")
    seen = model.capture(FULL, [Site.RESID_MID, Site.NEURON, Site.MLP_OUT])
    b = model.module.model.layers[1]
    read = b.post_attention_layernorm(seen[Site.RESID_MID, 1])
    neurons = torch.nn.functional.silu(b.mlp.gate_proj(read)) * b.mlp.up_proj(read)
    close(seen[Site.NEURON, 1], neurons)
    close(seen[Site.MLP_OUT, 1], neurons @ b.mlp.down_proj.weight.T)


# -- positions and reductions ---------------------------------------------------------------------


@pytest.mark.parametrize("side", ["left", "right"])
def test_positions_are_the_columns_asked_for(family: str, side: str) -> None:
    model = plain.padded_model_of(family)
    batch = batch_of(side)
    site = STREAMS if family == "mixtral" else (*STREAMS, Site.NEURON)
    full = model.capture(batch, site)
    at_end = model.capture(batch, site, at="end")
    columns = torch.tensor([[8, 0], [4, 4], [1, 7]])
    chosen = model.capture(batch, site, at=columns)
    ends = [8, 8, 8] if side == "left" else [8, 4, 1]
    for key, value in full.values.items():
        for row in range(3):
            assert torch.equal(at_end[key][row, 0], value[row, ends[row]])
            assert torch.equal(chosen[key][row], value[row, columns[row]])
    for row in range(3):
        close(chosen.logits[row], full.logits[row, columns[row]], plain.tolerance(model.dtype))


@pytest.mark.parametrize("side", ["left", "right"])
def test_reductions_ignore_padding(family: str, side: str) -> None:
    model = plain.padded_model_of(family)
    batch, sites = batch_of(side), [Site.RESID_POST, Site.Z]
    full = model.capture(batch, sites)
    mean, top, norm = (model.capture(batch, sites, reduce=how) for how in ("mean", "max", "norm"))
    for row in range(3):
        alone = model.capture(model.batch([batch.row(row).tolist()]), sites, reduce="mean")
        for key, value in full.values.items():
            real = value[row, batch.mask[row]]
            close(mean[key][row], real.mean(0), plain.tolerance(model.dtype))
            close(norm[key][row], (real**2).mean(0).sqrt(), plain.tolerance(model.dtype))
            assert torch.equal(top[key][row], real.max(0).values)
            close(mean[key][row], alone[key][0], max(plain.SINGLE, plain.tolerance(model.dtype)))


def test_reductions_of_chosen_positions_count_those_only() -> None:
    model = plain.model_of("llama")
    columns = torch.tensor([[0, 3], [0, 3], [0, 3]])  # 3 is padding in the last row
    full = model.capture(batch_of("right"), [Site.Z])[Site.Z, 1]
    mean = model.capture(batch_of("right"), [Site.Z], at=columns, reduce="mean")[Site.Z, 1]
    close(mean[0], (full[0, 0] + full[0, 3]) / 2)
    close(mean[2], full[2, 0])


def test_reduction_of_half_precision_is_float32() -> None:
    model = wrap(tiny("llama", dtype=torch.bfloat16))
    captured = model.capture(batch_of("right"), [Site.Z], reduce="mean")
    assert captured[Site.Z, 0].dtype == torch.float32


def test_only_what_is_asked_is_kept() -> None:
    model = plain.model_of("llama")
    hooks = plain.hook_count(model.module)
    captured = model.capture(batch_of("left"), [Site.Z], layers=[2, 0], at="end")
    assert set(captured.values) == {(Site.Z, 0), (Site.Z, 2)}
    assert captured[Site.Z, 0].shape == (3, 1, 4, 8)
    assert captured.logits.shape == (3, 1, 61)
    assert torch.equal(captured.stack(Site.Z)[1], captured[Site.Z, 2])
    assert plain.hook_count(model.module) == hooks


# -- without edits nothing changes ----------------------------------------------------------------


def test_wrapped_logits_are_the_modules_own_bit_for_bit(family: str) -> None:
    module = tiny(family)
    before = plain.forward(module, IDS).logits
    model = wrap(module)
    assert torch.equal(model.logits(FULL), before)
    with model.intervene([zero([HeadId(0, 0)])]):
        model.logits(FULL)
    assert torch.equal(model.logits(FULL), before)
    everything = model.capture(FULL, STREAMS).logits
    assert torch.equal(everything, before)
    assert torch.equal(plain.forward(module, IDS).logits, before)


# -- what cannot be captured is refused -----------------------------------------------------------


@pytest.mark.parametrize(
    ("family", "site"),
    [("mixtral", Site.NEURON), *[(f, Site.RESID_MID) for f in NO_MIDDLE], ("gptj", Site.ROT_Q)],
)
def test_a_site_the_family_lacks_is_refused(family: str, site: Site) -> None:
    model = plain.model_of(family)
    hooks = plain.hook_count(model.module)
    with pytest.raises(UnsupportedSiteError, match=str(site) if site != Site.NEURON else "fused"):
        model.capture(FULL, [site])
    assert plain.hook_count(model.module) == hooks


@pytest.mark.parametrize("layer", [-1, 3])
def test_a_layer_the_model_lacks_is_refused(layer: int) -> None:
    with pytest.raises(UnitOutOfRangeError, match="layers 0 to 2"):
        plain.model_of("llama").capture(FULL, [Site.Z], layers=[layer])


@pytest.mark.parametrize(
    "at", ["last", torch.tensor([1, 2, 3]), torch.tensor([[9]] * 3), torch.tensor([[-1]] * 3)]
)
def test_positions_that_do_not_exist_are_refused(at: Any) -> None:
    with pytest.raises(MnemoscopeError, match="positions"):
        plain.model_of("llama").capture(FULL, [Site.Z], at=at)


def test_an_unknown_reduction_is_refused() -> None:
    with pytest.raises(MnemoscopeError, match="mean, max, norm"):
        plain.model_of("llama").capture(FULL, [Site.Z], reduce="median")  # type: ignore[arg-type]
