"""Directions that raise a token's logit: the parts of the stream add up to it, norms frozen."""

from __future__ import annotations

import pytest
import torch
from families import FAMILIES, ids
from mnemoscope.interventions.logit_directions import LogitDirections, logit_directions
from mnemoscope.interventions.path_patching import build_chain
from mnemoscope.models import HookedModel, Site
from mnemoscope.models.anatomy import part
from mnemoscope.models.errors import UnsupportedModelError
from mnemoscope.models.hooked import Captured
from mnemoscope.models.hooks import site_hook
from plain import model_of

ROW = ids(1, 12)[0].tolist()
AT = torch.tensor([[7, 9, 10, 11]])
TOKENS = torch.tensor([5, 17, 8, 40])
SITES = (Site.RESID_PRE, Site.RESID_POST, Site.Z, Site.ATTN_OUT)
PRE_LN = [family for family in FAMILIES if family != "opt-post-ln"]
EXACT = {"rtol": 0, "atol": 1e-10}
ROUNDED = {"rtol": 1e-4, "atol": 1e-7}  # Gemma computes its norms in float32
LAST = 2


def run(family: str) -> tuple[HookedModel, Captured, LogitDirections]:
    model = model_of(family)
    kept = model.capture(model.batch([ROW]), SITES, at=AT)
    final, z = kept[Site.RESID_POST, LAST][0], kept.stack(Site.Z)[:, 0]
    return model, kept, logit_directions(build_chain(model), final, z, TOKENS)


def unembedded(model: HookedModel) -> torch.Tensor:
    """Logits as they leave the unembedding, before caps and scales."""
    outputs: list[torch.Tensor] = []
    handle = model.module.get_output_embeddings().register_forward_hook(
        lambda _, __, output: outputs.append(output)
    )
    try:
        model.logits(model.batch([ROW]))
    finally:
        handle.remove()
    return outputs[0][0, AT[0]].gather(1, TOKENS[:, None])[:, 0]


@pytest.mark.parametrize("family", PRE_LN)
def test_embedding_attention_and_mlps_add_up_to_the_logit(family: str) -> None:
    model, kept, found = run(family)
    logit = unembedded(model)
    torch.testing.assert_close(found.logit, logit, **EXACT)
    stream = kept[Site.RESID_PRE, 0][0]
    parts = found.offset + (found.final * stream).sum(-1)  # the embedding
    for layer in range(LAST + 1):
        written = (found.attention[layer] * kept[Site.ATTN_OUT, layer][0]).sum(-1)
        parts = parts + written
        # What the block adds besides is its MLP's.
        added = kept[Site.RESID_POST, layer][0] - kept[Site.RESID_PRE, layer][0]
        parts = parts + ((found.final * added).sum(-1) - written)
        torch.testing.assert_close(written, attention_alone(model, kept, found, layer), **EXACT)
    torch.testing.assert_close(parts, logit, **EXACT)


def attention_alone(
    model: HookedModel, kept: Captured, found: LogitDirections, layer: int
) -> torch.Tensor:
    """What the block adds to the logit when its MLP gives zero."""
    outputs: list[torch.Tensor] = []
    with (
        site_hook(model.module, model.anatomy, Site.MLP_OUT, layer, torch.zeros_like),
        site_hook(model.module, model.anatomy, Site.RESID_POST, layer, outputs.append),
    ):
        model.logits(model.batch([ROW]))
    added = outputs[0][0, AT[0]] - kept[Site.RESID_PRE, layer][0]
    return (found.final * added).sum(-1)


@pytest.mark.parametrize("family", PRE_LN)
def test_heads_and_the_bias_add_up_to_attention(family: str) -> None:
    model, kept, found = run(family)
    heads = torch.einsum("lrhv,lrhv->lr", found.of_heads(model), kept.stack(Site.Z)[:, 0])
    for layer, block in enumerate(part(model.module, model.anatomy.spec.blocks)):
        bias = getattr(part(block, model.anatomy.spec.o_proj), "bias", None)
        rest = 0.0 if bias is None else found.attention[layer] @ bias.detach()
        written = (found.attention[layer] * kept[Site.ATTN_OUT, layer][0]).sum(-1)
        torch.testing.assert_close(heads[layer] + rest, written, **EXACT)


def test_norms_are_frozen_not_differentiated() -> None:
    """Final RMS norm with weight 1 + w, written out (Gemma-2)."""
    model, kept, found = run("gemma2")
    x, norm = kept[Site.RESID_POST, LAST][0], model.module.model.norm
    scale = (x.pow(2).mean(-1, keepdim=True) + norm.eps).rsqrt()
    rows = model.module.lm_head.weight[TOKENS].detach()
    torch.testing.assert_close(found.final, rows * (1 + norm.weight.detach()) * scale, **ROUNDED)
    # The norm behind attention, at the scale of each layer's own attention output.
    for layer, block in enumerate(model.module.model.layers):
        after = block.post_attention_layernorm
        a = kept[Site.ATTN_OUT, layer][0]
        scale = (a.pow(2).mean(-1, keepdim=True) + after.eps).rsqrt()
        want = found.final * (1 + after.weight.detach()) * scale
        torch.testing.assert_close(found.attention[layer], want, **ROUNDED)


def test_layer_norm_takes_off_the_mean() -> None:
    model, kept, found = run("gpt2")
    x, norm = kept[Site.RESID_POST, LAST][0], model.module.transformer.ln_f
    scale = (x.var(-1, unbiased=False, keepdim=True) + norm.eps).rsqrt()
    weighted = model.module.lm_head.weight[TOKENS].detach() * norm.weight.detach() * scale
    want = weighted - weighted.mean(-1, keepdim=True)
    torch.testing.assert_close(found.final, want, **EXACT)
    torch.testing.assert_close(found.attention, want.expand(3, -1, -1), **EXACT)


def test_post_ln_stacks_are_refused() -> None:
    with pytest.raises(UnsupportedModelError, match="post-LN"):
        run("opt-post-ln")
