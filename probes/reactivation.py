"""How much of a known span does the model write, by how often and how long it was told?

The empirical curve in place of an unproved bound (tracealign.md 1.10, 9.5): greedy continuation of
a prompt, optionally with the first tokens of the answer forced (a prefix attack). One forward pass
a span tells for every forced prefix at once: where every later token is the likeliest after those
before it, greedy decoding writes the rest.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from ..models.batching import adaptive, length_buckets
from ..models.hooked import HookedModel
from ..models.tokens import answer_ids, encode
from ..organisms.known_spans import KnownSpan
from ..results.statistics import wilson
from .elicitation import Progress, silent
from .known_span_tracing import interval_ends

ROWS = 32


@dataclass(frozen=True)
class Reactivation:
    """`hits[i]`: token i of the answer is the likeliest after the prompt and the tokens before it.

    `log_prob` is the mean log-probability of the answer's tokens, in nats; `length` the tokens of
    the whole span, prompt's part included.
    """

    span: str
    count: int
    taught: int
    length: int
    hits: tuple[bool, ...]
    log_prob: float

    def written(self, forced: int = 0) -> bool:
        """Does greedy decoding write all the rest behind the first `forced` tokens?"""
        return all(self.hits[forced:])

    def prefix(self, forced: int = 0) -> float:
        """Share of the rest that greedy decoding writes before its first other token."""
        rest = self.hits[forced:]
        return next((i for i, hit in enumerate(rest) if not hit), len(rest)) / len(rest)


@dataclass(frozen=True)
class ReactivationRow:
    """Spans of one count and length: how many are written whole (95 % Wilson interval), the mean
    share that is written before the first other token (bootstrap over spans) and the mean
    log-probability of a token in nats."""

    count: int
    length: int
    spans: int
    whole: float
    whole_low: float
    whole_high: float
    prefix: float
    prefix_low: float
    prefix_high: float
    log_prob: float


def reactivations(
    model: HookedModel,
    spans: Sequence[KnownSpan],
    *,
    wording: int = 0,
    rows: int = ROWS,
    progress: Progress = silent,
) -> tuple[Reactivation, ...]:
    """Every span asked for with its prompt in one wording (the number of an opening).

    Raises `PromptError` where an answer merges with the end of its prompt.
    """
    tokenizer = model.text_tokenizer
    prompts = [encode(tokenizer, span.prompt(wording)) for span in spans]
    answers = [answer_ids(tokenizer, span.prompt(wording), span.asked, "") for span in spans]
    texts = [[*p, *a] for p, a in zip(prompts, answers, strict=True)]
    found: list[Reactivation | None] = [None] * len(spans)

    def score(batch: Sequence[int]) -> list[Reactivation]:
        return _scored(model, batch, spans, prompts, texts)

    done = 0
    for batch, results in adaptive(length_buckets([len(t) for t in texts], rows), score):
        for i, result in zip(batch, results, strict=True):
            found[i] = result
        done += len(batch)
        progress(done, len(spans))
    return tuple(one for one in found if one is not None)


def reactivation_table(
    measured: Iterable[Reactivation],
    *,
    forced: int = 0,
    lengths: Callable[[int], int] = int,
    counts: Callable[[Reactivation], int] = lambda one: one.count,
    seed: int = 0,
) -> tuple[ReactivationRow, ...]:
    """A row for each count and length. `forced` tokens of the answer are given; spans that have no
    more than these are left out. `lengths` and `counts` may put several into one row."""
    cells: dict[tuple[int, int], list[Reactivation]] = {}
    for one in measured:
        if len(one.hits) > forced:
            cells.setdefault((counts(one), lengths(one.length)), []).append(one)
    return tuple(_row(*key, cell, forced, seed) for key, cell in sorted(cells.items()))


def _scored(
    model: HookedModel,
    batch: Sequence[int],
    spans: Sequence[KnownSpan],
    prompts: Sequence[Sequence[int]],
    texts: Sequence[Sequence[int]],
) -> list[Reactivation]:
    logits = model.logits(model.batch([texts[i] for i in batch], side="right"))
    log_probs = logits.float().log_softmax(-1).cpu()
    results = []
    for row, i in enumerate(batch):
        start = len(prompts[i])
        answer = torch.tensor(texts[i][start:])
        given = log_probs[row, start - 1 : len(texts[i]) - 1]
        hits = tuple((given.argmax(-1) == answer).tolist())
        told = float(given.gather(1, answer[:, None]).mean())
        own = 1 if texts[i][0] == model.text_tokenizer.bos_token_id else 0
        opening = model.text_tokenizer(spans[i].openings[0], add_special_tokens=False)["input_ids"]
        length = len(texts[i]) - own - len(opening)
        span = spans[i]
        results.append(Reactivation(span.id, span.count, len(span.related), length, hits, told))
    return results


def _row(
    count: int, length: int, cell: list[Reactivation], forced: int, seed: int
) -> ReactivationRow:
    whole = wilson(sum(one.written(forced) for one in cell), len(cell))
    shares = np.array([one.prefix(forced) for one in cell])
    low, high = interval_ends(shares, [one.span for one in cell], seed)
    return ReactivationRow(
        count=count,
        length=length,
        spans=len(cell),
        whole=whole.rate,
        whole_low=whole.low,
        whole_high=whole.high,
        prefix=float(shares.mean()),
        prefix_low=low,
        prefix_high=high,
        log_prob=float(np.mean([one.log_prob for one in cell])),
    )
