"""Attention rows beside the model's own kernel.

transformers sends every attention call through a table of functions. While rows are read, the
model's entry is replaced by a wrapper that computes the softmax of the chosen query rows from the
very q, k and mask of the call, and then hands over to the model's own function, whose output is
what the model goes on with. GPT-J does not use the table; its attention returns full patterns, and
the rows are taken from those.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

import torch
from jaxtyping import Float, Int
from torch import Tensor
from transformers import AttentionMaskInterface
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from .anatomy import Anatomy, part
from .tokens import TokenBatch
from .types import Site

if TYPE_CHECKING:
    from .hooked import HookedModel

See = Callable[[int, Tensor, Tensor, Tensor, Tensor | None, dict[str, Any]], None]
"""Called with (layer, query, key, value, mask, options) of every attention call."""


ATTENTION_SITES = (Site.ROT_Q, Site.ROT_K, Site.V)
"""Sites that only the attention function sees."""


def keep_inputs(
    sites: Sequence[Site],
    layers: Sequence[int],
    keep: Callable[[Site, int], Callable[[Tensor], None]],
) -> See:
    """A `See` that hands q, k or v as `[batch, pos, head, d]` to `keep(site, layer)`."""

    def see(
        layer: int, q: Tensor, k: Tensor, v: Tensor, _: Tensor | None, __: dict[str, Any]
    ) -> None:
        if layer in layers:
            for site, x in zip(ATTENTION_SITES, (q, k, v), strict=True):
                if site in sites:
                    keep(site, layer)(x.transpose(1, 2))

    return see


def attention_rows(
    model: HookedModel,
    batch: TokenBatch,
    columns: Int[Tensor, "batch query"] | None,
    layers: Sequence[int],
) -> Float[Tensor, "layer batch head query key"]:
    """Softmax rows of the query `columns` (None: all), float32, for the given layers."""
    kept: dict[int, Tensor] = {}
    if model.anatomy.spec.interface:

        def see(
            layer: int, q: Tensor, k: Tensor, _: Tensor, mask: Tensor | None, o: dict[str, Any]
        ) -> None:
            if layer in layers:
                kept[layer] = row_softmax(q, k, mask, columns, **_scoring(q, o))

        with model.places.scores(see, layers, into=(kept,)):
            model.forward(batch, batch.ends[:, None])
    else:
        _rows_from_patterns(model, batch, columns, layers, kept)
    device = kept[layers[0]].device
    return torch.stack([kept[layer].to(device) for layer in layers])


def row_softmax(
    q: Float[Tensor, "batch head pos d"],
    k: Float[Tensor, "batch kv_head key d"],
    mask: Tensor | None,
    columns: Int[Tensor, "batch query"] | None,
    scaling: float,
    softcap: float | None,
) -> Float[Tensor, "batch head query key"]:
    """`softmax(softcap(scaling q k^T) + mask)` for chosen query positions, in float32.

    `mask` is additive or boolean `[batch or 1, 1, pos, key]`; None means causal. Grouped keys are
    expanded by view, never copied.
    """
    positions = q.shape[2]
    if columns is None:
        columns = torch.arange(positions, device=q.device).expand(q.shape[0], -1)
    rows = torch.arange(q.shape[0], device=q.device)[:, None]
    picked = q.transpose(1, 2)[rows, columns.to(q.device)].float()  # [batch, query, head, d]
    grouped = picked.unflatten(2, (k.shape[1], -1))  # [batch, query, kv_head, group, d]
    scores = torch.einsum("bqkgd,bktd->bkgqt", grouped, k.float()).flatten(1, 2) * scaling
    if softcap is not None:
        scores = softcap * torch.tanh(scores / softcap)
    allowed = _row_mask(mask, columns, q.shape[0], k.shape[2], positions, q.device)
    if allowed.dtype == torch.bool:
        scores = scores.masked_fill(~allowed, -torch.inf)
    else:
        scores = scores + allowed.float()
    return torch.softmax(scores, dim=-1).nan_to_num(0.0)


@contextmanager
def seeing_attention(module: Any, see: See) -> Iterator[None]:
    """Call `see` with what every attention call scores, without changing what it computes."""

    def watch(call: AttentionCall, own: Callable[[], Any]) -> Any:
        see(call.layer, call.query, call.key, call.value, call.mask, call.options)
        return own()

    with around_attention(module, watch):
        yield


@contextmanager
def seeing_scores(module: Any, anatomy: Anatomy, see: See) -> Iterator[None]:
    """`seeing_attention`, also for GPT-J, which scores in a method of its own outside the table."""
    if anatomy.spec.interface:
        with seeing_attention(module, see):
            yield
        return
    blocks = part(module, anatomy.spec.blocks)
    attentions = [part(block, anatomy.spec.attn) for block in blocks]

    def watched(attn: Any, layer: int, own: Callable[..., Any]) -> Callable[..., Any]:
        def wrapper(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None = None) -> Any:
            see(layer, query, key, value, mask, {"scaling": 1 / attn.scale_attn})
            return own(query, key, value, mask)

        return wrapper

    try:
        for layer, attn in enumerate(attentions):
            attn._attn = watched(attn, layer, attn._attn)
        yield
    finally:
        for attn in attentions:
            attn.__dict__.pop("_attn", None)  # the class's own method is left


@dataclass(frozen=True, eq=False)
class AttentionCall:
    """What one layer hands to its attention function; keys and values are not repeated."""

    layer: int
    query: Float[Tensor, "batch head pos d"]
    key: Float[Tensor, "batch kv_head key d"]
    value: Float[Tensor, "batch kv_head key d_v"]
    mask: Tensor | None
    options: dict[str, Any]


class Kernel(Protocol):
    """The model's own attention of the call that came in, or of another one of the same layer."""

    def __call__(self, asked: AttentionCall = ..., /) -> Any: ...


@contextmanager
def around_attention(module: Any, around: Callable[[AttentionCall, Kernel], Any]) -> Iterator[None]:
    """Let `around(call, own)` answer every attention call; `own()` is what the model would return:
    head outputs `[batch, pos, head, d_v]` and weights or None. `own(other)` is the same for another
    call of this layer."""
    config = module.config.get_text_config()
    own = config._attn_implementation
    name = f"mnemoscope_{own}_{id(config)}"  # another thread may be reading another model

    def wrapper(
        attn: Any,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        mask: Tensor | None,
        *args: Any,
        **options: Any,
    ) -> Any:
        call = AttentionCall(attn.layer_idx, query, key, value, mask, options)

        def run(asked: AttentionCall = call) -> Any:
            tensors = (asked.query, asked.key, asked.value, asked.mask)
            return _kernel(attn, own)(attn, *tensors, *args, **asked.options)

        return around(call, run)

    ALL_ATTENTION_FUNCTIONS[name] = wrapper
    AttentionMaskInterface.register(name, ALL_MASK_ATTENTION_FUNCTIONS[own])
    holders = {id(config): config, id(module.config): module.config}.values()
    try:
        for holder in holders:
            holder._attn_implementation = name
        yield
    finally:
        for holder in holders:
            holder._attn_implementation = own
        del ALL_ATTENTION_FUNCTIONS[name]  # it holds what was seen


def _kernel(attn: Any, implementation: str) -> Callable[..., Any]:
    """The model's own attention function; "eager" is a function of its modelling file."""
    if implementation == "eager":
        return sys.modules[type(attn).__module__].eager_attention_forward
    return ALL_ATTENTION_FUNCTIONS[implementation]


def _scoring(q: Tensor, options: dict[str, Any]) -> dict[str, Any]:
    scaling = options.get("scaling")
    return {
        "scaling": q.shape[-1] ** -0.5 if scaling is None else scaling,
        "softcap": options.get("softcap"),
    }


def _row_mask(
    mask: Tensor | None,
    columns: Tensor,
    batch: int,
    keys: int,
    positions: int,
    device: torch.device,
) -> Tensor:
    """The mask's rows `[batch, 1, query, key]`: boolean (True = may look) or additive."""
    columns = columns.to(device)
    if mask is None:
        reach = columns[:, :, None] + keys - positions
        return (torch.arange(keys, device=device) <= reach)[:, None]
    full = mask[:, :1, :, :keys].expand(batch, -1, -1, -1)
    return full[torch.arange(batch, device=device)[:, None], 0, columns][:, None]


def _rows_from_patterns(
    model: HookedModel,
    batch: TokenBatch,
    columns: Tensor | None,
    layers: Sequence[int],
    kept: dict[int, Tensor],
) -> None:
    handles = []
    for layer in layers:
        block = part(model.module, model.anatomy.spec.blocks)[layer]

        def store(_: Any, __: Any, output: Any, layer: int = layer) -> None:
            pattern = output[1].float()
            if columns is not None:
                rows = torch.arange(len(pattern), device=pattern.device)[:, None]
                pattern = pattern.transpose(1, 2)[rows, columns.to(pattern.device)].transpose(1, 2)
            kept[layer] = pattern

        handles.append(part(block, model.anatomy.spec.attn).register_forward_hook(store))
    try:
        model.forward(batch, batch.ends[:, None])
    finally:
        for handle in handles:
            handle.remove()
