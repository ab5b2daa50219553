"""TransformerLens as an oracle: what both sides call by one name is the same tensor.

Tolerance. With our module on eager attention, in float64 and without a key/value cache, both sides
compute the same sums: 1e-10. The exceptions, of size 1e-6, are GPT-NeoX and Phi-3, whose eager
softmax is float32 in transformers but float64 in the bridge, which splits their joint QKV matrix
and computes attention itself. (The cache matters for GPT-J only, whose float32 scores round
differently with one.)

What does not agree, found by these tests:
- `hook_rot_q` and `hook_rot_k` exist for GPT-J, GPT-NeoX and Phi-3 but are never called.
- OPT scales its queries before it scores them, so that its rot_q as transformers' kernel sees it
  is `hook_q / sqrt(d_head)`.
- OPT with post-LN: the bridge raises when anything at its ln2 (resid_mid) is cached.
- Mixtral: `mlp.hook_post` exists, but is the expert layer's output, not neurons.
- `hook_attn_out` and `hook_mlp_out` follow the post-norms (Gemma-2, Gemma-3, OLMo-2) and the
  residual multiplier (Granite): we use `attn.hook_out` and `mlp.hook_out`.
"""

from __future__ import annotations

import copy
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from families import FAMILIES, GATED, ids, tiny
from mnemoscope.models import HeadId, HookedModel, MnemoscopeError, Site, TokenBatch, wrap, zero
from mnemoscope.models.attention import seeing_attention
from mnemoscope.models.errors import (
    UnitOutOfRangeError,
    UnsupportedModelError,
    UnsupportedSiteError,
)
from mnemoscope.models.transformer_lens import from_bridge, hook_name, site_of, to_bridge
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

pytest.importorskip("transformer_lens")

IDS = ids()
BATCH = TokenBatch(IDS, torch.ones_like(IDS, dtype=torch.bool))
INSIDE = (Site.ROT_Q, Site.ROT_K, Site.V)
OTHER_SOFTMAX = ("neox", "neox-sequential", "phi3")
SILENT_ROTARY = ("gptj", *OTHER_SOFTMAX)


@pytest.fixture(autouse=True)
def no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any) -> None:
        raise AssertionError("the network was touched")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    """Models this small only lose time to a second thread."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def pair() -> Iterator[Callable[[str], tuple[HookedModel, Any]]]:
    """Our model with eager attention, and a bridge over its copy; made once a family."""
    made: dict[str, tuple[HookedModel, Any]] = {}

    def make(family: str) -> tuple[HookedModel, Any]:
        if family not in made:
            model = wrap(_eager(family))
            made[family] = (model, to_bridge(model))
        return made[family]

    yield make
    made.clear()


def _eager(family: str, dtype: torch.dtype = torch.float64) -> Any:
    # Copied, because all modules that `tiny` makes of one family share their configuration.
    module = copy.deepcopy(tiny(family, dtype=dtype))
    module.set_attn_implementation("eager")
    return module


def _tolerance(family: str) -> float:
    return 1e-5 if family in OTHER_SOFTMAX else 1e-10


def _ours(model: HookedModel, site: Site, layer: int) -> torch.Tensor:
    """Our tensor at a site. Inside attention: what transformers' attention function is given."""
    if site not in INSIDE:
        return model.capture(BATCH, [site], layers=[layer])[site, layer]
    kept: dict[Site, torch.Tensor] = {}

    def see(i: int, q: Any, k: Any, v: Any, _: Any, __: Any) -> None:
        if i == layer:
            kept.update({Site.ROT_Q: q, Site.ROT_K: k, Site.V: v})

    with torch.no_grad(), seeing_attention(model.module, see):
        model.forward(BATCH)
    return kept[site].transpose(1, 2)


def _theirs(bridge: Any, name: str) -> torch.Tensor:
    with torch.no_grad():
        _, cache = bridge.run_with_cache(IDS, names_filter=[name], use_cache=False)
    return cache[name]


def _sites(model: HookedModel) -> list[Site]:
    """The sites that have a TransformerLens name in this model."""
    named = []
    for site in Site:
        try:
            hook_name(site, 0, model.anatomy)
        except UnsupportedSiteError:
            continue
        named.append(site)
    return named


# -- names ------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", FAMILIES)
def test_a_site_and_its_hook_are_the_same_tensor(family: str, pair: Any) -> None:
    model, bridge = pair(family)
    for site in _sites(model):
        if site in INSIDE and not model.anatomy.spec.interface:
            continue
        theirs = _theirs(bridge, hook_name(site, 1, model.anatomy))
        if family.startswith("opt") and site is Site.ROT_Q:
            theirs = theirs * model.anatomy.d_v**-0.5
        torch.testing.assert_close(
            _ours(model, site, 1), theirs, rtol=0, atol=_tolerance(family), msg=f"{family} {site}"
        )


def test_values_of_gptj_are_those_of_its_cache(pair: Any) -> None:
    model, bridge = pair("gptj")
    with torch.no_grad():
        values = model.module(IDS, use_cache=True).past_key_values.layers[0].values
    theirs = _theirs(bridge, hook_name(Site.V, 0, model.anatomy))
    torch.testing.assert_close(values.transpose(1, 2), theirs, rtol=0, atol=_tolerance("gptj"))


@pytest.mark.parametrize("family", FAMILIES)
def test_names_convert_one_to_one(family: str) -> None:
    anatomy = wrap(tiny(family)).anatomy
    pairs = [(s, i) for s in _sites(wrap(tiny(family))) for i in range(anatomy.n_layers)]
    names = [hook_name(site, layer, anatomy) for site, layer in pairs]
    assert len(set(names)) == len(names)
    assert [site_of(name, anatomy) for name in names] == pairs


def test_every_site_has_a_name_where_transformer_lens_has_a_hook(pair: Any) -> None:
    for family in FAMILIES:
        absent = set(Site) - set(_sites(pair(family)[0]))
        expected = set()
        if family in ("gptj", "neox", "phi", "opt-post-ln"):
            expected.add(Site.RESID_MID)
        if family == "mixtral":
            expected.add(Site.NEURON)
        if family not in GATED:
            expected |= {Site.GATE_PRE, Site.UP}
        if family in SILENT_ROTARY:
            expected |= {Site.ROT_Q, Site.ROT_K}
        assert absent == expected, family


@pytest.mark.parametrize("family", SILENT_ROTARY)
def test_refused_rotary_hooks_really_stay_silent(family: str, pair: Any) -> None:
    _, bridge = pair(family)
    name = "blocks.1.attn.hook_rot_q"
    assert name in bridge.hook_dict
    _, cache = bridge.run_with_cache(IDS, names_filter=[name], use_cache=False)
    assert name not in cache


def test_aliases_after_a_post_norm_are_another_tensor(pair: Any) -> None:
    for family in ("gemma2", "gemma3", "olmo2", "granite"):
        model, bridge = pair(family)
        for site, alias in ((Site.ATTN_OUT, "hook_attn_out"), (Site.MLP_OUT, "hook_mlp_out")):
            gap = _ours(model, site, 1) - _theirs(bridge, f"blocks.1.{alias}")
            assert float(gap.abs().max()) > 1e-3, family


def test_hook_post_of_fused_experts_holds_no_neurons(pair: Any) -> None:
    model, bridge = pair("mixtral")
    assert torch.equal(
        _theirs(bridge, "blocks.1.mlp.hook_post"), _theirs(bridge, "blocks.1.mlp.hook_out")
    )
    with pytest.raises(MnemoscopeError, match="Close matches"):
        site_of("blocks.1.mlp.hook_post", model.anatomy)


def test_hook_q_is_rot_q_only_without_rotary_positions() -> None:
    gpt2, llama = wrap(tiny("gpt2")).anatomy, wrap(tiny("llama")).anatomy
    assert site_of("blocks.0.attn.hook_q", gpt2) == (Site.ROT_Q, 0)
    with pytest.raises(MnemoscopeError, match=r"blocks\.0\.attn\.hook_rot_q"):
        site_of("blocks.0.attn.hook_q", llama)


def test_wrong_names_and_layers_are_refused() -> None:
    anatomy = wrap(tiny("llama")).anatomy
    for name in ("blocks.1.attn.hookz", "blocks.3.attn.hook_z", "rubbish", ""):
        with pytest.raises(MnemoscopeError, match=r"Close matches: blocks\."):
            site_of(name, anatomy)
    with pytest.raises(UnitOutOfRangeError):
        hook_name(Site.Z, 3, anatomy)


# -- models -----------------------------------------------------------------------------------


@pytest.mark.parametrize("family", FAMILIES)
def test_bridge_gives_our_logits_and_rows(family: str, pair: Any) -> None:
    model, bridge = pair(family)
    with torch.no_grad():
        logits = bridge(IDS, use_cache=False)
    torch.testing.assert_close(logits, model.logits(BATCH), rtol=0, atol=_tolerance(family))
    rows = model.rows(BATCH, "all", layers=[1])[0]
    pattern = _theirs(bridge, "blocks.1.attn.hook_pattern").float()
    torch.testing.assert_close(rows, pattern, rtol=0, atol=2e-6)  # ours are float32


@pytest.mark.parametrize("family", FAMILIES)
def test_a_zeroed_head_moves_both_alike(family: str, pair: Any) -> None:
    model, bridge = pair(family)
    head = HeadId(1, 2)

    def zero_z(z: torch.Tensor, hook: Any) -> torch.Tensor:
        z = z.clone()
        z[:, :, head.head] = 0
        return z

    with model.intervene([zero([head])]):
        ours = model.logits(BATCH)
    name = hook_name(Site.Z, head.layer, model.anatomy)
    with torch.no_grad():
        theirs = bridge.run_with_hooks(IDS, fwd_hooks=[(name, zero_z)], use_cache=False)
    assert float((ours - model.logits(BATCH)).abs().max()) > 1e-3
    torch.testing.assert_close(ours, theirs, rtol=0, atol=_tolerance(family))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_lower_precision_agrees_to_its_rounding(family: str, dtype: torch.dtype) -> None:
    model = wrap(_eager(family, dtype))
    bridge = to_bridge(model)
    back = from_bridge(bridge)
    assert back.dtype == dtype
    with torch.no_grad():
        logits = bridge(IDS, use_cache=False).float()
    atol = 5e-5 if dtype == torch.float32 else 5e-2 * float(logits.abs().max())
    for one in (model, back):
        torch.testing.assert_close(one.logits(BATCH).float(), logits, rtol=0, atol=atol)


@pytest.mark.parametrize("family", FAMILIES)
def test_there_and_back_gives_the_same_model(family: str, pair: Any) -> None:
    model, bridge = pair(family)
    back = from_bridge(bridge)
    assert type(back.module) is type(model.module)
    assert back.anatomy == model.anatomy
    assert back.weights_sha256 == model.weights_sha256
    kept = dict(back.module.named_buffers())  # rotary frequencies, in the type they were cast to
    for name, buffer in model.module.named_buffers():
        torch.testing.assert_close(kept[name], buffer, rtol=0, atol=0)
    # Fresh modules use transformers' default kernel, SDPA for most, whose softmax is float64 here.
    torch.testing.assert_close(back.logits(BATCH), model.logits(BATCH), rtol=0, atol=1e-5)
    back.module.set_attn_implementation("eager")
    assert torch.equal(back.logits(BATCH), model.logits(BATCH))
    assert not any("Bridge" in type(part).__name__ for part in back.module.modules())


@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_our_module_is_untouched(family: str) -> None:
    module = tiny(family)
    model = wrap(module)
    before, kernel = model.logits(BATCH), module.config._attn_implementation
    parts = [(name, type(part), id(part)) for name, part in module.named_modules()]
    bridge = to_bridge(model)
    assert parts == [(name, type(part), id(part)) for name, part in module.named_modules()]
    assert not any(p._forward_hooks or p._forward_pre_hooks for p in module.modules())
    assert module.config._attn_implementation == kernel == "sdpa"
    bridge.enable_compatibility_mode(disable_warnings=True)  # rewrites the bridge's weights
    assert torch.equal(model.logits(BATCH), before)


def test_from_bridge_shares_the_weights_and_leaves_the_bridge_alone(pair: Any) -> None:
    _, bridge = pair("llama")
    with torch.no_grad():
        before = bridge(IDS, use_cache=False)
        back = from_bridge(bridge)
        assert torch.equal(bridge(IDS, use_cache=False), before)
    wrapped = {p.data_ptr() for p in bridge.original_model.parameters()}
    assert {p.data_ptr() for p in back.module.parameters()} <= wrapped


def test_tied_embeddings_stay_tied_both_ways(pair: Any) -> None:
    model, bridge = pair("gpt2")
    assert bridge.n_params_total == sum(p.numel() for p in model.module.parameters())
    back = from_bridge(bridge).module
    assert back.get_input_embeddings().weight is back.get_output_embeddings().weight


def test_hooks_of_an_intervention_do_not_travel(pair: Any) -> None:
    model, _ = pair("llama")
    with (
        model.intervene([zero([HeadId(0, 0)])]),
        pytest.raises(UnsupportedModelError, match="hooks"),
    ):
        to_bridge(model)


def test_a_bridge_with_a_hook_left_on_is_refused() -> None:
    bridge = to_bridge(wrap(tiny("llama")))
    bridge.add_hook("blocks.0.attn.hook_z", lambda z, hook: z * 0)
    with pytest.raises(UnsupportedModelError, match="reset_hooks"):
        from_bridge(bridge)
    bridge.reset_hooks()
    from_bridge(bridge)


def test_folded_weights_are_refused_and_unfolded_compatibility_mode_is_not() -> None:
    bridge = to_bridge(wrap(tiny("gpt2")))
    bridge.enable_compatibility_mode(disable_warnings=True, no_processing=True)
    from_bridge(bridge)
    bridge.enable_compatibility_mode(disable_warnings=True)
    with pytest.raises(UnsupportedModelError, match="no_processing=True"):
        from_bridge(bridge)


def test_other_kinds_of_bridge_are_refused() -> None:
    with pytest.raises(UnsupportedModelError, match="no Hugging Face model"):
        from_bridge(object())


# -- text -------------------------------------------------------------------------------------


def _tokenizer(bos: bool) -> PreTrainedTokenizerFast:
    words = ["<unk>", "<s>", "</s>", "a", "red", "ship", "sails"]
    raw = Tokenizer(models.WordLevel({w: i for i, w in enumerate(words)}, unk_token="<unk>"))
    raw.pre_tokenizer = pre_tokenizers.Whitespace()
    if bos:
        raw.post_processor = processors.TemplateProcessing(
            single="<s> $A", special_tokens=[("<s>", 1)]
        )
    return PreTrainedTokenizerFast(
        tokenizer_object=raw, unk_token="<unk>", bos_token="<s>", eos_token="</s>"
    )


@pytest.mark.parametrize("bos", [True, False])
def test_the_bridge_reads_text_as_we_do(bos: bool) -> None:
    model = wrap(tiny("llama"), _tokenizer(bos), name="owner/not-on-any-hub")
    bridge = to_bridge(model)
    ours = model.tokens("a red ship").ids
    assert ours.shape[1] == 3 + bos
    assert torch.equal(bridge.to_tokens("a red ship"), ours)
    assert model.tokenizer is not None
    assert model.tokenizer.pad_token is None
    assert torch.equal(from_bridge(bridge).tokens("a red ship").ids, ours)


def test_without_a_tokenizer_the_bridge_takes_ids_only(pair: Any) -> None:
    _, bridge = pair("llama")
    assert bridge.tokenizer is None
    assert from_bridge(bridge).tokenizer is None


# -- the optional extra -------------------------------------------------------------------------


def test_importing_our_models_does_not_import_transformer_lens() -> None:
    code = (
        "import sys, mnemoscope.models, mnemoscope.models.transformer_lens;"
        "sys.exit('transformer_lens' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_without_the_extra_the_error_says_what_to_install(monkeypatch: Any, pair: Any) -> None:
    model, _ = pair("llama")
    monkeypatch.setitem(sys.modules, "transformer_lens", None)
    monkeypatch.setitem(sys.modules, "transformer_lens.model_bridge", None)
    with pytest.raises(MnemoscopeError, match=r"pip install 'mnemoscope\[lens\]'"):
        to_bridge(model)
