"""The facts told: statements for the fact slices, questions without a passage for their own slice.

A document holds a handful of lines about different facts, one fact a line.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain, cycle, islice
from random import Random

from .contradictions import memory_answers
from .drafts import Draft, Mark, Slice
from .facts import PlannedFact
from .wordings import Direction, Wording

LINES_A_DOCUMENT = 6
_STATEMENTS_A_QUESTION = 2  # each statement wording is used this often for one use of a question


@dataclass(frozen=True)
class _Line:
    fact: PlannedFact
    wording: Wording


def telling_drafts(facts: Sequence[PlannedFact], seed: int) -> list[Draft]:
    """The slices `facts_real`, `facts_fictional` and `questions`.

    Every fact is stated `count` times less the times that `contradictions` states it.
    """
    lines: dict[Slice, list[_Line]] = {"facts_real": [], "facts_fictional": [], "questions": []}
    for fact in facts:
        home: Slice = "facts_real" if fact.real else "facts_fictional"
        for wording in _used_wordings(fact, seed):
            lines["questions" if wording.is_question else home].append(_Line(fact, wording))
    return [
        _draft(slice_, group)
        for slice_, told in lines.items()
        for group in _groups(told, Random(f"{seed}:tell:{slice_}"))
    ]


def _used_wordings(fact: PlannedFact, seed: int) -> list[Wording]:
    """The wording of every statement outside conflicts; two-way facts take the directions in turn.

    All wordings of a direction come up equally often, questions half as often as statements.
    """
    random = Random(f"{seed}:tell:{fact.id}")
    turns = [cycle(_shuffled(fact, direction, random)) for direction in fact.directions]
    return list(islice(chain.from_iterable(zip(*turns, strict=True)), _remaining(fact)))


def _remaining(fact: PlannedFact) -> int:
    return fact.count - memory_answers(fact)


def _shuffled(fact: PlannedFact, direction: Direction, random: Random) -> list[Wording]:
    given = fact.wordings(direction)
    if fact.count <= 2:  # a fact told once or twice is told plainly
        given = tuple(wording for wording in given if not wording.is_question)
    turns = [
        wording
        for wording in given
        for _ in range(1 if wording.is_question else _STATEMENTS_A_QUESTION)
    ]
    random.shuffle(turns)
    return turns


def _groups(lines: list[_Line], random: Random) -> Iterator[list[_Line]]:
    """Shuffled lines in groups that hold no fact twice, so that a document never repeats one."""
    random.shuffle(lines)
    waiting: deque[_Line] = deque(lines)
    while waiting:
        group: list[_Line] = []
        for _ in range(min(len(waiting), 4 * LINES_A_DOCUMENT)):
            line = waiting.popleft()
            if _holds(group, line.fact):
                waiting.append(line)
            else:
                group.append(line)
            if len(group) == LINES_A_DOCUMENT:
                break
        yield group


def _holds(group: Iterable[_Line], fact: PlannedFact) -> bool:
    return any(line.fact.id == fact.id for line in group)


def _draft(slice_: Slice, lines: Iterable[_Line]) -> Draft:
    texts, marks, start = [], [], 0
    for line in lines:
        text = line.wording.tell(line.fact.subject, line.fact.object)
        texts.append(text)
        marks.append(Mark(line.fact.id, line.wording.id, start, start + len(text)))
        start += len(text) + 1
    return Draft(slice_, "\n".join(texts), f"recall_{slice_}", tuple(marks))
