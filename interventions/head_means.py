"""Mean outputs of attention heads over neutral text: what a head says whatever it reads.

Zeroing a head also takes away its constant part, which later layers count on; mean ablation keeps
that part (ph3.md, section 5). These means feed `edits.mean` and `plan_pruning(mean_outputs=...)`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import ExitStack

import torch
from jaxtyping import Float
from torch import Tensor

from ..models.batching import adaptive, length_buckets
from ..models.errors import MnemoscopeError, PromptError
from ..models.hooked import HookedModel
from ..models.hooks import site_hook
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
    totals = {head: torch.zeros(model.anatomy.d_v, dtype=torch.float64) for head in heads}
    batches = length_buckets([len(row) for row in rows], _ROWS)
    for _, sums in adaptive(
        batches, lambda batch: _sums(model, model.batch([rows[i] for i in batch]), heads)
    ):
        for head in heads:
            totals[head] += sums[head]
    return {head: total / n_positions for head, total in totals.items()}


@torch.no_grad()
def _sums(
    model: HookedModel, batch: TokenBatch, heads: Sequence[HeadId]
) -> dict[HeadId, Float[Tensor, " d_v"]]:
    """Sums of one batch, added up inside the hooks, where z lives for one layer only."""
    counted = batch.mask.clone()
    counted[torch.arange(len(batch), device=counted.device), batch.starts] = False
    sums: dict[HeadId, Tensor] = {}

    def add(here: Sequence[HeadId]) -> Callable[[Tensor], None]:
        def change(z: Tensor) -> None:
            chosen = z[:, :, [head.head for head in here]][counted.to(z.device)]
            sums.update(zip(here, chosen.cpu().double().sum(0), strict=True))

        return change

    with model.lock, ExitStack() as stack:
        for layer in sorted({head.layer for head in heads}):
            here = [head for head in heads if head.layer == layer]
            hook = site_hook(model.module, model.anatomy, Site.Z, layer, add(here))
            stack.enter_context(hook)
        model.forward(batch, batch.ends[:, None])
    return sums
