"""What several trainings say together: intervals over seeds, equal fit, and what explains what.

An interval here is over seeds: another world, other weights and another order of batches each. It
is wide with three of them, as it should be.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import polars as pl
from jaxtyping import Float
from scipy import stats

from ..models.errors import MnemoscopeError
from .reversal_arms import ARMS
from .reversal_runs import ToyRun


@dataclass(frozen=True)
class SeedInterval:
    """A mean over seeds with its 95 % t-interval, whose ends are None for a single seed."""

    mean: float
    low: float | None
    high: float | None
    seeds: int


@dataclass(frozen=True)
class Mediation:
    """How much of an effect goes through a mediator, in standard deviations (Baron and Kenny 1986).

    `total` is the slope of the outcome on the cause, `direct` that with the mediator held fixed,
    `indirect` their difference, which is the product of both slopes on the way; `low` and `high`
    are its 95 % bootstrap interval over runs. `r2_mediator` and `r2_cause` say how much of the
    outcome's variance each explains alone.
    """

    total: float
    direct: float
    indirect: float
    low: float
    high: float
    r2_mediator: float
    r2_cause: float
    runs: int


def over_seeds(values: Sequence[float]) -> SeedInterval:
    """Mean and interval of one value a seed. Raises `MnemoscopeError` for none."""
    if not len(values):
        raise MnemoscopeError("no run to take a mean of: train the arm with one seed at least.")
    mean, n = float(np.mean(values)), len(values)
    if n == 1:
        return SeedInterval(mean, None, None, 1)
    half = float(stats.t.ppf(0.975, n - 1) * np.std(values, ddof=1) / np.sqrt(n))
    return SeedInterval(mean, mean - half, mean + half, n)


def arm_table(runs: Sequence[ToyRun]) -> pl.DataFrame:
    """One row an arm: sizes, cost, forward and reverse recall with intervals over seeds, chance.

    `peak` is the best reverse MRR of a curve, `reverse` that at the end; `token_mrr` is the
    reverse with the right tokens given, for language models.
    """
    return pl.DataFrame([_arm_row(group) for group in _by_arm(runs)])


def at_train_mrr(run: ToyRun, level: float) -> float | None:
    """Reverse MRR where the training split first reaches this MRR, between evaluations in a line.

    None where it never does, or did before the first evaluation. Arms that learn at different
    speeds are compared so; depth and shared names are confounded with fit otherwise.
    """
    train, test = run.curve["train"], run.curve["test"]
    reached = np.flatnonzero(train >= level)
    if not len(reached) or train[0] > level:
        return None
    i = int(reached[0])
    around = slice(max(i - 1, 0), i + 1)
    return float(np.interp(level, train[around], test[around]))


def matched_table(runs: Sequence[ToyRun], levels: Sequence[float]) -> pl.DataFrame:
    """Reverse MRR at equal training MRR: one row an arm and level that all its seeds reach."""
    rows = []
    for group in _by_arm(runs):
        for level in levels:
            values = [x for run in group if (x := at_train_mrr(run, level)) is not None]
            if len(values) == len(group):
                found = over_seeds(values)
                rows.append({"arm": group[0].arm, "train_mrr": level, **_named("reverse", found)})
    return pl.DataFrame(rows)


def mediation(
    cause: Float[np.ndarray, " run"],
    mediator: Float[np.ndarray, " run"],
    outcome: Float[np.ndarray, " run"],
    *,
    draws: int = 1000,
    seed: int = 0,
) -> Mediation:
    """Does `mediator` (overlap, say) carry the effect of `cause` (shared names) on `outcome`?

    Raises `MnemoscopeError` for fewer than five runs, or a variable that is the same in all.
    """
    table = np.stack([np.asarray(x, dtype=float) for x in (cause, mediator, outcome)], axis=1)
    if len(table) < 5:
        raise MnemoscopeError(f"{len(table)} runs cannot show a mediation: give five at least.")
    if (np.ptp(table, axis=0) == 0).any():
        raise MnemoscopeError("a variable is the same in every run: give runs that differ in it.")
    table = (table - table.mean(0)) / table.std(0)
    total, direct = _slopes(table[None])[0]
    chosen = np.random.default_rng(seed).integers(len(table), size=(draws, len(table)))
    resampled = _slopes(table[chosen])
    low, high = np.quantile(resampled[:, 0] - resampled[:, 1], [0.025, 0.975])
    alone = np.corrcoef(table.T)[2] ** 2
    return Mediation(
        total=float(total),
        direct=float(direct),
        indirect=float(total - direct),
        low=float(low),
        high=float(high),
        r2_mediator=float(alone[1]),
        r2_cause=float(alone[0]),
        runs=len(table),
    )


def _slopes(tables: Float[np.ndarray, "draw run 3"]) -> Float[np.ndarray, "draw 2"]:
    """Slope of the outcome on the cause: alone, and beside the mediator."""
    centred = tables - tables.mean(1, keepdims=True)
    outcome = centred[:, :, 2:]
    alone = np.linalg.pinv(centred[:, :, :1]) @ outcome
    beside = np.linalg.pinv(centred[:, :, :2]) @ outcome
    return np.concatenate([alone[:, 0], beside[:, 0]], axis=1)


def _by_arm(runs: Sequence[ToyRun]) -> list[list[ToyRun]]:
    order = [*ARMS, *sorted({run.arm for run in runs} - set(ARMS))]
    groups = [[run for run in runs if run.arm == arm] for arm in order]
    return [group for group in groups if group]


def _arm_row(group: Sequence[ToyRun]) -> dict[str, float | int | str | None]:
    first = group[0]

    def over(value: Callable[[ToyRun], float]) -> SeedInterval:
        return over_seeds([value(run) for run in group])

    forced = [run.final.token_mrr["test"] for run in group if run.final.token_mrr]
    return {
        "arm": first.arm,
        "seeds": len(group),
        "parameters": first.parameters,
        "steps": first.final.step,
        "cpu_seconds": over(lambda run: run.cpu_seconds).mean,
        "train": over(lambda run: run.final.recall["train"].mrr).mean,
        "told": over(lambda run: run.final.recall["atomic"].mrr).mean,
        **_named("reverse", over(lambda run: run.final.recall["test"].mrr)),
        **_named("reverse_hit", over(lambda run: run.final.recall["test"].hit)),
        "peak": over(lambda run: run.peak).mean,
        "chance": first.chance,
        "chance_in_group": first.chance_in_group,
        "token_mrr": over_seeds(forced).mean if forced else None,
        **_named("consistency", over(lambda run: run.final.consistency.test)),
        "summed_overlap": over(lambda run: run.final.entanglement.summed).mean,
        "effective_rank": over(lambda run: run.final.entanglement.effective_rank).mean,
    }


def _named(name: str, interval: SeedInterval) -> dict[str, float | None]:
    return {name: interval.mean, f"{name}_low": interval.low, f"{name}_high": interval.high}
