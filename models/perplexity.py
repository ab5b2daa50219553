"""Perplexity of running text: what an intervention, or a training, does to plain language."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch

from .attention_edits import AttentionEdit
from .batching import adaptive, length_buckets
from .edits import Edit
from .errors import MnemoscopeError
from .hooked import HookedModel
from .tokens import encode


@torch.no_grad()
def perplexity(
    model: HookedModel,
    texts: Sequence[str],
    edits: Sequence[Edit | AttentionEdit] = (),
    *,
    rows: int = 4,
) -> float:
    """Exponential of the mean negative log-likelihood per token over all texts.

    The first token of a text is context only. Raises `MnemoscopeError` when no token is left.
    """
    ids = [encode(model.text_tokenizer, text) for text in texts]
    total, count = 0.0, 0

    def score(indices: Sequence[int]) -> tuple[float, int]:
        batch = model.batch([ids[i] for i in indices], side="right")
        log_probs = model.logits(batch)[:, :-1].float().log_softmax(-1)
        told = log_probs.gather(2, batch.ids[:, 1:, None].to(log_probs.device))[..., 0]
        real = batch.mask[:, 1:].to(told.device)
        return float(-(told * real).sum(dtype=torch.float64)), int(real.sum())

    with model.intervene(edits):
        for _, (nll, n) in adaptive(length_buckets([len(row) for row in ids], rows), score):
            total, count = total + nll, count + n
    if count == 0:
        raise MnemoscopeError("perplexity needs texts of at least two tokens.")
    return math.exp(total / count)
