"""The attention rows of one call, folded chunk by chunk of keys: an online softmax.

Scores are computed from the very q, k and mask of the call, for the chosen queries only, and kept
as highest scores, running sums and sums over labelled keys (Milakov & Gimelshein 2018, arXiv
1805.02867). `row_summaries` runs the model and collects what comes out of its layers.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from .errors import UnsupportedModelError
from .span_folding import KeySpans, span_peaks, span_values

WORKING_BYTES = 2**25
"""What the scores and keys of one chunk, with torch's copies of them, may take (32 MiB). With all
that is around them a call holds less than 64 MiB."""
LEAST_CHUNK = 512
"""Rather than take fewer keys at once than this, prompts and queries are taken in turn."""


@dataclass(frozen=True, eq=False)
class FoldedRows:
    """Online softmax over the keys read so far, `[batch, head, query, ...]`, float32."""

    score: Float[Tensor, "batch head query top"]
    key: Int[Tensor, "batch head query top"]
    base: Float[Tensor, "batch head query"]
    """The highest score (0 before there is one), which `total` and `mass` are scaled by."""
    total: Float[Tensor, "batch head query"]
    """Sum of exp(score - base)."""
    mass: Float[Tensor, "batch head query span"]
    """The same sum over a span's keys."""
    seen: Bool[Tensor, "batch head query span"]
    """Whether one of the span's keys was visible."""
    peak: Float[Tensor, "batch head query span"]
    """The highest score among the span's keys; -inf before there is one."""
    value: Float[Tensor, "batch head query span d_v"] | None
    """Sum of exp(score - base) x value over the span's keys; None where no values were given."""

    @property
    def logsumexp(self) -> Float[Tensor, "batch head query"]:
        """Over the keys read so far and the learned sink."""
        return self.base + self.total.log()


Place = tuple[slice, slice, slice]
"""Prompts, heads (all) and queries of a piece."""


def fold_rows(
    q: Float[Tensor, "batch head pos d"],
    k: Float[Tensor, "batch kv_head key d"],
    mask: Tensor | None,
    columns: Int[Tensor, "batch query"],
    spans: Bool[Tensor, "batch span key"],
    options: dict[str, Any],
    top: int = 1,
    chunk: int | None = None,
    values: Float[Tensor, "batch kv_head key d_v"] | None = None,
) -> Iterator[tuple[Place, FoldedRows]]:
    """Fold the rows of one attention call, a piece of prompts and queries at a time.

    `mask` is what the model hands its kernel: additive or Boolean `[batch or 1, 1 or head, pos,
    key]`, a mask of real keys `[batch, key]` (Flash attention), or None; with the last two the past
    is visible, as far as `sliding_window` of the `options` reaches. Their `scaling`, `softcap` and
    `s_aux` (learned sink logits, one a head) are followed too. With `values` each span's share of
    the head output is summed as well.
    """
    check_mask(mask)
    columns, spans = columns.to(q.device), spans.to(q.device)
    labelled = KeySpans.of(spans)
    prompts, queries, chunk = _pieces(q, k, columns.shape[1], chunk)
    for row in range(0, q.shape[0], prompts):
        here = slice(row, row + prompts)
        part_of_mask = mask if mask is None or len(mask) == 1 else mask[here]
        for query in range(0, columns.shape[1], queries):
            asked = slice(query, query + queries)
            picked = scaled_queries(q[here], columns[here, asked], options)
            hidden = HiddenKeys(part_of_mask, columns[here, asked], q.shape[2], k.shape[2], options)
            v = None if values is None else values[here]
            folded = _fold(picked, k[here], v, hidden, labelled.at(here), options, top, chunk)
            yield (here, slice(None), asked), folded


def check_mask(mask: object) -> None:
    """Raises `UnsupportedModelError` for masks that are no tensors (Flex attention)."""
    if not (mask is None or isinstance(mask, Tensor)):
        raise UnsupportedModelError(
            f"attention masks of type {type(mask).__name__} cannot be read: load the model with "
            "the attention implementation 'sdpa' or 'eager'."
        )


def _pieces(q: Tensor, k: Tensor, queries: int, chunk: int | None) -> tuple[int, int, int]:
    """Prompts, queries and keys at once, so that scores and keys stay within `WORKING_BYTES`.

    Eight bytes a number: float32, and as much again for masks and what torch's kernels copy.
    """
    batch, heads = q.shape[:2]
    keys_row = k.shape[1] * k.shape[3]
    fitting = WORKING_BYTES // (8 * batch * (heads * queries + keys_row))
    chunk = min(k.shape[2], max(fitting, LEAST_CHUNK) if chunk is None else chunk)
    numbers = WORKING_BYTES // (8 * chunk)
    prompts = min(batch, max(1, numbers // (heads * queries + keys_row)))
    return prompts, min(queries, max(1, (numbers // prompts - keys_row) // heads)), chunk


def scaled_queries(q: Tensor, columns: Tensor, options: dict[str, Any]) -> Tensor:
    """The chosen queries, float32 `[batch, head, query, d]`, times the scaling of the call."""
    rows = torch.arange(q.shape[0], device=q.device)[:, None]
    scaling = options.get("scaling")
    picked = q.transpose(1, 2)[rows, columns].float().transpose(1, 2)
    return picked * (q.shape[-1] ** -0.5 if scaling is None else scaling)


def _fold(
    queries: Float[Tensor, "batch head query d"],
    k: Float[Tensor, "batch kv_head key d"],
    v: Float[Tensor, "batch kv_head key d_v"] | None,
    hidden: HiddenKeys,
    spans: KeySpans,
    options: dict[str, Any],
    top: int,
    chunk: int,
) -> FoldedRows:
    folded = _nothing_read(queries, v, options.get("s_aux"), spans.masks.shape[1], top)
    for first in range(0, k.shape[2], chunk):
        keys = slice(first, min(first + chunk, k.shape[2]))
        scores, visible = chunk_scores(queries, k, hidden, options, keys)
        folded = _folded_in(
            folded, scores, None if v is None else v[:, :, keys], visible, spans, keys
        )
    return folded


def chunk_scores(
    queries: Float[Tensor, "batch head query d"],
    k: Float[Tensor, "batch kv_head key d"],
    hidden: HiddenKeys,
    options: dict[str, Any],
    keys: slice,
) -> tuple[Float[Tensor, "batch head query key"], Bool[Tensor, "batch one_or_head query key"]]:
    """Scores of the chunk `keys`, float32, -inf where a query may not look, and where it may."""
    # The heads that share a key head are one matrix with it: keys are not repeated.
    grouped = queries.reshape(len(queries), k.shape[1], -1, queries.shape[-1])
    scores = (grouped @ k[:, :, keys].float().mT).view(*queries.shape[:3], -1)
    softcap = options.get("softcap")
    if softcap is not None:
        scores.div_(softcap).tanh_().mul_(softcap)
    return scores, hidden.hide(scores, keys)


def _nothing_read(
    queries: Tensor, v: Tensor | None, sinks: Tensor | None, spans: int, top: int
) -> FoldedRows:
    """Before the first key: nothing, or the learned sink, which is no key but takes weight."""
    shape = queries.shape[:3]
    base, total = queries.new_zeros(shape), queries.new_zeros(shape)
    if sinks is not None:
        base, total = base + sinks.float().reshape(1, -1, 1), total + 1
    return FoldedRows(
        queries.new_full((*shape, top), -torch.inf),
        torch.full((*shape, top), -1, device=queries.device),
        base,
        total,
        queries.new_zeros(*shape, spans),
        torch.zeros(*shape, spans, dtype=torch.bool, device=queries.device),
        queries.new_full((*shape, spans), -torch.inf),
        None if v is None else queries.new_zeros(*shape, spans, v.shape[-1]),
    )


def _folded_in(
    before: FoldedRows,
    scores: Float[Tensor, "batch head query key"],
    v: Float[Tensor, "batch kv_head key d_v"] | None,
    visible: Bool[Tensor, "batch one_or_head query key"],
    spans: KeySpans,
    keys: slice,
) -> FoldedRows:
    """Fold in the scores of the chunk `keys`; `scores` is used up."""
    peak = torch.maximum(before.peak, span_peaks(scores, spans, keys))
    score, key = _highest(scores, before.score.shape[-1])
    score = torch.cat([before.score, score], dim=-1)
    score, order = score.sort(dim=-1, descending=True, stable=True)  # equal scores: earlier first
    key = torch.cat([before.key, key + keys.start], dim=-1).gather(-1, order)
    # A base of 0 stands for nothing read yet, unless there is a learned sink.
    start = torch.where(before.total > 0, before.base, -torch.inf)
    base = torch.maximum(start, score[..., 0])
    base = torch.where(base == -torch.inf, 0.0, base)
    old = torch.exp(start - base)
    weights = scores.sub_(base[..., None]).exp_()
    labels = spans.masks[:, :, keys].float().mT
    value = before.value
    if value is not None and v is not None:
        value = value * old[..., None, None] + span_values(weights, v, spans, keys)
    kept = before.score.shape[-1]
    return FoldedRows(
        score[..., :kept],
        key[..., :kept].masked_fill(score[..., :kept] == -torch.inf, -1),
        base,
        before.total * old + weights.sum(-1),
        before.mass * old[..., None] + (weights.flatten(1, 2) @ labels).view(*scores.shape[:3], -1),
        before.seen | (visible.float() @ labels[:, None] > 0),
        peak,
        value,
    )


def _highest(scores: Tensor, top: int) -> tuple[Tensor, Tensor]:
    """The highest scores, descending, and where they are; the first of equal ones.

    `topk` leaves the order of equal scores open; `max` does not.
    """
    found: list[tuple[Tensor, Tensor]] = []
    for i in range(min(top, scores.shape[-1])):
        if i:
            scores.scatter_(-1, found[-1][1], -torch.inf)
        value, where = scores.max(dim=-1, keepdim=True)
        found.append((value, where))
    for value, where in reversed(found[:-1]):  # backwards: when none is left the first comes again
        scores.scatter_(-1, where, value)
    return torch.cat([v for v, _ in found], -1), torch.cat([w for _, w in found], -1)


@dataclass(frozen=True, eq=False)
class HiddenKeys:
    """Which keys the chosen queries may look at, chunk by chunk."""

    mask: Tensor | None
    columns: Int[Tensor, "batch query"]
    positions: int
    keys: int
    options: dict[str, Any]

    def hide(self, scores: Tensor, keys: slice) -> Bool[Tensor, "batch one_or_head query key"]:
        """Set the scores of hidden keys to -inf and add the mask's bias; says what is visible."""
        if self.mask is None or self.mask.ndim == 2:
            visible = self._past(keys)
        else:
            picked = self._rows_of_mask(keys)
            visible = picked
            if picked.dtype != torch.bool:
                visible = picked > torch.finfo(picked.dtype).min / 2  # the lowest value hides
                scores.add_(picked.float())
        scores.masked_fill_(~visible, -torch.inf)
        return visible

    def _past(self, keys: slice) -> Tensor:
        own = self.columns[:, None, :, None] + self.keys - self.positions
        key = torch.arange(keys.start, keys.stop, device=own.device)
        visible = key <= own
        window = self.options.get("sliding_window")
        if window is not None:
            visible &= key > own - window
        if self.mask is not None:
            visible &= self.mask[:, None, None, -self.keys :][..., keys].bool()
        return visible

    def _rows_of_mask(self, keys: slice) -> Tensor:
        assert self.mask is not None
        rows = torch.arange(len(self.columns), device=self.columns.device)[:, None]
        full = self.mask.expand(len(self.columns), -1, -1, -1)
        return full[..., keys][rows, :, self.columns].transpose(1, 2)
