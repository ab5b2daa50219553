"""Part `ap`: mean activations of all MLP units, and their average precision for 12 relations."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from importlib.util import find_spec

import torch
from average_precision import COLUMNS, columns_of, forward, one_by_one
from costs import Shape, activation_bytes, prefill_flops, ranking_bytes, weight_bytes
from gpu_figures import Bench, Figure
from measuring import times
from mnemoscope.models.tokens import TokenBatch
from mnemoscope.probes.average_precision import average_precision
from naive import plain_pass
from shapes import random_batch
from torch import Tensor


@dataclass(frozen=True)
class NeuronSetting:
    """Prompts, `rows` of them at once; units that scikit-learn scores."""

    prompts: int
    tokens: int
    rows: int
    timed: int
    memory_bytes: int


def measure(bench: Bench, shape: Shape, setting: NeuronSetting) -> tuple[Figure, ...]:
    """The forward passes beside plain ones, and the ranking beside a loop over units."""
    batches = [
        random_batch(bench.model, min(setting.rows, setting.prompts - start), setting.tokens, start)
        for start in range(0, setting.prompts, setting.rows)
    ]
    positive = columns_of([i % COLUMNS for i in range(setting.prompts)])
    scores = forward(bench.model, batches)
    rank = partial(average_precision, scores, positive, memory_bytes=setting.memory_bytes)
    activate = partial(forward, bench.model, batches)
    some = scores[: setting.timed].cpu()
    loop = {"loop": partial(one_by_one, some, positive)} if find_spec("sklearn") else {}
    ranked = bench.seconds({"rank": rank, **loop})
    ranking = Figure(
        f"AP of {shape.units} units, {COLUMNS} relations, {setting.prompts} prompts",
        0,
        ranking_bytes(shape, setting.prompts),
        ranked["rank"],
        times(shape.units / setting.timed, ranked["loop"]) if loop else None,
        f"scikit-learn, {setting.timed} units timed" if loop else "scikit-learn is not here",
        bench.memory(rank),
        {"million keys a second": _rate(shape.units * setting.prompts, ranked["rank"])},
    )
    del scores, rank
    return (_passes(bench, shape, setting, batches, activate), ranking)


def _passes(
    bench: Bench,
    shape: Shape,
    setting: NeuronSetting,
    batches: Sequence[TokenBatch],
    activate: Callable[[], Tensor],
) -> Figure:
    plain = partial(_plain, bench, batches)
    seconds = bench.seconds({"ours": activate, "plain": plain})
    calls, itemsize = len(batches), bench.model.dtype.itemsize
    return Figure(
        f"mean activations, {setting.prompts} prompts of {setting.tokens} tokens",
        prefill_flops(shape, setting.tokens, setting.prompts),
        calls * weight_bytes(shape, itemsize) + activation_bytes(shape, setting.prompts),
        seconds["ours"],
        seconds["plain"],
        "the plain passes",
        bench.memory(activate),
        counted=bench.counted(activate),
        expected=prefill_flops(shape, setting.tokens, setting.prompts, causal=False),
    )


def _plain(bench: Bench, batches: Sequence[TokenBatch]) -> None:
    for batch in batches:
        plain_pass(bench.model, batch)


def _rate(keys: int, seconds: tuple[float, ...]) -> float:
    return keys / torch.tensor(seconds).median().item() / 1e6
