"""The forward-chaining task told in words, read back from words, and what an answer to it says.

Wang and Sun 2025 (first version), the comparison with language models: every entity is a person,
the facts stand in random order, the question is last.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product

import numpy as np
from jaxtyping import Int

from ..models.errors import MnemoscopeError
from ..organisms.chaining_oracle import solve
from ..organisms.engram.words import listed
from ..organisms.forward_chaining import LEVELS, ChainingWorld, Problem

UNDETERMINED = "undetermined"
ANSWER_MARK = "Final Answer:"
_OPENING = "Every person has a number. Numbers that are not told follow from the sums.\n\n"
_NUMBER = "The number of {a} is {n}."
_SUM = "{a}'s number plus {b}'s number is {c}'s number."
_ASKED = "\n\nQuestion: What is the number of {a}?\n"
_DIRECT = ANSWER_MARK + " The number of {a} is"
_REASONED = (
    f'Work it out step by step. End with "{ANSWER_MARK}" and the number, or with "{ANSWER_MARK} '
    f'{UNDETERMINED}" if it does not follow from what is told.\nSolution:'
)
_NAME = r"([A-Z][a-z]+(?: [A-Z][a-z]+)?)"
_READ_NUMBER = re.compile(rf"The number of {_NAME} is (\d+)\.")
_READ_SUM = re.compile(rf"{_NAME}'s number plus {_NAME}'s number is {_NAME}'s number\.")
_FIGURES = re.compile(r"-?\d+(?:,\d{3})*")
_OPEN_END = re.compile(r"undetermined|not determined|cannot be determined|can't be determined")
_FIRST = listed(
    "Adam Alice Amy Andrew Anna Anton Arthur Ben Bella Bob Brian Carl Carol Clara Colin Dan Dora "
    "David Diana Dylan Edgar Ella Emma Eric Eva Felix Fiona Frank Fred Gary Gina Grace Greg "
    "Hanna Harry Helen Henry Hugo Ian Ida Irene Ivan Jack James Jane Jason Jean John Julia Karen "
    "Karl Kate Keith Kevin Laura Leo Lily Linda Louis Lucy Luke Maria Mark Martha Mary Max Mia "
    "Mike Molly Nancy Neil Nick Nina Nora Olga Oscar Otto Owen Pamela Paul Peter Philip Rachel "
    "Ralph Rita Robert Rosa Ruth Ryan Sally Sam Sarah Simon Sofia Steve Susan Theo Tina Tom Vera "
    "Victor Walter Wendy"
)
_LAST = listed(
    "Abbott Adler Allen Archer Baker Barnes Bell Bishop Black Booth Bowen Brook Brown Burke "
    "Carter Chase Clark Cole Cook Cooper Cross Curtis Dale Dawson Day Dean Dixon Drake Dunn "
    "Ellis Evans Farmer Fisher Fletcher Flynn Ford Foster Fox Frost Gibson Glover Gray Green "
    "Hale Hall Harper Hart Hayes Hill Holt Hughes Hunt Irwin Jensen Jones Keller Kent King "
    "Knight Lamb Lane Lawson Lloyd Lowe Marsh Mason Mills Moore Nash Nolan North Olsen Owens "
    "Page Parker Payne Perry Porter Potter Price Quinn Reed Rhodes Rice Rogers Ross Shaw Stone "
    "Swift Tate Taylor Turner Vance Wade Walker Ward Webb West White Wood Young"
)


@dataclass(frozen=True)
class ChainingQuestion:
    """One entity's number asked for, behind all that is told of its problem.

    `hop`: how many steps after what is told its number follows, 0 where it is told itself; then
    `level` is "core". `context` is the same for all questions about a problem.
    """

    problem: int
    entity: int
    name: str
    level: str
    hop: int
    context: str
    question: str
    answer: int

    @property
    def prompt(self) -> str:
        """What a model is given."""
        return self.context + self.question


@dataclass(frozen=True)
class Said:
    """What an answer says: a number, or that it does not follow, or neither."""

    number: int | None
    undetermined: bool = False


@dataclass(frozen=True, eq=False)
class Statements:
    """What a text tells, with a number for every name: the sums, and known numbers or -1."""

    names: tuple[str, ...]
    facts: Int[np.ndarray, "fact 3"]
    known: Int[np.ndarray, " name"]


def chaining_questions(
    world: ChainingWorld, *, lookups: int = 2, reason: bool = False, seed: int = 0
) -> tuple[ChainingQuestion, ...]:
    """Every hidden entity of every problem, and `lookups` core entities whose numbers are told.

    With `reason` a model is asked to work it out first, else the answer is to come at once. `seed`
    draws names and the order of the facts. Raises `MnemoscopeError` where there are more entities
    than names (10,000).
    """
    found: list[ChainingQuestion] = []
    for number, problem in enumerate(world.problems):
        random = np.random.default_rng([seed, number])
        names = _named(problem, world, random)
        context = _context(problem, world, names, random)
        core = random.permutation(problem.core(world.settings.n_core))[:lookups]
        waves = solve(problem.facts, world.known, world.settings.modulus).waves
        levels = [("core", core), *((level, problem.at(level)) for level in LEVELS)]
        for level, entities in levels:
            for entity in entities.tolist():
                name, answer = names[entity], int(world.values[entity])
                form = _ASKED + (_REASONED if reason else _DIRECT)
                asked = form.format(a=name)
                hop = int(waves[entity])
                found.append(
                    ChainingQuestion(number, entity, name, level, hop, context, asked, answer)
                )
    return tuple(found)


def read_answer(text: str, *, reason: bool = False) -> Said:
    """The first number behind the last "Final Answer:", or at the start where none is needed.

    Only one line is read; "1,234" is 1234. With `reason` an answer without the mark says nothing.
    """
    _, mark, behind = text.rpartition(ANSWER_MARK)
    if not mark and reason:
        return Said(None)
    line = next((line for line in behind.splitlines() if line.strip()), "")
    if _OPEN_END.search(line.casefold()):
        return Said(None, undetermined=True)
    figures = _FIGURES.search(line)
    return Said(int(figures.group().replace(",", ""))) if figures else Said(None)


def read_statements(text: str) -> Statements:
    """The facts of a prompt, from its text alone. The question at its end tells nothing."""
    told = {name: int(n) for name, n in _READ_NUMBER.findall(text)}
    sums = _READ_SUM.findall(text)
    names = tuple(dict.fromkeys([*told, *(name for row in sums for name in row)]))
    place = {name: i for i, name in enumerate(names)}
    facts = np.array([[place[name] for name in row] for row in sums], dtype=int).reshape(-1, 3)
    return Statements(names, facts, np.array([told.get(name, -1) for name in names], dtype=int))


def symbolic_answer(
    told: Statements, name: str, modulus: int, retrievals: int | None = None
) -> Said:
    """What follows for a name, exactly, from what `retrievals` look-ups find (None: from all).

    A look-up finds every sum that speaks of a name of which the number is not yet told, the asked
    one first, and the numbers of all names in it. A number of hop h takes h look-ups.
    """
    if name not in told.names:
        return Said(None, undetermined=True)
    entity = told.names.index(name)
    facts = told.facts if retrievals is None else _retrieved(told, entity, retrievals)
    value = int(solve(facts, told.known, modulus).values[entity])
    return Said(None, undetermined=True) if value < 0 else Said(value)


def _retrieved(told: Statements, entity: int, look_ups: int) -> Int[np.ndarray, "fact 3"]:
    wanted = np.zeros(len(told.names), dtype=bool)
    wanted[entity] = True
    chosen = np.zeros(len(told.facts), dtype=bool)
    for _ in range(look_ups):
        chosen = wanted[told.facts].any(axis=1)
        wanted[told.facts[chosen]] = True
        wanted &= told.known < 0
    return told.facts[chosen]


def _named(problem: Problem, world: ChainingWorld, random: np.random.Generator) -> dict[int, str]:
    """A name for each entity of a problem; first names alone where there are enough."""
    entities = np.unique(np.concatenate([problem.facts.ravel(), *map(problem.at, LEVELS)]))
    short = len(entities) <= len(_FIRST)
    names = _FIRST if short else [f"{first} {last}" for first, last in product(_FIRST, _LAST)]
    if len(entities) > len(names):
        raise MnemoscopeError(
            f"a problem has {len(entities)} entities, but there are {len(names)} names: take a "
            "smaller branching."
        )
    drawn = random.permutation(len(names))[: len(entities)]
    return {int(entity): names[i] for entity, i in zip(entities, drawn, strict=True)}


def _context(
    problem: Problem,
    world: ChainingWorld,
    names: dict[int, str],
    random: np.random.Generator,
) -> str:
    numbers = [
        _NUMBER.format(a=names[entity], n=world.values[entity])
        for entity in problem.core(world.settings.n_core).tolist()
    ]
    sums = [_SUM.format(a=names[a], b=names[b], c=names[c]) for a, b, c in problem.facts.tolist()]
    lines: Sequence[str] = [*numbers, *sums]
    return _OPENING + "\n".join(lines[i] for i in random.permutation(len(lines)))
