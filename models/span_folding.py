"""What a chunk of attention scores says of labelled spans of keys: the highest score, the values.

Only the columns between a span's first and last key are looked at, so a needle of ten tokens costs
ten columns, however long its haystack is.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor


@dataclass(frozen=True, eq=False)
class KeySpans:
    """Spans of keys as masks, and as ranges that are known without asking the device again."""

    masks: Bool[Tensor, "batch span key"]
    ranges: tuple[tuple[tuple[int, int], ...], ...]
    """First key and the one behind the last, for each span of each prompt; (0, 0) for none."""
    solid: tuple[tuple[bool, ...], ...]
    """Whether a span holds every key of its range."""

    @classmethod
    def of(cls, masks: Bool[Tensor, "batch span key"]) -> KeySpans:
        """The spans of masks."""
        rows, spans, width = masks.shape
        if width == 0 or spans == 0:
            return cls(masks, (((0, 0),) * spans,) * rows, ((True,) * spans,) * rows)
        any_key = masks.any(-1)
        first = masks.int().argmax(-1) * any_key
        stop = (width - masks.flip(-1).int().argmax(-1)) * any_key
        solid = masks.sum(-1) == stop - first
        both = torch.stack([first, stop], dim=-1).tolist()
        ranges = tuple(tuple((int(a), int(b)) for a, b in row) for row in both)
        return cls(masks, ranges, tuple(tuple(row) for row in solid.tolist()))

    def at(self, rows: slice) -> KeySpans:
        """The spans of some prompts."""
        return KeySpans(self.masks[rows], self.ranges[rows], self.solid[rows])

    def within(self, keys: slice) -> Iterator[tuple[int, int, slice, Tensor | None]]:
        """Prompt, span, the columns of the chunk `keys` to look at, and which of them count."""
        for row, ranges in enumerate(self.ranges):
            for span, (first, stop) in enumerate(ranges):
                first, stop = max(first, keys.start), min(stop, keys.stop)
                if first >= stop:
                    continue
                only = None if self.solid[row][span] else self.masks[row, span, first:stop]
                yield row, span, slice(first - keys.start, stop - keys.start), only


def span_peaks(
    scores: Float[Tensor, "batch head query key"], spans: KeySpans, keys: slice
) -> Float[Tensor, "batch head query span"]:
    """The highest score among each span's keys in the chunk `keys`; -inf where there is none."""
    peaks = scores.new_full((*scores.shape[:3], spans.masks.shape[1]), -torch.inf)
    for row, span, columns, only in spans.within(keys):
        part = scores[row, :, :, columns]
        if only is not None:
            part = part.masked_fill(~only, -torch.inf)
        peaks[row, :, :, span] = part.amax(-1)
    return peaks


def span_values(
    weights: Float[Tensor, "batch head query key"],
    values: Float[Tensor, "batch kv_head key d_v"],
    spans: KeySpans,
    keys: slice,
) -> Float[Tensor, "batch head query span d_v"]:
    """`sum of weight x value` over each span's keys in the chunk `keys`.

    `weights` and `values` hold the chunk's keys only; heads that share a value head are one matrix.
    """
    batch, heads, queries, _ = weights.shape
    out = weights.new_zeros(batch, heads, queries, spans.masks.shape[1], values.shape[-1])
    for row, span, columns, only in spans.within(keys):
        part = weights[row, :, :, columns]
        if only is not None:
            part = part * only
        grouped = part.reshape(values.shape[1], -1, part.shape[-1])
        summed = grouped @ values[row, :, columns].float()
        out[row, :, :, span] = summed.view(heads, queries, -1)
    return out
