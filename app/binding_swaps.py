"""One role swap, at one source and one target layer: one pair in full, and the mean of all."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np
import polars
import torch

from ..models.hooked import HookedModel
from ..probes.role_states import RoleStates
from ..probes.role_swaps import SwapConfig, edited_name_scores, measure_role_swaps, name_ranks
from ..probes.swap_vectors import Arm, Form, Origin, SwapVectors, arm_values
from .binding_recall import likeliest

CLEAN = "as it is"
PREDICTED, WITHOUT = "B’s prediction", "B’s prediction without A"
OTHER, NOISE = "another entity’s", "noise, as far"
REWORDED, LEAK = "B in another wording", "A as it is read (leakage)"
FORMS: Mapping[str, Form] = {"raw": "raw", "mapped": "mapped"}
RANKS: Mapping[str, int | None] = {"1": 1, "4": 4, "16": 16, "full": None}
_LEAKING: tuple[Origin, ...] = ("predicted", "without_asked", "asked")


@dataclass(frozen=True)
class Swap:
    """What is written where: layers, form and rank; `place` is the pair that is asked, `whose` the
    pair whose prediction is written into it."""

    source: int
    target: int
    form: Form
    rank: int | None
    place: int
    whose: int

    @property
    def cell(self) -> tuple[int, int, Form, int | None]:
        """What the mean over all pairs depends on."""
        return self.source, self.target, self.form, self.rank


@dataclass(frozen=True, eq=False)
class PairSwap:
    """The pair that was asked under every arm: columns `what`, `log P` of A, `change` against the
    prompt as it is, `rank` of A among all names, `says` (the likeliest name); and the likeliest
    names under the first arm, as in `binding_recall.AskedWay`."""

    rows: polars.DataFrame
    names: polars.DataFrame

    def change(self, what: str) -> float | None:
        """Of one arm; None where it had nothing to write."""
        rows = self.rows.filter(polars.col("what") == what)
        return None if rows.is_empty() else rows["change"][0]


def arms_of(states: RoleStates, form: Form, rank: int | None) -> dict[str, Arm]:
    """What is written, by the words for it: the prediction, its two bounds on leakage, controls."""
    arms = {
        PREDICTED: Arm("predicted", "own", form, rank),
        WITHOUT: Arm("without_asked", "own", form, rank),
        OTHER: Arm("predicted", "other", form, rank),
        NOISE: Arm("predicted", "noise", form, rank),
        LEAK: Arm("asked", "own", form, rank),
    }
    if states["b", "S"].shape[1] > 1:
        arms[REWORDED] = Arm("same_role")
    return arms


def swap_pair(model: HookedModel, states: RoleStates, swap: Swap) -> PairSwap:
    """Swap in one pair's prompt and score all names behind it. Raises as `edited_name_scores`."""
    vectors, named = SwapConfig().vectors(states), arms_of(states, swap.form, swap.rank)
    values = arm_values(vectors, list(named.values()), swap.source, swap.target)
    if swap.whose != swap.place:
        values[0] = _of_another(vectors, swap, named[OTHER])
    rows = torch.cat([vectors.slot[swap.target][None], values])
    others = torch.arange(rows.shape[1]) != swap.place
    rows[:, others] = torch.nan  # only this pair is asked
    scores = edited_name_scores(model, states, swap.target, rows)
    ranks = name_ranks(scores)[:, swap.place]
    own = scores[:, swap.place]
    names = [pair.a for pair in states.prompts.relation.pairs]
    table = [
        {
            "what": what,
            "log P": float(row[swap.place]),
            "change": float(row[swap.place] - own[0, swap.place]),
            "rank": float(rank),
            "says": names[int(np.argmax(row))],
        }
        for what, row, rank in zip((CLEAN, *named), own, ranks, strict=True)
        if np.isfinite(row).all()
    ]
    return PairSwap(polars.DataFrame(table), likeliest(own[1], names, swap.place))


def swap_all(
    model: HookedModel, states: RoleStates, cell: tuple[int, int, Form, int | None]
) -> polars.DataFrame:
    """The same for every pair's own prediction, a row an arm: `what`, `pairs`, `gain` with `low`
    and `high`, `mrr`, `clean_mrr`, and beside another entity's vector `beyond` with its interval
    and `p` (sign flips; null where there is no such control)."""
    source, target, form, rank = cell
    named = arms_of(states, form, rank)
    controls = [Arm(origin, "other", form, rank) for origin in _LEAKING]
    arms = list(dict.fromkeys([*named.values(), *controls]))
    config = SwapConfig(source_layers=(source,), target_layers=(target,))
    found = measure_role_swaps(model, states, config, arms=arms).table()
    rows = found.with_columns(polars.Series("arm", [str(arm) for arm in arms]))
    words = polars.DataFrame({"arm": [str(arm) for arm in named.values()], "what": list(named)})
    return (
        words.join(rows, on="arm", how="left", maintain_order="left")
        .rename({"gain_low": "low", "gain_high": "high"})
        .select(
            *("what", "pairs", "gain", "low", "high", "mrr", "clean_mrr"),
            *("beyond", "beyond_low", "beyond_high", "p"),
        )
        .with_columns(polars.selectors.float().fill_nan(None))
    )


def _of_another(vectors: SwapVectors, swap: Swap, arm: Arm) -> torch.Tensor:
    """What the arm writes where the chosen pair is the other entity."""
    other = vectors.other.clone()
    other[swap.place] = swap.whose
    return arm_values(replace(vectors, other=other), [arm], swap.source, swap.target)[0]
