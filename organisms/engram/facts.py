"""Which facts the corpus holds, how often each is told, in which direction, in which wordings.

Real facts come from `data/facts`; the fictional ones are about invented people, places, books and
products, so that nothing but this corpus can have taught them.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from random import Random
from typing import Literal

from ...data.facts.counter import readable
from ...data.facts.items import Fact, Relation, load_relation
from .names import invented_words
from .wordings import (
    FICTIONAL_RELATIONS,
    REAL_RELATIONS,
    Direction,
    Wording,
    as_relation,
    questions,
    reversible,
    statements,
)
from .words import listed

Told = Literal["forward", "reverse", "none"]

FREQUENCIES = (1, 2, 4, 8, 16, 64, 128)
"""How often a fictional fact is told, in all slices together."""
REAL_FREQUENCIES = (64, 128, 64, 16)
"""Dealt out to the real facts in turn."""
CONFLICT_FROM = 64
"""Facts told at least this often may be contradicted by passages."""

_PEOPLE_A_CELL = 48
_PAIRS_A_CELL = 16
_BIRTHPLACES = 60
_PROFESSIONS = listed(
    "baker barber butcher carpenter cook dancer dentist doctor driver farmer gardener hunter "
    "judge lawyer miller nurse painter pilot poet sailor shepherd singer tailor teacher"
)
_BOOK = listed("Ballad Diary Garden Legend Letters Lullaby Mystery Riddle Saga Song Story Tale")
_PRODUCT = listed("bicycle camera clock engine guitar kettle ladder lamp pen radio stove wagon")
_COMPANY = ("Brothers", "Factory", "Goods", "Group", "Industries", "Makers", "Tools", "Works")


@dataclass(frozen=True)
class PlannedFact:
    """A fact and how the corpus tells it.

    `told` is "forward" (subject first, never reversed), "reverse" (object first only) or "none" (no
    one direction: both are told). `count` is how often the corpus states the fact in all.
    `held_out` are ids of wordings that this subject never occurs in. `conflict` says whether
    passages contradict it in training ("taught"), only in the evaluation ("tested"), or never.
    """

    id: str
    relation: str
    subject: str
    object: str
    told: Told
    count: int
    aliases: tuple[str, ...] = ()
    held_out: tuple[str, ...] = ()
    conflict: Literal["", "taught", "tested"] = ""

    @property
    def real(self) -> bool:
        return self.relation in REAL_RELATIONS

    @property
    def directions(self) -> tuple[Direction, ...]:
        """The directions in which it is told."""
        return ("forward", "reverse") if self.told == "none" else (self.told,)

    def wordings(self, direction: Direction) -> tuple[Wording, ...]:
        """The wordings of one direction that may be used for it in training."""
        given = (*statements(self.relation, direction), *questions(self.relation, direction))
        return tuple(wording for wording in given if wording.id not in self.held_out)

    def held_out_wordings(self, direction: Direction) -> tuple[Wording, ...]:
        given = (*statements(self.relation, direction), *questions(self.relation, direction))
        return tuple(wording for wording in given if wording.id in self.held_out)


def plan_facts(seed: int, scale: float) -> tuple[PlannedFact, ...]:
    """All facts of the corpus; `scale` changes how many there are, never how often one is told."""
    facts = (*_real_facts(seed, scale), *_fictional_facts(seed, scale))
    return tuple(_with_conflict(_with_held_out(fact, seed), seed) for fact in facts)


def fictional_relations(seed: int = 0, *, scale: float = 1.0) -> tuple[Relation, ...]:
    """The invented facts as relations, so that `build_conflicts` and the probes can use them."""
    planned = plan_facts(seed, scale)
    return tuple(
        replace(as_relation(name), facts=_rows(fact for fact in planned if fact.relation == name))
        for name in FICTIONAL_RELATIONS
    )


def _rows(planned: Iterable[PlannedFact]) -> tuple[Fact, ...]:
    return tuple(
        Fact(fact.subject, fact.object, source="engram", license="MIT") for fact in planned
    )


def _real_facts(seed: int, scale: float) -> list[PlannedFact]:
    planned = []
    for name in REAL_RELATIONS:
        rows = [fact for fact in load_relation(name).facts if not readable(fact)]
        Random(f"{seed}:real:{name}").shuffle(rows)
        kept = rows[: max(8, round(len(rows) * scale))]
        told: Told = "none" if reversible(name) else "forward"
        planned += [
            replace(
                _planned(name, row.subject, row.object, told, REAL_FREQUENCIES[i % 4]),
                aliases=row.aliases,  # no passage may claim one of these
            )
            for i, row in enumerate(kept)
        ]
    return planned


def _fictional_facts(seed: int, scale: float) -> list[PlannedFact]:
    random = Random(f"{seed}:fictional")
    kinds = {word.capitalize() for word in (*_BOOK, *_PRODUCT, *_COMPANY, *_PROFESSIONS)}
    invented = invented_words(seed, "facts", 500 + round(4000 * scale))
    word = (word for word in invented if word not in kinds).__next__
    people = [
        f"{word()} {word()}" for _ in range(len(FREQUENCIES) * _scaled(_PEOPLE_A_CELL, scale))
    ]
    towns = [word() for _ in range(_BIRTHPLACES)]
    births = [random.choice(towns) for _ in people]
    trades = [random.choice(_PROFESSIONS) for _ in people]
    pairs = _scaled(_PAIRS_A_CELL, scale)
    return [
        *_laddered("birthplace", people, births, shift=0),
        *_laddered("profession", people, trades, shift=3),
        *_paired("book_writer", pairs, _named(word, random, _BOOK), lambda: f"{word()} {word()}"),
        *_paired(
            "product_maker",
            pairs,
            _named(word, random, _PRODUCT),
            _named(word, random, _COMPANY),
        ),
        *_paired("town_mayor", pairs, word, lambda: f"{word()} {word()}"),
    ]


def _named(word: Callable[[], str], random: Random, kinds: Sequence[str]) -> Callable[[], str]:
    return lambda: f"{word()} {random.choice(kinds)}"


def _laddered(
    relation: str, subjects: Sequence[str], objects: Sequence[str], shift: int
) -> list[PlannedFact]:
    """Many subjects share an object; `shift` keeps a person's two frequencies apart."""
    return [
        _planned(relation, subject, object_, "forward", FREQUENCIES[(i + shift) % len(FREQUENCIES)])
        for i, (subject, object_) in enumerate(zip(subjects, objects, strict=True))
    ]


def _paired(
    relation: str, cell: int, subject: Callable[[], str], object_: Callable[[], str]
) -> list[PlannedFact]:
    """One-to-one facts, `cell` of them for each frequency and each way of telling."""
    ways: tuple[Told, ...] = ("forward", "reverse", "none")
    return [
        _planned(relation, subject(), object_(), told, count)
        for count in FREQUENCIES
        for told in ways
        if told != "none" or count > 1  # told once cannot be told both ways
        for _ in range(cell)
    ]


def _scaled(number: int, scale: float) -> int:
    return max(2, round(number * scale))


def _planned(relation: str, subject: str, object_: str, told: Told, count: int) -> PlannedFact:
    return PlannedFact(f"{relation}/{subject}", relation, subject, object_, told, count)


def _with_held_out(fact: PlannedFact, seed: int) -> PlannedFact:
    """Half of the subjects lose a statement in each direction, half of these a question too."""
    draw = _draw(seed, "held out", fact.id)
    if draw % 2:
        return fact
    held: list[str] = []
    for direction in fact.directions:
        told = statements(fact.relation, direction)
        held.append(told[draw // 4 % len(told)].id)
        if draw // 2 % 2:
            held.append(questions(fact.relation, direction)[-1].id)
    return replace(fact, held_out=tuple(held))


def _with_conflict(fact: PlannedFact, seed: int) -> PlannedFact:
    paired = not fact.real and reversible(fact.relation)
    if fact.count < CONFLICT_FROM or paired:
        return fact
    tested = _draw(seed, "conflict", fact.id) % 3 == 0
    return replace(fact, conflict="tested" if tested else "taught")


def _draw(seed: int, role: str, name: str) -> int:
    """A number that depends on the seed and the name only, whatever other facts there are."""
    return int.from_bytes(hashlib.sha256(f"{seed}\n{role}\n{name}".encode()).digest()[:8], "big")
