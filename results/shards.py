"""Shards: which units of a batch fall to worker i of n, the same answer for every worker."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction

from .errors import LedgerError

_SHARD = re.compile(r"([1-9]\d*)/([1-9]\d*)")


@dataclass(frozen=True)
class Unit:
    """One piece of work. `name` is unlike all others'; units of one `group` (a checkpoint) are
    better done by one worker; `size` says how much work it is, in any unit, None where unknown."""

    name: str
    group: str = ""
    size: int | None = None


@dataclass(frozen=True)
class Shard:
    """Part `index` of `count`; the first one is 1."""

    index: int = 1
    count: int = 1

    def __post_init__(self) -> None:
        """Raises `LedgerError` for a part that there is not."""
        if not 1 <= self.index <= self.count:
            raise LedgerError(
                f"shard {self}: there are parts 1/{self.count} to {self.count}/{self.count}."
            )

    def __str__(self) -> str:
        """`2/8`."""
        return f"{self.index}/{self.count}"

    @classmethod
    def parse(cls, text: str) -> Shard:
        """Read `2/8`. Raises `LedgerError` for anything else."""
        match = _SHARD.fullmatch(text.strip())
        if match is None:
            raise LedgerError(f"{text!r} is no shard: write the second of eight as 2/8.")
        return cls(int(match[1]), int(match[2]))

    def of(self, units: Sequence[Unit]) -> tuple[Unit, ...]:
        """The units of this part, in their order."""
        return tuple(
            unit
            for unit, part in zip(units, parts(units, self.count), strict=True)
            if part == self.index
        )


WHOLE = Shard()
"""All of a batch: whatever nobody else does."""


def parts(units: Sequence[Unit], count: int) -> tuple[int, ...]:
    """The part (1 to `count`) of each unit.

    The heaviest pieces are dealt out first, each to the lightest part. A piece is a group; one
    that weighs more than a part's fair share is cut into as many as it takes. A unit of unknown
    size weighs as much as the mean of the others. Depends on nothing but the arguments.
    """
    weights = _weights(units)
    fair = sum(weights, Fraction(0)) / count
    loads = [Fraction(0)] * count
    part_of = [0] * len(units)
    pieces = [piece for group in _groups(units).values() for piece in _cut(group, weights, fair)]
    for piece in sorted(pieces, key=lambda piece: (-_weight(piece, weights), piece[0])):
        lightest = min(range(count), key=lambda part: (loads[part], part))
        loads[lightest] += _weight(piece, weights)
        for place in piece:
            part_of[place] = lightest + 1
    return tuple(part_of)


def _weights(units: Sequence[Unit]) -> list[Fraction]:
    """Exact numbers, so that no machine rounds them in its own way."""
    known = [unit.size for unit in units if unit.size]
    usual = Fraction(sum(known), len(known)) if known else Fraction(1)
    return [Fraction(unit.size) if unit.size else usual for unit in units]


def _groups(units: Sequence[Unit]) -> dict[str, list[int]]:
    groups: dict[str, list[int]] = {}
    for place, unit in enumerate(units):
        groups.setdefault(unit.group or f"unit {unit.name}", []).append(place)
    return groups


def _cut(group: list[int], weights: Sequence[Fraction], fair: Fraction) -> list[list[int]]:
    """The group in consecutive pieces, none heavier than `fair` unless it is a single unit."""
    pieces: list[list[int]] = [[]]
    for place in group:
        if pieces[-1] and _weight(pieces[-1], weights) + weights[place] > fair:
            pieces.append([])
        pieces[-1].append(place)
    return pieces


def _weight(piece: Sequence[int], weights: Sequence[Fraction]) -> Fraction:
    return sum((weights[place] for place in piece), Fraction(0))
