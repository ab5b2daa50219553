"""The fractional design: which needles share a haystack, at which length and in which depths."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from math import gcd

from .answers import leaks
from .needle_templates import Needle, digest


@dataclass(frozen=True)
class Group:
    """The needles of one haystack, each with its stratum of depth."""

    length: int
    members: tuple[tuple[Needle, int], ...]


def lay_out(
    needles: Sequence[Needle],
    lengths: Sequence[int],
    depths: int,
    needles_per_haystack: int,
    rounds: int,
    seed: int,
) -> Iterator[Group]:
    """The haystacks of all rounds, see `needles.build_needle_design`.

    The needles, sorted by kind and topic, are dealt to one class for each length, and within a
    class to phases of depth. A class in which no phase comes twice running fills haystacks from
    neighbours; round after round its length and its depths go one on, and needles of one phase
    change places.
    """
    dealt = sorted(needles, key=lambda n: (n.kind, n.topic, digest(seed, "deal", n.id)))
    for turn in range(rounds):
        for i, length in enumerate(lengths):
            members = dealt[(i - turn) % len(lengths) :: len(lengths)]
            row = _mixed(members, depths, seed, turn)
            for start in range(0, len(row), needles_per_haystack):
                yield Group(
                    length,
                    tuple(
                        (row[j], _stratum(j + turn, depths))
                        for j in range(start, start + needles_per_haystack)
                    ),
                )


def check_numbers(
    needles: int,
    lengths: Sequence[int],
    depths: int,
    needles_per_haystack: int,
    rounds: int,
) -> None:
    """Raises ValueError for numbers that make no balanced design."""
    if not lengths or len(set(lengths)) < len(lengths) or min(lengths) < 1:
        raise ValueError(f"lengths must be different positive numbers, got {tuple(lengths)}.")
    if min(depths, needles_per_haystack, rounds) < 1:
        raise ValueError(
            "depths, needles_per_haystack and rounds must be at least 1, got "
            f"{depths}, {needles_per_haystack} and {rounds}."
        )
    if needles_per_haystack > depths:
        raise ValueError(
            f"{needles_per_haystack} needles do not stand in {depths} different depths: "
            "take more depths or fewer needles a haystack."
        )
    step = len(lengths) * needles_per_haystack
    if needles == 0 or needles % step:
        fitting = [n for n in (needles // step * step, (needles // step + 1) * step) if n]
        raise ValueError(
            f"{needles} needles do not fill haystacks of {needles_per_haystack} at {len(lengths)} "
            f"lengths evenly: take {' or '.join(map(str, fitting))}."
        )


def check_apart(needles: Sequence[Needle]) -> None:
    """Raises ValueError where ids repeat or one needle's text tells a term of another one."""
    ids = [needle.id for needle in needles]
    if twice := sorted({needle_id for needle_id in ids if ids.count(needle_id) > 1}):
        raise ValueError(f"needles given twice: {', '.join(twice)}. Give each once.")
    for needle in needles:
        text = " ".join((needle.statement, *needle.questions))
        for other in needles:
            if other.id != needle.id and leaks(text, other.terms):
                raise ValueError(
                    f"needle {needle.id!r} tells a term of {other.id!r}: leave one of them out."
                )


def _mixed(members: Sequence[Needle], depths: int, seed: int, turn: int) -> list[Needle]:
    """The members with those of each phase of depth (place modulo depths) in a new order."""
    row = list(members)
    for phase in range(depths):
        same = row[phase::depths]
        row[phase::depths] = sorted(same, key=lambda n: digest(seed, "mix", turn, n.id))
    return row


def _stratum(phase: int, depths: int) -> int:
    """Phases in a row lie apart in depth, and so many in a row as there are depths hit each."""
    step = next((k for k in range(2, depths) if gcd(k, depths) == 1), 1)
    return phase * step % depths
