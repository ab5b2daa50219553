"""Heads that keep a sink and a window only, computed beside full attention.

`stream(t) = softmax over j < sink or t - recent < j <= t` (the query's own key counts as recent),
where the model itself lets query t see key j. Work and memory are linear in the length: queries are
taken in blocks, each with the sink and the stretch of keys that its windows cover. Gradients flow,
and heads of one key/value group share their keys without a copy for each.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn.functional import pad, scaled_dot_product_attention
from torch.utils.checkpoint import checkpoint

from ..models.anatomy import part
from ..models.attention import AttentionCall, around_attention
from ..models.errors import MnemoscopeError, UnsupportedModelError
from ..models.hooked import HookedModel

LEAST_BLOCK = 64
"""Queries are taken in blocks of at least so many (and of `recent`, if that is more)."""

Mix = Callable[[AttentionCall, Callable[[], Tensor]], Tensor]
"""Makes of a layer's attention call the output `[batch, pos, head, d_v]` that the model goes on
with. Its second argument computes the layer's own full output, which costs what attention costs:
call it where that is wanted only."""


def streaming_output(
    call: AttentionCall, sink: int, recent: int, first_key: int = 0
) -> Float[Tensor, "batch pos head d_v"]:
    """What the heads of an attention call put out when they stream, in the call's data type.

    Queries are the last positions of the keys; `first_key` is the position of the first key that
    is there (behind a sliding window the cache has dropped the ones before it). Columns count as
    positions: rows may be padded only if `sink` is 0. Soft-cap, scaling, sliding window and mask of
    the call hold as in the model. Memory: keys and values about
    `(recent + block) / block` times, and scores `[head, pos, sink + recent + block]` where the
    kernel needs them.
    """
    check_window(sink, recent)
    k, v = call.key, call.value
    grid = _grid(call, sink, recent, first_key)
    q = _in_blocks(call.query, grid, k.shape[1])
    out = _attend(q, grid.keys_of(k), grid.keys_of(v), _for_groups(grid, q, k.shape[1]), call)
    return _from_blocks(out, grid, call.query)


@contextmanager
def mixed_attention(model: HookedModel, mix: Mix) -> Iterator[None]:
    """Let `mix` answer every attention call of the model inside the block.

    Raises `UnsupportedModelError` for models without the attention interface.
    """
    check_interface(model)

    def around(call: AttentionCall, own: Callable[[], Any]) -> Any:
        weights: list[Any] = []

        def full() -> Tensor:
            out, found = own()
            weights.append(found)
            return out

        mixed = mix(call, full)
        return mixed, weights[-1] if weights else None

    with model.lock, around_attention(model.module, around):
        yield


@contextmanager
def checkpointed_blocks(model: HookedModel) -> Iterator[None]:
    """Keep no activations inside blocks for the backward pass; they are computed again there.

    Activations then take `[layer, batch, pos, d_model]` and those of one block.
    """
    blocks = list(part(model.module, model.anatomy.spec.blocks))
    own = [vars(block).get("forward") for block in blocks]
    for block in blocks:
        block.forward = partial(
            checkpoint, block.forward, use_reentrant=False, preserve_rng_state=False
        )
    try:
        yield
    finally:
        for block, forward in zip(blocks, own, strict=True):
            del block.forward
            if forward is not None:
                block.forward = forward


def check_interface(model: HookedModel) -> None:
    """Raises `UnsupportedModelError` where attention cannot be seen and answered."""
    if not model.anatomy.spec.interface:
        raise UnsupportedModelError(
            f"{model.anatomy.model_type} does not use the attention interface of transformers, so "
            "its heads cannot be made to stream: take a model that does, for example a Llama."
        )


def check_window(sink: int, recent: int) -> None:
    """Raises `MnemoscopeError` unless a query sees its own key at least."""
    if sink < 0 or recent < 1:
        raise MnemoscopeError(
            f"sink={sink} and recent={recent}: keep a sink of 0 or more keys and at least the "
            "query's own key (recent=1)."
        )


# -- blocks of queries with their keys --------------------------------------------------------


@dataclass(frozen=True, eq=False)
class _Grid:
    """Which keys each block of queries is scored against, as indices into the keys that are there.

    The keys of a block are `n_sink` keys of the sink and then its own stretch of neighbours.
    """

    block: int
    n_blocks: int
    n_sink: int
    first: int
    """Index of the first neighbour of the first block, if the keys reached so far back."""
    reach: int
    """Neighbours of a block: the block, and the window behind its first query."""
    queries: Int[Tensor, "block query"]
    keys: Int[Tensor, "block key"]
    allowed: Bool[Tensor, "batch block query key"]

    def keys_of(self, x: Float[Tensor, "batch kv key d"]) -> Float[Tensor, "row kv key d"]:
        """Each block's keys (or values), blocks put into the batch."""
        near = x[:, :, max(0, self.first) :]
        front = max(0, -self.first)
        back = (self.n_blocks - 1) * self.block + self.reach - front - near.shape[2]
        near = pad(near, (0, 0, front, max(0, back)))
        near = near.unfold(2, self.reach, self.block).transpose(
            -1, -2
        )  # [batch, kv, block, key, d]
        sink = x[:, :, None, : self.n_sink].expand(-1, -1, self.n_blocks, -1, -1)
        both = torch.cat([sink, near], dim=3)
        return both.transpose(1, 2).flatten(0, 1)


def _grid(call: AttentionCall, sink: int, recent: int, first_key: int) -> _Grid:
    n_queries, n_keys = call.query.shape[2], call.key.shape[2]
    device = call.query.device
    recent = min(recent, n_keys)
    block = min(n_queries, max(recent, LEAST_BLOCK))
    n_blocks = -(-n_queries // block)
    n_sink = min(max(sink - first_key, 0), n_keys)
    first = n_keys - n_queries - (recent - 1)
    reach = recent - 1 + block
    starts = torch.arange(n_blocks, device=device)[:, None] * block
    # Places behind the last query repeat it: a row without a key would give NaN gradients.
    queries = n_keys - n_queries + starts + torch.arange(block, device=device)
    queries = queries.clamp(max=n_keys - 1)
    near = first + starts + torch.arange(reach, device=device)
    sinks = torch.arange(n_sink, device=device).expand(n_blocks, -1)
    keys = torch.cat([sinks, near], dim=1)
    back = queries[:, :, None] - keys[:, None]
    is_near = torch.arange(keys.shape[1], device=device) >= n_sink
    kept = torch.where(is_near, (back < recent) & (keys[:, None] >= n_sink), True)
    allowed = kept & (back >= 0) & (keys[:, None] < n_keys)
    allowed = allowed[None] & _visible(call, queries, keys.clamp(0, n_keys - 1), back)
    return _Grid(block, n_blocks, n_sink, first, reach, queries, keys, allowed)


def _visible(
    call: AttentionCall,
    queries: Int[Tensor, "block query"],
    keys: Int[Tensor, "block key"],
    back: Int[Tensor, "block query key"],
) -> Bool[Tensor, "batch block query key"]:
    """What the model lets these queries see of these keys, causality aside."""
    mask, n_queries, n_keys = call.mask, call.query.shape[2], call.key.shape[2]
    if mask is not None and mask.ndim == 4:
        rows = queries - (n_keys - n_queries)
        cells = mask[:, 0][:, rows[:, :, None], keys[:, None]]
        return cells if cells.dtype == torch.bool else cells > torch.finfo(cells.dtype).min / 2
    window = call.options.get("sliding_window")
    seen = (back < window) if window else torch.ones_like(back, dtype=torch.bool)
    return seen[None] if mask is None else seen[None] & mask.bool()[:, keys][:, :, None]


def _in_blocks(
    q: Float[Tensor, "batch head pos d"], grid: _Grid, n_kv: int
) -> Float[Tensor, "row kv query d"]:
    """Blocks into the batch, and the queries of a group's heads behind each other."""
    q = pad(q, (0, 0, 0, grid.n_blocks * grid.block - q.shape[2]))
    q = q.unflatten(2, (grid.n_blocks, grid.block)).unflatten(1, (n_kv, -1))
    # [batch, kv, group, block, query, d]
    return q.permute(0, 3, 1, 2, 4, 5).flatten(3, 4).flatten(0, 1)


def _from_blocks(
    out: Float[Tensor, "row kv query d_v"], grid: _Grid, q: Float[Tensor, "batch head pos d"]
) -> Float[Tensor, "batch pos head d_v"]:
    out = out.unflatten(2, (-1, grid.block)).unflatten(0, (-1, grid.n_blocks))
    # [batch, block, kv, group, query, d_v]
    out = out.permute(0, 1, 4, 2, 3, 5).flatten(3, 4).flatten(1, 2)
    return out[:, : q.shape[2]]


def _for_groups(grid: _Grid, q: Tensor, n_kv: int) -> Bool[Tensor, "row one query key"]:
    """What is allowed, once for each query head of a group."""
    allowed = grid.allowed
    group = q.shape[2] // grid.block
    rows = q.shape[0] // grid.n_blocks
    allowed = allowed.expand(rows, -1, -1, -1).flatten(0, 1)
    return allowed[:, None].expand(-1, group, -1, -1).flatten(1, 2)[:, None]


def _attend(q: Tensor, k: Tensor, v: Tensor, allowed: Tensor, call: AttentionCall) -> Tensor:
    scaling, softcap = call.options.get("scaling"), call.options.get("softcap")
    if softcap is None:
        return scaled_dot_product_attention(q, k, v, attn_mask=allowed, scale=scaling)
    scores = q @ k.transpose(-1, -2) * (q.shape[-1] ** -0.5 if scaling is None else scaling)
    scores = softcap * torch.tanh(scores / softcap)
    scores = scores.masked_fill(~allowed, -torch.inf)
    wide = scores.float() if scores.dtype.itemsize < 4 else scores
    return torch.softmax(wide, dim=-1).to(v.dtype) @ v
