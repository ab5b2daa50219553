"""Do relations share units, and can losing units help? (section 6.6)

Two claims that need more than a cell of the effect matrix. Versatility: a set hurts another
relation through the units that both share. Interference: without a set, another relation gets
better, on new facts too. A third, cumulativity (`neuron_cumulativity`), can be imported from here.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from jaxtyping import Float
from scipy import stats

from ..interventions.neuron_ablation import Mode, neuron_edits
from ..models.errors import MnemoscopeError
from ..models.hooked import HookedModel
from ..models.types import NeuronId
from ..results.run import Run
from ..results.statistics import benjamini_hochberg, bootstrap_mean, sign_flip_p
from .elicitation import Progress, silent
from .neuron_cumulativity import (
    CumulativeCounts,
    Cumulativity,
    Ladder,
    cumulative_counts,
    cumulativity,
    cumulativity_table,
    pooled_counts,
)
from .neuron_doses import values_of
from .neuron_effects import Effects, effect_matrix
from .neuron_margins import ROWS, Asked, MarginRows, margin_rows

__all__ = [
    "CrossEffect",
    "CumulativeCounts",
    "Cumulativity",
    "Interference",
    "Ladder",
    "Sharing",
    "cumulative_counts",
    "cumulativity",
    "cumulativity_table",
    "interference",
    "pooled_counts",
    "sharing",
]

Carried = Literal[
    "no shared units",
    "no cross effect",
    "carried by the shared units",
    "carried by the other units",
    "carried by both",
]


# -- versatility --------------------------------------------------------------------------------


@dataclass(frozen=True)
class CrossEffect:
    """How set `ablated` hurts relation `asked` (nats, mean over facts): the whole set, the units
    it shares with the other's set, those it does not, and what carries the effect.

    `gap` is the loss under the shared units minus that under the others, paired, with its
    interval.
    """

    ablated: str
    asked: str
    whole: float
    shared: float
    other: float
    gap: float
    low: float
    high: float
    n_shared: int
    n_other: int
    carried: Carried


@dataclass(frozen=True, eq=False)
class Sharing:
    """Both cross effects of two relations, and the effects that they were read from."""

    effects: Effects
    cross: tuple[CrossEffect, CrossEffect]


def sharing(
    model: HookedModel,
    asked: Sequence[Asked] | MarginRows,
    sets: Mapping[str, Sequence[NeuronId]],
    *,
    mode: Mode = "mean",
    factor: float = 0.0,
    means: Float[torch.Tensor, "layer unit"] | None = None,
    rows: int = ROWS,
    seed: int = 0,
    run: Run | None = None,
    label: str = "sharing",
    progress: Progress = silent,
) -> Sharing:
    """Ablate the sets of two relations whole, their intersection, and both differences.

    Versatility is causal only if the intersection carries the cross effect. `asked` holds facts of
    both relations and `sets` their units by relation name. Raises `MnemoscopeError` unless there
    are two sets of at least one unit, of relations that are asked.
    """
    plan = asked if isinstance(asked, MarginRows) else margin_rows(model, asked)
    known = {one.relation for one in plan.asked}
    if len(sets) != 2 or not all(sets.values()) or set(sets) != known:
        raise MnemoscopeError("sharing compares two relations: give facts and units of both.")
    a, b = sets
    parts = {f"all of {name}": tuple(units) for name, units in sets.items()}
    parts["shared"] = tuple(unit for unit in sets[a] if unit in set(sets[b]))
    parts[f"only {a}"] = tuple(unit for unit in sets[a] if unit not in set(sets[b]))
    parts[f"only {b}"] = tuple(unit for unit in sets[b] if unit not in set(sets[a]))
    edits = {}
    for name, units in parts.items():
        if units:
            values = None if means is None else values_of(means, units)
            edits[name] = neuron_edits(units, mode, factor=factor, values=values)
    effects = effect_matrix(model, plan, edits, rows=rows, run=run, label=label, progress=progress)
    sizes = {name: len(units) for name, units in parts.items()}
    cross = (_cross(effects, sizes, a, b, seed), _cross(effects, sizes, b, a, seed))
    return Sharing(effects, cross)


# -- interference -------------------------------------------------------------------------------


@dataclass(frozen=True)
class Interference:
    """Whether ablating a set helps another relation.

    `loss`, `p` and `q` are of the first split (q over all cells off the diagonal), `loss_again`
    and `p_again` of the second; negative losses help, in nats. `holds`: loss < 0 with q below the
    level, and again with p below it on the second split. `detectable` is the smallest true gain
    that the first split would find in four of five tries at that level, before correction.
    """

    ablated: str
    asked: str
    n: int
    loss: float
    p: float
    q: float
    loss_again: float
    p_again: float
    detectable: float
    holds: bool


def interference(
    first: Effects, again: Effects, *, level: float = 0.05, seed: int = 0
) -> tuple[Interference, ...]:
    """The interference test of every cell off the diagonal, on two splits of the facts (6.6).

    p-values are paired sign-flip tests over subjects. Raises `MnemoscopeError` unless both splits
    ask the same relations under the same sets, about different subjects, and there is a cell off
    the diagonal.
    """
    _check_splits(first, again)
    cells = [(j, r) for r in first.relations for j in first.ablated if j != r]
    if not cells:
        raise MnemoscopeError("there is no relation whose units were not ablated: ask two.")
    one, two = (_cells(effects, seed) for effects in (first, again))
    q = benjamini_hochberg(np.array([one[cell].p for cell in cells]))
    found = []
    for cell, adjusted in zip(cells, q, strict=True):
        here, there = one[cell], two[cell]
        found.append(
            Interference(
                ablated=cell[0],
                asked=cell[1],
                n=here.n,
                loss=here.loss,
                p=here.p,
                q=float(adjusted),
                loss_again=there.loss,
                p_again=there.p,
                detectable=_detectable(here, level),
                holds=bool(
                    here.loss < 0 and adjusted < level and there.loss < 0 and there.p < level
                ),
            )
        )
    return tuple(found)


# -- details ------------------------------------------------------------------------------------


def _cross(
    effects: Effects, sizes: Mapping[str, int], ablated: str, asked: str, seed: int
) -> CrossEffect:
    facts = effects.rows_of(asked)
    subjects = [effects.clean.subjects[i] for i in facts]
    names = (f"all of {ablated}", "shared", f"only {ablated}")
    zero = np.zeros(len(facts))
    whole, shared, other = (
        effects.loss[effects.ablated.index(name)][facts] if name in effects.ablated else zero
        for name in names
    )
    interval = bootstrap_mean(
        np.stack([whole, shared, shared - other], axis=1), subjects, seed=seed
    )
    low, high = interval.low, interval.high
    if not sizes["shared"]:
        carried: Carried = "no shared units"
    elif low[0] <= 0:
        carried = "no cross effect"
    elif low[2] > 0 and low[1] > 0:
        carried = "carried by the shared units"
    else:
        carried = "carried by the other units" if high[2] < 0 else "carried by both"
    means = float(whole.mean()), float(shared.mean()), float(other.mean())
    gap = float(interval.mean[2]), float(low[2]), float(high[2])
    return CrossEffect(ablated, asked, *means, *gap, sizes["shared"], sizes[names[2]], carried)


@dataclass(frozen=True)
class _Cell:
    n: int
    loss: float
    sd: float
    p: float


def _cells(effects: Effects, seed: int) -> dict[tuple[str, str], _Cell]:
    """Every cell (ablated, asked)."""
    found = {}
    for relation in effects.relations:
        facts = effects.rows_of(relation)
        subjects = [effects.clean.subjects[i] for i in facts]
        loss = effects.loss[:, facts].T
        p = sign_flip_p(loss, subjects, seed=seed)
        n = len(set(subjects))
        for j, name in enumerate(effects.ablated):
            deviation = float(loss[:, j].std(ddof=1))
            found[name, relation] = _Cell(n, float(loss[:, j].mean()), deviation, float(p[j]))
    return found


def _detectable(cell: _Cell, level: float) -> float:
    """Gain found with power 0.8 by a two-sided paired test: (z_level/2 + z_0.8) sd / sqrt(n)."""
    return float((stats.norm.isf(level / 2) + stats.norm.ppf(0.8)) * cell.sd / math.sqrt(cell.n))


def _check_splits(first: Effects, again: Effects) -> None:
    if set(first.relations) != set(again.relations) or first.ablated != again.ablated:
        raise MnemoscopeError("both splits must ask the same relations under the same sets.")
    pairs = [set(zip(e.clean.relations, e.clean.subjects, strict=True)) for e in (first, again)]
    if both := pairs[0] & pairs[1]:
        relation, subject = min(both)
        raise MnemoscopeError(
            f"{subject!r} is asked about {relation!r} in both splits: a replication needs facts "
            "that the first split did not see."
        )
