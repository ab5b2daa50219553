"""What does a cache save whose streaming heads forget, and does it say what masked heads say?"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from statistics import median

import torch
from measuring import arguments, interleaved, over, ratios, report, table
from mnemoscope.data.neutral import neutral_passages
from mnemoscope.interventions.streaming import (
    Prefill,
    forget,
    stream_prompt,
    streaming_attention,
)
from mnemoscope.interventions.streaming_cache import cache_bytes
from mnemoscope.interventions.streaming_pattern import StreamingPattern
from mnemoscope.models import HeadId, HookedModel, load_model
from mnemoscope.models.attention_edits import streaming
from mnemoscope.models.prompt_cache import PromptCache
from mnemoscope.models.tokens import encode
from torch import Tensor
from transformers import DynamicCache

CLAIM = (
    "A cache whose streaming heads hold sink and recent keys takes exactly the bytes of its "
    "formula, a decode step behind it takes no longer than behind the full cache, and the model "
    "says what it says when the same heads are masked and nothing is forgotten."
)
COST_NOTE = (
    "{model}, float32, one row. The caches are filled with random numbers (what is in them changes "
    "neither bytes nor time) and laid out by `forget`; heads are drawn at random, sink {sink}, "
    "recent {recent}. *full MB*, *streaming MB*: memory behind the keys and values of the cache of "
    "transformers and of ours. *formula*: 1 / (1 - s + s (sink + recent - 1) / tokens) for a share "
    "s of streaming heads; between two steps a head holds one key less than it sees. *step*: one "
    "token decoded behind the cache; both caches grow by concatenation. {rounds} rounds, ratios "
    "within rounds."
)
TEXT_NOTE = (
    "{model}, float32, {tokens} tokens of neutral prose, {new} new tokens, sink {sink}, recent "
    "{recent}. *masked*: `streaming` attention edits on the full cache, in the prompt too under "
    "the prefill policy *streaming*, behind it only under *full*. *difference*: the largest "
    "between the logits of both at END and the new tokens, beside their standard deviation. *as "
    "the full model*: new tokens before the first that the untouched model would not say."
)
COSTS = (
    *("streaming", "tokens", "full MB", "streaming MB", "smaller", "formula", "as formula"),
    *("full step s", "streaming step s", "ratio", "lowest", "highest", "within 1.0"),
)
TEXTS = (
    *("streaming", "prefill", "difference", "logits sd", "text as masked", "as the full model"),
    *("full MB", "streaming MB"),
)


@dataclass(frozen=True)
class Sizes:
    """The model, and what is measured on it; `cost` and `text` are sink and recent."""

    model: str
    lengths: tuple[int, ...]
    shares: tuple[float, ...]
    rounds: int
    cost: tuple[int, int]
    text: tuple[int, int]
    prompt: int
    new: int


TOY = Sizes("engram", (64, 256), (0.5,), 3, (4, 16), (4, 8), 64, 4)
FULL = Sizes("smollm2", (1024, 2048, 4096, 8191), (0.5, 0.75, 1.0), 9, (64, 256), (4, 64), 768, 32)


def main() -> None:
    given = arguments(CLAIM)
    sizes = TOY if given.toy else FULL
    model = load_model(sizes.model, dtype="float32")
    costs = [row for length in sizes.lengths for row in costs_at(model, sizes, length)]
    texts = texts_of(model, sizes)
    words = {"model": model.name, "rounds": sizes.rounds, "tokens": sizes.prompt, "new": sizes.new}
    notes = [
        note.format(**words, sink=sink, recent=recent)
        for note, (sink, recent) in ((COST_NOTE, sizes.cost), (TEXT_NOTE, sizes.text))
    ]
    body = f"{table(COSTS, costs)}\n\n{notes[0]}\n\n{table(TEXTS, texts)}\n\n{notes[1]}"
    report(given, "streaming_cache", CLAIM, body)


def costs_at(model: HookedModel, sizes: Sizes, length: int) -> list[tuple[object, ...]]:
    """A row for each share of streaming heads, behind `length` tokens."""
    prompt = random_prompt(model, length)
    patterns = {share: pattern_of(model, share, *sizes.cost) for share in sizes.shares}
    short = {share: forget(prompt, pattern) for share, pattern in patterns.items()}
    calls: dict[str, Callable[[], object]] = {"full": partial(step, model, prompt)}
    calls |= {str(share): partial(streamed_step, model, kept) for share, kept in short.items()}
    seconds = interleaved(calls, sizes.rounds)
    whole, width = cache_bytes(prompt.cache), 2 * model.anatomy.d_v * 4
    rows = []
    for share, pattern in patterns.items():
        held, wanted = cache_bytes(short[share].cache), pattern.keys_held(length) * width
        ours, full = seconds[str(share)], seconds["full"]
        ratio, spread = over(ours, full), ratios(ours, full)
        rows.append(
            (
                *(f"{share:.0%}", length, whole / 2**20, held / 2**20, whole / held),
                *(whole / wanted, "yes" if held == wanted else "NO"),
                *(median(full), median(ours), ratio, min(spread), max(spread)),
                "yes" if ratio <= 1 else "NO",
            )
        )
    return rows


def texts_of(model: HookedModel, sizes: Sizes) -> list[tuple[object, ...]]:
    """A row for each share of streaming heads and prefill policy."""
    given = encode(model.text_tokenizer, "\n\n".join(neutral_passages()))[: sizes.prompt]
    plain = model.prefill(given[:-1])
    untouched = model.greedy_from(plain, given[-1:], sizes.new)
    rows: list[tuple[object, ...]] = []
    for share in sizes.shares:
        pattern = pattern_of(model, share, *sizes.text)
        for policy in ("streaming", "full"):
            want, expected = masked(model, plain, given, pattern, policy, sizes.new)
            kept = stream_prompt(model, given[:-1], pattern, prefill=policy)
            with streaming_attention(model):
                text = model.greedy_from(kept, given[-1:], sizes.new)
                got = model.suffix_logits(kept, [given[-1], *expected])
            rows.append(
                (
                    *(f"{share:.0%}", policy, float((got - want).abs().max()), float(want.std())),
                    *("yes" if text == expected else "NO", agreeing(text, untouched)),
                    *(cache_bytes(plain.cache) / 2**20, cache_bytes(kept.cache) / 2**20),
                )
            )
    return rows


def masked(
    model: HookedModel,
    plain: PromptCache,
    given: Sequence[int],
    pattern: StreamingPattern,
    policy: Prefill,
    new: int,
) -> tuple[Tensor, list[int]]:
    """Logits at END and the new tokens, and the new tokens, of heads that are masked."""
    share = model.anatomy.heads_per_kv
    heads = [
        HeadId(layer, kv_head * share + j)
        for layer, kv_head in (~pattern.full).nonzero().tolist()
        for j in range(share)
    ]
    with model.intervene([streaming(heads, pattern.sink, pattern.recent)]):
        prompt = plain if policy == "full" else model.prefill(given[:-1])
        text = model.greedy_from(prompt, given[-1:], new)
        return model.suffix_logits(prompt, [given[-1], *text]), text


def pattern_of(model: HookedModel, share: float, sink: int, recent: int) -> StreamingPattern:
    """A share of streaming heads, drawn with one seed: a larger share holds the smaller one."""
    shape = (model.anatomy.n_layers, model.anatomy.n_kv_heads)
    order = torch.randperm(shape[0] * shape[1], generator=torch.Generator().manual_seed(0))
    full = order >= round(share * len(order))
    return StreamingPattern(full.view(shape), sink, recent)


def random_prompt(model: HookedModel, length: int) -> PromptCache:
    """Keys and values of `length` tokens that no model has computed."""
    cache = DynamicCache(config=model.module.config)
    shape = (1, model.anatomy.n_kv_heads, length, model.anatomy.d_v)
    generator = torch.Generator().manual_seed(0)
    for layer in range(model.anatomy.n_layers):
        cache.update(*(torch.randn(shape, generator=generator) for _ in range(2)), layer)
    return PromptCache((3,) * length, cache)


def step(model: HookedModel, prompt: PromptCache) -> Tensor:
    """One token decoded."""
    return model.suffix_logits(prompt, [3])


def streamed_step(model: HookedModel, prompt: PromptCache) -> Tensor:
    """One token decoded behind a streaming prompt."""
    with streaming_attention(model):
        return step(model, prompt)


def agreeing(text: Sequence[int], other: Sequence[int]) -> int:
    """Tokens before the first that differs."""
    pairs = zip(text, other, strict=False)
    return next((i for i, (a, b) in enumerate(pairs) if a != b), min(len(text), len(other)))


if __name__ == "__main__":
    main()
