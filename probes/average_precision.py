"""How well does each unit tell a relation's prompts from the others? AP of every unit, both signs.

Average precision is scikit-learn's: thresholds lie between distinct scores only, so equal scores
stand or fall together; nothing is interpolated. In rank form (relation_neurons.md 3.1)

    AP = 1/P * sum over positives i of TP(>= s_i) / n(>= s_i)

where both counts take in every member that scores at least as high. Sorting a unit's scores once
gives those counts for every column and for both signs; a column then costs no more than its
positives do.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from ..models.errors import MnemoscopeError

# Scores that a chunk holds at most on a CPU: it stays in the cache, and torch keeps such small
# operations on one thread, where waking others would cost more than it saves.
_CACHED = 2**15


@dataclass(frozen=True, eq=False)
class AveragePrecision:
    """AP of every unit in every column, both float64 `[column, unit]` on the CPU."""

    above: Float[Tensor, "column unit"]
    """AP of the score itself: 1 where every positive scores higher than all others."""
    below: Float[Tensor, "column unit"]
    """AP of minus the score: 1 where every positive scores lower than all others."""


@torch.no_grad()
def average_precision(
    scores: Float[Tensor, "unit n"],
    positive: Bool[Tensor, "column n"],
    member: Bool[Tensor, "column n"] | None = None,
    *,
    memory_bytes: int = 2**28,
) -> AveragePrecision:
    """AP of `scores` and of `-scores` for every unit and column.

    A column asks which of its members (all prompts without `member`) are positive; positives that
    are no members do not count. Ties follow scikit-learn's `average_precision_score`, from which
    the result differs by rounding only (below 1e-12 for up to 4,000 positives). +0 equals -0.

    Runs on the scores' device, in chunks of units whose working memory stays below `memory_bytes`
    (beside the scores and the result); every bit of the result is the same for every chunk size.

    Raises `MnemoscopeError` for NaN, for shapes that do not fit, for a column without positives,
    and for a `memory_bytes` that does not hold one unit.
    """
    design = _design(scores, positive, member)
    above = torch.empty(len(positive), len(scores), dtype=torch.float64)
    below = torch.empty_like(above)
    for units in _chunks(scores, design, memory_bytes):
        for group, counts in _counts(_chunk(scores, units), design):
            above[group.columns, units], below[group.columns, units] = _both_signs(counts)
    return AveragePrecision(above, below)


@torch.no_grad()
def auroc(
    scores: Float[Tensor, "unit n"],
    positive: Bool[Tensor, "column n"],
    member: Bool[Tensor, "column n"] | None = None,
    *,
    memory_bytes: int = 2**28,
) -> Float[Tensor, "column unit"]:
    """The chance that a positive scores above a negative, ties counting half; float64, on the CPU.

    That of `-scores` is one minus it. Columns, memory and errors as in `average_precision`; a
    column without negatives raises too.
    """
    design = _design(scores, positive, member)
    if any(group.positives.shape[1] == design.sizes[group.among] for group in design.groups):
        raise MnemoscopeError(
            "AUROC needs a negative in every column: add prompts to compare with."
        )
    areas = torch.empty(len(positive), len(scores), dtype=torch.float64)
    for units in _chunks(scores, design, memory_bytes):
        for group, counts in _counts(_chunk(scores, units), design):
            areas[group.columns, units] = _area(counts)
    return areas


@dataclass(frozen=True, eq=False)
class _Group:
    """Columns with one member set and equally many positives, which are worked on together."""

    columns: Int[Tensor, " column"]
    among: int
    """Which of the design's distinct member sets."""
    positives: Int[Tensor, "column p"]


@dataclass(frozen=True, eq=False)
class _Design:
    """All columns; every member set is kept once (None: everyone), with its size."""

    groups: tuple[_Group, ...]
    members: tuple[Bool[Tensor, " n"] | None, ...]
    sizes: tuple[int, ...]


@dataclass(frozen=True, eq=False)
class _Order:
    """A chunk's prompts sorted by score, and how many prompts lie below each, or at most there."""

    order: Int[Tensor, "unit n"]
    lower: Int[Tensor, "unit n"]
    upto: Int[Tensor, "unit n"]
    tied: bool


@dataclass(frozen=True, eq=False)
class _Counts:
    """Of each positive of a column: the members scoring lower, and lower or the same."""

    size: int
    lower: Int[Tensor, "unit column p"]
    upto: Int[Tensor, "unit column p"]
    tied: bool


def _both_signs(
    counts: _Counts,
) -> tuple[Float[Tensor, "column unit"], Float[Tensor, "column unit"]]:
    """AP of the scores and of their negatives: one sort of the positives' counts serves both."""
    upto = _sorted(counts.upto)
    lower = _sorted(counts.lower) if counts.tied else upto - 1
    p = upto.shape[-1]
    if counts.tied:
        before = torch.searchsorted(lower, lower)
        through = torch.searchsorted(upto, upto, right=True)
    else:
        before = torch.arange(p, device=upto.device)
        through = before + 1
    above = _mean_of_fractions(p - before, counts.size - lower)
    return above.T.cpu(), _mean_of_fractions(through, upto).T.cpu()


def _mean_of_fractions(
    hits: Int[Tensor, "*cells p"], seen: Int[Tensor, "unit column p"]
) -> Float[Tensor, "unit column"]:
    """Mean over positives of `hits / seen` (at most 1).

    The fractions are rounded to a grid on which float64 adds without error, for sums that did
    depend on their order would depend on the chunk.
    """
    p = seen.shape[-1]
    grid = 2.0 ** (52 - p.bit_length())
    return (hits.double() * grid / seen).round_().sum(dim=-1) / (p * grid)


def _area(counts: _Counts) -> Float[Tensor, "column unit"]:
    """Mann and Whitney's U over its largest value, from integers."""
    p = counts.upto.shape[-1]
    twice = counts.lower.sum(dim=-1) + counts.upto.sum(dim=-1) - p**2
    return (twice.double() / (2 * p * (counts.size - p))).T.cpu()


def _counts(chunk: Float[Tensor, "unit n"], design: _Design) -> Iterator[tuple[_Group, _Counts]]:
    """The counts of every group of columns, from one sort of the chunk."""
    sort = _order(chunk)
    among, within = -1, None
    for group in design.groups:
        if group.among != among:
            among = group.among
            within = _members_before(sort.order, design.members[among])
        at = group.positives.flatten()
        upto = _before(sort.upto, at, within)
        lower = _before(sort.lower, at, within) if sort.tied else upto - 1
        shape = (len(chunk), *group.positives.shape)
        yield group, _Counts(design.sizes[among], lower.view(shape), upto.view(shape), sort.tied)


def _before(
    places: Int[Tensor, "unit n"],
    at: Int[Tensor, " k"],
    within: Int[Tensor, "unit n+1"] | None,
) -> Int[Tensor, "unit k"]:
    """How many members come before the places that the prompts `at` have."""
    chosen = places.index_select(1, at)
    return chosen if within is None else within.gather(1, chosen.long())


def _order(chunk: Float[Tensor, "unit n"]) -> _Order:
    """Sort every unit's scores upwards; equal ones are found by `!=`, which knows no underflow."""
    n = chunk.shape[1]
    order = _argsort(chunk)
    ordered = chunk.gather(1, order)
    new = ordered[:, 1:] != ordered[:, :-1]
    place = torch.arange(n, dtype=torch.int32, device=chunk.device)
    lower = torch.empty(order.shape, dtype=torch.int32, device=chunk.device)
    if bool(new.all()):
        lower.scatter_(1, order, place.expand_as(order))
        return _Order(order, lower, lower + 1, tied=False)
    upto = torch.empty_like(lower)
    lower.scatter_(1, order, _group_starts(new, place))
    upto.scatter_(1, order, _group_ends(new, place))
    return _Order(order, lower, upto, tied=True)


def _group_starts(new: Bool[Tensor, "unit n-1"], place: Int[Tensor, " n"]) -> Int[Tensor, "unit n"]:
    """The place where the tie group of each sorted place starts."""
    starts = place.expand(len(new), -1).clone()
    starts[:, 1:].masked_fill_(~new, 0)
    return starts.cummax(dim=1).values


def _group_ends(new: Bool[Tensor, "unit n-1"], place: Int[Tensor, " n"]) -> Int[Tensor, "unit n"]:
    """One past the place where the tie group of each sorted place ends."""
    ends = (place + 1).expand(len(new), -1).clone()
    ends[:, :-1].masked_fill_(~new, len(place))
    return ends.flip(1).cummin(dim=1).values.flip(1)


def _members_before(
    order: Int[Tensor, "unit n"], member: Bool[Tensor, " n"] | None
) -> Int[Tensor, "unit n+1"] | None:
    """How many members the first 0, 1, ..., n prompts of the order hold; None if all are."""
    if member is None:
        return None
    before = torch.zeros(len(order), order.shape[1] + 1, dtype=torch.int32, device=order.device)
    torch.cumsum(member[order], dim=1, dtype=torch.int32, out=before[:, 1:])
    return before


def _argsort(x: Float[Tensor, "unit n"]) -> Int[Tensor, "unit n"]:
    """Indices that sort every row; NumPy's sorts are several times faster than torch's on a CPU."""
    if x.device.type == "cpu":
        return torch.from_numpy(np.argsort(x.numpy(), axis=-1))
    return x.argsort(dim=-1)


def _sorted(x: Int[Tensor, "unit column p"]) -> Int[Tensor, "unit column p"]:
    """Sorted upwards along the last axis."""
    if x.device.type == "cpu":
        return torch.from_numpy(np.sort(x.numpy(), axis=-1))
    return x.sort(dim=-1).values


def _chunk(scores: Float[Tensor, "unit n"], units: slice) -> Float[Tensor, "unit n"]:
    """The units' scores in a type that sorts everywhere; raises on NaN."""
    chunk = scores[units].detach()
    if chunk.dtype not in (torch.float32, torch.float64):
        chunk = chunk.float()
    bad = chunk.isnan().any(dim=1)
    if bool(bad.any()):
        first = units.start + int(bad.int().argmax())
        raise MnemoscopeError(
            f"the scores of unit {first} hold NaN: find the prompt whose activations overflow, or "
            "run the model in float32."
        )
    return chunk


def _chunks(scores: Tensor, design: _Design, memory_bytes: int) -> Iterator[slice]:
    """Slices of units that fit the memory and, on a CPU, its cache."""
    n = max(1, scores.shape[1])
    most = max((group.positives.numel() for group in design.groups), default=0)
    # By count of the tensors that live at once, ties and member sets included.
    unit_bytes = 64 * n + 96 * most
    if memory_bytes < unit_bytes:
        raise MnemoscopeError(
            f"memory_bytes={memory_bytes} does not hold one unit's {n} scores: allow at least "
            f"{unit_bytes}."
        )
    step = memory_bytes // unit_bytes
    if scores.device.type == "cpu":
        step = min(step, max(1, _CACHED // n))
    for start in range(0, len(scores), step):
        yield slice(start, min(start + step, len(scores)))


def _design(scores: Tensor, positive: Tensor, member: Tensor | None) -> _Design:
    """Check the shapes, find every column's positives, and keep equal member sets once."""
    _check(scores, positive, member)
    sets, among = _distinct(positive, member)
    inside = positive.cpu() if member is None else (positive & member).cpu()
    empty = (~inside.any(dim=1)).nonzero()
    if len(empty):
        raise MnemoscopeError(
            f"column {int(empty[0])} has no positive among its members: leave it out."
        )
    return _Design(
        tuple(_groups(inside, among, scores.device)),
        tuple(None if bool(row.all()) else row.to(scores.device) for row in sets),
        tuple(int(row.sum()) for row in sets),
    )


def _groups(
    inside: Bool[Tensor, "column n"], among: list[int], device: torch.device
) -> Iterator[_Group]:
    """Columns by member set and number of positives, together no more positives than prompts."""
    alike: dict[tuple[int, int], list[int]] = {}
    for column, key in enumerate(zip(among, inside.sum(dim=1).tolist(), strict=True)):
        alike.setdefault(key, []).append(column)
    for (which, p), columns in sorted(alike.items()):
        step = max(1, inside.shape[1] // p)
        for start in range(0, len(columns), step):
            chosen = torch.tensor(columns[start : start + step])
            positives = inside[chosen].nonzero()[:, 1].view(len(chosen), p)
            yield _Group(chosen, which, positives.to(device))


def _distinct(positive: Tensor, member: Tensor | None) -> tuple[Bool[Tensor, "set n"], list[int]]:
    """The distinct member sets and, for every column, which one is its own."""
    if member is None or not len(member):
        everyone = torch.ones(1, positive.shape[1], dtype=torch.bool)
        return everyone, [0] * len(positive)
    sets, among = torch.unique(member.cpu(), dim=0, return_inverse=True)
    return sets, among.tolist()


def _check(scores: Tensor, positive: Tensor, member: Tensor | None) -> None:
    if scores.ndim != 2 or not scores.is_floating_point():
        raise MnemoscopeError(
            f"scores must be floating point [unit, n], got {scores.dtype} {list(scores.shape)}."
        )
    for name, labels in (("positive", positive), ("member", member)):
        if labels is None:
            continue
        if labels.dtype != torch.bool or labels.shape != (len(positive), scores.shape[1]):
            raise MnemoscopeError(
                f"{name} must be bool [{len(positive)}, {scores.shape[1]}] (column, prompt) for "
                f"scores {list(scores.shape)}, got {labels.dtype} {list(labels.shape)}."
            )
