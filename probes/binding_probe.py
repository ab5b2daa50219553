"""All three predictions of binding IDs for one model and task, with the behaviour beside them."""

from __future__ import annotations

import time
from dataclasses import dataclass

import polars

from ..data.facts.binding_contexts import BindingTask
from ..models.errors import UnsupportedModelError
from ..models.hooked import HookedModel
from ..results.provenance import Provenance, collect_provenance, sha256_of_json
from ..results.run import Run
from ..results.statistics import Interval
from .binding_ids import (
    Part,
    factorizability,
    mean_differences,
    mean_swaps,
    position_shifts,
)
from .binding_prompts import binding_prompts, source_and_target, usable_words
from .binding_readings import BindingReadings
from .binding_states import ROWS
from .elicitation import Progress, silent

CONTEXTS = 100
PARTS: tuple[Part, Part] = ("entities", "attributes")


@dataclass(frozen=True, eq=False)
class BindingIds:
    """The readings of one model. `shifts` is empty where attention sees no positions (then
    `shifts_refused` says why); `dropped` counts words left out, by reason; `seconds` is the cost.
    """

    patches: BindingReadings
    swaps: BindingReadings
    shifts: dict[Part, BindingReadings]
    shifts_refused: str
    dropped: dict[str, int]
    seconds: float
    provenance: Provenance

    def behaviour(self, seed: int = 0) -> Interval:
        """Accuracy without intervention between the two told answers; chance is a half."""
        return self.swaps.behaviour(seed=seed)

    def table(self, seed: int = 0) -> polars.DataFrame:
        """The accuracies of every intervention, in one table."""
        parts = {"patches": self.patches, "mean swaps": self.swaps}
        parts |= {f"positions of {part}": found for part, found in self.shifts.items()}
        return polars.concat(
            [
                found.accuracies(seed).select(polars.lit(name).alias("intervention"), polars.all())
                for name, found in parts.items()
            ]
        )


def probe_binding_ids(
    model: HookedModel,
    task: BindingTask,
    *,
    contexts: int = CONTEXTS,
    seed: int = 0,
    rows: int = ROWS,
    run: Run | None = None,
    progress: Progress = silent,
) -> BindingIds:
    """Contexts of two slots; the mean differences come from as many other contexts.

    Raises `MnemoscopeError` when the task has too few words of one width for this model.
    """
    start = time.monotonic()
    target, source = source_and_target(model, task, contexts, seed=seed)
    other = binding_prompts(model, task, contexts, seed=seed + 1)
    patches = factorizability(model, target, source, rows=rows, run=run, progress=progress)
    means = mean_differences(model, other, rows=rows, progress=progress)
    swaps = mean_swaps(model, target, means, seed=seed, rows=rows, run=run, progress=progress)
    shifts: dict[Part, BindingReadings] = {}
    refused = ""
    try:
        for part in PARTS:
            shifts[part] = position_shifts(
                model, target, part, rows=rows, run=run, progress=progress
            )
    except UnsupportedModelError as error:
        refused = str(error)
    return BindingIds(
        patches,
        swaps,
        shifts,
        refused,
        usable_words(model, task).dropped,
        time.monotonic() - start,
        _provenance(model, task, target.ids.tolist(), seed),
    )


def _provenance(
    model: HookedModel, task: BindingTask, ids: list[list[int]], seed: int
) -> Provenance:
    return collect_provenance(
        **model.identity,
        data_sha256=sha256_of_json(ids),
        prompt_template=f"{task.opening} {task.statements[0]} {task.question}".strip(),
        seed=seed,
        estimand=f"binding IDs ({task.name}), states at all layers, other tokens frozen, "
        f"{len(ids)} contexts",
    )
