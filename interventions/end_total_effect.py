"""Total effect of patching heads at END only, on a clean key/value cache that is never copied.

By causality a change at END touches no other position, so the effect is one decode step from the
sender's layer upward with attention recomputed for that token (ph3.md 2.5). All sender rows of an
example run as *extra query positions* of one sequence: each sees the clean cache and itself, not
its neighbours, so the cache is shared by construction.

Estimand `total_end`: between the direct effect (`path_patching`) and pruning at all positions.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor
from transformers import DynamicCache

from ..models.anatomy import part
from ..models.edits import resample
from ..models.errors import MnemoscopeError, UnsupportedModelError
from ..models.hooked import HookedModel
from ..models.hooks import site_hook
from ..models.tokens import TokenBatch
from ..models.types import HeadId, Site
from .path_patching import (
    Effects,
    Senders,
    end_states,
    head_sets,
    replaced_forward,
    single_heads,
    unembed_ids,
    wide_type,
)

_TOLERANCE = {True: 1e-4, False: 5e-2}  # float32 and wider; half precision


@torch.no_grad()
def end_total_effects(
    model: HookedModel,
    batch: TokenBatch,
    replacement: Float[Tensor, "layer batch head d_v"],
    token_ids: Int[Tensor, "batch k"],
    *,
    senders: Senders | None = None,
    rows_per_call: int = 64,
) -> Effects:
    """Logits of `token_ids` at END with each sender row's heads replaced at END only.

    `batch` is padded on the left. One row a head by default. Memory beyond the model: the cache of
    the batch, and `batch * heads * rows_per_call * (positions + rows_per_call)` attention scores.
    A head of the first row is checked against a hooked full pass; raises `UnsupportedModelError`
    when they differ.
    """
    if not bool(batch.mask[:, -1].all()):
        raise MnemoscopeError("end_total_effects needs prompts padded on the left.")
    if batch.ids.shape[1] < 2:
        raise MnemoscopeError("end_total_effects needs prompts of at least two tokens.")
    senders = single_heads(model) if senders is None else senders
    states = end_states(model, batch)
    cache = _prefix_cache(model, batch)
    order = torch.argsort(senders.any(dim=2).int().argmax(dim=1), stable=True)
    patched = [
        _rows(model, batch, cache, states.resid_pre, replacement, senders[piece], token_ids)
        for piece in order.split(rows_per_call)
    ]
    clean = torch.stack([rows[:, 0] for rows in patched]).mean(0)
    effects = Effects(clean, _unordered(torch.cat([rows[:, 1:] for rows in patched], 1), order))
    _check(model, batch, replacement, token_ids, senders, effects)
    return effects


def _prefix_cache(model: HookedModel, batch: TokenBatch) -> DynamicCache:
    """Keys and values of everything before END. Built without a configuration: no layer slides."""
    cache = DynamicCache()
    model.module(
        input_ids=batch.ids[:, :-1],
        attention_mask=batch.mask[:, :-1].long(),
        position_ids=batch.position_ids[:, :-1],
        past_key_values=cache,
        use_cache=True,
        logits_to_keep=1,
    )
    return cache


def _rows(
    model: HookedModel,
    batch: TokenBatch,
    cache: DynamicCache,
    resid_pre: Float[Tensor, "layer batch d_model"],
    replacement: Tensor,
    senders: Senders,
    token_ids: Tensor,
) -> Float[Tensor, "batch row_plus_1 k"]:
    """One call: row 0 unpatched, then the senders; blocks below their first layer are bypassed."""
    first = int(senders.any(dim=2).int().argmax(dim=1).min())
    n_rows = len(senders) + 1
    end_ids = batch.ids[:, -1:].expand(-1, n_rows)
    with model.lock, ExitStack() as stack:
        stack.callback(_restore, cache, [(kept.keys, kept.values) for kept in cache.layers])
        for layer, block in enumerate(part(model.module, model.anatomy.spec.blocks)):
            if layer < first:
                x = resid_pre[first][:, None].expand(-1, n_rows, -1)
                stack.enter_context(replaced_forward(block, _bypass(block, x, model)))
            elif bool(senders[:, layer].any()):
                change = _patch(senders[:, layer], replacement[layer])
                stack.enter_context(site_hook(model.module, model.anatomy, Site.Z, layer, change))
        head = model.module.get_output_embeddings()
        stack.enter_context(replaced_forward(head, unembed_ids(head, token_ids)))
        logits = model.module(
            input_ids=end_ids,
            attention_mask=_masks(model, batch, n_rows),
            position_ids=batch.position_ids[:, -1:].expand(-1, n_rows),
            past_key_values=cache,
            use_cache=True,
        ).logits
    return logits.to(wide_type(logits.dtype))


def _restore(cache: DynamicCache, clean: list[tuple[Tensor, Tensor]]) -> None:
    """Drop what a call appended: the clean tensors themselves were never written to."""
    for layer, (keys, values) in zip(cache.layers, clean, strict=True):
        layer.keys, layer.values = keys, values


def _bypass(block: Any, x: Tensor, model: HookedModel) -> Any:
    """Stand in for a block below the first sender: hand on the clean residual."""
    as_tuple = model.anatomy.model_type == "gptj"
    return lambda *_, **__: (x, None) if as_tuple else x


def _patch(heads: Tensor, values: Float[Tensor, "batch head d_v"]) -> Any:
    """Replace z of row r's heads; rows are positions 1.. of the sequence."""

    def change(z: Float[Tensor, "batch row head d_v"]) -> Tensor:
        rows = torch.zeros(z.shape[1:3], dtype=torch.bool, device=z.device)
        rows[1:] = heads.to(z.device)
        return torch.where(rows[None, :, :, None], values.to(z)[:, None], z)

    return change


def _masks(model: HookedModel, batch: TokenBatch, n_rows: int) -> Any:
    """Additive masks `[batch, 1, row, past + row]`: the clean prefix (in the window) and itself."""
    config = model.module.config.get_text_config()
    types = getattr(config, "layer_types", None)
    window = getattr(config, "sliding_window", None)
    if types is None:
        return _mask(model, batch, n_rows, window)
    return {
        kind: _mask(model, batch, n_rows, window if kind == "sliding_attention" else None)
        for kind in set(types)
    }


def _mask(model: HookedModel, batch: TokenBatch, n_rows: int, window: int | None) -> Tensor:
    prefix = batch.mask[:, :-1]
    if window is not None:
        distance = prefix.shape[1] - torch.arange(prefix.shape[1], device=prefix.device)
        prefix = prefix & (distance < window)
    itself = torch.eye(n_rows, dtype=torch.bool, device=prefix.device)
    allowed = torch.cat(
        [prefix[:, None].expand(-1, n_rows, -1), itself.expand(len(prefix), -1, -1)], dim=2
    )
    lowest = max(torch.finfo(model.dtype).min, torch.finfo(torch.float32).min)
    mask = torch.zeros(allowed.shape, dtype=model.dtype, device=allowed.device)
    return mask.masked_fill(~allowed, lowest)[:, None]


def _unordered(values: Tensor, order: Tensor) -> Tensor:
    return torch.empty_like(values).index_copy_(1, order.to(values.device), values)


def _check(
    model: HookedModel,
    batch: TokenBatch,
    replacement: Tensor,
    token_ids: Tensor,
    senders: Senders,
    effects: Effects,
) -> None:
    heads = [HeadId(int(i), int(h)) for i, h in senders[0].nonzero()]
    want = hooked_end_logits(model, batch, replacement, token_ids, heads)
    got = effects.patched[:, 0].to(want.device)
    gap = float((got - want).abs().max() / want.abs().max().clamp(min=1.0))
    if not gap <= _TOLERANCE[model.dtype.itemsize >= 4]:
        raise UnsupportedModelError(
            f"the cached END step differs from the full pass by {gap:.2g} (relative) on "
            f"{model.name}: its cache or masks work in a way this method does not know."
        )


def hooked_end_logits(
    model: HookedModel,
    batch: TokenBatch,
    replacement: Float[Tensor, "layer batch head d_v"],
    token_ids: Int[Tensor, "batch k"],
    heads: Sequence[HeadId],
) -> Float[Tensor, "batch k"]:
    """The definition by a full pass: the heads' `z` replaced at END through edits."""
    edits = [
        resample([head], replacement[head.layer, :, head.head : head.head + 1], "end", "prefill")
        for head in heads
    ]
    with model.intervene(edits):
        logits = model.logits(batch, at="end")[:, 0]
    logits = logits.to(wide_type(logits.dtype))
    return logits.gather(1, token_ids.to(logits.device))


__all__ = ["end_total_effects", "head_sets", "hooked_end_logits"]
