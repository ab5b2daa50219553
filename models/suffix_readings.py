"""What a suffix reads of a cached prompt: one pass over the suffix, all its rows folded.

Teacher-forced replay (retrieval_heads, section 5.3): the rows that decoding would see step by step
are the rows of one pass over question and answer behind the haystack's keys.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from .errors import MnemoscopeError, PromptError
from .prompt_cache import PromptCache, check_room, run_behind, suffix_columns
from .row_folding import fold_rows
from .row_summaries import (
    RowSummaries,
    check_all_read,
    check_layers,
    check_top,
    no_summaries,
    put_rows,
    tensors_of,
)
from .types import Site, TokenSpan

if TYPE_CHECKING:
    from .hooked import HookedModel


@dataclass(frozen=True, eq=False)
class SuffixReading:
    """The rows of a suffix behind a prompt; `query` runs over the asked offsets."""

    rows: RowSummaries
    """Batch axis of one; columns and keys are positions in prompt and suffix together."""
    logits: Float[Tensor, "query d_vocab"]
    z: Float[Tensor, "layer query head d_v"] | None
    """Head outputs before the output projection, where values were asked for."""
    span_value: Float[Tensor, "layer head query span d_v"] | None
    """A span's share of `z`: the sum of weight x value over its keys, float32."""


@torch.no_grad()
def read_suffix(
    model: HookedModel,
    prompt: PromptCache,
    suffix: Sequence[int],
    queries: Sequence[int] | None,
    spans: Sequence[TokenSpan] | Bool[Tensor, "span key"],
    layers: Sequence[int],
    top: int,
    values: bool,
) -> SuffixReading:
    """See `HookedModel.read_suffix`."""
    check_room(model, suffix, prompt)
    n_keys = len(prompt) + len(suffix)
    check_top(top, n_keys)
    check_layers(layers)
    masks = key_masks(spans, n_keys).to(model.device)[None]
    columns = suffix_columns(suffix, queries).to(model.device)
    rows = no_summaries(
        tuple(layers), columns + len(prompt), model.anatomy.n_heads, masks.shape[1], top
    )
    span_value: dict[int, Tensor] = {}
    missing = set(layers)

    def see(
        layer: int, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, options: dict[str, Any]
    ) -> None:
        if layer not in missing:
            return
        missing.discard(layer)
        gone = n_keys - k.shape[2]  # behind a sliding window, no longer held
        pieces = []
        for place, folded in fold_rows(
            *(q, k, mask, columns, masks[..., gone:], options),
            top=min(top, k.shape[2]),
            values=v if values else None,
        ):
            kept = (rows.layers.index(layer), *place)
            put_rows(rows, kept, folded, gone)
            if folded.value is not None:
                pieces.append((folded.value / folded.total[..., None, None])[0])
        if values:
            span_value[layer] = torch.cat(pieces, dim=1)

    z: dict[int, Tensor] = {}
    with model.lock, ExitStack() as stack:
        into = (*tensors_of(rows), span_value, missing)
        stack.enter_context(model.places.scores(see, layers, into))
        for layer in layers if values else ():
            keep = _keep(z, layer, columns)
            stack.enter_context(model.places.site(Site.Z, layer, keep, into=(z,)))
        logits, _ = run_behind(model, prompt, torch.tensor([list(suffix)]), columns)
    check_all_read(model, missing)
    return SuffixReading(rows, logits[0], _stacked(z, layers), _stacked(span_value, layers))


def key_masks(
    spans: Sequence[TokenSpan] | Bool[Tensor, "span key"], n_keys: int
) -> Bool[Tensor, "span key"]:
    """Spans of positions as masks over `n_keys` keys.

    Raises `PromptError` for one that reaches beyond the last key.
    """
    if isinstance(spans, Tensor):
        if spans.ndim != 2 or spans.shape[1] != n_keys or spans.dtype != torch.bool:
            raise MnemoscopeError(
                f"span masks must be Booleans [span, key] = [any, {n_keys}], got {spans.dtype} "
                f"{tuple(spans.shape)}."
            )
        return spans
    masks = torch.zeros(len(spans), n_keys, dtype=torch.bool)
    for i, span in enumerate(spans):
        if span.stop > n_keys:
            raise PromptError(
                f"span {span.start}:{span.stop} reaches beyond prompt and suffix, which have "
                f"{n_keys} tokens together."
            )
        masks[i, span.start : span.stop] = True
    return masks


def _keep(z: dict[int, Tensor], layer: int, columns: Tensor) -> Callable[[Tensor], None]:
    def store(x: Tensor) -> None:
        z[layer] = x[0, columns[0].to(x.device)].detach().clone()

    return store


def _stacked(kept: dict[int, Tensor], layers: Sequence[int]) -> Tensor | None:
    if not kept:
        return None
    device = kept[layers[0]].device
    return torch.stack([kept[layer].to(device) for layer in layers])
