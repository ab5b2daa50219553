"""Do roles share heads beyond chance, and what else do the heads of a set score?"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import combinations

import numpy as np
import polars
from jaxtyping import Bool

from ..results.controls import matched_random_heads
from ..results.errors import StatisticsError
from ..results.set_overlap import set_overlap
from ..results.statistics import benjamini_hochberg
from .role_scores import RoleScores, heads_in

ALPHA = 0.05
DRAWS = 20
NOT_BETTER = "not better than random"
MORE, FEWER = "more than random", "fewer than random"
HIGHER, LOWER, BY_CHOICE = "higher than random", "lower than random", "chosen by this score"

Mask = Bool[np.ndarray, "layer head"]


def overlap_table(masks: Mapping[str, Mask]) -> polars.DataFrame:
    """One row a pair of roles that both have heads: sizes, shared heads, Jaccard, chance.

    Chance: sets with as many heads in each layer. `q` corrects for the number of pairs and asks
    for more overlap or fewer, whichever is nearer (both sides); `verdict` goes by it. Empty when
    there are no two such roles.
    """
    held = {name: mask for name, mask in masks.items() if mask.any()}
    rows = []
    for first, second in combinations(held, 2):
        found = set_overlap(held[first], held[second])
        rows.append(
            {
                "role": first,
                "other": second,
                "heads": found.a,
                "other heads": found.b,
                "shared": found.shared,
                "Jaccard": found.jaccard,
                "chance": found.chance,
                "chance, low": found.low,
                "chance, high": found.high,
                "p": min(1.0, 2 * min(found.p, found.p_fewer)),
                "more": found.jaccard > found.chance,
            }
        )
    if not rows:
        return polars.DataFrame()
    q = benjamini_hochberg(np.array([row["p"] for row in rows]))
    verdicts = [
        NOT_BETTER if value > ALPHA else MORE if row["more"] else FEWER
        for row, value in zip(rows, q.tolist(), strict=True)
    ]
    made = polars.DataFrame(rows).drop("p", "more")
    made = made.with_columns(polars.Series("q", q), polars.Series("verdict", verdicts))
    leading = ("role", "other", "verdict", "shared")
    return made.select(*leading, polars.exclude(*leading))


def profile_table(
    roles: Sequence[RoleScores], chosen: Mask, named: Sequence[str], *, seed: int = 0
) -> tuple[polars.DataFrame, str]:
    """Mean score of the chosen heads in each role, beside random sets of the same layers.

    `random, low` and `random, high` are the range of `DRAWS` sets. A role that chose the heads
    (`named`) proves nothing by its own score, and the verdict says so. The second value says where
    random heads could not be matched, or why there are none; empty otherwise.
    """
    if not chosen.any():
        return polars.DataFrame(), ""
    note, draws = "", np.empty((0, 0), dtype=int)
    try:
        matched = matched_random_heads(heads_in(chosen), *chosen.shape, draws=DRAWS, seed=seed)
        draws = np.array([[h.layer * chosen.shape[1] + h.head for h in d] for d in matched.draws])
        note = matched.note
    except StatisticsError as error:
        note = str(error)
    rows = [_profile_row(one, chosen, draws, one.name in named) for one in roles]
    return polars.DataFrame([row for row in rows if row], schema=_PROFILE), note


_PROFILE = {
    "role": polars.String,
    "mean score": polars.Float64,
    "random, low": polars.Float64,
    "random, high": polars.Float64,
    "verdict": polars.String,
}


def _profile_row(
    one: RoleScores, chosen: Mask, draws: np.ndarray, by_choice: bool
) -> dict[str, object] | None:
    """None where no chosen head has this score."""
    flat = one.grid.ravel()
    known = np.isfinite(flat)
    if not known[chosen.ravel()].any():
        return None
    mean = float(flat[chosen.ravel() & known].mean())
    bands = [float(flat[d][known[d]].mean()) for d in draws if known[d].any()]
    low, high = (min(bands), max(bands)) if bands else (None, None)
    verdict = "no random heads to compare with"
    if by_choice:
        verdict = BY_CHOICE
    elif low is not None and high is not None:
        verdict = HIGHER if mean > high else LOWER if mean < low else NOT_BETTER
    return dict(zip(_PROFILE, (one.name, mean, low, high, verdict), strict=True))
