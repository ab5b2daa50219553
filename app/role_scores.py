"""Scores of one role on all heads, and which heads have the role by a rule."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

import numpy as np
import polars
from jaxtyping import Bool, Float

from ..models.types import HeadId
from ..results.figures import PALETTE

By = Literal["q", "top"]
Family = Literal["memory", "context", "retrieval", "induction", "streaming", "imported"]

_BLUE, _AMBER, _GREEN, _PINK, _VERMILION, _SKY = PALETTE
FAMILY_COLOURS: Mapping[Family, str] = {
    "memory": _BLUE,
    "context": _VERMILION,
    "retrieval": _GREEN,
    "induction": _PINK,
    "streaming": _SKY,
    "imported": _AMBER,
}


_MIXES = (("#ffffff", 0.0), ("#ffffff", 0.5), ("#000000", 0.45), ("#ffffff", 0.75))
"""What a family's second role and later ones mix into its colour, and how much of it."""


@dataclass(frozen=True, eq=False)
class RoleScores:
    """One score of every head: `frame` is that of `app.head_grid` (`layer`, `head`, `score`, `low`,
    `high`, `q`, null where nothing is known), one row a head in the order of layers.

    `name` is what expressions call it. `listed` are the heads that the source itself gives the
    role (a saved set, a published threshold), None where it leaves that open. `run_id` names the
    run that measured it.
    """

    name: str
    family: Family
    source: str
    method: str
    frame: polars.DataFrame
    listed: Bool[np.ndarray, "layer head"] | None = None
    run_id: str | None = None

    @property
    def shape(self) -> tuple[int, int]:
        """Layers, and query heads a layer."""
        layers = self.frame["layer"].n_unique()
        return layers, self.frame.height // layers

    @property
    def tested(self) -> bool:
        """Whether heads have a q."""
        return bool(self.frame["q"].is_not_null().any())

    @cached_property
    def grid(self) -> Float[np.ndarray, "layer head"]:
        """The scores, NaN where there is none."""
        return self._grid("score")

    @cached_property
    def q(self) -> Float[np.ndarray, "layer head"]:
        """The q-values, NaN where nothing was tested."""
        return self._grid("q")

    def _grid(self, column: str) -> Float[np.ndarray, "layer head"]:
        ordered = self.frame.sort("layer", "head")[column].cast(polars.Float64)
        return ordered.fill_null(float("nan")).to_numpy().reshape(self.shape)


@dataclass(frozen=True)
class Rule:
    """When a head has a role.

    By `q`: its score is positive and its q at most `q`; a score without a test falls back on what
    its source lists, and where that is open on the `k` best. By `top`: it is among the `k` best of
    those with a positive score.
    """

    by: By = "q"
    q: float = 0.05
    k: int = 8

    def of(self, scores: RoleScores) -> str:
        """How this role's heads are chosen, in words."""
        if self.by == "q" and scores.tested:
            return f"score > 0 and q <= {self.q:g}"
        if self.by == "q" and scores.listed is not None:
            return "listed by its source"
        return f"the {self.k} best positive scores"


def members(scores: RoleScores, rule: Rule) -> Bool[np.ndarray, "layer head"]:
    """The heads that have the role."""
    grid, q = scores.grid, scores.q
    positive = np.isfinite(grid) & (np.nan_to_num(grid) > 0)
    if rule.by == "q" and scores.tested:
        return np.asarray(positive & (np.nan_to_num(q, nan=1.0) <= rule.q))
    if rule.by == "q" and scores.listed is not None:
        return np.asarray(scores.listed, dtype=bool)
    order = np.argsort(-np.where(positive, grid, -np.inf).ravel(), kind="stable")[: rule.k]
    best = np.zeros(grid.size, dtype=bool)
    best[order] = True
    return np.asarray(best.reshape(grid.shape) & positive)


def colours_of(roles: Sequence[RoleScores]) -> dict[str, str]:
    """Role to colour: that of its family, lighter or darker from the family's second role on."""
    seen: dict[Family, int] = {}
    found = {}
    for one in roles:
        place = seen.get(one.family, 0)
        seen[one.family] = place + 1
        found[one.name] = _mixed(FAMILY_COLOURS[one.family], *_MIXES[place % len(_MIXES)])
    return found


def heads_in(mask: Bool[np.ndarray, "layer head"]) -> tuple[HeadId, ...]:
    """The heads of a mask, in the order of layers."""
    return tuple(HeadId(int(layer), int(head)) for layer, head in np.argwhere(mask))


def mask_of(heads: Sequence[HeadId], shape: tuple[int, int]) -> Bool[np.ndarray, "layer head"]:
    """Heads as a mask."""
    mask = np.zeros(shape, dtype=bool)
    for head in heads:
        mask[head.layer, head.head] = True
    return mask


def frame_of(
    grid: Float[np.ndarray, "layer head"],
    *,
    low: Float[np.ndarray, "layer head"] | None = None,
    high: Float[np.ndarray, "layer head"] | None = None,
    q: Float[np.ndarray, "layer head"] | None = None,
) -> polars.DataFrame:
    """Grids as the frame of `RoleScores`; what is not finite is null."""
    layer, head = np.indices(grid.shape).reshape(2, -1)
    columns = {"score": grid, "low": low, "high": high, "q": q}
    return polars.DataFrame(
        {
            "layer": layer,
            "head": head,
            **{
                name: polars.Series(
                    np.full(grid.size, np.nan) if values is None else np.ravel(values),
                    dtype=polars.Float64,
                )
                for name, values in columns.items()
            },
        }
    ).with_columns(polars.col(*columns).fill_nan(None))


def tidy(
    roles: Sequence[RoleScores], rule: Rule, chosen: Bool[np.ndarray, "layer head"] | None = None
) -> polars.DataFrame:
    """One row a role and head with everything on show: scores, sources, who has the role, and
    whether the head is in the `chosen` set."""
    parts = [
        one.frame.sort("layer", "head").select(
            "layer",
            "head",
            polars.lit(one.name).alias("role"),
            polars.lit(one.family).alias("family"),
            polars.lit(one.source).alias("source"),
            *("score", "low", "high", "q"),
            polars.Series("has_role", members(one, rule).ravel()),
            polars.Series(
                "in_set", [False] * one.frame.height if chosen is None else chosen.ravel()
            ),
        )
        for one in roles
    ]
    return polars.concat(parts)


def _mixed(colour: str, other: str, share: float) -> str:
    pairs = ((int(colour[i : i + 2], 16), int(other[i : i + 2], 16)) for i in (1, 3, 5))
    return "#" + "".join(f"{round(a + (b - a) * share):02x}" for a, b in pairs)
