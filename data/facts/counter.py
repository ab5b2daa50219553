"""Which wrong answers may be claimed: safe counter-answers and subjects to swap in.

Every choice is a ranking by SHA-256 of seed, role and the two texts. It does not depend on the
order of rows, and rows added later disturb few of the earlier choices.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from .answers import confusable, leaks
from .items import Fact

Accept = Callable[[str], bool]


@dataclass(frozen=True)
class Candidate:
    """An object of the relation, with all its spellings and the groups of its subjects."""

    answer: str
    spellings: tuple[str, ...]
    groups: frozenset[str]


def candidates(facts: Iterable[Fact]) -> tuple[Candidate, ...]:
    """The distinct objects of `facts`, sorted; spellings and groups are joined over subjects."""
    spellings: dict[str, set[str]] = {}
    groups: dict[str, set[str]] = {}
    for fact in facts:
        spellings.setdefault(fact.object, set()).update(fact.aliases)
        groups.setdefault(fact.object, set()).add(fact.group)
    return tuple(
        Candidate(answer, (answer, *sorted(spellings[answer])), frozenset(groups[answer] - {""}))
        for answer in sorted(spellings)
    )


def choose_counter(
    fact: Fact,
    pool: Sequence[Candidate],
    *,
    seed: int,
    role: str,
    avoid: Sequence[str] = (),
    shunned: frozenset[str] = frozenset(),
    accept: Accept = lambda answer: True,
) -> str | None:
    """A wrong answer for `fact`, or None if no candidate is safe.

    Refused: a candidate one of whose spellings equals, contains or is contained in a right answer
    or a text in `avoid`, one that can be read off the subject, and one that `accept` turns down.
    Preferred: objects not `shunned` (shown in a demonstration), then those of another group.
    """
    taken = (*fact.answers, *avoid)

    def rank(candidate: Candidate) -> tuple[bool, bool, str]:
        same_group = bool(fact.group) and fact.group in candidate.groups
        order = _order(seed, role, fact.subject, candidate.answer)
        return candidate.answer in shunned, same_group, order

    for candidate in sorted(pool, key=rank):
        confused = any(confusable(spelling, taken) for spelling in candidate.spellings)
        if confused or _readable(fact.subject, candidate.spellings):
            continue
        if accept(candidate.answer):
            return candidate.answer
    return None


def choose_subject(
    fact: Fact,
    pool: Sequence[Fact],
    *,
    seed: int,
    preferred: frozenset[str] = frozenset(),
    accept: Accept = lambda answer: True,
) -> Fact | None:
    """Another subject whose true answer cannot be taken for that of `fact`, or None.

    Refused: subjects whose text contains or is contained in this one's, or from which either
    answer can be read off, and answers that `accept` turns down. Preferred: subjects in
    `preferred`, then another group.
    """

    def rank(other: Fact) -> tuple[bool, bool, str]:
        same_group = bool(fact.group) and fact.group == other.group
        order = _order(seed, "subject", fact.subject, other.subject)
        return other.subject not in preferred, same_group, order

    for other in sorted(pool, key=rank):
        alike = confusable(other.subject, (fact.subject,)) or any(
            confusable(spelling, fact.answers) for spelling in other.answers
        )
        readable = _readable(other.subject, (*other.answers, *fact.answers))
        if not alike and not readable and accept(other.object):
            return other
    return None


def readable(fact: Fact) -> bool:
    """Whether the right answer can be read off the subject's own text, or holds all of it."""
    return _readable(fact.subject, fact.answers)


def _readable(subject: str, answers: Sequence[str]) -> bool:
    return leaks(subject, answers) or any(leaks(answer, (subject,)) for answer in answers)


def _order(*parts: object) -> str:
    return hashlib.sha256("\n".join(map(str, parts)).encode()).hexdigest()
