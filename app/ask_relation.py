"""Which relation do the units of a finished run hear in one prompt? No page here.

Each unit's activation on the prompt is held against its activations on the run's prompts of other
relations, in the direction in which the unit tells its relation: `standing` is the share of these
that lie below, one half by chance.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import polars
from jaxtyping import Float

from ..data.facts.designs import Prompt
from ..models.hooked import HookedModel
from ..probes.unit_prompts import unit_activations
from .neuron_runs import NeuronRun

FOUND = "found"


@dataclass(frozen=True, eq=False)
class HeardRelations:
    """`relations`: a row a relation, the one that stands out most first (`relation`, `standing`,
    the mean over its units, `units`, and the run's `verdict`, `FOUND` or why not). `units`: a row a
    unit of a relation (`relation`, `unit`, `direction`, `activation`, `standing`), best first by
    the run. `asked` is the relation whose wording the prompt has, where it has one."""

    relations: polars.DataFrame
    units: polars.DataFrame
    asked: str | None

    @property
    def first(self) -> str:
        """The relation whose units stand out most."""
        return str(self.relations["relation"][0])


def heard_relations(
    model: HookedModel,
    run: NeuronRun,
    prompts: Sequence[Prompt],
    known: Float[np.ndarray, "unit prompt"],
    text: str,
) -> HeardRelations:
    """Hold the prompt's activations against `known`, those of `run.units` on the run's prompts.

    Raises what `unit_activations` raises, `PromptError` for a prompt without a subject where the
    run pools over the subject's tokens.
    """
    prompt = as_prompt(text, prompts)
    values = unit_activations(model, [prompt], run.units, run.summary["pooling"])[:, 0]
    place = {unit: i for i, unit in enumerate(run.units)}
    about = np.array([one.relation for one in prompts])
    units = []
    for relation, found in run.sets.items():
        others = about != relation
        for scored in found.neurons:
            row, sign = place[scored.neuron], -1 if scored.role == "low" else 1
            below = sign * known[row, others] < sign * values[row]
            ties = known[row, others] == values[row]
            units.append(
                {
                    "relation": relation,
                    "unit": str(scored.neuron),
                    "direction": "down" if sign < 0 else "up",
                    "activation": float(values[row]),
                    "standing": float((below + 0.5 * ties).mean()),
                }
            )
    table = polars.DataFrame(units)
    verdicts = {name: _verdict(run.verdict(name)) for name in run.relations}
    relations = (
        table.group_by("relation", maintain_order=True)
        .agg(polars.col("standing").mean(), polars.len().alias("units"))
        .with_columns(
            polars.col("relation").replace_strict(verdicts, return_dtype=polars.String)
            .alias("verdict")
        )
        .sort("standing", descending=True, maintain_order=True)
    )  # fmt: skip
    return HeardRelations(relations, table, prompt.relation or None)


def as_prompt(text: str, prompts: Sequence[Prompt]) -> Prompt:
    """The text with its subject, where it has the wording of one of the prompts; else the whole
    text stands for the subject and `relation` is empty."""
    for one in prompts:
        before, after = one.text[: one.subject_start], one.text[one.subject_end :]
        stop = len(text) - len(after)
        if stop > len(before) and text.startswith(before) and text.endswith(after):
            subject = text[len(before) : stop]
            return Prompt(text, one.relation, subject, one.wording, len(before), stop)
    return Prompt(text, "", "", "", 0, len(text))


def _verdict(found: Mapping[str, Any]) -> str:
    return FOUND if found["found"] else str(found["text"])
