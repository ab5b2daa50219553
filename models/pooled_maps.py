"""Attention maps of long prompts, pooled while they are computed: never a query x key matrix.

A cell of a pooled map stands for a bin of queries and a bin of keys. *Peak*, the highest weight in
it, finds a single strong look that a mean would hide; *mass*, the share of the queries' attention
on all of the bin's keys, says how much goes where. `hold_scores` keeps queries and keys of passes
that are run anyway (a prefill, an answer behind it), so that the map of any head, or any part of
one, can be pooled later without the model; `pooled_maps` keeps nothing and pools in one pass.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from .errors import PromptError, UnsupportedModelError
from .prompt_cache import check_room
from .row_folding import WORKING_BYTES, HiddenKeys, check_mask, chunk_scores, scaled_queries
from .row_summaries import check_all_read

if TYPE_CHECKING:
    from .hooked import HookedModel

_FOLLOWED = ("scaling", "softcap", "sliding_window", "s_aux")
"""What changes scores beside q, k and the mask; see `row_folding.fold_rows`."""


@dataclass(frozen=True, eq=False)
class PooledMap:
    """Maps of all heads of a layer, or of one head, `[head, query_bin, key_bin]`, float32."""

    query_edges: tuple[int, ...]
    """Bin i holds the queries `query_edges[i] <= position < query_edges[i + 1]`."""
    key_edges: tuple[int, ...]
    peak: Float[Tensor, "head query_bin key_bin"]
    """Highest attention weight in the cell, 0 to 1; NaN where no query can see a key of it."""
    mass: Float[Tensor, "head query_bin key_bin"]
    """Mean over the bin's queries of the weight on all keys of the bin, 0 to 1; NaN likewise. Over
    all keys it sums to 1, less what a learned sink takes."""


@dataclass(frozen=True, eq=False)
class HeldScores:
    """What one layer's scores are made of, for a prompt without padding: q and k as scored."""

    q: Float[Tensor, "one head pos d"]
    k: Float[Tensor, "one kv_head pos d"]
    options: Mapping[str, Any]

    def __len__(self) -> int:
        return self.q.shape[2]

    def head(self, head: int) -> HeldScores:
        """The same for one query head."""
        kv = head // (self.q.shape[1] // self.k.shape[1])
        options = dict(self.options)
        if options.get("s_aux") is not None:
            options["s_aux"] = options["s_aux"].reshape(-1)[head : head + 1]
        return HeldScores(self.q[:, head : head + 1], self.k[:, kv : kv + 1], options)

    def followed_by(self, suffix: HeldScores) -> HeldScores:
        """The prompt and a suffix that was held behind it in a block of its own."""
        q, k = torch.cat([self.q, suffix.q], dim=2), torch.cat([self.k, suffix.k], dim=2)
        return HeldScores(q, k, suffix.options)

    @torch.no_grad()
    def rows(self, first: int, stop: int) -> Float[Tensor, "head query key"]:
        """Natural log of the weights of queries `first` to `stop`, -inf where they cannot look.

        Keys up to the last of these queries; memory: the result and as much again.
        """
        columns = torch.arange(first, stop, device=self.q.device)[None]
        options = dict(self.options)
        picked = scaled_queries(self.q, columns, options)
        hidden = HiddenKeys(None, columns, len(self), len(self), options)
        scores = chunk_scores(picked, self.k, hidden, options, slice(0, stop))[0][0]
        normal = torch.logsumexp(scores, -1)
        if options.get("s_aux") is not None:  # a learned sink is no key, but takes weight
            normal = torch.logaddexp(normal, options["s_aux"].float().reshape(-1, 1))
        return scores.sub_(normal[..., None])

    @torch.no_grad()
    def pooled(self, query_edges: Sequence[int], key_edges: Sequence[int]) -> PooledMap:
        """Pool the map, or the part of it between the outermost edges.

        Memory: the result and about 32 MiB, or the scores of one query in all heads where those
        need more. Raises `PromptError` for edges that do not rise within the prompt.
        """
        check_edges(query_edges, len(self))
        check_edges(key_edges, len(self))
        heads, bins = self.q.shape[1], len(key_edges) - 1
        keys = torch.arange(key_edges[0], key_edges[-1], device=self.q.device)
        inner = torch.tensor(list(key_edges[1:-1]), device=self.q.device, dtype=torch.long)
        where = torch.bucketize(keys, inner, right=True).expand(heads, -1)
        shape = (heads, len(query_edges) - 1, bins)
        peak = torch.full(shape, -torch.inf, device=self.q.device)
        mass = torch.zeros(shape, device=self.q.device)
        for row, (first, stop) in enumerate(pairwise(query_edges)):
            top, total = self._over_queries(first, stop, key_edges[0], key_edges[-1])
            reached = where[:, : top.shape[-1]]
            peak[:, row].scatter_reduce_(-1, reached, top, "amax")
            mass[:, row].scatter_add_(-1, reached, total / (stop - first))
        unseen = peak == -torch.inf
        return PooledMap(
            tuple(query_edges),
            tuple(key_edges),
            peak.exp_().masked_fill_(unseen, torch.nan),
            mass.masked_fill_(unseen, torch.nan),
        )

    def _over_queries(
        self, first: int, stop: int, first_key: int, stop_key: int
    ) -> tuple[Float[Tensor, "head key"], Float[Tensor, "head key"]]:
        """Highest log weight and sum of weights over the queries, for the keys they reach."""
        keys = max(0, min(stop, stop_key) - first_key)
        top = self.q.new_full((self.q.shape[1], keys), -torch.inf, dtype=torch.float32)
        total = torch.zeros_like(top)
        # Scores, what is visible and torch's copies: twelve bytes a weight.
        at_once = max(1, WORKING_BYTES // (12 * self.q.shape[1] * stop))
        for begin in range(first, stop, at_once):
            end = min(begin + at_once, stop)
            rows = self.rows(begin, end)[..., first_key : first_key + keys]
            seen = slice(0, rows.shape[-1])
            top[:, seen] = torch.maximum(top[:, seen], rows.amax(1))
            total[:, seen] += rows.exp_().sum(1)
        return top, total


@contextmanager
def hold_scores(
    model: HookedModel, layers: Sequence[int] | None = None
) -> Iterator[dict[int, HeldScores]]:
    """Keep q and k of every pass inside the block; the passes continue one prompt.

    For example::

        with hold_scores(model) as held:
            prompt = model.prefill(ids)
            model.read_suffix(prompt, suffix)
        held[3].head(1).pooled(edges, edges)

    Layer to `HeldScores`, complete when the block is left. Memory: `held_bytes`. Raises
    `UnsupportedModelError` for a batch, and for attention that hides or biases keys otherwise than
    by their distance; `UnitOutOfRangeError` for a wrong layer.
    """
    layers = model.anatomy.chosen_layers(layers)
    parts: dict[int, list[HeldScores]] = {layer: [] for layer in layers}

    def see(
        layer: int, q: Tensor, k: Tensor, _: Tensor, mask: Tensor | None, options: dict[str, Any]
    ) -> None:
        if layer in parts:
            check_readable(model, q, k, mask, options)
            new = k[:, :, k.shape[2] - q.shape[2] :]
            followed = {name: options.get(name) for name in _FOLLOWED}
            parts[layer].append(HeldScores(q.detach().clone(), new.detach().clone(), followed))

    held: dict[int, HeldScores] = {}
    with model.lock, model.places.scores(see, layers):
        yield held
    check_all_read(model, {layer for layer, pieces in parts.items() if not pieces})
    for layer, pieces in parts.items():
        q, k = torch.cat([p.q for p in pieces], 2), torch.cat([p.k for p in pieces], 2)
        held[layer] = HeldScores(q, k, pieces[-1].options)
        pieces.clear()


def held_bytes(model: HookedModel, tokens: int) -> int:
    """What `hold_scores` keeps of a prompt of so many tokens in all layers, where keys are as wide
    as values; one layer's share more for a moment when the block is left."""
    anatomy = model.anatomy
    heads = anatomy.n_heads + anatomy.n_kv_heads
    return anatomy.n_layers * tokens * heads * anatomy.d_v * model.dtype.itemsize


@torch.no_grad()
def pooled_maps(
    model: HookedModel,
    ids: Sequence[int],
    query_edges: Sequence[int],
    key_edges: Sequence[int],
    *,
    layers: Sequence[int] | None = None,
) -> dict[int, PooledMap]:
    """One pass over a prompt's token ids; the pooled maps of the layers' heads, by layer.

    Memory: the maps, `HeldScores.pooled`'s, and the forward pass itself. Raises `PromptError` for a
    prompt that is too long and for edges that do not fit it, and what `hold_scores` raises.
    """
    check_room(model, ids, None)
    check_edges(query_edges, len(ids))
    check_edges(key_edges, len(ids))
    layers = model.anatomy.chosen_layers(layers)
    maps: dict[int, PooledMap] = {}

    def see(
        layer: int, q: Tensor, k: Tensor, _: Tensor, mask: Tensor | None, options: dict[str, Any]
    ) -> None:
        if layer in layers:
            check_readable(model, q, k, mask, options)
            maps[layer] = HeldScores(q, k, options).pooled(query_edges, key_edges)

    batch = model.batch([ids])
    with model.lock, model.places.scores(see, layers):
        model.forward(batch, batch.ends[:, None])
    check_all_read(model, set(layers) - set(maps))
    return {layer: maps[layer] for layer in layers}


def bin_edges(start: int, stop: int, bins: int, snap: Sequence[int] = ()) -> tuple[int, ...]:
    """Rising edges of at most `bins` bins of about equal width between two positions.

    Each place of `snap` that lies between becomes an edge, in the place of the nearest one that is
    none of them (so that a needle is never split); with more of them than fit, there are more
    bins. Raises `PromptError` for an empty range or no bins.
    """
    if not 0 <= start < stop or bins < 1:
        raise PromptError(f"{bins} bins from {start} to {stop}: give a bin and rising positions.")
    count = min(bins, stop - start)
    free = [start + (stop - start) * i // count for i in range(1, count)]
    fixed = sorted({int(place) for place in snap if start < place < stop})
    for place in fixed:
        if free:
            free.remove(min(free, key=lambda edge: (abs(edge - place), edge)))
    return (start, *sorted({*free, *fixed}), stop)


def check_edges(edges: Sequence[int], tokens: int) -> None:
    """Raises `PromptError` unless the edges rise and lie within the prompt."""
    rising = len(edges) > 1 and all(a < b for a, b in pairwise(edges))
    if not rising or edges[0] < 0 or edges[-1] > tokens:
        raise PromptError(
            f"edges of bins must rise within the prompt's 0 to {tokens}, got "
            f"{list(edges[:3])} to {list(edges[-1:])}: make them with bin_edges."
        )


def check_readable(
    model: HookedModel, q: Tensor, k: Tensor, mask: Tensor | None, options: dict[str, Any]
) -> None:
    """Raises `UnsupportedModelError` unless the call has one row that looks at its past, all of it
    or a sliding window of it, and nothing else."""
    check_mask(mask)
    same = q.shape[0] == 1
    if same and mask is not None:
        columns = torch.tensor([[0, q.shape[2] - 1]], device=q.device)
        given, own = (_hidden(m, columns, q, k, options) for m in (mask, None))
        same = torch.equal(given, own.expand_as(given))
    if not same:
        raise UnsupportedModelError(
            f"{model.name} runs several rows, or hides or biases keys in a way that a map cannot "
            "follow: give one prompt without padding, or read rows instead."
        )


def _hidden(
    mask: Tensor | None, columns: Int[Tensor, "one two"], q: Tensor, k: Tensor, options: Any
) -> Float[Tensor, "one head two key"]:
    """What the mask adds to scores: 0 or -inf."""
    heads = 1 if mask is None or mask.ndim < 4 else mask.shape[1]
    scores = torch.zeros(1, heads, 2, k.shape[2], device=q.device)
    HiddenKeys(mask, columns, q.shape[2], k.shape[2], options).hide(scores, slice(0, k.shape[2]))
    return scores
