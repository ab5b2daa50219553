"""Do the units of a ranking add up? Cumulativity and synergy (section 6.6).

Ranks that do little alone may do much on top of others (Liu et al. 2025). Rank and budget grow
together in a ranking, so the same units in random order stand beside it, and matched controls.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import polars
import torch
from jaxtyping import Bool, Float

from ..interventions.neuron_ablation import Mode, nested_edits, neuron_edits
from ..models.errors import MnemoscopeError
from ..models.hooked import HookedModel
from ..models.types import NeuronId
from ..results.run import Run
from ..results.statistics import bootstrap_mean
from .elicitation import Progress, silent
from .neuron_doses import against_controls, check_sizes, number_or_none, values_of
from .neuron_margins import (
    ROWS,
    Asked,
    MarginRows,
    Margins,
    kept_margins,
    losses_of,
    margin_rows,
    measure_doses,
    measure_margins,
)


@dataclass(frozen=True)
class CumulativeCounts:
    """Facts that the first b ranks lose though the first a do not (`total`), and those among them
    that ranks a + 1 to b alone lose too (`affected`). `rate` = 1 - affected / total, NaN for none
    (Liu et al. 2025, cumulativity)."""

    total: int
    affected: int

    @property
    def rate(self) -> float:
        """1 when the ranks act only together with those above them, 0 when they act alone."""
        return 1 - self.affected / self.total if self.total else math.nan


@dataclass(frozen=True, eq=False)
class Ladder:
    """Margins of a ranking cut at growing sizes, and of each rung (the ranks between two sizes)
    alone. `rungs[i]` stands between `sizes[i]` and `sizes[i + 1]`."""

    sizes: tuple[int, ...]
    clean: Margins
    tops: tuple[Margins, ...]
    rungs: tuple[Margins, ...]

    @property
    def loss(self) -> Float[np.ndarray, "size fact"]:
        """Loss of each fact with the first k ranks edited, nats."""
        return losses_of(self.clean, self.tops)

    @property
    def synergy(self) -> Float[np.ndarray, "rung fact"]:
        """loss(first b) - loss(first a) - loss(ranks a + 1 to b), nats: above 0 the rung does more
        on top of the others than alone, below 0 the two do the same work."""
        return self.loss[1:] - self.loss[:-1] - losses_of(self.clean, self.rungs)

    @property
    def counts(self) -> tuple[CumulativeCounts, ...]:
        """The paper's counts for each rung; a fact is right while it beats all candidates."""
        return tuple(
            cumulative_counts(self.tops[i].first, self.tops[i + 1].first, rung.first)
            for i, rung in enumerate(self.rungs)
        )


@dataclass(frozen=True, eq=False)
class Cumulativity:
    """The ladder of a ranking, those of its matched controls, and those of the same units in
    random order, which tell the budget from the rank."""

    target: Ladder
    controls: tuple[Ladder, ...]
    random_orders: tuple[Ladder, ...]


def cumulative_counts(
    right_a: Bool[np.ndarray, " fact"],
    right_b: Bool[np.ndarray, " fact"],
    right_rung: Bool[np.ndarray, " fact"],
) -> CumulativeCounts:
    """The paper's counts from which facts are right with the first a ranks edited, with the first
    b, and with ranks a + 1 to b alone; any criterion of right serves."""
    lost = right_a & ~right_b
    return CumulativeCounts(int(lost.sum()), int((lost & ~right_rung).sum()))


def cumulativity(
    model: HookedModel,
    asked: Sequence[Asked] | MarginRows,
    ranking: Sequence[NeuronId],
    sizes: Sequence[int],
    *,
    mode: Mode = "mean",
    factor: float = 0.0,
    means: Float[torch.Tensor, "layer unit"] | None = None,
    controls: Sequence[Sequence[NeuronId]] = (),
    orders: int = 0,
    seed: int = 0,
    rows: int = ROWS,
    run: Run | None = None,
    label: str = "cumulativity",
    progress: Progress = silent,
) -> Cumulativity:
    """Edit a ranking up to each size, and each rung alone; controls and random orders likewise.

    `orders` is the number of random orders of the first `sizes[-1]` units, drawn with the seed.
    Everything else as in `neuron_doses.dose_curve`; every ladder is one unit of the run. Raises
    `MnemoscopeError` with fewer than two sizes.
    """
    check_sizes(sizes, ranking, controls)
    if len(sizes) < 2:
        raise MnemoscopeError("cumulativity compares sizes: give at least two.")
    plan = asked if isinstance(asked, MarginRows) else margin_rows(model, asked)
    rng = np.random.default_rng(seed)
    shuffled = [[ranking[i] for i in rng.permutation(sizes[-1])] for _ in range(orders)]
    named = {"target": ranking}
    named |= {f"control {i}": units for i, units in enumerate(controls)}
    named |= {f"order {i}": units for i, units in enumerate(shuffled)}

    (clean,) = kept_margins(
        run, f"{label}: clean", plan, lambda: (measure_margins(model, plan, rows=rows),)
    )
    ladders = []
    for number, (name, units) in enumerate(named.items()):
        values = None if means is None else values_of(means, units)
        edits = _LadderEdits(units, tuple(sizes), mode, factor, values)

        def climb(edits: _LadderEdits = edits) -> tuple[Margins, ...]:
            return _climb(model, plan, edits, rows)

        found = kept_margins(run, f"{label}: {name}", plan, climb)
        ladders.append(Ladder(tuple(sizes), clean, found[: len(sizes)], found[len(sizes) :]))
        progress(number + 1, len(named))
    n = 1 + len(controls)
    return Cumulativity(ladders[0], tuple(ladders[1:n]), tuple(ladders[n:]))


def cumulativity_table(found: Cumulativity, *, seed: int = 0) -> polars.DataFrame:
    """One row a rung: the paper's counts and rate, mean synergy with its interval over subjects,
    its z and p (`p_loss`: at least as large) among matched controls, and its mean over random
    orders."""
    interval = bootstrap_mean(found.target.synergy.T, found.target.clean.subjects, seed=seed)
    n_rungs = len(found.target.rungs)
    control = np.array([one.synergy.mean(1) for one in found.controls]).reshape(-1, n_rungs)
    order = np.array([one.synergy.mean(1) for one in found.random_orders]).reshape(-1, n_rungs)
    rows = []
    for i, counts in enumerate(found.target.counts):
        against = against_controls(float(interval.mean[i]), control[:, i])
        rows.append(
            {
                "from": found.target.sizes[i],
                "to": found.target.sizes[i + 1],
                "total": counts.total,
                "affected": counts.affected,
                "cumulativity": number_or_none(counts.rate),
                "synergy": against.effect,
                "low": float(interval.low[i]),
                "high": float(interval.high[i]),
                "control_mean": number_or_none(against.control_mean),
                "z": number_or_none(against.z),
                "p_loss": against.p_loss if len(control) else None,
                "random_order": float(order[:, i].mean()) if len(order) else None,
            }
        )
    return polars.DataFrame(rows)


def pooled_counts(found: Sequence[Sequence[CumulativeCounts]]) -> tuple[float, float]:
    """Cumulativity over relations for one rung each, or several: (micro, macro); NaN where no fact
    was lost. Micro pools the counts, macro averages the rates that exist."""
    flat = [counts for one in found for counts in one]
    pooled = CumulativeCounts(sum(c.total for c in flat), sum(c.affected for c in flat))
    rates = [counts.rate for counts in flat if counts.total]
    return pooled.rate, float(np.mean(rates)) if rates else math.nan


@dataclass(frozen=True, eq=False)
class _LadderEdits:
    units: Sequence[NeuronId]
    sizes: tuple[int, ...]
    mode: Mode
    factor: float
    values: torch.Tensor | None


def _climb(
    model: HookedModel, plan: MarginRows, edits: _LadderEdits, rows: int
) -> tuple[Margins, ...]:
    """Margins of the tops, which share their batches, then of the rungs."""
    units, sizes, mode, factor = edits.units, edits.sizes, edits.mode, edits.factor
    tops = measure_doses(
        model,
        plan,
        len(sizes),
        lambda n: nested_edits(units, sizes, n, mode, factor=factor, values=edits.values),
        rows=rows,
    )
    rungs = []
    for low, high in pairwise(sizes):
        values = None if edits.values is None else edits.values[low:high]
        cut = neuron_edits(units[low:high], mode, factor=factor, values=values)
        rungs.append(measure_margins(model, plan, cut, rows=rows))
    return (*tops, *rungs)
