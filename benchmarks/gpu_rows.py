"""Part `rows`: attention rows of a long prompt, against the plain prefill and all patterns."""

from __future__ import annotations

from dataclasses import dataclass, replace

from attention_rows import SPANS, ways
from costs import (
    Shape,
    pattern_bytes,
    prefill_flops,
    rows_bytes,
    rows_flops,
    weight_bytes,
)
from gpu_figures import Bench, Figure
from measuring import over, ratios


@dataclass(frozen=True)
class RowSetting:
    """One prompt of each length, the rows of its last `queries`; all patterns are made up to
    `patterns_up_to` tokens. `long_rounds` where they are not."""

    tokens: tuple[int, ...]
    queries: int
    patterns_up_to: int
    long_rounds: int


def measure(bench: Bench, shape: Shape, setting: RowSetting) -> tuple[Figure, ...]:
    """A figure for each length."""
    return tuple(_at(bench, shape, setting, tokens) for tokens in setting.tokens)


def _at(bench: Bench, shape: Shape, setting: RowSetting, tokens: int) -> Figure:
    calls = ways(bench.model, tokens, setting.queries)
    ends = tokens <= setting.patterns_up_to
    patterns = calls.pop("patterns")
    if ends:
        calls["patterns"] = patterns
    else:
        bench = replace(bench, rounds=min(bench.rounds, setting.long_rounds))
    seconds = bench.seconds(calls)
    rows, itemsize = calls["with rows"], bench.model.dtype.itemsize
    ratio = ratios(seconds["with rows"], seconds["plain"])
    extra = rows_flops(shape, tokens, setting.queries, SPANS)
    needs = f"not run: {pattern_bytes(shape, tokens, itemsize) / 1e9:.3g} GB of patterns"
    return Figure(
        f"prefill of {tokens} tokens with {setting.queries} rows a head",
        prefill_flops(shape, tokens) + extra,
        weight_bytes(shape, itemsize) + rows_bytes(shape, tokens, setting.queries, itemsize),
        seconds["with rows"],
        seconds.get("patterns"),
        "all patterns" if ends else needs,
        bench.memory(rows),
        {
            "rows / plain": over(seconds["with rows"], seconds["plain"]),
            "lowest ratio": min(ratio),
            "highest ratio": max(ratio),
            "paper": 1 + extra / prefill_flops(shape, tokens),
            "difference": float((rows() - patterns()).abs().max()) if ends else "",
        },
        bench.counted(rows),
        prefill_flops(shape, tokens, causal=False) + extra,
    )
