"""Role curves of some entities only: by overlap of names, by frequency, by the ways they were told.

Two kinds of stratum. *Candidates*: every entity is still looked for, but among those that share
tokens with its name, or that are as frequent. *Entities*: those told both ways against those told
one way, all among the same candidates. That contrast carries the claim: names, prompts and
frequencies alike, two-way pairs must be more consistent if inconsistent roles are what a one-way
fact lacks (reversal_binding 3.5, controls c, d and g).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float, Shaped

from ..results.errors import StatisticsError
from ..results.statistics import Interval, bootstrap_mean, bootstrap_weights
from .role_curves import Curve, Effort, Line, Measured, States, curves
from .role_maps import MappedRetrieval
from .role_similarity import cosines, retrieval

LEAST = 8
"""Entities that either side of a contrast has to have."""

_FLAT = 1e-12

ByEntity = Float[np.ndarray, "entity layer"]


@dataclass(frozen=True, eq=False)
class Contrast:
    """A quantity of two groups of entities by layer, `[layer]` all.

    `difference` is `first - second` with its bootstrap interval (each group resampled); `p` is
    two-sided, from exchanging labels between the groups, against the largest difference of any
    layer, so that it holds for the layer one picks.
    """

    quantity: str
    roles: str
    first: str
    second: str
    n_first: int
    n_second: int
    first_mean: Line
    second_mean: Line
    difference: Line
    low: Line
    high: Line
    p: Line

    @property
    def best(self) -> int:
        """The layer with the smallest p; among equal ones that with the largest difference."""
        return int(np.lexsort((-np.abs(self.difference), self.p))[0])


def by_entity(a: States, b: States, mapped: MappedRetrieval) -> dict[str, ByEntity]:
    """Each entity's own share of three quantities: `mrr` (`a` found from `b` among all), `mrr`
    through the held-out map, and its cosine to itself less that to others (`margin`)."""
    cos = cosines(a, b)
    n = cos.shape[1]
    own = np.einsum("lii->li", cos)
    others = (cos.sum(axis=1) + cos.sum(axis=2) - 2 * own) / (2 * (n - 1))
    return {
        "mrr": retrieval(b, a, draws=1).reciprocal.T,
        "mapped_mrr": mapped.mapped_by_entity,
        "margin": (own - others).T,
    }


def contrast(
    quantity: str,
    roles: str,
    values: ByEntity,
    groups: tuple[str, str],
    members: tuple[Bool[np.ndarray, " entity"], Bool[np.ndarray, " entity"]],
    effort: Effort,
    strata: Sequence[str] = (),
) -> Contrast:
    """Compare two groups of entities.

    `strata` names each entity's frequency group: only entities of groups that both sides have are
    compared, and labels are exchanged inside a group only, so that no difference of frequencies
    passes for one of binding. Raises `StatisticsError` where a side has fewer than 8.
    """
    strata = strata or [""] * len(values)
    members = _both_have(members, np.asarray(strata))
    sizes = [int(member.sum()) for member in members]
    if min(sizes) < LEAST:
        raise StatisticsError(
            f"{sizes[0]} entities {groups[0]!r} and {sizes[1]} {groups[1]!r} are too few to "
            f"contrast: {LEAST} of each at least."
        )
    one, two = values[members[0]], values[members[1]]
    difference = one.mean(axis=0) - two.mean(axis=0)
    drawn = _drawn(one, effort) - _drawn(two, effort)
    low, high = np.quantile(drawn, [0.025, 0.975], axis=0)
    return Contrast(
        quantity,
        roles,
        groups[0],
        groups[1],
        sizes[0],
        sizes[1],
        one.mean(axis=0),
        two.mean(axis=0),
        difference,
        low,
        high,
        _label_p(values, members, np.asarray(strata), effort),
    )


def _both_have(
    members: tuple[Bool[np.ndarray, " entity"], Bool[np.ndarray, " entity"]],
    strata: Shaped[np.ndarray, " entity"],
) -> tuple[Bool[np.ndarray, " entity"], Bool[np.ndarray, " entity"]]:
    shared = np.isin(strata, np.intersect1d(*(strata[member] for member in members)))
    return members[0] & shared, members[1] & shared


def _drawn(values: ByEntity, effort: Effort) -> Float[np.ndarray, "draw layer"]:
    weights = bootstrap_weights(range(len(values)), draws=effort.draws, seed=effort.seed)
    return weights @ values / len(values)


def _label_p(
    values: ByEntity,
    members: tuple[Bool[np.ndarray, " entity"], Bool[np.ndarray, " entity"]],
    strata: Shaped[np.ndarray, " entity"],
    effort: Effort,
) -> Line:
    """Family-wise over layers, each layer's difference in deviations of its exchanges."""
    chosen = members[0] | members[1]
    group = np.unique(strata[chosen], return_inverse=True)[1]
    label = members[0][chosen][np.argsort(group, kind="stable")]
    rng = np.random.default_rng(effort.seed)
    places = (group + rng.random((effort.draws, len(group)))).argsort(axis=1)
    labels = np.empty((effort.draws + 1, len(group)), dtype=bool)
    labels[0] = members[0][chosen]
    np.put_along_axis(labels[1:], places, label[None], axis=1)
    weights = np.where(labels, 1 / label.sum(), -1 / (~label).sum())
    gaps = weights @ (values[chosen] - values[chosen].mean(axis=0))
    spread = gaps[1:].std(axis=0)
    scaled = np.divide(np.abs(gaps), spread, out=np.zeros_like(gaps), where=spread > _FLAT)
    largest = scaled[1:].max(axis=1)
    beyond = (largest[:, None] >= scaled[0] - 1e-9).sum(axis=0)
    return np.asarray((beyond + 1) / (effort.draws + 1))


def entity_curves(
    roles: str,
    values: Mapping[str, ByEntity],
    groups: Mapping[str, Bool[np.ndarray, " entity"]],
    effort: Effort,
) -> tuple[Curve, ...]:
    """The quantities of each group of two entities at least, with intervals."""
    made: list[Curve] = []
    for name, members in groups.items():
        if int(members.sum()) < 2:
            continue
        units = range(int(members.sum()))
        own = {
            quantity: bootstrap_mean(given[members], units, draws=effort.draws, seed=effort.seed)
            for quantity, given in values.items()
        }
        lines = {quantity: _without_floor(line) for quantity, line in own.items()}
        made += curves(roles, lines, stratum=f"{name} ({len(units)})")
    return tuple(made)


def candidate_curves(
    roles: str,
    a: States,
    b: States,
    masks: Mapping[str, Bool[np.ndarray, "entity entity"]],
    effort: Effort,
) -> tuple[Curve, ...]:
    """`mrr` (`a` found from `b`) among the candidates of each mask; the floor is its chance.

    A mask that leaves fewer than two entities with a choice gives no curve.
    """
    made: list[Curve] = []
    for name, mask in masks.items():
        try:
            got = retrieval(b, a, candidates=mask, draws=effort.draws, seed=effort.seed)
        except StatisticsError:
            continue
        line = _without_floor(got.mrr, got.chance)
        made += curves(roles, {"mrr": line}, stratum=f"among {name} ({len(got.asked)})")
    return tuple(made)


def _without_floor(line: Interval, chance: float = np.nan) -> Measured:
    floor, unknown = np.full_like(line.mean, chance), np.full_like(line.mean, np.nan)
    return Measured(line.mean, line.low, line.high, floor, unknown, unknown)
