"""Whom does editing a set of neurons hurt? The relation by relation matrix, and specificity.

The loss of a fact is its candidate margin on the model as it is minus the margin under the edit,
in nats: positive hurts (relation_neurons.md, section 6.4). A set is judged on its own relation
against all others (6.6). Curves over doses (`neuron_doses`) can be imported from here too.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import polars
from jaxtyping import Float

from ..models.edits import Edit
from ..models.errors import MnemoscopeError
from ..models.hooked import HookedModel
from ..results.run import Run
from ..results.statistics import (
    benjamini_hochberg,
    bootstrap_mean,
    bootstrap_weights,
    sign_flip_p,
)
from .elicitation import Progress, silent
from .neuron_doses import (
    AgainstControls,
    Area,
    DoseCurve,
    against_controls,
    area_between,
    curve_table,
    dose_curve,
    factor_curve,
)
from .neuron_margins import (
    ROWS,
    Asked,
    MarginRows,
    Margins,
    kept_margins,
    losses_of,
    margin_rows,
    measure_margins,
)

__all__ = [
    "AgainstControls",
    "Area",
    "DoseCurve",
    "Effects",
    "Specificity",
    "against_controls",
    "area_between",
    "curve_table",
    "dose_curve",
    "effect_matrix",
    "factor_curve",
    "matrix_table",
    "specificity",
]


@dataclass(frozen=True, eq=False)
class Effects:
    """Margins of all facts of all relations with each set ablated in turn; `after` goes by set."""

    ablated: tuple[str, ...]
    clean: Margins
    after: tuple[Margins, ...]

    @property
    def relations(self) -> tuple[str, ...]:
        """The relations that were asked, in the order of the facts."""
        return tuple(dict.fromkeys(self.clean.relations))

    @property
    def loss(self) -> Float[np.ndarray, "ablated fact"]:
        """Loss of each fact under each set, nats."""
        return losses_of(self.clean, self.after)

    def rows_of(self, relation: str) -> np.ndarray:
        """Indices of the facts of one relation. Raises `MnemoscopeError` when it was not asked."""
        rows = np.flatnonzero([name == relation for name in self.clean.relations])
        if not rows.size:
            raise MnemoscopeError(
                f"relation {relation!r} was not asked, only {', '.join(self.relations)}."
            )
        return rows


@dataclass(frozen=True)
class Specificity:
    """How much more a relation's set hurts its own relation than the others (section 6.6).

    `index` = (own - others) / (|own| + mean |others|), in [-1, 1], with its bootstrap interval;
    `own` and `others` are mean losses in nats.
    """

    relation: str
    own: float
    others: float
    index: float
    low: float
    high: float


def effect_matrix(
    model: HookedModel,
    asked: Sequence[Asked] | MarginRows,
    edits: Mapping[str, Sequence[Edit]],
    *,
    rows: int = ROWS,
    run: Run | None = None,
    label: str = "matrix",
    progress: Progress = silent,
) -> Effects:
    """Ask all facts of all relations with each named set of edits in place.

    Name a set after its relation to get its diagonal cell. With a `run`, every set is one unit of
    it under `label`. Raises `MnemoscopeError` without sets.
    """
    if not edits:
        raise MnemoscopeError("the effect matrix needs at least one set of edits.")
    plan = asked if isinstance(asked, MarginRows) else margin_rows(model, asked)
    conditions: dict[str, Sequence[Edit]] = {"clean": ()}
    conditions |= {f"ablated {name}": tuple(edits[name]) for name in edits}
    found = []
    for number, (name, given) in enumerate(conditions.items()):

        def measure(given: Sequence[Edit] = given) -> tuple[Margins, ...]:
            return (measure_margins(model, plan, given, rows=rows),)

        (one,) = kept_margins(run, f"{label}: {name}", plan, measure)
        found.append(one)
        progress(number + 1, len(conditions))
    return Effects(tuple(edits), found[0], tuple(found[1:]))


def matrix_table(effects: Effects, *, seed: int = 0) -> polars.DataFrame:
    """One row a cell: mean loss of a relation's facts under a set, its interval and sign-flip p
    over subjects, q (Benjamini-Hochberg over all cells), shares ranked right, and the relative
    drop of these (the paper's measure; null where nothing was right)."""
    loss, rows = effects.loss, []
    for relation in effects.relations:
        facts = effects.rows_of(relation)
        subjects = [effects.clean.subjects[i] for i in facts]
        cells = loss[:, facts].T
        interval = bootstrap_mean(cells, subjects, seed=seed)
        p = sign_flip_p(cells, subjects, seed=seed)
        before = float(effects.clean.first[facts].mean())
        for j, name in enumerate(effects.ablated):
            after = float(effects.after[j].first[facts].mean())
            rows.append(
                {
                    "ablated": name,
                    "asked": relation,
                    "own": name == relation,
                    "n": len(facts),
                    "loss": float(interval.mean[j]),
                    "low": float(interval.low[j]),
                    "high": float(interval.high[j]),
                    "p": float(p[j]),
                    "right_before": before,
                    "right": after,
                    "drop": (before - after) / before if before else None,
                }
            )
    table = polars.DataFrame(rows)
    return table.with_columns(q=polars.Series(benjamini_hochberg(table["p"].to_numpy())))


def specificity(
    effects: Effects, *, draws: int = 1000, level: float = 0.95, seed: int = 0
) -> tuple[Specificity, ...]:
    """The specificity index of every relation whose set was ablated, with intervals over subjects.

    A subject that several relations share is drawn for all of them. Raises `MnemoscopeError`
    unless two relations were asked and a set is named after one of them.
    """
    names = [name for name in effects.ablated if name in effects.relations]
    if len(effects.relations) < 2 or not names:
        raise MnemoscopeError(
            "specificity compares a relation with others: ask two relations at least, and name "
            "each set after its relation."
        )
    member = np.array([[r == name for name in effects.relations] for r in effects.clean.relations])
    weights = bootstrap_weights(effects.clean.subjects, draws=draws, seed=seed)
    tail = (1 - level) / 2
    found = []
    for name in names:
        loss = effects.loss[effects.ablated.index(name)]
        own = effects.relations.index(name)
        means = loss @ member / member.sum(0)
        with np.errstate(invalid="ignore"):  # a draw may leave a small relation out
            drawn = (weights * loss) @ member / (weights @ member)
        low, high = np.nanquantile(_index(drawn, own), [tail, 1 - tail])
        others = float(np.delete(means, own).mean())
        index = float(_index(means[None], own)[0])
        found.append(Specificity(name, float(means[own]), others, index, float(low), float(high)))
    return tuple(found)


def _index(means: Float[np.ndarray, "draw relation"], own: int) -> Float[np.ndarray, " draw"]:
    mine, others = means[:, own], np.delete(means, own, axis=1)
    size = np.abs(mine) + np.abs(others).mean(1)
    gap = mine - others.mean(1)
    return np.asarray(np.divide(gap, size, out=np.zeros_like(gap), where=size != 0))
