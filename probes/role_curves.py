"""Everything that is measured between two roles of the same entities, as curves over the layers.

Each quantity comes with what it has to be read against: its interval over entities, a ceiling (the
same entities in the same role, other wordings), a floor (entities permuted) and a null (the same
prompts in a model with random weights, where the token alone makes roles alike).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import polars
from jaxtyping import Float

from ..results.role_figures import CURVE_COLUMNS
from ..results.statistics import Interval
from .representation_alignment import linear_cka
from .role_decoding import role_decoding
from .role_maps import MappedRetrieval, mapped_retrieval
from .role_similarity import permuted_mrr, retrieval, role_similarity

States = Float[np.ndarray, "layer entity d"]
Line = Float[np.ndarray, " layer"]

MAPPED = ("raw_mrr_held_out", "mapped_mrr", "procrustes_mrr", "involution_error")
"""What is measured on held-out entities."""


@dataclass(frozen=True, eq=False)
class Measured:
    """One quantity `[layer]` with its interval over entities and its floor; NaN: not measured."""

    value: Line
    low: Line
    high: Line
    floor: Line
    floor_low: Line
    floor_high: Line


@dataclass(frozen=True, eq=False)
class Curve:
    """One quantity between two roles over the layers, `[layer]` all; NaN where not measured.

    `roles` names the two ("S-P"), `stratum` the pairs or candidates it is of. `value` has its
    `low` and `high` over entities; `ceiling` is the same role in other wordings, `floor` permuted
    entities (with the spread of permutations), `null` the random-initialised model.
    """

    quantity: str
    roles: str
    stratum: str
    value: Line
    low: Line
    high: Line
    ceiling: Line
    ceiling_low: Line
    ceiling_high: Line
    floor: Line
    floor_low: Line
    floor_high: Line
    null: Line

    def table(self) -> polars.DataFrame:
        """A row a layer, in the columns of `results.role_figures`."""
        words = {name: getattr(self, name) for name in CURVE_COLUMNS[:3]}
        lines = {name: getattr(self, name) for name in CURVE_COLUMNS[4:]}
        frame = polars.DataFrame({"layer": range(len(self.value)), **lines}, strict=False)
        frame = frame.with_columns(**{name: polars.lit(word) for name, word in words.items()})
        return frame.with_columns(polars.selectors.float().fill_nan(None)).select(CURVE_COLUMNS)


@dataclass(frozen=True)
class Effort:
    """How many resamples, permutations and shuffled pairings a measurement takes, and its seed."""

    draws: int = 1000
    permutations: int = 200
    seed: int = 0

    @property
    def brief(self) -> Effort:
        """A tenth of the permutations: enough to draw a floor, not to test against it."""
        return replace(self, permutations=max(1, self.permutations // 10))

    @property
    def without_null(self) -> Effort:
        """For intervals only."""
        return replace(self, permutations=1)

    @property
    def bare(self) -> Effort:
        """For values only."""
        return replace(self, draws=1, permutations=1)


@dataclass(frozen=True, eq=False)
class Compared:
    """All quantities between two roles by name, and the held-out retrieval that a gap is read
    from."""

    quantities: Mapping[str, Measured]
    mapped: MappedRetrieval


def compare(a: States, b: States, effort: Effort) -> Compared:
    """Every quantity between the states `a` (subject) and `b` of the same entities.

    `mrr` looks for `a` from `b`, `mrr_back` the other way round; `mrr_csls` and `hits` go the way
    of `mrr`. Raises `StatisticsError` for states that do not fit or too few entities.
    """
    mapped = mapped_retrieval(
        a, b, shuffles=effort.permutations, draws=effort.draws, seed=effort.seed
    )
    turned = mapped_retrieval(
        a,
        b,
        method="procrustes",
        shuffles=effort.brief.permutations,
        draws=effort.draws,
        seed=effort.seed,
    )
    return Compared(
        {
            **alike(a, b, effort),
            **found(a, b, effort),
            "raw_mrr_held_out": _against(mapped.raw, mapped.raw_null),
            "mapped_mrr": _against(mapped.mapped, mapped.mapped_null),
            "procrustes_mrr": _against(turned.mapped, turned.mapped_null),
            "involution_error": _against(_bare(mapped.involution), mapped.involution_null),
            **_shape(a, b, effort),
        },
        mapped,
    )


def alike(a: States, b: States, effort: Effort) -> dict[str, Measured]:
    """Centred cosines: of the same entity, of different ones, and their gap in deviations."""
    own = role_similarity(a, b, draws=effort.draws, seed=effort.seed)
    shuffled = np.random.default_rng(effort.seed).permutation(b.shape[1])
    other = role_similarity(a, b[:, shuffled], draws=effort.draws, seed=effort.seed)
    return {
        "cos_same": _beside(own.cos_same, other.cos_same),
        "cos_diff": _beside(own.cos_diff, other.cos_diff),
        "score": _beside(own.score, other.score),
    }


def found(a: States, b: States, effort: Effort) -> dict[str, Measured]:
    """Retrieval of one role from the other among all entities."""
    draws, shuffles, seed = effort.draws, effort.permutations, effort.seed
    forth = retrieval(b, a, draws=draws, seed=seed)
    back = retrieval(a, b, draws=draws, seed=seed)
    corrected = retrieval(b, a, csls=True, draws=draws, seed=seed)
    hubs = permuted_mrr(b, a, csls=True, draws=shuffles, seed=seed)
    return {
        "mrr": _against(forth.mrr, permuted_mrr(b, a, draws=shuffles, seed=seed)),
        "mrr_back": _against(back.mrr, permuted_mrr(a, b, draws=shuffles, seed=seed)),
        "mrr_csls": _against(corrected.mrr, hubs),
        "hits": _against(forth.hits, np.full((1, len(a)), forth.chance_hits)),
    }


def _shape(a: States, b: States, effort: Effort) -> dict[str, Measured]:
    """What concerns the two clouds of states: their alignment, and how a probe tells them apart."""
    cka = linear_cka(a, b, permutations=effort.permutations, seed=effort.seed)
    told = role_decoding(a, b, draws=effort.draws, seed=effort.seed)
    interval = Interval(cka.cka, cka.low, cka.high, 0.95, a.shape[1])
    half = np.full((1, len(a)), 0.5)
    return {
        "cka": _against(interval, cka.null),
        "role_accuracy": _against(told.accuracy, half),
        "role_rank": _against(_bare(told.rank), np.zeros((1, len(a)))),
        "cos_same_nulled": _against(_bare(told.cos_same_nulled), told.cos_diff_nulled[None]),
    }


def curves(
    roles: str,
    own: Mapping[str, Measured],
    ceiling: Mapping[str, Measured] | None = None,
    null: Mapping[str, Line] | None = None,
    stratum: str = "all",
) -> tuple[Curve, ...]:
    """The quantities of `own` beside those of the ceiling and the null, where these hold them."""
    made = []
    for name, line in own.items():
        gap = np.full_like(line.value, np.nan)
        top = (ceiling or {}).get(name)
        made.append(
            Curve(
                name,
                roles,
                stratum,
                line.value,
                line.low,
                line.high,
                gap if top is None else top.value,
                gap if top is None else top.low,
                gap if top is None else top.high,
                line.floor,
                line.floor_low,
                line.floor_high,
                (null or {}).get(name, gap),
            )
        )
    return tuple(made)


def curve_table(given: Sequence[Curve]) -> polars.DataFrame:
    """All curves below each other."""
    return polars.concat([curve.table() for curve in given])


def _against(line: Interval, null: Float[np.ndarray, "draw layer"]) -> Measured:
    """A quantity beside its values under permutation."""
    low, high = np.quantile(null, [0.025, 0.975], axis=0)
    return Measured(line.mean, line.low, line.high, null.mean(axis=0), low, high)


def _beside(line: Interval, other: Interval) -> Measured:
    """A quantity beside the same of permuted entities."""
    return Measured(line.mean, line.low, line.high, other.mean, other.low, other.high)


def _bare(values: Line) -> Interval:
    """A quantity without an interval."""
    nothing = np.full_like(values, np.nan)
    return Interval(values, nothing, nothing, 0.95, 1)
