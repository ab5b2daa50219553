"""A key/value cache in which streaming heads hold their sink and recent keys and nothing else.

The heads of one layer hold different numbers of keys, so no single key tensor can be handed to an
attention kernel: full and streaming heads are two groups, each with tensors of its own, and
`streaming_attention` runs the model's kernel once a group. Keys are kept after rotary, so positions
stay those of the text, whatever has been dropped between them.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from transformers.cache_utils import Cache, CacheLayerMixin

from ..models.errors import MnemoscopeError
from .streaming_pattern import StreamingPattern
from .streaming_sight import Masks, Ranges, Sight, appended, cells_of


@dataclass(frozen=True, eq=False)
class HeldHeads:
    """What the KV heads of a layer that see alike hold."""

    heads: Int[Tensor, " group"]
    """KV heads of the layer."""
    streaming: bool
    positions: Ranges = ()
    keys: Float[Tensor, "batch group key d"] | None = None
    values: Float[Tensor, "batch group key d_v"] | None = None

    def joined(self, keys: Tensor, values: Tensor, first: int) -> HeldHeads:
        """With keys and values `[batch, kv_head, pos, d]` of all heads from position `first` on."""
        positions = appended(self.positions, range(first, first + keys.shape[2]))
        heads = self.heads.to(keys.device)
        keys, values = keys.index_select(1, heads), values.index_select(1, heads)
        if self.keys is not None and self.values is not None:
            rows = keys.shape[0]  # one row may be continued in several
            keys = torch.cat([self.keys.expand(rows, -1, -1, -1), keys], dim=2)
            values = torch.cat([self.values.expand(rows, -1, -1, -1), values], dim=2)
        return replace(self, heads=heads, positions=positions, keys=keys, values=values)

    def keeping(self, wanted: Ranges) -> HeldHeads:
        """Only the positions `wanted`, in tensors of their own: views would hold on to the rest."""
        if self.keys is None or self.values is None or wanted == self.positions:
            return self
        found = cells_of(self.positions, wanted)

        def cut(held: Tensor) -> Tensor:
            return torch.cat([held[:, :, :0], *(held[:, :, cells] for cells, _ in found)], dim=2)

        positions = tuple(kept for _, kept in found)
        return replace(self, positions=positions, keys=cut(self.keys), values=cut(self.values))


Kernel = Callable[[Tensor, Tensor | None, Tensor | None, Tensor | None], Tensor]
"""(query, key, value, mask) of some heads to `[batch, pos, head, d_v]`."""


class StreamingLayer(CacheLayerMixin):  # type: ignore[misc]
    """One layer's full and streaming heads, and how many tokens they have seen."""

    is_sliding = False

    def __init__(self, full: Bool[Tensor, " kv_head"]) -> None:
        super().__init__()
        self.seen = 0
        groups = (HeldHeads(full.nonzero()[:, 0], False), HeldHeads((~full).nonzero()[:, 0], True))
        self.groups = tuple(group for group in groups if len(group.heads))

    def update(
        self, key_states: Tensor, value_states: Tensor, *_: Any, **__: Any
    ) -> tuple[Tensor, Tensor]:
        """Hold new keys and values `[batch, kv_head, pos, d]`; returns them alone."""
        self.groups = tuple(g.joined(key_states, value_states, self.seen) for g in self.groups)
        self.seen += key_states.shape[2]
        return key_states, value_states

    def get_seq_length(self) -> int:
        """Tokens seen, not keys held."""
        return self.seen

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        """As if nothing had been dropped; heads are masked in `streaming_attention`."""
        return self.seen + query_length, 0

    def get_max_length(self) -> int:
        """No limit."""
        return -1

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        """Nothing to do: tensors are made by `update`."""

    def reset(self) -> None:
        """Refused: start from an empty `StreamingCache`."""
        raise MnemoscopeError("a streaming cache cannot be emptied: make a new one.")

    def reorder_cache(self, beam_idx: Tensor) -> None:
        """Refused: there are no beams here."""
        raise MnemoscopeError("a streaming cache serves greedy decoding only: use no beams.")


class StreamingCache(Cache):  # type: ignore[misc]
    """The cache of transformers with a `StreamingLayer` for each layer of a pattern.

    A model can run on it only inside `streaming_attention`.
    """

    def __init__(self, pattern: StreamingPattern) -> None:
        super().__init__(layers=[StreamingLayer(full) for full in pattern.full])
        self.pattern = pattern
        self.whole_chunks = False
        """Queries of streaming heads see all that is held, and their whole chunk up to themselves:
        the prefill policy "chunked"."""
        self.running = False

    def update(
        self, key_states: Tensor, value_states: Tensor, layer_idx: int, *_: Any, **__: Any
    ) -> tuple[Tensor, Tensor]:
        """Hold new keys and values; raises `MnemoscopeError` outside `streaming_attention`."""
        if not self.running:
            raise MnemoscopeError(
                "a streaming cache was used by a model that attends to everything: run it inside "
                "`with streaming_attention(model):`."
            )
        return self.layers[layer_idx].update(key_states, value_states)

    def sights(self, streaming: bool, window: int | None) -> tuple[Sight, Sight]:
        """What the heads of a group see in this pass, and what they keep behind it."""
        full = Sight(window=window)
        narrow = Sight(self.pattern.sink, self.pattern.recent, window) if streaming else full
        return (full if self.whole_chunks else narrow), narrow


def attend(
    layer: StreamingLayer,
    query: Float[Tensor, "batch head pos d"],
    sights: Callable[[bool], tuple[Sight, Sight]],
    masks: Masks,
    kernel: Kernel,
) -> Float[Tensor, "batch pos head d_v"]:
    """The attention of the newest tokens of a layer, group by group; what no later query sees is
    dropped behind it. `sights(streaming)`: what a group sees now, and what it keeps."""
    n_kv = sum(len(group.heads) for group in layer.groups)
    by_kv_head = query.unflatten(1, (n_kv, -1))
    parts, kept = [], []
    for group in layer.groups:
        sees, keeps = sights(group.streaming)
        mask = masks.of(group.positions, layer.seen - query.shape[2], sees, query)
        asking = by_kv_head.index_select(1, group.heads).flatten(1, 2)
        parts.append(kernel(asking, group.keys, group.values, mask))
        kept.append(group.keeping(keeps.past(layer.seen)))
    layer.groups = tuple(kept)
    if len(parts) == 1:
        return parts[0]
    together = torch.cat([part.unflatten(2, (-1, by_kv_head.shape[2])) for part in parts], dim=2)
    order = torch.cat([group.heads for group in layer.groups]).argsort()
    return together.index_select(2, order).flatten(2, 3)


def cache_bytes(cache: Any) -> int:
    """Bytes that the keys and values of a cache keep in memory: whole storages, each once, so that
    a short view of a long tensor counts as the long one."""
    tensors = [tensor for layer in cache.layers for tensor in _tensors(layer)]
    stored = {tensor.untyped_storage().data_ptr(): tensor.untyped_storage() for tensor in tensors}
    return sum(storage.nbytes() for storage in stored.values())


def _tensors(layer: Any) -> list[Tensor]:
    holders = layer.groups if isinstance(layer, StreamingLayer) else (layer,)
    pairs = [tensor for holder in holders for tensor in (holder.keys, holder.values)]
    return [tensor for tensor in pairs if tensor is not None]
