"""Greedy decoding with a key/value cache: the argmax of plain forward passes, nothing else.

`generate` of transformers fills what a caller leaves open from the checkpoint's own generation
configuration (repetition penalty, beams, suppressed tokens), so that "greedy" would mean something
else in each model; here it is the model's own first choice at every step.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor

from .backends import Inputs
from .tokens import TokenBatch

Run = Callable[[Inputs, Tensor], tuple[Tensor, Any]]
"""`DecoderModel.run_pass`."""


@torch.no_grad()
def greedy_ids(
    run: Run, batch: TokenBatch, max_new_tokens: int, stops: Collection[int]
) -> Int[Tensor, "batch new"]:
    """New token ids of left-padded rows; ends early once every row holds one of `stops`.

    What stands behind a row's first stop token has no meaning.
    """
    ids, mask, positions = batch.ids, batch.mask, batch.position_ids
    ending = torch.tensor(sorted(stops), dtype=torch.long, device=ids.device)
    ended = torch.zeros(len(batch), dtype=torch.bool, device=ids.device)
    cache, new = None, []
    for _ in range(max_new_tokens):
        last = torch.full_like(ids[:, :1], ids.shape[1] - 1)
        logits, cache = run(Inputs(ids, mask.long(), positions, cache, use_cache=True), last)
        ids = logits[:, -1:].argmax(-1).to(mask.device)
        new.append(ids)
        ended |= torch.isin(ids[:, 0], ending)
        if bool(ended.all()):
            break
        mask = torch.cat([mask, torch.ones_like(ids, dtype=torch.bool)], dim=1)
        positions = positions[:, -1:] + 1
    return torch.cat(new, dim=1)
