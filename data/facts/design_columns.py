"""The columns of a design: two-way splits of one block of prompts, and how each kind is drawn.

A block holds the prompts relation by relation, each relation with the same number of subjects.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Literal, TypeVar

import numpy as np
from jaxtyping import Bool, Int

ColumnKind = Literal["relation", "half", "resample", "pseudo", "wording", "length"]
RESAMPLE_GROUPS = 5  # a resample leaves one of them out and so keeps 80 % of the subjects

Subjects = Mapping[str, tuple[str, ...]]
"""The subjects asked about each relation, by its name; equally many for all."""
_Item = TypeVar("_Item")


@dataclass(frozen=True)
class Column:
    """One two-way split of a block: which prompts are positive, among which members.

    `positive` and `member` are indices into the block's prompts; `member` None means all of them.
    `relation` names the relation (of a pseudo-relation: "a + b"), `draw` counts halves, resamples
    and pseudo-relations from 0.
    """

    name: str
    kind: ColumnKind
    relation: str
    draw: int
    positive: tuple[int, ...]
    member: tuple[int, ...] | None


def find_columns(chosen: Subjects, seed: int, pseudo: int, resamples: int) -> Iterator[Column]:
    """All columns of a block that finds units; `build_design` says what each kind is."""
    yield from relation_columns(chosen)
    halves = _balanced_groups(chosen, 2, "halves", seed)
    for half in range(2):
        yield from _restricted_columns(chosen, "half", half, halves == half)
    for draw in range(resamples):
        groups = _balanced_groups(chosen, RESAMPLE_GROUPS, "resample", seed, draw)
        yield from _restricted_columns(chosen, "resample", draw, groups != 0)
    yield from _pseudo_columns(chosen, seed, pseudo)
    yield from _length_columns(chosen)


def relation_columns(chosen: Subjects) -> Iterator[Column]:
    """Each relation's prompts against all others."""
    for name, places in _places(chosen).items():
        yield Column(name, "relation", name, 0, tuple(places), None)


def wording_columns(relation: str, wordings: Sequence[str], n: int) -> Iterator[Column]:
    """Each pair of wordings, the first positive; the block holds n prompts of each in turn."""
    for draw, (i, j) in enumerate(combinations(range(len(wordings)), 2)):
        first, second = range(i * n, (i + 1) * n), range(j * n, (j + 1) * n)
        name = f"{relation}, {wordings[i]} | {wordings[j]}"
        yield Column(name, "wording", relation, draw, tuple(first), (*first, *second))


def shuffled(items: Sequence[_Item], *key: object) -> list[_Item]:
    """The items in an order that depends on the key and each item only."""
    return sorted(items, key=lambda item: hashlib.sha256(repr((*key, item)).encode()).digest())


def _places(chosen: Subjects) -> dict[str, range]:
    """Where the prompts of each relation stand in a block."""
    n = len(next(iter(chosen.values())))
    return {name: range(i * n, (i + 1) * n) for i, name in enumerate(chosen)}


def _restricted_columns(
    chosen: Subjects, kind: ColumnKind, draw: int, kept: Bool[np.ndarray, " prompt"]
) -> Iterator[Column]:
    member = tuple(np.flatnonzero(kept).tolist())
    for name, places in _places(chosen).items():
        positive = tuple(place for place in places if kept[place])
        yield Column(f"{name}, {kind} {draw}", kind, name, draw, positive, member)


def _pseudo_columns(chosen: Subjects, seed: int, pseudo: int) -> Iterator[Column]:
    places = _places(chosen)
    pairs = shuffled(list(combinations(chosen, 2)), "pairs", seed)
    for draw in range(pseudo):
        a, b = pairs[draw % len(pairs)]
        half = len(places[a]) // 2
        of_a = shuffled(chosen[a], "first", seed, draw)[:half]
        # Relations over the same things: other subjects first, as far as there are any.
        of_b = sorted(shuffled(chosen[b], "second", seed, draw), key=lambda s: s in of_a)
        of_b = of_b[: len(places[b]) - half]
        positive = [places[a][chosen[a].index(subject)] for subject in of_a]
        positive += [places[b][chosen[b].index(subject)] for subject in of_b]
        others = [place for name in places if name not in (a, b) for place in places[name]]
        yield Column(
            f"pseudo {draw}",
            "pseudo",
            f"{a} + {b}",
            draw,
            tuple(sorted(positive)),
            tuple(sorted(positive + others)),
        )


def _length_columns(chosen: Subjects) -> Iterator[Column]:
    for name, places in _places(chosen).items():
        order = sorted(places, key=lambda i: (-len(chosen[name][i - places.start]), i))
        longer = tuple(sorted(order[: len(order) // 2]))
        yield Column(f"{name}, length", "length", name, 0, longer, tuple(places))


def _balanced_groups(chosen: Subjects, n: int, *key: object) -> Int[np.ndarray, " prompt"]:
    """The group of each prompt: random, about equally many of each relation, and no subject in
    two groups. One subject after the other goes where its relations have the fewest so far."""
    about: dict[str, list[int]] = {}
    for i, subjects in enumerate(chosen.values()):
        for subject in subjects:
            about.setdefault(subject, []).append(i)
    counts = np.zeros((n, len(chosen)), dtype=np.int64)
    group = {}
    for subject in shuffled(list(about), *key):
        group[subject] = int(counts[:, about[subject]].sum(axis=1).argmin())
        counts[group[subject], about[subject]] += 1
    return np.array([group[s] for subjects in chosen.values() for s in subjects])
