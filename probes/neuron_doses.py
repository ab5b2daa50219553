"""How much does a growing dose do? Curves over set size and factor, beside matched controls.

A single size or factor can be chosen to show anything, and random units that hardly write do
nothing: so a set is judged over the whole range of doses, against sets matched to it by layer and
size of write (relation_neurons.md, sections 6.4 and 6.5). The loss of a fact is its candidate
margin on the model as it is minus the margin under the edit, in nats: positive hurts.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import polars
import torch
from jaxtyping import Float

from ..interventions.neuron_ablation import Mode, nested_edits, places_by_site, values_at
from ..models.edits import Edit
from ..models.errors import MnemoscopeError
from ..models.hooked import HookedModel
from ..models.types import NeuronId
from ..results.run import Run
from ..results.statistics import bootstrap_mean
from .elicitation import Progress, silent
from .neuron_margins import (
    ROWS,
    Asked,
    EditsFor,
    MarginRows,
    Margins,
    kept_margins,
    losses_of,
    margin_rows,
    measure_doses,
    measure_margins,
)

By = Literal["size", "factor"]
FACTORS = (0.0, 0.25, 0.5, 1.0, 1.5, 2.0, 4.0)


@dataclass(frozen=True, eq=False)
class DoseCurve:
    """Margins of the same facts under growing doses of a ranking and of its matched controls.

    `by` "size": a dose is a number of units, from the top. `by` "factor": what the units are
    multiplied with. `controls[draw][dose]` stands beside `target[dose]`.
    """

    by: By
    doses: tuple[float, ...]
    clean: Margins
    target: tuple[Margins, ...]
    controls: tuple[tuple[Margins, ...], ...]

    @property
    def loss(self) -> Float[np.ndarray, "dose fact"]:
        """Loss of each fact at each dose, nats."""
        return losses_of(self.clean, self.target)

    @property
    def control_loss(self) -> Float[np.ndarray, "draw dose fact"]:
        """The same of each control set; no rows without controls."""
        if not self.controls:
            return np.zeros((0, len(self.doses), len(self.clean)))
        return np.stack([losses_of(self.clean, draw) for draw in self.controls])


@dataclass(frozen=True)
class AgainstControls:
    """One effect beside the effects of matched controls.

    `z` is NaN with fewer than two controls or none that differ. `p_loss` is the share of sets,
    this one counted too, whose effect is at least as large, `p_gain` at most as large: with 20
    controls never below 1/21. Both are one-sided, so decide beforehand which one is asked for.
    """

    effect: float
    control_mean: float
    control_sd: float
    z: float
    p_loss: float
    p_gain: float
    n_controls: int


@dataclass(frozen=True)
class Area:
    """Mean loss over the range of doses beyond that of the controls, nats, with its interval over
    subjects (which holds the control sets fixed) and its place among the controls."""

    value: float
    low: float
    high: float
    against: AgainstControls


def dose_curve(
    model: HookedModel,
    asked: Sequence[Asked] | MarginRows,
    ranking: Sequence[NeuronId],
    sizes: Sequence[int],
    *,
    mode: Mode = "mean",
    factor: float = 0.0,
    means: Float[torch.Tensor, "layer unit"] | None = None,
    controls: Sequence[Sequence[NeuronId]] = (),
    rows: int = ROWS,
    run: Run | None = None,
    label: str = "doses",
    progress: Progress = silent,
) -> DoseCurve:
    """Edit the first k units of a ranking for each size k, and of each control in the same way.

    All sizes share each batch. In a control, unit i stands for unit i of the ranking, so that its
    first k are matched to the first k (`results.neuron_controls.matched_random_neurons`). `mode`
    and `factor` are those of `neuron_edits`; `means` is the table that "mean" and "set" write from
    (`neutral_means`). With a `run`, every ranking is one unit of it under `label`. Raises
    `MnemoscopeError` unless sizes grow from 1 at least to what the ranking and the controls hold.
    """
    check_sizes(sizes, ranking, controls)

    def edits_of(units: Sequence[NeuronId]) -> EditsFor:
        values = None if means is None else values_of(means, units)
        return lambda n: nested_edits(units, sizes, n, mode, values=values, factor=factor)

    makers = [edits_of(units) for units in (ranking, *controls)]
    doses = tuple(map(float, sizes))
    return _curve(model, asked, "size", doses, makers, rows, run, label, progress)


def factor_curve(
    model: HookedModel,
    asked: Sequence[Asked] | MarginRows,
    neurons: Sequence[NeuronId],
    factors: Sequence[float] = FACTORS,
    *,
    controls: Sequence[Sequence[NeuronId]] = (),
    rows: int = ROWS,
    run: Run | None = None,
    label: str = "factors",
    progress: Progress = silent,
) -> DoseCurve:
    """Multiply all units of a set by each factor, below 1 weakening and above 1 amplifying them.

    Every real token but the first is edited. `run` and `label` as in `dose_curve`. Raises
    `MnemoscopeError` without units, or unless the factors grow.
    """
    if not neurons or not factors or list(factors) != sorted(set(factors)):
        raise MnemoscopeError("a curve over factors needs units, and factors that grow.")

    def edits_of(units: Sequence[NeuronId]) -> EditsFor:
        return lambda n: _factor_edits(model, units, factors, n)

    makers = [edits_of(units) for units in (neurons, *controls)]
    doses = tuple(map(float, factors))
    return _curve(model, asked, "factor", doses, makers, rows, run, label, progress)


def values_of(
    means: Float[torch.Tensor, "layer unit"], units: Sequence[NeuronId]
) -> Float[torch.Tensor, " unit"]:
    """`values_at` for units of one site. Raises `MnemoscopeError` for units of several, whose means
    no one table holds."""
    if len({unit.site for unit in units}) > 1:
        raise MnemoscopeError(
            "one table of means serves units of one site: edit units of several sites with 'zero' "
            "or 'scale'."
        )
    return values_at(means, units)


def check_sizes(
    sizes: Sequence[int], ranking: Sequence[NeuronId], controls: Sequence[Sequence[NeuronId]]
) -> None:
    """Raise `MnemoscopeError` unless sizes grow from 1 at least to what every ranking holds."""
    have = min(len(units) for units in (ranking, *controls))
    if not sizes or list(sizes) != sorted(set(sizes)) or sizes[0] < 1 or sizes[-1] > have:
        raise MnemoscopeError(
            f"sizes must grow from 1 at least to {have} at most, the units that the ranking and "
            f"its controls hold; got {list(sizes)}."
        )


def against_controls(effect: float, controls: Float[np.ndarray, " draw"]) -> AgainstControls:
    """z and empirical p of one effect among those of matched controls (section 6.5)."""
    n = len(controls)
    mean = float(controls.mean()) if n else math.nan
    sd = float(controls.std(ddof=1)) if n > 1 else math.nan
    z = (effect - mean) / sd if sd > 0 else math.nan
    p_loss = (1 + int((controls >= effect).sum())) / (n + 1)
    p_gain = (1 + int((controls <= effect).sum())) / (n + 1)
    return AgainstControls(effect, mean, sd, z, p_loss, p_gain, n)


def curve_table(curve: DoseCurve, *, seed: int = 0) -> polars.DataFrame:
    """One row a dose: mean loss with its interval over subjects, the same of the controls, z and
    p, the share of facts still ranked right, and the change of log type mass (`in_type`)."""
    interval = bootstrap_mean(curve.loss.T, curve.clean.subjects, seed=seed)
    control = curve.control_loss.mean(2)
    rows = []
    for i, dose in enumerate(curve.doses):
        against = against_controls(float(interval.mean[i]), control[:, i])
        rows.append(
            {
                "by": curve.by,
                "dose": dose,
                "loss": against.effect,
                "low": float(interval.low[i]),
                "high": float(interval.high[i]),
                **_against_row(against),
                "right_before": float(curve.clean.first.mean()),
                "right": float(curve.target[i].first.mean()),
                "type_change": float((curve.target[i].in_type - curve.clean.in_type).mean()),
            }
        )
    return polars.DataFrame(rows)


def area_between(curve: DoseCurve, *, seed: int = 0) -> Area:
    """Area between the curve and the mean of its controls, divided by the range of doses.

    Trapezoids over log dose for sizes, over the factor itself for factors. Above factor 1 a gain
    counts as the loss does below it: both say that the units serve the facts.
    """
    weights = _dose_weights(curve)
    control = np.einsum("d,cdf->cf", weights, curve.control_loss)
    per_fact = weights @ curve.loss
    beyond = per_fact - control.mean(0) if len(control) else per_fact
    interval = bootstrap_mean(beyond, curve.clean.subjects, seed=seed)
    against = against_controls(float(per_fact.mean()), control.mean(1))
    return Area(float(interval.mean), float(interval.low), float(interval.high), against)


def _curve(
    model: HookedModel,
    asked: Sequence[Asked] | MarginRows,
    by: By,
    doses: tuple[float, ...],
    makers: Sequence[EditsFor],
    rows: int,
    run: Run | None,
    label: str,
    progress: Progress,
) -> DoseCurve:
    plan = asked if isinstance(asked, MarginRows) else margin_rows(model, asked)
    (clean,) = kept_margins(
        run, f"{label}: clean", plan, lambda: (measure_margins(model, plan, rows=rows),)
    )
    progress(1, len(makers) + 1)
    found = []
    for number, maker in enumerate(makers):
        name = f"control {number - 1}" if number else "target"

        def measure(maker: EditsFor = maker) -> tuple[Margins, ...]:
            return measure_doses(model, plan, len(doses), maker, rows=rows)

        found.append(kept_margins(run, f"{label}: {name}", plan, measure))
        progress(number + 2, len(makers) + 1)
    return DoseCurve(by, doses, clean, found[0], tuple(found[1:]))


def _factor_edits(
    model: HookedModel, units: Sequence[NeuronId], factors: Sequence[float], n: int
) -> tuple[Edit, ...]:
    """One edit a site; rows 0 to n - 1 take the first factor, and so on."""
    per_row = torch.tensor(factors, dtype=model.dtype, device=model.device)
    per_row = per_row.repeat_interleave(n)[:, None]
    edits = []
    for places in places_by_site(units).values():
        here = tuple(units[i] for i in places)
        value = per_row.expand(-1, len(here))
        edits.append(Edit("scale", here, value, positions="all_but_first"))
    return tuple(edits)


def _against_row(against: AgainstControls) -> dict[str, float | int | None]:
    """Missing numbers become nulls in the table."""
    numbers = {"control_mean": against.control_mean, "control_sd": against.control_sd}
    numbers |= {"z": against.z}
    shown = {name: number_or_none(x) for name, x in numbers.items()}
    tested = against.n_controls > 0
    return {
        **shown,
        "p_loss": against.p_loss if tested else None,
        "p_gain": against.p_gain if tested else None,
        "n_controls": against.n_controls,
    }


def number_or_none(x: float) -> float | None:
    """The number, or the null that a table shows for one that does not exist."""
    return None if math.isnan(x) else x


def _dose_weights(curve: DoseCurve) -> Float[np.ndarray, " dose"]:
    """Trapezoid weights that sum to 1 in size; negative above factor 1."""
    x = np.array(curve.doses)
    x = np.log(x) if curve.by == "size" else x
    if len(x) == 1:
        weights = np.ones(1)
    else:
        gaps = np.diff(x)
        weights = (np.append(gaps, 0) + np.append(0, gaps)) / 2 / (x[-1] - x[0])
    above = np.array(curve.doses) > 1 if curve.by == "factor" else np.zeros(len(x), dtype=bool)
    return np.where(above, -weights, weights)
