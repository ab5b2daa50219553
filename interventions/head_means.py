"""What attention heads do on average over neutral text: say, ask, and how loud.

Zeroing a head also takes away its constant part, which later layers count on; mean ablation keeps
that part (ph3.md, section 5). Mean outputs feed `edits.mean` and `plan_pruning(mean_outputs=...)`,
mean queries `attention_edits.mean_query`; norms of what heads write match random controls
(`results.controls.matched_random_heads`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from ..models.anatomy import head_output_weights, part
from ..models.batching import adaptive, length_buckets
from ..models.errors import MnemoscopeError, PromptError
from ..models.hooked import HookedModel
from ..models.hooks import Change, site_hook
from ..models.placement import materialised
from ..models.query_projections import query_hook
from ..models.tokens import TokenBatch, encode
from ..models.types import HeadId, Site, unique_heads

_ROWS = 8


def mean_head_outputs(
    model: HookedModel, texts: Sequence[str], heads: Sequence[HeadId]
) -> dict[HeadId, Float[Tensor, " d_v"]]:
    """Mean of z over all token positions but the first of each text; float64, on the CPU.

    Every position counts once, so long texts weigh more. The first is left out: a head there sees
    nothing but that token, so its output is not what it says in running text. Memory: one forward
    pass of up to eight texts (fewer where memory runs out), one layer's chosen z in float64, sums.

    Raises `PromptError` when a text is empty, too long for the model, or none has a second token;
    `UnitOutOfRangeError` for heads that the model lacks.
    """
    return _means(model, texts, heads, _at_z(model), lambda layer, z: z)


def mean_queries(
    model: HookedModel, texts: Sequence[str], heads: Sequence[HeadId]
) -> dict[HeadId, Float[Tensor, " d_head"]]:
    """Mean query before norm and rotary turn, over the positions of `mean_head_outputs`; float64,
    on the CPU. What a head asks when nothing particular is asked (retrieval heads, section 3.2).

    Raises as `mean_head_outputs` does.
    """

    def at_queries(layer: int, change: Change) -> AbstractContextManager[None]:
        return query_hook(model.module, model.anatomy, layer, (), change)

    return _means(model, texts, heads, at_queries, lambda layer, q: q)


def head_write_norms(model: HookedModel, texts: Sequence[str]) -> Float[np.ndarray, "layer head"]:
    """Mean length of what each head writes, `|z W_O^h|`, over the positions of `mean_head_outputs`.

    Taken before a family's norm or multiplier of the whole attention output. Raises as
    `mean_head_outputs` does.
    """
    anatomy = model.anatomy
    grams = [_gram(model, layer) for layer in range(anatomy.n_layers)]

    def norms(layer: int, z: Tensor) -> Tensor:
        squares = torch.einsum("chv,hvw,chw->ch", z, grams[layer].to(z.device), z)
        return squares.clamp(min=0).sqrt()[..., None]

    means = _means(model, texts, anatomy.all_heads(), _at_z(model), norms)
    flat = torch.cat([means[head] for head in anatomy.all_heads()])
    return np.asarray(flat.view(anatomy.n_layers, anatomy.n_heads).numpy())


# -- sums over texts ------------------------------------------------------------------------------

_Place = Callable[[int, Change], AbstractContextManager[None]]
"""Installs a hook in a layer that sees `[batch, pos, head, width]`."""
_Fold = Callable[[int, Tensor], Tensor]
"""What is averaged, `[cell, head, any]`, of one layer's heads `[cell, head, width]`, float64."""


def _at_z(model: HookedModel) -> _Place:
    return lambda layer, change: site_hook(model.module, model.anatomy, Site.Z, layer, change)


def _gram(model: HookedModel, layer: int) -> Float[Tensor, "head d_v d_v"]:
    """`W W^T` of each head's slice of the output projection, so that `|z W|^2 = z (W W^T) z`."""
    block = part(model.module, model.anatomy.spec.blocks)[layer]
    o_proj = part(block, model.anatomy.spec.o_proj)
    with materialised([o_proj]):
        weights = head_output_weights(o_proj, model.anatomy.n_heads).detach().double()
    return weights @ weights.mT


def _means(
    model: HookedModel,
    texts: Sequence[str],
    heads: Sequence[HeadId],
    place: _Place,
    fold: _Fold,
) -> dict[HeadId, Tensor]:
    heads = unique_heads(heads)
    if not heads:
        raise MnemoscopeError("no heads given: name at least one head to average.")
    for head in heads:
        model.anatomy.check_head(head)
    rows = [encode(model.text_tokenizer, text) for text in texts]
    rows = [row for row in rows if len(row) > 1]
    n_positions = sum(len(row) - 1 for row in rows)
    if n_positions == 0:
        raise PromptError("no text has a second token: give sentences of neutral text.")
    totals: dict[HeadId, Tensor] = {}
    batches = length_buckets([len(row) for row in rows], _ROWS)
    for _, sums in adaptive(
        batches,
        lambda batch: _sums(model, model.batch([rows[i] for i in batch]), heads, place, fold),
    ):
        totals = {head: totals.get(head, 0) + sums[head] for head in heads}
    return {head: total / n_positions for head, total in totals.items()}


@torch.no_grad()
def _sums(
    model: HookedModel, batch: TokenBatch, heads: Sequence[HeadId], place: _Place, fold: _Fold
) -> Mapping[HeadId, Tensor]:
    """Sums of one batch, added up inside the hooks, where a layer's tensor lives no longer."""
    counted = batch.mask.clone()
    counted[torch.arange(len(batch), device=counted.device), batch.starts] = False
    sums: dict[HeadId, Tensor] = {}

    def add(layer: int, here: Sequence[HeadId]) -> Change:
        def change(x: Tensor) -> None:
            chosen = x[:, :, [head.head for head in here]][counted.to(x.device)].double()
            sums.update(zip(here, fold(layer, chosen).sum(0).cpu(), strict=True))

        return change

    with model.lock, ExitStack() as stack:
        for layer, here in _by_layer(heads):
            stack.enter_context(place(layer, add(layer, here)))
        model.forward(batch, batch.ends[:, None])
    return sums


def _by_layer(heads: Sequence[HeadId]) -> Iterator[tuple[int, list[HeadId]]]:
    for layer in sorted({head.layer for head in heads}):
        yield layer, [head for head in heads if head.layer == layer]
