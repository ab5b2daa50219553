"""A three-token run at load that proves an anatomy entry instead of trusting it."""

from __future__ import annotations

from contextlib import ExitStack
from typing import Any

import torch
from einops import einsum
from torch import Tensor, nn

from .anatomy import Anatomy, head_output_weights, part
from .errors import UnsupportedModelError
from .hooks import site_hook
from .placement import execution_device, materialised
from .types import Site


@torch.no_grad()
def run_self_test(module: Any, anatomy: Anatomy) -> None:
    """Check, on every layer, what the probes rely on.

    1. `attn_out = sum_h z[h] W_O[h] + bias`; 2. attention and MLP run once each (both sites fire);
    3. block outputs are the next block's inputs; 4. values have `n_kv_heads` heads of width `d_v`.
    Offloaded weights are read once, output projections twice. Raises `UnsupportedModelError`.
    """
    seen: dict[tuple[Site, int], Tensor] = {}
    sites = (Site.RESID_PRE, Site.RESID_POST, Site.Z, Site.ATTN_OUT, Site.MLP_OUT)
    device = execution_device(module.get_input_embeddings())
    ids = torch.arange(3, device=device)[None] % anatomy.d_vocab
    with ExitStack() as stack:
        for site in sites:
            for layer in range(anatomy.n_layers):
                store = _store(seen, site, layer)
                stack.enter_context(site_hook(module, anatomy, site, layer, store))
        cache = _run(module, anatomy, ids)
    missing = [
        f"{site} of layer {i}"
        for site in sites
        for i in range(anatomy.n_layers)
        if (site, i) not in seen
    ]
    if missing:
        raise _refuse(anatomy, f"{missing[0]} never ran")
    for layer in range(anatomy.n_layers):
        _check_layer(module, anatomy, layer, seen)
        _, heads, _, width = cache.layers[layer].values.shape
        if (heads, width) != (anatomy.n_kv_heads, anatomy.d_v):
            raise _refuse(
                anatomy,
                f"values of layer {layer} have {heads} heads of width {width}, where "
                f"{anatomy.n_heads} heads in the configuration make it {anatomy.n_kv_heads} of "
                f"width {anatomy.d_v}",
            )


def _run(module: Any, anatomy: Anatomy, ids: Tensor) -> Any:
    try:
        return module(
            input_ids=ids, attention_mask=torch.ones_like(ids), use_cache=True
        ).past_key_values
    except torch.OutOfMemoryError:
        raise
    except RuntimeError as error:  # shapes that do not fit each other
        raise _refuse(anatomy, f"it cannot run three tokens ({error})") from error


def _store(seen: dict[tuple[Site, int], Tensor], site: Site, layer: int) -> Any:
    def store(x: Tensor) -> None:
        seen[site, layer] = x

    return store


def _check_layer(
    module: nn.Module, anatomy: Anatomy, layer: int, seen: dict[tuple[Site, int], Tensor]
) -> None:
    o_proj = part(part(module, anatomy.spec.blocks)[layer], anatomy.spec.o_proj)
    if o_proj.weight.is_floating_point():  # packed quantised projections have no slices to check
        z = seen[Site.Z, layer].float()
        with materialised([o_proj]):
            slices = head_output_weights(o_proj, anatomy.n_heads).float()
            rebuilt = einsum(z, slices, "b t head d_v, head d_v d -> b t d")
            bias = getattr(o_proj, "bias", None)
            rebuilt = rebuilt if bias is None else rebuilt + bias.float()
        _close(anatomy, layer, "attention output", rebuilt, seen[Site.ATTN_OUT, layer])
    if layer + 1 < anatomy.n_layers:
        after, before = seen[Site.RESID_POST, layer], seen[Site.RESID_PRE, layer + 1]
        _close(anatomy, layer, "block output", after.to(before.device), before)


def _close(anatomy: Anatomy, layer: int, what: str, got: Tensor, want: Tensor) -> None:
    tolerance = 1e-4 if want.dtype.itemsize >= 4 else 5e-2
    gap = float((got.float() - want.float()).abs().max())
    if not gap <= tolerance * (1.0 + float(want.float().abs().max())):
        raise _refuse(anatomy, f"{what} of layer {layer} differs from its parts by {gap:.2g}")


def _refuse(anatomy: Anatomy, reason: str) -> UnsupportedModelError:
    return UnsupportedModelError(
        f"this {anatomy.model_type} model does not work as its architecture entry says: {reason}."
    )
