"""Total effect of patching heads at END only, on a clean key/value cache that is never copied.

By causality a change at END touches no other position, so the effect is one decode step from the
sender's layer upward with attention recomputed for that token (ph3.md 2.5). All sender rows of an
example run as *extra query positions* of one sequence: each sees the clean cache and itself, not
its neighbours, so the cache is shared by construction. Blocks are called one by one: in memory for
some rows at a time, on an offloaded model for all rows, so that each layer is read once.

Estimand `total_end`: between the direct effect (`path_patching`) and pruning at all positions.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
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
from ..models.placement import execution_device, is_offloaded, materialised
from ..models.tokens import TokenBatch
from ..models.types import HeadId, Site
from .end_chain import (
    BlockCall,
    noted_calls,
    nothing_embedded,
    replaced_forward,
    unembed_ids,
    wide_type,
)
from .end_sweep import Effects, Senders
from .path_patching import end_states, head_sets, single_heads
from .rounding import half_precision_bound

_TOLERANCE = {True: 1e-4, False: 5e-2}  # float32 and wider; half precision


@dataclass(frozen=True, eq=False)
class CleanRun:
    """What sweeps need of unpatched prompts, for any number of replacements."""

    batch: TokenBatch
    resid_pre: Float[Tensor, "layer batch d_model"]
    """At END."""
    cache: DynamicCache
    """Of everything before END; never written to."""


@torch.no_grad()
def clean_run(model: HookedModel, batch: TokenBatch) -> CleanRun:
    """Run prompts of at least two tokens, padded on the left. Raises `MnemoscopeError` for others.

    Memory: the keys and values of the batch. Reads offloaded weights twice.
    """
    if not bool(batch.mask[:, -1].all()):
        raise MnemoscopeError("end_total_effects needs prompts padded on the left.")
    if batch.ids.shape[1] < 2:
        raise MnemoscopeError("end_total_effects needs prompts of at least two tokens.")
    return CleanRun(batch, end_states(model, batch).resid_pre, _prefix_cache(model, batch))


@torch.no_grad()
def end_total_effects(
    model: HookedModel,
    prompts: TokenBatch | CleanRun,
    replacement: Float[Tensor, "layer batch head d_v"],
    token_ids: Int[Tensor, "batch k"],
    *,
    senders: Senders | None = None,
    rows_per_call: int = 64,
) -> Effects:
    """Logits of `token_ids` at END with each sender row's heads replaced at END only.

    `prompts` are padded on the left; with several replacements give their `clean_run`. One row a
    head by default. Memory beyond the model: the cache of the prompts, and `batch * heads *
    rows_per_call * (positions + rows_per_call)` attention scores; on an offloaded model also the
    stream and the mask of every row. A head of the first row is checked against a hooked full pass;
    raises `UnsupportedModelError` when they differ by more than rounding (`rounding`). Reads
    offloaded weights four times, behind a `clean_run` twice, in half precision up to once more.
    """
    clean = prompts if isinstance(prompts, CleanRun) else clean_run(model, prompts)
    senders = single_heads(model) if senders is None else senders
    order = torch.argsort(senders.any(dim=2).int().argmax(dim=1), stable=True)
    groups = [
        _Rows(model, clean, replacement, senders[rows]) for rows in order.split(rows_per_call)
    ]
    together = [groups] if is_offloaded(model.module) else [[group] for group in groups]
    patched = [read for some in together for read in _logits(model, some, token_ids)]
    unpatched = torch.stack([rows[:, 0] for rows in patched]).mean(0)
    effects = Effects(unpatched, _unordered(torch.cat([rows[:, 1:] for rows in patched], 1), order))
    _check(model, clean.batch, replacement, token_ids, senders, effects)
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


@dataclass(eq=False)
class _Rows:
    """Some sender rows of every example on their way up: positions 1.. behind the unpatched one."""

    model: HookedModel
    clean: CleanRun
    replacement: Float[Tensor, "layer batch head d_v"]
    senders: Senders
    x: Tensor | None = None
    calls: Sequence[BlockCall] = ()

    @property
    def first(self) -> int:
        """The first layer with a sender: below it the clean residual stands for all rows."""
        return int(self.senders.any(dim=2).int().argmax(dim=1).min())

    def begin(self) -> None:
        """Take the stream below the first sender, and the arguments that blocks get."""
        self.x = self.clean.resid_pre[self.first][:, None].expand(-1, len(self.senders) + 1, -1)
        with noted_calls(self.model) as calls:
            self._around(self.x, lambda hidden: hidden[..., :1])
        self.calls = calls

    def climb(self, layer: int) -> None:
        """One layer: the block's own code on the clean cache, its senders' `z` replaced."""
        assert self.x is not None
        block = part(self.model.module, self.model.anatomy.spec.blocks)[layer]
        args, kwargs = self.calls[layer]
        with ExitStack() as stack:
            stack.enter_context(_unchanged(self.clean.cache, layer))
            if bool(self.senders[:, layer].any()):
                change = _patch(self.senders[:, layer], self.replacement[layer])
                place = self.model.module, self.model.anatomy, Site.Z, layer
                stack.enter_context(site_hook(*place, change))
            out = block(self.x.to(execution_device(block)), *args, **kwargs)
        self.x = out[0] if isinstance(out, tuple) else out

    def read(self, token_ids: Tensor) -> Float[Tensor, "batch row_plus_1 k"]:
        """Logits of the asked tokens, by the model's own code behind its blocks."""
        assert self.x is not None
        head = self.model.module.get_output_embeddings()
        logits = self._around(self.x, unembed_ids(head, token_ids))
        return logits.to(wide_type(logits.dtype))

    def _around(self, x: Tensor, unembed: Callable[[Tensor], Tensor]) -> Tensor:
        """Run the model with its blocks handing on `x`; no embedding is read."""
        n_rows = len(self.senders) + 1
        module, batch = self.model.module, self.clean.batch
        with ExitStack() as stack:
            for block in part(module, self.model.anatomy.spec.blocks):
                stack.enter_context(replaced_forward(block, _bypass(x, self.model)))
            stack.enter_context(replaced_forward(module.get_output_embeddings(), unembed))
            logits: Tensor = module(
                inputs_embeds=nothing_embedded(self.model, len(batch), n_rows),
                attention_mask=_masks(self.model, batch, n_rows),
                position_ids=batch.position_ids[:, -1:].expand(-1, n_rows),
                past_key_values=self.clean.cache,
                use_cache=True,
            ).logits
        return logits


def _logits(
    model: HookedModel, together: Sequence[_Rows], token_ids: Tensor
) -> list[Float[Tensor, "batch row_plus_1 k"]]:
    """Take the rows up layer by layer, each layer read once for all of them."""
    offloaded = is_offloaded(model.module)
    with model.lock:
        for rows in together:
            rows.begin()
        for layer, block in enumerate(part(model.module, model.anatomy.spec.blocks)):
            climbing = [rows for rows in together if rows.first <= layer]
            with materialised(block.modules() if climbing else ()):
                for rows in climbing:
                    rows.climb(layer)
                    rows.x = rows.x.cpu() if offloaded and rows.x is not None else rows.x
        with materialised([model.module.get_output_embeddings()]):
            return [rows.read(token_ids) for rows in together]


@contextmanager
def _unchanged(cache: DynamicCache, layer: int) -> Iterator[None]:
    """Drop what a call appends to a layer's cache: the clean tensors are never written to."""
    kept = cache.layers[layer]
    keys, values = kept.keys, kept.values
    try:
        yield
    finally:
        kept.keys, kept.values = keys, values


def _bypass(x: Tensor, model: HookedModel) -> Any:
    """Stand in for a block: hand on `x`."""
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

    def full() -> Tensor:
        return hooked_end_logits(model, batch, replacement, token_ids, heads)

    want = full()
    unit = float(want.abs().max().clamp(min=1.0))
    gap = float((effects.patched[:, 0].to(want.device) - want).abs().max()) / unit
    tolerance = _TOLERANCE[model.dtype.itemsize >= 4]
    if gap > tolerance:
        tolerance = max(tolerance, half_precision_bound(model, full, want, unit))
    if not gap <= tolerance:
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


__all__ = ["CleanRun", "clean_run", "end_total_effects", "head_sets", "hooked_end_logits"]
