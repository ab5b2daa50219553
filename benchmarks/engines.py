"""What does an engine cost: hooks, nnsight traces, a rehearsed request; and path patching by whole
passes, where there are no weights, against the sweep?"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from statistics import median

import torch
from measuring import arguments, interleaved, over, ratios, report, table
from mnemoscope.interventions.patched_passes import effects_by_passes
from mnemoscope.interventions.path_patching import build_chain, direct_effects, end_states
from mnemoscope.models import HeadId, HookedModel, load_model, zero
from mnemoscope.models.nnsight_model import traced
from mnemoscope.models.tokens import TokenBatch
from mnemoscope.models.types import Site
from shapes import random_batch

CLAIM = (
    "As nnsight traces in this process the same captures and edits give the same bits; without "
    "weights path patching gives the sweep's numbers at the price of one prompt a sender."
)
NOTE = (
    "Captured: z and neurons of all layers at END, one head set to zero. Difference: largest in "
    "the logits (passes) or in the effects of all heads on two tokens (path patching), against the "
    "first row of the group. A request also pays for the network, which is not here."
)


def main() -> None:
    given = arguments(CLAIM)
    name, rounds = ("engram", 3) if given.toy else ("smollm2", 7)
    rows = [*passes(name, rounds), *patching(name, 1 if given.toy else 3)]
    columns = ("what", "engine", "seconds", "ratio", "lowest", "highest", "difference")
    report(given, "engines", CLAIM, f"{table(columns, rows)}\n\n{name}, {rounds} rounds. {NOTE}")


def passes(name: str, rounds: int) -> list[tuple[object, ...]]:
    """A pass with captures and an edit, by engine and length."""
    engines = {
        "hooks": load_model(name),
        "nnsight": traced(load_model(name)),
        "nnsight, rehearsed request": traced(load_model(name), rehearse=True),
    }
    rows: list[tuple[object, ...]] = []
    for length in (16, 128):
        batch = random_batch(engines["hooks"], 1, length, seed=1)
        calls = {label: partial(captured, model, batch) for label, model in engines.items()}
        rows += _rows(f"pass of {length} tokens", calls, rounds)
    return rows


def captured(model: HookedModel, batch: TokenBatch) -> torch.Tensor:
    """The logits of END under an edit, z and neurons captured."""
    with model.intervene([zero([HeadId(1, 0)])]):
        return model.capture(batch, (Site.Z, Site.NEURON), at="end").logits


def patching(name: str, rounds: int) -> list[tuple[object, ...]]:
    """Direct effects of all heads of one prompt: the sweep, and whole passes."""
    model = load_model(name)
    chain = build_chain(model)
    batch, other = (random_batch(model, 1, 20, seed=seed) for seed in (1, 2))
    ids = torch.tensor([[11, 12]])
    calls = {
        "sweep": lambda: (
            direct_effects(chain, end_states(model, batch), end_states(model, other).z, ids).change
        ),
        "whole passes": lambda: effects_by_passes(model, batch, other, ids).change,
    }
    return _rows("path patching, 20 tokens", calls, rounds)


def _rows(
    what: str, calls: dict[str, Callable[[], torch.Tensor]], rounds: int
) -> list[tuple[object, ...]]:
    seconds = interleaved(calls, rounds)
    first = next(iter(calls))
    reference = calls[first]()
    rows: list[tuple[object, ...]] = []
    for label, call in calls.items():
        spread = ratios(seconds[label], seconds[first])
        gap = float((call() - reference).abs().max())
        ratio = over(seconds[label], seconds[first])
        rows.append((what, label, median(seconds[label]), ratio, min(spread), max(spread), gap))
    return rows


if __name__ == "__main__":
    main()
