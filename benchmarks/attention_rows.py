"""What do folded attention rows cost, beside a prefill and beside `output_attentions=True`?"""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from statistics import median
from typing import Any

import torch
from measuring import (
    arguments,
    fresh_processes,
    highest_resident,
    interleaved,
    over,
    ratios,
    report,
    resident_after_cleaning,
    table,
)
from mnemoscope.models import HookedModel, TokenBatch, load_model, wrap
from shapes import TINY_LLAMA, random_batch, random_model
from torch import Tensor
from transformers import AutoModelForCausalLM, LlamaConfig

CLAIM = (
    "Folding the attention rows of 32 queries over 12 spans, in all heads of all layers, adds at "
    "most 5 % to the time of a plain prefill (median ratio of interleaved rounds) and at most 64 "
    "MiB to its memory."
)
BOUND = 1.05
BOUND_MB = 64
SPANS = 12
MMAP_THRESHOLD = -3  # M_MMAP_THRESHOLD of glibc's malloc.h
NOTE = (
    "One prompt of random tokens, logits at END only. *plain*: the Hugging Face forward pass with "
    "its own kernel. *with rows*: `row_summaries` of the last {queries} queries in the same pass. "
    "*patterns*: the same weights with eager attention and `output_attentions=True`, then the same "
    "sums. *difference*: the largest between the span masses of both. {rounds} rounds, ratios "
    "within rounds. Memory: each figure is a fresh process with one thread, resident memory at its "
    "highest above what was resident after a warm-up, every block of 64 KiB and more in a mapping "
    "of its own; *rows add* and *patterns add* are what is beyond the plain pass."
)
COLUMNS = (
    *("model", "tokens", "plain s", "with rows s", "ratio", "lowest", "highest", "within 1.05"),
    *("patterns s", "patterns / rows", "plain MB", "rows add MB", "within 64", "patterns add MB"),
    "difference",
)

SMOLLM2_BLOCKS = "SmolLM2-135M's shape, 6 of 30 blocks"
SMOLLM2_CONFIG = LlamaConfig(
    vocab_size=49152,
    hidden_size=576,
    intermediate_size=1536,
    num_hidden_layers=6,
    num_attention_heads=9,
    num_key_value_heads=3,
    max_position_embeddings=4096,
    tie_word_embeddings=True,
    bos_token_id=1,
    eos_token_id=2,
)


@dataclass(frozen=True)
class Setting:
    """A prompt of `tokens`, whose last `queries` rows are read."""

    model: str
    tokens: int
    queries: int
    rounds: int


TOY = (Setting(TINY_LLAMA, 32, 4, 3),)
FULL = (
    *(Setting("engram", tokens, 32, 15) for tokens in (512, 1024)),
    *(Setting(SMOLLM2_BLOCKS, tokens, 32, 5) for tokens in (512, 1024, 2048)),
    Setting(SMOLLM2_BLOCKS, 4096, 32, 3),
)


def main() -> None:
    given = arguments(CLAIM)
    settings = TOY if given.toy else FULL
    rows = [measure(setting) for setting in settings]
    note = NOTE.format(
        queries=settings[0].queries, rounds=" / ".join(str(one.rounds) for one in settings)
    )
    report(given, "attention_rows", CLAIM, f"{table(COLUMNS, rows)}\n\n{note}")


def measure(setting: Setting) -> tuple[object, ...]:
    """One table row."""
    calls = calls_of(setting)
    gap = float((calls["with rows"]() - calls["patterns"]()).abs().max())
    seconds = interleaved(calls, setting.rounds)
    plain, rows, patterns = (seconds[name] for name in ("plain", "with rows", "patterns"))
    ratio, spread = over(rows, plain), ratios(rows, plain)
    with fresh_processes() as pool:
        plain_mb, rows_mb, patterns_mb = pool.map(peak, [setting] * 3, list(calls))
    return (
        *(setting.model, setting.tokens, median(plain), median(rows), ratio, *_ends(spread)),
        *("yes" if ratio <= BOUND else "NO", median(patterns), over(patterns, rows), plain_mb),
        *(rows_mb - plain_mb, "yes" if rows_mb - plain_mb <= BOUND_MB else "NO"),
        *(patterns_mb - plain_mb, gap),
    )


def calls_of(setting: Setting) -> dict[str, Callable[[], Tensor]]:
    """The three ways of a setting."""
    return ways(_model(setting.model), setting.tokens, setting.queries)


def ways(model: HookedModel, tokens: int, queries: int) -> dict[str, Callable[[], Tensor]]:
    """The three ways on a random prompt, without arguments; the last two give span masses."""
    batch = random_batch(model, 1, tokens, seed=1)
    columns = torch.arange(tokens - queries, tokens)[None]
    spans = torch.zeros(1, SPANS, tokens, dtype=torch.bool)
    width = tokens // (SPANS + 1)
    for i in range(SPANS):
        spans[0, i, i * width : (i + 1) * width] = True
    return {
        "plain": partial(forward, model.module, batch),
        "with rows": lambda: model.row_summaries(batch, columns, spans).mass,
        "patterns": partial(masses_of_patterns, model.module, batch, columns, spans),
    }


@torch.no_grad()
def forward(module: Any, batch: TokenBatch) -> Tensor:
    """The Hugging Face forward pass, logits at END."""
    return module(input_ids=batch.ids, use_cache=False, logits_to_keep=1).logits


@torch.no_grad()
def masses_of_patterns(module: Any, batch: TokenBatch, columns: Tensor, spans: Tensor) -> Tensor:
    """Span masses `[layer, batch, head, query, span]` out of all attention patterns."""
    own = module.config._attn_implementation
    module.set_attn_implementation("eager")
    try:
        out = module(input_ids=batch.ids, use_cache=False, logits_to_keep=1, output_attentions=True)
    finally:
        module.set_attn_implementation(own)
    rows = torch.stack([pattern[:, :, columns[0]] for pattern in out.attentions])
    return rows.float() @ spans.to(rows.device).float().mT[:, None]


def peak(setting: Setting, name: str) -> float:
    """Peak of one way in MiB; to be run in a process of its own."""
    ctypes.CDLL("libc.so.6").mallopt(MMAP_THRESHOLD, 2**16)
    torch.set_num_threads(1)
    call = calls_of(setting)[name]
    call()
    before = resident_after_cleaning()
    call()
    return highest_resident() - before


def _model(name: str) -> HookedModel:
    if name == "engram":
        return load_model("engram", dtype="float32")
    if name != SMOLLM2_BLOCKS:
        return random_model(name)
    torch.manual_seed(0)
    module = AutoModelForCausalLM.from_config(SMOLLM2_CONFIG, attn_implementation="sdpa")
    return wrap(module.float(), name=name)


def _ends(series: tuple[float, ...]) -> tuple[float, float]:
    return min(series), max(series)


if __name__ == "__main__":
    main()
