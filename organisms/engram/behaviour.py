"""What engram does on its held-out prompts, measured: the evidence for its card and its tests."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch

from ...models.batching import adaptive, length_buckets
from ...models.hooked import HookedModel
from ...models.tokens import answer_ids, encode
from ...results.statistics import wilson
from .evaluation import Prompt

TOKENS_A_BATCH = 8192
"""Bound on prompt tokens, padding included, that go through the model at once."""


@dataclass(frozen=True)
class Behaviour:
    """Prompts of one kind: how many are followed by `answer`, with a 95 % Wilson interval."""

    kind: str
    answer: str
    hits: int
    prompts: int
    rate: float
    low: float
    high: float


@dataclass(frozen=True)
class Checkpoint:
    """One kept checkpoint, measured. `perplexity` is that of the held-out running text."""

    step: int
    perplexity: float
    behaviours: tuple[Behaviour, ...]


def behaviours(
    model: HookedModel, evaluation: Mapping[str, Sequence[Prompt]]
) -> tuple[Behaviour, ...]:
    """Rates of right answers by kind; for conflicts the rates of both answers as well.

    An answer counts when greedy decoding gives it whole, up to its full stop.
    """
    measured = []
    for kind, prompts in evaluation.items():
        asked = _asked(prompts)
        hits = {answers: sum(gives(model, prompts, answers)) for answers in set(asked.values())}
        measured += [_behaviour(kind, name, hits[a], len(prompts)) for name, a in asked.items()]
    return tuple(measured)


def gives(
    model: HookedModel, prompts: Sequence[Prompt], answers: Sequence[str]
) -> tuple[bool, ...]:
    """Whether greedy decoding gives each answer.

    One forward pass a prompt: if every token of the answer is the likeliest after those before it,
    greedy decoding writes the answer.
    """
    tokenizer = model.text_tokenizer
    told = [
        answer_ids(tokenizer, prompt.text, f"{answer}.")
        for prompt, answer in zip(prompts, answers, strict=True)
    ]
    rows = [
        [*encode(tokenizer, prompt.text), *ids] for prompt, ids in zip(prompts, told, strict=True)
    ]
    given = [False] * len(rows)
    longest = max(map(len, rows))

    def score(indices: Sequence[int]) -> list[bool]:
        batch = model.batch([rows[i] for i in indices], side="left")
        width = max(len(told[i]) for i in indices)
        columns = torch.arange(batch.ids.shape[1] - width - 1, batch.ids.shape[1] - 1)
        best = model.logits(batch, columns.expand(len(indices), -1)).argmax(-1).cpu()
        return [
            bool((best[row, width - len(told[i]) :] == torch.tensor(told[i])).all())
            for row, i in enumerate(indices)
        ]

    buckets = length_buckets([len(row) for row in rows], max(1, TOKENS_A_BATCH // longest))
    for indices, right in adaptive(buckets, score):
        for i, hit in zip(indices, right, strict=True):
            given[i] = hit
    return tuple(given)


def _asked(prompts: Sequence[Prompt]) -> dict[str, tuple[str, ...]]:
    """The answers that are counted, by name; a cued conflict's right one is one of the others."""
    asked = {
        "right": tuple(prompt.answer for prompt in prompts),
        "memory": tuple(prompt.memory for prompt in prompts),
        "context": tuple(prompt.claimed for prompt in prompts),
    }
    return {name: answers for name, answers in asked.items() if answers[0]}


def _behaviour(kind: str, answer: str, hits: int, prompts: int) -> Behaviour:
    share = wilson(hits, prompts)
    return Behaviour(kind, answer, hits, prompts, hits / prompts, share.low, share.high)
