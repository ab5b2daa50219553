"""Part `ph3`: the direct effects of all heads, against one full pass a head."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import partial
from statistics import fmean

import torch
from costs import Shape, naive_sweep_flops, states_bytes, states_flops, sweep_flops, weight_bytes
from gpu_figures import Bench, Figure
from measuring import added, times
from mnemoscope.interventions.end_chain import EndChain
from mnemoscope.interventions.path_patching import build_chain, direct_effects, end_states
from mnemoscope.models import HeadId
from mnemoscope.models.tokens import TokenBatch
from naive import frozen_pass, keep_z
from shapes import random_batch
from torch import Tensor

ANSWERS = 2


@dataclass(frozen=True)
class HeadSetting:
    """Prompts of each of the lengths; `whole`: prompts of the first length for which the naive way
    runs for every head."""

    prompts: int
    tokens: tuple[int, ...]
    whole: int
    memory_mb: int


@dataclass(frozen=True, eq=False)
class Inputs:
    """Random prompts, corrupted ones, and two answers each."""

    chain: EndChain
    batch: TokenBatch
    corrupted: TokenBatch
    ids: Tensor
    memory_mb: int

    def ours(self) -> Tensor:
        """Both runs and the sweep: logits `[prompt, head, answer]`."""
        model = self.chain.model
        original, replacement = end_states(model, self.batch), end_states(model, self.corrupted).z
        return direct_effects(
            self.chain, original, replacement, self.ids, memory_mb=self.memory_mb
        ).patched

    def caches(self) -> tuple[dict[int, Tensor], Tensor]:
        """What the naive way needs of both runs."""
        model = self.chain.model
        return keep_z(model, self.batch), end_states(model, self.corrupted).z


def measure(bench: Bench, shape: Shape, setting: HeadSetting) -> tuple[Figure, ...]:
    """A figure for each length, and one whose naive way was run for all heads."""
    chain = build_chain(bench.model)
    figures = [
        some_heads(bench, shape, inputs_of(chain, setting.prompts, tokens, setting.memory_mb))
        for tokens in setting.tokens
    ]
    small = inputs_of(chain, setting.whole, setting.tokens[0], setting.memory_mb)
    return (*figures, every_head(bench, shape, small))


def inputs_of(chain: EndChain, prompts: int, tokens: int, memory_mb: int) -> Inputs:
    """Random ones; answers are the first two tokens of the vocabulary that are no special ones."""
    model = chain.model
    ids = torch.arange(3, 3 + ANSWERS, device=model.device).expand(prompts, -1)
    batch, corrupted = (random_batch(model, prompts, tokens, seed) for seed in (1, 2))
    return Inputs(chain, batch, corrupted, ids, memory_mb)


def some_heads(bench: Bench, shape: Shape, inputs: Inputs) -> Figure:
    """The naive way timed on a head of the first, middle and last layer."""
    last, model = shape.layers - 1, bench.model
    heads = (HeadId(0, 0), HeadId(last // 2, shape.heads // 2), HeadId(last, shape.heads - 1))
    clean, replacement = inputs.caches()
    naive = {
        str(h): partial(frozen_pass, model, inputs.batch, clean, replacement, h) for h in heads
    }
    seconds = bench.seconds({"ours": inputs.ours, "caches": inputs.caches, **naive})
    a_head = tuple(map(fmean, zip(*(seconds[name] for name in naive), strict=True)))
    places = [head.layer * shape.heads + head.head for head in heads]
    want = torch.stack([one().gather(1, inputs.ids) for one in naive.values()], dim=1)
    gap = float((inputs.ours()[:, places] - want).abs().max())
    slow = added(times(shape.all_heads, a_head), seconds["caches"])
    return _figure(bench, shape, inputs, seconds["ours"], slow, "3 heads timed, times all", gap)


def every_head(bench: Bench, shape: Shape, inputs: Inputs) -> Figure:
    """The naive way run for every head, in one round."""
    heads = [HeadId(i, h) for i in range(shape.layers) for h in range(shape.heads)]
    want: list[Tensor] = []

    def naive() -> None:
        clean, replacement = inputs.caches()
        run = partial(frozen_pass, bench.model, inputs.batch, clean, replacement)
        want[:] = [run(head).gather(1, inputs.ids) for head in heads]

    seconds = replace(bench, rounds=1).seconds({"ours": inputs.ours, "naive": naive})
    gap = float((inputs.ours() - torch.stack(want, dim=1)).abs().max())
    return _figure(
        bench, shape, inputs, seconds["ours"], seconds["naive"], "run for all heads", gap
    )


def _figure(
    bench: Bench,
    shape: Shape,
    inputs: Inputs,
    ours: tuple[float, ...],
    naive: tuple[float, ...],
    naive_is: str,
    gap: float,
) -> Figure:
    prompts, tokens = inputs.batch.ids.shape
    itemsize = bench.model.dtype.itemsize
    flops = sweep_flops(shape, prompts, ANSWERS) + states_flops(shape, tokens, prompts)
    whole = sweep_flops(shape, prompts, ANSWERS) + states_flops(
        shape, tokens, prompts, causal=False
    )
    return Figure(
        f"{prompts} prompts of {tokens} tokens",
        flops,
        3 * weight_bytes(shape, itemsize) + 2 * states_bytes(shape, prompts, itemsize),
        ours,
        naive,
        naive_is,
        bench.memory(inputs.ours),
        {"naive TFLOP": naive_sweep_flops(shape, tokens, prompts) / 1e12, "difference": gap},
        bench.counted(inputs.ours),
        whole,
    )
