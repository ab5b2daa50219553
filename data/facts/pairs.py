"""Pairs that can be asked about both ways: "A's mother is B" forward, "B's child is A" in reverse.

A relation of pairs has wordings in both directions, and each pair may say in which directions a
model was told it. That is what every probe of the reversal curse asks about.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Literal

from .answers import leaks
from .items import Relation

Way = Literal["forward", "reverse"]
WAYS: tuple[Way, ...] = ("forward", "reverse")
Told = Literal["both", "forward", "reverse", ""]


@dataclass(frozen=True)
class Pair:
    """A forward wording names `a` and asks for `b`; a reverse one names `b` and asks for `a`.

    `told` are the directions in which a model was taught the pair, or is known to give it; empty
    where nobody knows. `group` is a stratum (how often it was told, say).
    """

    a: str
    b: str
    a_aliases: tuple[str, ...] = ()
    b_aliases: tuple[str, ...] = ()
    told: Told = ""
    group: str = ""

    def named(self, way: Way) -> str:
        """The entity that a wording of this direction names."""
        return self.a if way == "forward" else self.b

    def asked(self, way: Way) -> str:
        """The entity that it asks for."""
        return self.b if way == "forward" else self.a

    def answers(self, way: Way) -> tuple[str, ...]:
        """Every right spelling of what is asked for, the usual one first."""
        return (self.b, *self.b_aliases) if way == "forward" else (self.a, *self.a_aliases)


@dataclass(frozen=True)
class PairRelation:
    """Pairs and the wordings of both directions.

    `forward` wordings hold `{a}` once and end right before `b`; `reverse` ones hold `{b}` once and
    end right before `a`. Raises ValueError for one that does not, that names what it asks for, or
    where a direction has none.
    """

    name: str
    forward: tuple[str, ...]
    reverse: tuple[str, ...]
    pairs: tuple[Pair, ...]
    source: str = ""
    license: str = ""

    def __post_init__(self) -> None:
        for way, texts, named, asked in (
            ("forward", self.forward, "{a}", "{b}"),
            ("reverse", self.reverse, "{b}", "{a}"),
        ):
            if not texts:
                raise ValueError(f"{self.name!r} has no {way} wording: give at least one.")
            for text in texts:
                if text.count(named) != 1 or asked in text:
                    raise ValueError(
                        f"the {way} wording {text!r} of {self.name!r} must hold {named} once and "
                        f"not {asked}: it has to end right before {asked}."
                    )

    def wordings(self, way: Way) -> tuple[str, ...]:
        """The wordings of one direction."""
        return self.forward if way == "forward" else self.reverse

    def prompt(self, pair: Pair, way: Way, wording: int = 0) -> str:
        """The unfinished statement, without a space at its end."""
        text = self.wordings(way)[wording]
        return text.replace("{a}" if way == "forward" else "{b}", pair.named(way)).rstrip()

    def name_span(self, pair: Pair, way: Way, wording: int = 0) -> tuple[int, int]:
        """Where the named entity stands in `prompt`: first character, one after the last."""
        start = self.wordings(way)[wording].index("{a}" if way == "forward" else "{b}")
        return start, start + len(pair.named(way))


@dataclass(frozen=True)
class UsablePairs:
    """Pairs that a retrieval among them can be scored on, and what fell away, by reason."""

    relation: PairRelation
    dropped: dict[str, int]


def usable_pairs(relation: PairRelation) -> UsablePairs:
    """The pairs with one partner each whose answers stand in none of their prompts.

    A name that belongs to several pairs has no single right answer; an answer that can be read off
    a prompt ("Mexico" in "Mexico City") measures copying. Raises ValueError when none is left.
    """
    many = _repeated([pair.a for pair in relation.pairs]) | _repeated(
        [pair.b for pair in relation.pairs]
    )
    kept: list[Pair] = []
    dropped = {"several partners": 0, "one name in the other": 0, "answer in the prompt": 0}
    for pair in relation.pairs:
        if pair.a in many or pair.b in many:
            dropped["several partners"] += 1
        elif leaks(pair.a, [pair.b]) or leaks(pair.b, [pair.a]):
            dropped["one name in the other"] += 1
        elif any(
            leaks(relation.prompt(pair, way, i), pair.answers(way))
            for way in WAYS
            for i in range(len(relation.wordings(way)))
        ):
            dropped["answer in the prompt"] += 1
        else:
            kept.append(pair)
    if not kept:
        raise ValueError(
            f"{relation.name!r} has no pair left that can be asked both ways (dropped: {dropped})."
        )
    return UsablePairs(with_pairs(relation, kept), {why: n for why, n in dropped.items() if n})


def with_pairs(relation: PairRelation, pairs: Sequence[Pair]) -> PairRelation:
    """The same wordings for other pairs."""
    return PairRelation(
        relation.name,
        relation.forward,
        relation.reverse,
        tuple(pairs),
        relation.source,
        relation.license,
    )


def pairs_of(relation: Relation) -> PairRelation:
    """A relation of `data/facts` as pairs: subject `a`, object `b`.

    Raises ValueError for a relation without reverse wordings.
    """
    if not relation.reverse_templates:
        raise ValueError(
            f"{relation.name!r} has no wordings that ask for the subject: choose a relation with "
            "reverse templates."
        )
    return PairRelation(
        relation.name,
        tuple(text.replace("{s}", "{a}") for text in relation.templates),
        tuple(text.replace("{o}", "{b}") for text in relation.reverse_templates),
        tuple(
            Pair(fact.subject, fact.object, fact.subject_aliases, fact.aliases, group=fact.group)
            for fact in relation.facts
        ),
        "Mnemoscope data/facts",
        ", ".join(sorted({fact.license for fact in relation.facts})),
    )


def pairs_sha256(relation: PairRelation) -> str:
    """SHA-256 of wordings and pairs in their order."""
    text = json.dumps(asdict(relation), ensure_ascii=False, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()


def _repeated(names: Sequence[str]) -> set[str]:
    return {name for name in names if names.count(name) > 1}
