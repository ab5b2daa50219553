"""Part `gates`: one step of training streaming gates, against the same step with dense masks."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from statistics import median
from unittest.mock import patch

import torch
from costs import (
    RECENT,
    SINK,
    Shape,
    gates_flops,
    gates_memory,
    weight_bytes,
)
from gpu_figures import Bench, Figure
from mnemoscope.data.facts.haystacks import Span
from mnemoscope.data.facts.passkeys import PasskeySample
from mnemoscope.models.attention import AttentionCall
from mnemoscope.probes import streaming_gates
from mnemoscope.probes.streaming_gates import Distilled, GateSettings, distil
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention


@dataclass(frozen=True)
class GateBenchSetting:
    """A sample of each length, its last `labels` tokens compared; dense masks up to a length."""

    tokens: tuple[int, ...]
    labels: int
    dense_up_to: int
    sink: int = SINK
    recent: int = RECENT


def measure(bench: Bench, shape: Shape, setting: GateBenchSetting) -> tuple[Figure, ...]:
    """A figure for each length."""
    return tuple(_at(bench, shape, setting, tokens) for tokens in setting.tokens)


def _at(bench: Bench, shape: Shape, setting: GateBenchSetting, tokens: int) -> Figure:
    settings = GateSettings(sink=setting.sink, recent=setting.recent)
    sample = random_sample(shape, tokens, setting.labels)
    half = torch.full((shape.layers, shape.kv_heads), 0.5, device=bench.model.device)
    ours = partial(distil, bench.model, sample, half, settings)
    dense = partial(densely, bench, sample, half, settings)
    ends = tokens <= setting.dense_up_to
    seconds = bench.seconds({"ours": ours, "dense": dense} if ends else {"ours": ours})
    itemsize = bench.model.dtype.itemsize
    cost = partial(gates_flops, shape, tokens, setting.sink, setting.recent)
    return Figure(
        f"a step on {tokens} tokens",
        cost(),
        4 * weight_bytes(shape, itemsize) + 2 * gates_memory(shape, tokens, itemsize),
        seconds["ours"],
        seconds.get("dense"),
        "dense masks" if ends else "not run",
        bench.memory(ours),
        {
            "tokens a second": tokens / median(seconds["ours"]),
            "difference": _gap(ours(), dense()) if ends else "",
        },
        bench.counted(ours),
        cost(causal=False),
    )


def random_sample(shape: Shape, tokens: int, labels: int) -> PasskeySample:
    """Random tokens, the last `labels` of which are compared."""
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(3, shape.vocab, (tokens,), generator=generator).tolist()
    answer = Span(tokens - labels // 2, tokens)
    return PasskeySample(tuple(ids), tokens - labels, (), (answer,), ())


def densely(
    bench: Bench, sample: PasskeySample, alpha: Tensor, settings: GateSettings
) -> Distilled:
    """The same step whose streaming heads score every key and mask most of them."""
    with patch.object(streaming_gates, "streaming_output", masked_output):
        return distil(bench.model, sample, alpha, settings)


def masked_output(call: AttentionCall, sink: int, recent: int) -> Tensor:
    """What streaming heads put out, `[batch, pos, head, d_v]`, by a mask over all keys."""
    place = torch.arange(call.query.shape[2], device=call.query.device)
    back = place[:, None] - place
    kept = (back >= 0) & ((back < recent) | (place < sink))
    group = call.query.shape[1] // call.key.shape[1]
    k, v = (x.repeat_interleave(group, dim=1) for x in (call.key, call.value))
    scale = call.options.get("scaling")
    return scaled_dot_product_attention(call.query, k, v, kept, scale=scale).transpose(1, 2)


def _gap(ours: Distilled, dense: Distilled) -> float:
    """Largest difference of gradients, in units of the largest gradient."""
    gap = (ours.gradient - dense.gradient).abs().max()
    return float(gap / dense.gradient.abs().max())
