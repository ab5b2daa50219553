"""What does ranking every neuron by AP cost, beside scikit-learn and beside the forward passes?"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from itertools import groupby
from statistics import median

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
    times,
)
from mnemoscope.data.facts.items import load_relation
from mnemoscope.models import HookedModel, load_model
from mnemoscope.models.tokens import TokenBatch, encode
from mnemoscope.models.types import Site
from mnemoscope.probes.average_precision import average_precision
from shapes import TINY_LLAMA, random_batch, random_model
from torch import Tensor

CLAIM = (
    "Ranking all neurons of a model for 12 relations, both signs, takes no longer than the forward "
    "passes that give their activations, and stays within `memory_bytes`."
)
BOUND = 1.0
NOTE = (
    "*forward*: `capture` of `Site.NEURON` with `reduce='mean'` for all prompts, in batches of one "
    "length, and the transposition to [unit, prompt]. *ranking*: `average_precision` of all units, "
    "one column a relation. *scikit-learn*: `average_precision_score` of {timed} units in a loop, "
    "scores as they are and negated, times the number of units. Median of {rounds} interleaved "
    "rounds, ratios within rounds. Memory: random scores, a fresh process with one thread, "
    "resident memory at its highest above what was resident before, result included."
)
COLUMNS = 12
ROWS = 60
RELATIONS = (
    *("capital", "currency", "demonym", "official_language", "continent", "country_in_french"),
    *("element_symbol", "atomic_number", "city_in_country", "landmark_city", "book_author"),
    "painting_artist",
)


@dataclass(frozen=True)
class Sizes:
    """Prompts a relation, units that scikit-learn scores, rounds, and the memory setting."""

    prompts: int
    timed: int
    rounds: int
    units: int
    scores: int
    memory_bytes: int


TOY = Sizes(4, 4, 3, 2000, 512, 2**23)
FULL = Sizes(60, 20, 3, 100_000, 4096, 2**28)


def main() -> None:
    given = arguments(CLAIM)
    sizes = TOY if given.toy else FULL
    speed = table(
        (
            *("model", "units", "prompts", "forward s", "ranking s", "ratio", "lowest", "highest"),
            *("within 1.0", "us a unit", "scikit-learn s", "faster"),
        ),
        [_speed(sizes, given.toy)],
    )
    with fresh_processes() as pool:
        peak = pool.submit(_peak, sizes).result()
    bound = sizes.memory_bytes / 2**20
    memory = table(
        ("units", "prompts", "scores MB", "memory_bytes MB", "peak MB", "within bound"),
        [
            (
                *(sizes.units, sizes.scores, sizes.units * sizes.scores * 4 / 2**20, bound, peak),
                "yes" if peak <= bound else "NO",
            )
        ],
    )
    note = NOTE.format(timed=sizes.timed, rounds=sizes.rounds)
    report(given, "average_precision", CLAIM, f"{speed}\n\n{memory}\n\n{note}")


def _speed(sizes: Sizes, toy: bool) -> tuple[object, ...]:
    """One table row: ranking beside the forward passes and beside scikit-learn."""
    model, batches, positive = _tiny(sizes) if toy else _smollm2(sizes)
    scores = forward(model, batches)
    seconds = interleaved(
        {
            "forward": partial(forward, model, batches),
            "ranking": partial(average_precision, scores, positive),
            "loop": partial(one_by_one, scores[: sizes.timed], positive),
        },
        sizes.rounds,
    )
    ours, passes = seconds["ranking"], seconds["forward"]
    loop = times(len(scores) / sizes.timed, seconds["loop"])
    ratio, spread = over(ours, passes), ratios(ours, passes)
    return (
        *(model.name, *scores.shape, median(passes), median(ours), ratio, min(spread), max(spread)),
        *("yes" if ratio <= BOUND else "NO", median(ours) / len(scores) * 1e6),
        *(median(loop), over(loop, ours)),
    )


def forward(model: HookedModel, batches: Sequence[TokenBatch]) -> Tensor:
    """Mean activations of all neurons `[unit, prompt]`."""
    a, done = model.anatomy, 0
    n_prompts = sum(map(len, batches))
    scores = torch.empty(a.n_layers, a.n_units(Site.NEURON), n_prompts, device=model.device)
    for batch in batches:
        kept = model.capture(batch, (Site.NEURON,), reduce="mean").stack(Site.NEURON)
        scores[:, :, done : done + len(batch)] = kept.transpose(1, 2)
        done += len(batch)
    return scores.flatten(0, 1)


def one_by_one(scores: Tensor, positive: Tensor) -> None:
    """Both signs of every unit and column through scikit-learn."""
    from sklearn.metrics import average_precision_score  # for the developers, not for the library

    for unit in scores.numpy():
        for column in positive.numpy():
            average_precision_score(column, unit)
            average_precision_score(column, -unit)


def _smollm2(sizes: Sizes) -> tuple[HookedModel, list[TokenBatch], Tensor]:
    """SmolLM2 and the first facts of twelve relations, sorted by length in tokens."""
    model = load_model("smollm2", dtype="float32")
    prompts = []
    for column, name in enumerate(RELATIONS):
        relation = load_relation(name)
        for fact in relation.facts[: sizes.prompts]:
            ids = encode(model.text_tokenizer, relation.prompt(fact.subject))
            prompts.append((len(ids), column, ids))
    prompts.sort()
    batches = []
    for _, group in groupby(prompts, key=lambda prompt: prompt[0]):
        rows = [ids for _, _, ids in group]
        batches += [model.batch(rows[i : i + ROWS]) for i in range(0, len(rows), ROWS)]
    return model, batches, columns_of([column for _, column, _ in prompts])


def _tiny(sizes: Sizes) -> tuple[HookedModel, list[TokenBatch], Tensor]:
    model = random_model(TINY_LLAMA)
    batches = [random_batch(model, sizes.prompts, 8, seed) for seed in range(COLUMNS)]
    return model, batches, columns_of([i // sizes.prompts for i in range(COLUMNS * sizes.prompts)])


def columns_of(column_of: Sequence[int]) -> Tensor:
    """Which prompts are positive in which column, from the column of each prompt."""
    return torch.arange(COLUMNS)[:, None] == torch.tensor(column_of)


def _peak(sizes: Sizes) -> float:
    """Peak of ranking random scores in MiB; to be run in a process of its own."""
    torch.set_num_threads(1)
    scores = torch.rand(sizes.units, sizes.scores, generator=torch.Generator().manual_seed(0))
    positive = columns_of([i % COLUMNS for i in range(sizes.scores)])
    average_precision(scores[:1], positive)
    before = resident_after_cleaning()
    average_precision(scores, positive, memory_bytes=sizes.memory_bytes)
    return highest_resident() - before


if __name__ == "__main__":
    main()
