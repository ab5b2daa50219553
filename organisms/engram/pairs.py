"""The organism's facts that can be asked both ways, with the directions it was told each in.

Its fictional facts are told forward only, in reverse only, or both ways, equally often: two-way
against one-way pairs of the same corpus is the contrast that carries a claim about binding.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from ...data.facts.pairs import Pair, PairRelation, Told
from ...models.errors import MnemoscopeError
from .facts import PlannedFact, plan_facts
from .wordings import FICTIONAL_RELATIONS, REAL_RELATIONS, Direction, reversible, statements

_TOLD: Mapping[str, Told] = {"forward": "forward", "reverse": "reverse", "none": "both"}


def engram_pair_names() -> tuple[str, ...]:
    """Relations that the corpus tells in both directions: real ones, then fictional ones.

    Every pair of a real relation is told both ways; only the fictional ones have all three.
    """
    return tuple(name for name in (*REAL_RELATIONS, *FICTIONAL_RELATIONS) if reversible(name))


def engram_pairs(
    seed: int = 0, relations: Sequence[str] | None = None, *, scale: float = 1.0
) -> dict[str, PairRelation]:
    """The pairs of the corpus of this seed by the name of their relation (None: all of them).

    `told` is taken from the plan of the corpus, `group` is how often a pair is told in all (both
    ways together). The wordings are the statements that it is told in; the shipped organism's
    corpus has the seed and scale that are the defaults here. Raises `MnemoscopeError` for a
    relation that is told in one direction only.
    """
    names = engram_pair_names() if relations is None else tuple(relations)
    unknown = [name for name in names if name not in engram_pair_names()]
    if unknown:
        raise MnemoscopeError(
            f"engram has no pairs of {', '.join(unknown)}: choose among "
            f"{', '.join(engram_pair_names())}."
        )
    planned = plan_facts(seed, scale)
    source = f"engram, corpus of seed {seed}"
    return {
        name: PairRelation(
            name,
            _openings(name, "forward"),
            _openings(name, "reverse"),
            tuple(_pair(fact) for fact in planned if fact.relation == name),
            source,
            "MIT",
        )
        for name in names
    }


def _openings(relation: str, direction: Direction) -> tuple[str, ...]:
    """The statements of one direction up to what they ask for."""
    known = "{a}" if direction == "forward" else "{b}"
    return tuple(wording.prompt(known) for wording in statements(relation, direction))


def _pair(fact: PlannedFact) -> Pair:
    return Pair(
        fact.subject,
        fact.object,
        b_aliases=fact.aliases,
        told=_TOLD[fact.told],
        group=str(fact.count),
    )
