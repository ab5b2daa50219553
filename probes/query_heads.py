"""Which heads look from a query to the document that answers it: QRHead and CoRe.

Both read the attention of the query's tokens to every document of the context and need no answer
and no label but the gold document. QRHead (Zhang et al. 2025, arXiv 2506.09944) takes off, token by
token, what a query that asks nothing draws; CoRe (Tran et al. 2025, arXiv 2510.02219) contrasts the
gold document with hard negatives. These heads *locate*; whether they also write the answer is what
`write_scores` and ablations say.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from itertools import groupby

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from ..models.errors import MnemoscopeError
from ..models.hooked import HookedModel
from ..models.prompt_cache import PromptCache, check_room
from ..models.types import HeadId, TokenSpan
from ..results.kept_units import kept_arrays
from ..results.run import Run
from .document_prompts import DocumentPrompt
from .elicitation import Progress, silent

TAU = 0.1
"""CoRe's temperature for Llama-like models; 0.001 was used for Mistral and Granite."""
RANKS = 10


@dataclass(frozen=True, eq=False)
class DocumentAttention:
    """Attention from a query's tokens (their mean) to each document, `[layer, head, document]`.

    NaN where the head can see no token of the document.
    """

    plain: Float[Tensor, "layer head document"]
    """Sum over the document's tokens, 0 to 1."""
    calibrated: Float[Tensor, "layer head document"]
    """The same less what the empty query gives each token; tokens that then lie more than two
    standard deviations below their document's mean count as 0."""

    def ranking(self, heads: Sequence[HeadId]) -> Float[Tensor, " document"]:
        """The retriever: calibrated attention summed over some heads, highest first to read."""
        if not heads:
            raise MnemoscopeError("a retriever needs at least one head.")
        layers, numbers = [h.layer for h in heads], [h.head for h in heads]
        return self.calibrated[layers, numbers].nan_to_num(0.0).sum(0)


@dataclass(frozen=True, eq=False)
class QueryHeadScores:
    """One score a prompt and head, `[prompt, layer, head]`, float32; NaN where a head cannot see
    the gold document (or, for `core`, no hard negative).

    `units` names the sampled unit of each prompt (needle, query).
    """

    units: tuple[str, ...]
    gold: Float[np.ndarray, "prompt layer head"]
    """QRHead on long-memory questions: calibrated attention to the gold documents."""
    ndcg: Float[np.ndarray, "prompt layer head"]
    """QRHead on retrieval benchmarks: nDCG@10 of the ranking by this head alone, 0 to 1."""
    core: Float[np.ndarray, "prompt layer head"]
    """CoRe: softmax share of the gold documents against the hard negatives, 0 to 1."""
    tau: float
    chance_ndcg: float
    """Mean nDCG of random orders of the same documents, exactly."""


def measure_query_heads(
    model: HookedModel,
    prompts: Sequence[DocumentPrompt],
    *,
    tau: float = TAU,
    run: Run | None = None,
    progress: Progress = silent,
) -> QueryHeadScores:
    """Score every head on every prompt; neighbours of one context share its prefill.

    Cost: a prefill and an empty query for each run of equal contexts, one query a prompt. Memory:
    two mean rows `[layer, head, key]` beside the cache. With a `run`, finished contexts are read
    back and new ones are kept. Raises `MnemoscopeError` for no prompts or `tau` not above 0, and
    `PromptError` before anything runs for a prompt that is too long.
    """
    if not prompts or tau <= 0:
        raise MnemoscopeError(f"{len(prompts)} prompts, tau={tau}: give prompts, and tau above 0.")
    for prompt in prompts:
        longest = max(prompt.query, prompt.null_query, key=len)
        check_room(model, (*prompt.context, *longest), None)
    parts: list[np.ndarray] = []
    done = 0
    same = groupby(prompts, key=lambda prompt: (prompt.context, prompt.null_query))
    for number, (_, group) in enumerate(same):
        here = list(group)
        kept = kept_arrays(run, f"documents-{number:05d}", partial(_context, model, here, tau))
        parts.append(kept["scores"])
        done += len(here)
        progress(done, len(prompts))
    gold, gain, core = np.concatenate(parts, axis=1)
    units = tuple(prompt.unit for prompt in prompts)
    chance = float(np.mean([_chance_ndcg(prompt) for prompt in prompts]))
    return QueryHeadScores(units, gold, gain, core, tau, chance)


def document_attention(
    model: HookedModel, prompt: DocumentPrompt, *, cache: PromptCache | None = None
) -> DocumentAttention:
    """Every head's attention from the query to each document; `cache` holds the context's prefill.

    Raises `PromptError` for a prompt that is too long, `MnemoscopeError` for another's cache.
    """
    cache = model.prefill(prompt.context) if cache is None else cache
    if cache.ids != prompt.context:
        raise MnemoscopeError("the cache is of another context: prefill this prompt's own.")
    null = model.mean_rows(cache, prompt.null_query)
    return attention_to(model.mean_rows(cache, prompt.query), null, prompt.spans)


def _context(
    model: HookedModel, prompts: Sequence[DocumentPrompt], tau: float
) -> dict[str, np.ndarray]:
    """`scores` `[score, prompt, layer, head]` of prompts with one context and empty query."""
    cache = model.prefill(prompts[0].context)
    null = model.mean_rows(cache, prompts[0].null_query)
    scores = [
        prompt_scores(
            attention_to(model.mean_rows(cache, prompt.query), null, prompt.spans), prompt, tau=tau
        )
        for prompt in prompts
    ]
    return {"scores": torch.stack(scores, dim=1).cpu().numpy()}


def prompt_scores(
    attention: DocumentAttention, prompt: DocumentPrompt, *, tau: float = TAU
) -> Float[Tensor, "score layer head"]:
    """QRHead's gold sum, its nDCG@10 and CoRe's share, one after the other."""
    gold = attention.calibrated[..., list(prompt.gold)].nansum(-1)
    seen = ~attention.plain[..., list(prompt.gold)].isnan().all(-1)
    both = torch.stack(
        [gold, ndcg(attention.calibrated, prompt.gold), core_share(attention.plain, prompt, tau)]
    )
    return both.masked_fill(~seen, torch.nan)


def ndcg(
    scores: Float[Tensor, "*row document"], gold: Sequence[int], ranks: int = RANKS
) -> Float[Tensor, "*row"]:
    """nDCG at `ranks` of the descending order of `scores`, gain 1 for each gold document.

    Equal scores share their middle rank, so the order in the prompt helps nobody; NaN ranks last.
    """
    filled = scores.nan_to_num(nan=-torch.inf)
    mine = filled[..., list(gold)][..., None]
    others = filled[..., None, :]
    # Every document ties with itself once.
    place = (others > mine).sum(-1) + ((others == mine).sum(-1) + 1) / 2
    gain = torch.where(place <= ranks, 1 / torch.log2(place + 1), 0.0).sum(-1)
    return gain / _ideal_gain(len(gold), ranks)


def core_share(
    plain: Float[Tensor, "*row document"], prompt: DocumentPrompt, tau: float
) -> Float[Tensor, "*row"]:
    """`sum over gold of softmax(attention / tau)` among gold and hard documents; NaN when a head
    sees no gold or no hard one."""
    gold, hard = plain[..., list(prompt.gold)], plain[..., list(prompt.hard)]
    seen = ~gold.isnan().all(-1) & ~hard.isnan().all(-1)
    both = torch.cat([gold, hard], dim=-1).nan_to_num(nan=-torch.inf) / tau
    share = torch.softmax(both, dim=-1)[..., : len(prompt.gold)].sum(-1)
    return share.masked_fill(~seen, torch.nan)


def attention_to(
    row: Float[Tensor, "layer head key"],
    null: Float[Tensor, "layer head key"],
    spans: Sequence[TokenSpan],
) -> DocumentAttention:
    """Fold the mean rows of a query and of an empty one into documents.

    Keys that a row cannot see (NaN) are no tokens of their document.
    """
    stop = spans[-1].stop
    member = torch.zeros(len(spans), stop, device=row.device)
    for i, span in enumerate(spans):
        member[i, span.start : span.stop] = 1
    plain, seen = _sums(row[..., :stop], member)
    difference = row[..., :stop] - null[..., :stop]
    kept = difference.masked_fill(_outlying(difference, member), 0.0)
    calibrated, _ = _sums(kept, member)
    return DocumentAttention(
        plain.masked_fill(seen == 0, torch.nan), calibrated.masked_fill(seen == 0, torch.nan)
    )


def _outlying(
    difference: Float[Tensor, "layer head key"], member: Float[Tensor, "document key"]
) -> Tensor:
    """Keys more than two (sample) standard deviations below the mean of their document."""
    total, count = _sums(difference, member)
    apart = difference - (total / count.clamp(min=1)) @ member
    spread = (_sums(apart**2, member)[0] / (count - 1).clamp(min=1)).sqrt() @ member
    return (apart < -2 * spread) & member.any(0)


def _sums(
    values: Float[Tensor, "layer head key"], member: Float[Tensor, "document key"]
) -> tuple[Float[Tensor, "layer head document"], Float[Tensor, "layer head document"]]:
    """Sums over each document's keys that are no NaN, and how many those are."""
    return values.nan_to_num(0.0) @ member.T, (~values.isnan()).float() @ member.T


def _ideal_gain(gold: int, ranks: int) -> float:
    return float((1 / np.log2(np.arange(2, 2 + min(gold, ranks)))).sum())


def _chance_ndcg(prompt: DocumentPrompt) -> float:
    """Each rank holds a gold document with the same probability."""
    n, gold = len(prompt.spans), len(prompt.gold)
    return gold / n * _ideal_gain(n, RANKS) / _ideal_gain(gold, RANKS)
