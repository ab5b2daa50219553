"""All heads in one sweep against one hooked full pass a head: direct and END total effects."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from statistics import fmean, median
from time import perf_counter

import torch
from measuring import added, arguments, interleaved, over, report, table, times
from mnemoscope.interventions.end_chain import EndChain
from mnemoscope.interventions.end_sweep import Effects
from mnemoscope.interventions.end_total_effect import end_total_effects
from mnemoscope.interventions.path_patching import (
    build_chain,
    direct_effects,
    end_states,
    head_sets,
)
from mnemoscope.models import HeadId, HookedModel
from mnemoscope.models.tokens import TokenBatch
from naive import frozen_pass, keep_z, patched_pass, plain_pass
from shapes import (
    GPT2_SMALL,
    LLAMA,
    TINY_GPT2,
    TINY_LLAMA,
    layer_weights,
    random_batch,
    random_model,
)
from torch import Tensor

CLAIM = (
    "Every head's effect on the logits at END, against the naive way on the same inputs: one "
    "hooked full forward pass a head (random weights, float32)."
)
NOTE = (
    "*naive, extrapolated*: seconds a pass over {heads} timed heads (first, middle and last "
    "layers), times the number of heads; both ways read END only. *faster*: without, *+ runs*: "
    "with the caching runs of both prompts on both sides (for END total effects they are inside "
    "ours). *by FLOPs*: the formulas of the columns beside it, which count block weights only "
    "(naive `2 H L T (p_attn + p_mlp) L`, direct `2 p_mlp H L(L+1)/2`, END total `2 (p_attn + "
    "p_mlp) H L(L+1)/2`, each times B; END totals also "
    "make three passes of their own: states, cache, check). *passes*: units of one plain Hugging "
    "Face forward pass of the same batch with logits at END, caching runs included. *difference* "
    "and *effect*: largest absolute difference of logits, and largest effect, of {tokens} random "
    "tokens on the timed heads. Medians of interleaved rounds: {rounds}."
)
COLUMNS = (
    *("model", "B", "T", "plain pass s", "naive, extrapolated s", "ours s", "faster", "+ runs"),
    *("by FLOPs", "naive TFLOP", "ours TFLOP", "naive passes", "ours passes"),
    *("difference", "effect"),
)
ANSWERS, COMPARED = 2, 32


@dataclass(frozen=True)
class Sizes:
    """Batch rows a model, and rounds of timing a prompt length (long passes vary less)."""

    rows: dict[str, int]
    rounds: dict[int, int]


FULL = Sizes({GPT2_SMALL: 8, LLAMA: 4}, {20: 5, 100: 3, 400: 3})
TOY = Sizes({TINY_GPT2: 3, TINY_LLAMA: 2}, {5: 3, 12: 3})


@dataclass(frozen=True, eq=False)
class Inputs:
    """One setting: a model, the original and the corrupted prompts, two answer tokens each."""

    model: HookedModel
    chain: EndChain
    batch: TokenBatch
    corrupted: TokenBatch
    heads: tuple[HeadId, ...]
    """The heads whose naive passes are timed."""

    def tokens(self, k: int) -> Tensor:
        generator = torch.Generator().manual_seed(3)
        return torch.randint(self.model.anatomy.d_vocab, (len(self.batch), k), generator=generator)


def main() -> None:
    given = arguments(CLAIM)
    sizes = TOY if given.toy else FULL
    direct, total, built = [], [], []
    for name, rows in sizes.rows.items():
        model = random_model(name)
        start = perf_counter()
        chain = build_chain(model)
        built.append(f"{name} {perf_counter() - start:.2g} s")
        for length, rounds in sizes.rounds.items():
            inputs = prepare(model, chain, rows, length)
            direct.append(measure_direct(inputs, rounds))
            total.append(measure_total(inputs, rounds))
    first, shortest = next(iter(sizes.rows)), min(sizes.rounds)
    rounds_at = ", ".join(f"{rounds} at T = {length}" for length, rounds in sizes.rounds.items())
    note = NOTE.format(heads=len(inputs.heads), tokens=COMPARED, rounds=rounds_at)
    sections = (
        f"### Direct effects (path patching)\n\n{table(COLUMNS, direct)}",
        f"### END total effects\n\n{table(COLUMNS, total)}",
        f"{note} `build_chain`, once a model, guard included: {', '.join(built)}.",
        f"### Does the extrapolation hold?\n\n{check_extrapolation(first, shortest)}",
    )
    report(given, "path_patching", CLAIM, "\n\n".join(sections))


def prepare(model: HookedModel, chain: EndChain, rows: int, length: int) -> Inputs:
    """Random prompts; the timed heads lie in the first, the middle and the last layer."""
    last = model.anatomy.n_layers - 1
    heads = (HeadId(0, 0), HeadId(last // 2, 1), HeadId(last, model.anatomy.n_heads - 1))
    batches = (random_batch(model, rows, length, seed) for seed in (1, 2))
    return Inputs(model, chain, *batches, heads)


def measure_direct(inputs: Inputs, rounds: int) -> tuple[object, ...]:
    """One row: the sweep against full passes with all other `z` frozen."""
    model, batch = inputs.model, inputs.batch
    original, replacement = end_states(model, batch), end_states(model, inputs.corrupted).z
    clean = keep_z(model, batch)
    few = inputs.tokens(ANSWERS)
    naive = {h: partial(frozen_pass, model, batch, clean, replacement, h) for h in inputs.heads}
    seconds = interleaved(
        {
            "plain": partial(plain_pass, model, batch),
            "sweep": partial(direct_effects, inputs.chain, original, replacement, few),
            "states": lambda: (end_states(model, batch), end_states(model, inputs.corrupted)),
            "caches": lambda: (keep_z(model, batch), end_states(model, inputs.corrupted)),
            **_named(naive),
        },
        rounds,
    )
    seconds["ours"] = added(seconds["sweep"], seconds["states"])
    got = direct_effects(inputs.chain, original, replacement, inputs.tokens(COMPARED))
    weights = layer_weights(model)
    return _row(inputs, seconds, naive, got, weights.mlp)


def measure_total(inputs: Inputs, rounds: int) -> tuple[object, ...]:
    """One row: the cached END step against full passes with one `z` replaced at END."""
    model, batch = inputs.model, inputs.batch
    replacement = end_states(model, inputs.corrupted).z
    few = inputs.tokens(ANSWERS)
    naive = {h: partial(patched_pass, model, batch, replacement, h) for h in inputs.heads}
    seconds = interleaved(
        {
            "plain": partial(plain_pass, model, batch),
            "sweep": partial(end_total_effects, model, batch, replacement, few),
            "caches": lambda: end_states(model, inputs.corrupted),
            **_named(naive),
        },
        rounds,
    )
    seconds["ours"] = added(seconds["sweep"], seconds["caches"])
    got = end_total_effects(model, batch, replacement, inputs.tokens(COMPARED))
    weights = layer_weights(model)
    return _row(inputs, seconds, naive, got, weights.attention + weights.mlp)


def _row(
    inputs: Inputs,
    seconds: dict[str, tuple[float, ...]],
    naive: dict[HeadId, Callable[[], Tensor]],
    effects: Effects,
    weights_a_row: int,
) -> tuple[object, ...]:
    anatomy, weights = inputs.model.anatomy, layer_weights(inputs.model)
    rows, length = inputs.batch.ids.shape
    every = anatomy.all_heads()
    a_head = tuple(map(fmean, zip(*(seconds[str(head)] for head in naive), strict=True)))
    slow = times(len(every), a_head)
    with_runs = added(slow, seconds["caches"])
    plain, sweep, ours = seconds["plain"], seconds["sweep"], seconds["ours"]
    per_weight = 2 * rows * len(every) * 1e-12
    naive_flops = per_weight * length * (weights.attention + weights.mlp) * anatomy.n_layers
    our_flops = per_weight * weights_a_row * (anatomy.n_layers + 1) / 2
    return (
        *(inputs.model.name, rows, length, median(plain), median(slow), median(sweep)),
        *(over(slow, sweep), over(with_runs, ours)),
        *(naive_flops / our_flops, naive_flops, our_flops),
        *(over(with_runs, plain), over(ours, plain)),
        *agreement(inputs, naive, effects),
    )


def agreement(
    inputs: Inputs, naive: dict[HeadId, Callable[[], Tensor]], effects: Effects
) -> tuple[float, float]:
    """(largest difference to the naive logits, largest effect) over the timed heads."""
    ids, every = inputs.tokens(COMPARED), inputs.model.anatomy.all_heads()
    at = [every.index(head) for head in naive]
    want = torch.stack([run().gather(1, ids) for run in naive.values()], dim=1)
    difference = (effects.patched[:, at] - want).abs().max()
    return float(difference), float(effects.change[:, at].abs().max())


def check_extrapolation(name: str, length: int, rows: int = 2) -> str:
    """Run the naive way for every head once, and compare with what the timed heads promise."""
    model = random_model(name)
    inputs = prepare(model, build_chain(model), rows, length)
    original, replacement = end_states(model, inputs.batch), end_states(model, inputs.corrupted).z
    clean = keep_z(model, inputs.batch)
    every = model.anatomy.all_heads()
    ids = inputs.tokens(ANSWERS)
    run = partial(frozen_pass, model, inputs.batch, clean, replacement)
    seconds = interleaved(_named({h: partial(run, h) for h in inputs.heads}), 3)
    promised = len(every) * median(map(fmean, zip(*seconds.values(), strict=True)))
    start = perf_counter()
    want = torch.stack([run(head).gather(1, ids) for head in every], dim=1)
    measured = perf_counter() - start
    senders = head_sets(model, [[head] for head in every])
    got = direct_effects(inputs.chain, original, replacement, ids, senders=senders)
    columns = (
        *("model", "B", "T", "heads", "all timed s", "extrapolated s", "ratio"),
        "difference over all heads",
    )
    gap = float((got.patched - want).abs().max())
    shape = (name, rows, length, len(every))
    return table(columns, [(*shape, measured, promised, promised / measured, gap)])


def _named(runs: dict[HeadId, Callable[[], Tensor]]) -> dict[str, Callable[[], object]]:
    return {str(head): run for head, run in runs.items()}


if __name__ == "__main__":
    main()
