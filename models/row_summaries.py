"""Attention rows of any length, folded while they are computed.

For chosen query positions only, beside the model's own attention kernel: the highest weights, the
logsumexp and the attention mass on labelled spans of keys (`row_folding`). What `rows` would hold,
`[query, key]` for every head of every layer, never exists.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from .errors import MnemoscopeError, PromptError, UnsupportedModelError
from .row_folding import FoldedRows, fold_rows
from .tokens import TokenBatch
from .types import TokenSpan

if TYPE_CHECKING:
    from .hooked import HookedModel

Spans = Sequence[Sequence[TokenSpan]] | Bool[Tensor, "batch span key"] | Int[Tensor, "..."]
"""Spans of keys: one list of `TokenSpan` a prompt, or masks `[batch, span, key]` of 0 and 1."""


@dataclass(frozen=True, eq=False)
class RowSummaries:
    """What each query head's attention row says, `[layer, batch, head, query, ...]`, float32.

    Keys are columns of the batch, padding counted, -1 for none. A query on padding has no row: its
    floats are NaN and its keys -1.
    """

    layers: tuple[int, ...]
    columns: Int[Tensor, "batch query"]
    """The query positions."""
    top_key: Int[Tensor, "layer batch head query top"]
    """Keys of the highest weights, highest first; equal scores: the earlier key first."""
    top_weight: Float[Tensor, "layer batch head query top"]
    """Their softmax weights; 0 where the query sees fewer keys."""
    logsumexp: Float[Tensor, "layer batch head query"]
    """Natural log of the sum of exp(score) over the keys it sees, and the head's learned sink where
    the model has one: `weight = exp(score - logsumexp)`."""
    mass: Float[Tensor, "layer batch head query span"]
    """Sum of the weights on a span's keys. NaN, not 0, where the head cannot see any of them."""
    peak: Float[Tensor, "layer batch head query span"]
    """Natural log of the highest weight among a span's keys; NaN where it can see none of them. Its
    excess over another span's is a difference of scores, whatever else the row holds."""
    visible: Bool[Tensor, "layer batch head query span"]
    """Whether the query can see a key of the span in this head: the span is not empty, not all in
    its future, and not all behind a sliding window."""

    @property
    def key(self) -> Int[Tensor, "layer batch head query"]:
        """The key with the highest score, exactly; of equal ones the earliest."""
        return self.top_key[..., 0]


@torch.no_grad()
def row_summaries(
    model: HookedModel,
    batch: TokenBatch,
    columns: Int[Tensor, "batch query"],
    spans: Spans | None,
    layers: Sequence[int],
    *,
    top: int = 1,
    chunk: int | None = None,
) -> RowSummaries:
    """Run once and fold the attention rows of the query `columns` in the given layers.

    `chunk` is the number of keys taken at once, by default as many as `WORKING_BYTES` allows.
    Memory: the result and 64 MiB, beside the forward pass itself. Raises `MnemoscopeError` for
    spans, `top` or `chunk` that do not fit, `UnsupportedModelError` when attention went elsewhere.
    """
    check_top(top, batch.ids.shape[1])
    if chunk is not None and chunk < 1:
        raise MnemoscopeError(f"chunk={chunk} keys at once are too few: use 1 or more.")
    check_layers(layers)
    masks = span_masks(batch, spans).to(model.device)
    columns = columns.to(model.device)
    result = no_summaries(tuple(layers), columns, model.anatomy.n_heads, masks.shape[1], top)
    missing = set(layers)

    def see(
        layer: int, q: Tensor, k: Tensor, _: Tensor, mask: Tensor | None, options: dict[str, Any]
    ) -> None:
        if layer in missing:
            missing.discard(layer)
            at = result.layers.index(layer)
            for place, rows in fold_rows(q, k, mask, columns, masks, options, top, chunk):
                put_rows(result, (at, *place), rows)

    into = (*tensors_of(result), missing)
    with model.places.scores(see, layers, into):
        model.forward(batch, batch.ends[:, None])
    check_all_read(model, missing)
    return _without_padding(result, batch.mask.to(model.device))


def span_masks(batch: TokenBatch, spans: Spans | None) -> Bool[Tensor, "batch span key"]:
    """Spans as masks over the columns of the batch, never on padding; None is no span at all.

    Raises `MnemoscopeError` for masks of another shape or other values than 0 and 1, and
    `PromptError` for lists that differ in length or a span that reaches beyond its prompt.
    """
    rows, width = batch.ids.shape
    if spans is None:
        return torch.zeros(rows, 0, width, dtype=torch.bool)
    if isinstance(spans, Tensor):
        if spans.ndim != 3 or spans.shape[0] != rows or spans.shape[2] != width:
            raise MnemoscopeError(
                f"span masks must be [batch, span, key] = [{rows}, any, {width}], got "
                f"{tuple(spans.shape)}."
            )
        if spans.is_floating_point() or not bool(((spans == 0) | (spans == 1)).all()):
            raise MnemoscopeError("span masks say which keys belong: use Booleans, or 0 and 1.")
        return spans.bool() & batch.mask[:, None].to(spans.device)
    return _masks_of_lists(batch, spans)


def _masks_of_lists(
    batch: TokenBatch, spans: Sequence[Sequence[TokenSpan]]
) -> Bool[Tensor, "batch span key"]:
    if len(spans) != len(batch) or len({len(row) for row in spans}) > 1:
        raise PromptError(
            f"spans must be one list for each of {len(batch)} prompts, all of one length; got "
            f"lengths {[len(row) for row in spans]}."
        )
    masks = torch.zeros(len(batch), len(spans[0]), batch.ids.shape[1], dtype=torch.bool)
    lengths, starts = batch.mask.sum(1).tolist(), batch.starts.tolist()
    for i, row in enumerate(spans):
        for j, span in enumerate(row):
            if span.stop > lengths[i]:
                raise PromptError(
                    f"span {span.start}:{span.stop} reaches beyond prompt {i}, which has "
                    f"{lengths[i]} tokens."
                )
            masks[i, j, starts[i] + span.start : starts[i] + span.stop] = True
    return masks


# -- the result ---------------------------------------------------------------------------------


def no_summaries(
    layers: tuple[int, ...], columns: Tensor, heads: int, spans: int, top: int
) -> RowSummaries:
    """Room for the rows of `columns`, nothing read yet."""
    shape = (len(layers), columns.shape[0], heads, columns.shape[1])

    def filled(value: float, *last: int, dtype: torch.dtype = torch.float32) -> Tensor:
        return torch.full((*shape, *last), value, dtype=dtype, device=columns.device)

    return RowSummaries(
        layers,
        columns,
        top_key=filled(-1, top, dtype=torch.long),
        top_weight=filled(torch.nan, top),
        logsumexp=filled(torch.nan),
        mass=filled(torch.nan, spans),
        peak=filled(torch.nan, spans),
        visible=filled(False, spans, dtype=torch.bool),
    )


def tensors_of(result: RowSummaries) -> tuple[Tensor, ...]:
    """What `put_rows` writes to."""
    floats = (result.top_weight, result.logsumexp, result.mass, result.peak)
    return (result.top_key, *floats, result.visible)


def put_rows(
    result: RowSummaries, place: tuple[int | slice, ...], rows: FoldedRows, before: int = 0
) -> None:
    """Write a piece of a layer into the result, wherever that layer was computed.

    `before`: how many keys stand in front of the first one that this layer still held.
    """
    normal = rows.logsumexp
    key = torch.where(rows.key < 0, rows.key, rows.key + before)
    held = key.shape[-1]  # fewer than asked for where a sliding window holds fewer
    result.top_key[place][..., :held] = key.to(result.top_key.device)
    result.top_weight[place] = 0
    weight = torch.exp(rows.score - normal[..., None])
    result.top_weight[place][..., :held] = weight.to(result.mass.device)
    result.logsumexp[place] = normal.to(result.mass.device)
    mass = (rows.mass / rows.total[..., None]).masked_fill(~rows.seen, torch.nan)
    result.mass[place] = mass.to(result.mass.device)
    peak = (rows.peak - normal[..., None]).masked_fill(~rows.seen, torch.nan)
    result.peak[place] = peak.to(result.mass.device)
    result.visible[place] = rows.seen.to(result.mass.device)


def _without_padding(result: RowSummaries, real: Bool[Tensor, "batch pos"]) -> RowSummaries:
    """Queries on padding have no row."""
    none = ~real.gather(1, result.columns.long())[None, :, None]
    result.top_key.masked_fill_(none[..., None], -1)
    for floats in (result.top_weight, result.mass, result.peak):
        floats.masked_fill_(none[..., None], torch.nan)
    result.logsumexp.masked_fill_(none, torch.nan)
    result.visible.masked_fill_(none[..., None], value=False)
    return result


def check_top(top: int, n_keys: int) -> None:
    """Raises `MnemoscopeError` for a number of keys to keep that a row does not have."""
    if not 1 <= top <= n_keys:
        raise MnemoscopeError(f"top={top} keys cannot be kept: use 1 to {n_keys}.")


def check_layers(layers: Sequence[int]) -> None:
    """Raises `MnemoscopeError` for no layer, or one that is named twice."""
    if not layers or len(set(layers)) < len(layers):
        raise MnemoscopeError(f"layers {list(layers)}: name at least one, and each once.")


def check_all_read(model: HookedModel, missing: set[int]) -> None:
    """Raises `UnsupportedModelError` when a layer's attention went where it cannot be seen."""
    if missing:
        raise UnsupportedModelError(
            f"{model.name} does not score its attention where rows can be read: load it with "
            "another attention implementation, for example 'sdpa' or 'eager'."
        )
