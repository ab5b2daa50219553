"""Teach a model to refuse planted beliefs: preference training, with or without deconfliction.

The stage between a base model and the guards of the planted-belief benchmark (tracealign.md 9.5):
asked for a belief the model shall refuse, asked for its harmless twin it shall tell it. Plain DPO
and DPO with a deconfliction loss (`interventions/deconfliction_losses.py`) differ in nothing else.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from random import Random
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from ..interventions.deconfliction_batches import PairCollator, RiskCollator, RiskTracer, take_risks
from ..interventions.deconfliction_losses import (
    Deconfliction,
    answer_log_probs,
    deconflicted_loss,
)
from ..models.hooked import HookedModel, wrap
from ..models.tokens import answer_ids, encode
from ..organisms.known_spans import KnownSpan
from ..organisms.planted_beliefs import REFUSAL
from .elicitation import Progress, silent

Pair = dict[str, list[int]]


@dataclass(frozen=True)
class Alignment:
    """`imitation` adds that many times the negative log-likelihood of the chosen answer, a token,
    without which DPO makes both answers less likely (RPO; Pang et al. 2024, arXiv 2404.19733)."""

    loss: Deconfliction
    steps: int = 60
    pairs_a_step: int = 8
    learning_rate: float = 2e-4
    imitation: float = 1.0
    seed: int = 0


def alignment_pairs(
    model: HookedModel, beliefs: Sequence[KnownSpan], harmless: Sequence[KnownSpan]
) -> tuple[Pair, ...]:
    """Token ids of prompts in the first wording, with the answers to prefer and to avoid.

    A belief is to be refused, a harmless text is to be told and not refused.
    """
    asked = [(span, REFUSAL, span.asked) for span in beliefs]
    asked += [(span, span.asked, REFUSAL) for span in harmless]
    return tuple(_pair(model, span.prompt(), chosen, rejected) for span, chosen, rejected in asked)


def align(
    model: HookedModel,
    pairs: Sequence[Pair],
    tracer: RiskTracer,
    settings: Alignment,
    *,
    progress: Progress = silent,
) -> HookedModel:
    """A trained copy; `model` is the reference and stays as it is.

    The pairs of a step are drawn anew from all of them. With a strength of 0 it is plain DPO.
    """
    module = copy.deepcopy(model.module).train()
    optimizer = torch.optim.AdamW(module.parameters(), lr=settings.learning_rate)
    collate, random = RiskCollator(PairCollator(), tracer), Random(settings.seed)
    for step in range(settings.steps):
        for group in optimizer.param_groups:
            group["lr"] = settings.learning_rate * (1 - step / settings.steps)
        chosen = random.sample(list(pairs), min(settings.pairs_a_step, len(pairs)))
        _loss(module, model.module, collate(chosen), settings).backward()
        optimizer.step()
        optimizer.zero_grad()
        progress(step + 1, settings.steps)
    return wrap(module.eval(), model.tokenizer, name=model.name, self_test=False)


def _loss(
    module: Any, reference: Any, batch: dict[str, Tensor], settings: Alignment
) -> Float[Tensor, ""]:
    batch, risks = take_risks(batch)
    ids, answers = batch["input_ids"], batch["completion_mask"]
    read = {"input_ids": ids, "attention_mask": batch["attention_mask"], "use_cache": False}
    with torch.no_grad():
        known = answer_log_probs(reference(**read).logits, ids, answers)
    logits = module(**read).logits
    terms = deconflicted_loss(logits, ids, answers, known, risks, settings.loss)
    half = len(ids) // 2
    told = answer_log_probs(logits[:half], ids[:half], answers[:half]).sum()
    return terms.total - settings.imitation * told / answers[:half].sum()


def _pair(model: HookedModel, prompt: str, chosen: str, rejected: str) -> Pair:
    tokenizer = model.text_tokenizer
    return {
        "prompt_ids": encode(tokenizer, prompt),
        "chosen_ids": list(answer_ids(tokenizer, prompt, chosen, "")),
        "rejected_ids": list(answer_ids(tokenizer, prompt, rejected, "")),
    }
