"""The strongest edges of one head: which keys each query reads, without the whole matrix.

An edge goes from a query to a key it attends to. Each query keeps its `k` strongest; what these
leave out is told as the share that they hold. A sink (the first tokens, where attention rests
whatever is said) can be left out, and its share is told too. The baseline of all of it is even
attention: the same weight for every key that the query sees.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
import polars
import torch
from jaxtyping import Float, Int

from ..models.errors import MnemoscopeError
from ..models.hooked import HookedModel
from ..models.pooled_maps import HeldScores, hold_scores
from ..models.types import HeadId
from .answers import token_label
from .atlas_maps import levels, packed

KEPT = 8
"""Edges of each query."""
NO_KEY = 2**16 - 1
_AT_ONCE = 512


@dataclass(frozen=True, eq=False)
class Edges:
    """The `k` strongest keys of each query, the strongest first.

    `keys` are -1, and `weights` 0, where a query sees fewer keys. `kept` is the share of each
    query's attention that its edges hold, `sink` the share on the first `sinks` tokens, which the
    edges leave out when `without_sink`. `seen` counts the keys that a query sees, the sink's too.
    """

    keys: Int[np.ndarray, "query k"]
    weights: Float[np.ndarray, "query k"]
    kept: Float[np.ndarray, " query"]
    sink: Float[np.ndarray, " query"]
    seen: Int[np.ndarray, " query"]
    sinks: int
    without_sink: bool

    @property
    def even_kept(self) -> float:
        """The share that as many edges hold of even attention, mean over the queries."""
        return float(((self.keys >= 0).sum(-1) / self.seen).mean())

    @property
    def even_sink(self) -> float:
        """The share of even attention over all tokens so far that rests on the sink."""
        so_far = np.arange(1, len(self.sink) + 1)
        return float((np.minimum(so_far, self.sinks) / so_far).mean())


def head_scores(model: HookedModel, text: str, head: HeadId) -> HeldScores:
    """Queries and keys of one head on a text, from one pass. Raises what `hold_scores` raises."""
    model.anatomy.check_head(head)
    batch = model.tokens(text)
    with torch.no_grad(), hold_scores(model, [head.layer]) as held:
        model.forward(batch, batch.ends[:, None])
    return held[head.layer].head(head.head)


def top_edges(scores: HeldScores, *, sinks: int, without_sink: bool = True, k: int = KEPT) -> Edges:
    """The edges of one head over a whole prompt, some queries at a time.

    Memory: the edges, and the rows of 512 queries. Raises `MnemoscopeError` for more than 65,535
    tokens, for several heads or for no edges.
    """
    tokens = len(scores)
    if tokens > NO_KEY or scores.q.shape[1] != 1 or k < 1:
        raise MnemoscopeError(
            f"edges are kept for one head, at least one a query and at most {NO_KEY} tokens, not "
            f"for {scores.q.shape[1]} heads, {k} edges and {tokens} tokens."
        )
    keys = np.full((tokens, k), -1, np.int32)
    weights = np.zeros((tokens, k), np.float32)
    sink = np.zeros(tokens, np.float32)
    seen = np.zeros(tokens, np.int32)
    for first, stop in pairwise([*range(0, tokens, _AT_ONCE), tokens]):
        rows = scores.rows(first, stop)[0]
        seen[first:stop] = (rows > -torch.inf).sum(-1).cpu()
        rows.exp_()
        sink[first:stop] = rows[:, :sinks].sum(-1).cpu()
        if without_sink:
            rows[:, :sinks] = 0
        top = rows.topk(min(k, rows.shape[-1]), dim=-1)
        many = top.values.shape[-1]
        weights[first:stop, :many] = top.values.float().cpu()
        keys[first:stop, :many] = top.indices.cpu()
    keys[weights <= 0] = -1
    return Edges(keys, weights, weights.sum(-1), sink, seen, sinks, without_sink)


def edge_table(
    found: Edges, labels: Sequence[str], queries: tuple[int, int] | None = None
) -> polars.DataFrame:
    """One row an edge, the strongest first: `query`, `query_token`, `key`, `key_token`, `weight`,
    and `times_even`, the weight over that of even attention.

    `labels` are the tokens as shown; `queries` (start, stop) leaves out the others.
    """
    start, stop = queries or (0, len(found.keys))
    query, place = np.nonzero(found.keys[start:stop] >= 0)
    query += start
    key, weight = found.keys[query, place], found.weights[query, place]
    order = np.argsort(-weight, kind="stable")
    shown = np.asarray(labels, dtype=object)
    return polars.DataFrame(
        {
            "query": query[order],
            "query_token": shown[query[order]].tolist(),
            "key": key[order],
            "key_token": shown[key[order]].tolist(),
            "weight": weight[order].astype(np.float64),
            "times_even": (weight * found.seen[query])[order].astype(np.float64),
        },
        schema_overrides={"query_token": polars.String, "key_token": polars.String},
    )


def token_labels(model: HookedModel, ids: Sequence[int]) -> list[str]:
    """The tokens as they are shown."""
    return [token_label(piece) for piece in model.pieces(list(ids))]


def packed_edges(found: Edges, header: Mapping[str, Any]) -> bytes:
    """`header` and the edges as bytes: for each query `k` levels of weights (as in a map), then `k`
    keys of two bytes, little-endian, 65,535 for none."""
    tokens, k = found.keys.shape
    level = levels(np.where(found.keys < 0, np.nan, found.weights))
    keys = np.where(found.keys < 0, NO_KEY, found.keys).astype("<u2")
    body = np.concatenate([level, keys.view(np.uint8).reshape(tokens, 2 * k)], axis=1)
    return packed(body, {**header, "k": k})
