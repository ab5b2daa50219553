"""The mean attention row of a suffix: how much every key gets from a block of queries together.

For scores of documents (who of the context is read while the question is read?) the weight on every
single token is needed, which no span summary holds; but only its mean over the block, `[head, key]`
a layer, never one row a query.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from .errors import MnemoscopeError
from .prompt_cache import PromptCache, check_room, run_behind, suffix_columns
from .row_folding import WORKING_BYTES, HiddenKeys, check_mask, chunk_scores, scaled_queries
from .row_summaries import check_all_read, check_layers

if TYPE_CHECKING:
    from .hooked import HookedModel


@torch.no_grad()
def mean_rows(
    model: HookedModel,
    prompt: PromptCache,
    suffix: Sequence[int],
    queries: Sequence[int] | None,
    layers: Sequence[int],
    *,
    at_once: int | None = None,
) -> Float[Tensor, "layer head key"]:
    """Mean softmax row over the suffix's offsets `queries`, float32; keys of prompt and suffix.

    A key counts 0 for a query that cannot see it, and is NaN where none of them can: it lies in
    their future or behind a sliding window. `at_once` is the number of queries whose rows are held
    together, by default as many as 32 MiB allow. Memory: the result and 64 MiB, or the rows of one
    query in all heads of a layer where those need more (above 200k keys for 32 heads).

    Raises `PromptError` for a suffix or offsets that do not fit, `MnemoscopeError` for layers or
    `at_once`, `UnsupportedModelError` when attention went where it cannot be read.
    """
    check_room(model, suffix, prompt)
    check_layers(layers)
    if at_once is not None and at_once < 1:
        raise MnemoscopeError(f"at_once={at_once} queries are too few: use 1 or more.")
    columns = suffix_columns(suffix, queries)
    keys = len(prompt) + len(suffix)
    result = torch.full((len(layers), model.anatomy.n_heads, keys), torch.nan, device=model.device)
    missing = set(layers)

    def see(
        layer: int, q: Tensor, k: Tensor, _: Tensor, mask: Tensor | None, options: dict[str, Any]
    ) -> None:
        if layer in missing:
            missing.discard(layer)
            row = _mean_row(q, k, mask, columns.to(q.device), options, at_once)
            # A sliding layer's cache holds its last keys only.
            result[list(layers).index(layer), :, keys - k.shape[2] :] = row.to(result.device)

    with model.lock, model.places.scores(see, layers, into=(result, missing)):
        run_behind(model, prompt, torch.tensor([list(suffix)]), columns[:, -1:])
    check_all_read(model, missing)
    return result


def _mean_row(
    q: Float[Tensor, "one head pos d"],
    k: Float[Tensor, "one kv_head key d"],
    mask: Tensor | None,
    columns: Int[Tensor, "one query"],
    options: dict[str, Any],
    at_once: int | None,
) -> Float[Tensor, "head key"]:
    """The mean over the queries of one call, some queries at a time."""
    check_mask(mask)
    heads, keys, count = q.shape[1], k.shape[2], columns.shape[1]
    # Scores, their exponentials and the visible ones: twelve bytes a weight at the most.
    at_once = max(1, WORKING_BYTES // (12 * heads * keys)) if at_once is None else at_once
    total = q.new_zeros(heads, keys, dtype=torch.float32)
    seen = torch.zeros(heads, keys, dtype=torch.bool, device=q.device)
    for first in range(0, count, at_once):
        asked = columns[:, first : first + at_once]
        weights, visible = _rows(q, k, mask, asked, options)
        total += weights.sum(1)
        seen |= visible
    return (total / count).masked_fill(~seen, torch.nan)


def _rows(
    q: Tensor, k: Tensor, mask: Tensor | None, columns: Tensor, options: dict[str, Any]
) -> tuple[Float[Tensor, "head query key"], Tensor]:
    """Softmax rows of some queries, and which keys `[head, key]` any of them sees."""
    picked = scaled_queries(q, columns, options)
    hidden = HiddenKeys(mask, columns, q.shape[2], k.shape[2], options)
    keys = k.shape[2]
    scores = picked.new_empty(*picked.shape[1:3], keys)
    seen = torch.zeros(q.shape[1], keys, dtype=torch.bool, device=q.device)
    chunk = max(1, WORKING_BYTES // (8 * k.shape[1] * k.shape[3]))
    for start in range(0, keys, chunk):
        piece = slice(start, min(start + chunk, keys))
        found, visible = chunk_scores(picked, k, hidden, options, piece)
        scores[..., piece] = found[0]
        seen[:, piece] = visible[0].any(1)
    normal = torch.logsumexp(scores, -1)
    if options.get("s_aux") is not None:  # a learned sink is no key, but takes weight
        normal = torch.logaddexp(normal, options["s_aux"].float().reshape(-1, 1))
    return scores.sub_(normal[..., None]).exp_().nan_to_num_(0.0), seen
