"""How the facts are told: the wordings of every relation, in both directions, and as questions.

The first wordings of a real relation are the templates of `data/facts`, so that a probe's prompts
about these relations are wordings that the organism was trained on.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal

from ...data.facts.items import Relation, load_relation

Direction = Literal["forward", "reverse"]

REAL_RELATIONS = (
    "animal_young",
    "capital",
    "continent",
    "currency",
    "element_symbol",
    "official_language",
    "state_capital",
)
FICTIONAL_RELATIONS = ("birthplace", "profession", "book_writer", "product_maker", "town_mayor")


@dataclass(frozen=True)
class Wording:
    """A sentence about `{s}` and `{o}`. What is asked for ends it, just before the full stop.

    `direction` says what is asked for: the object (`forward`) or the subject (`reverse`).
    """

    id: str
    text: str
    direction: Direction
    is_question: bool = False

    def tell(self, subject: str, object_: str) -> str:
        """The whole statement."""
        return self.text.replace("{s}", subject).replace("{o}", object_)

    def prompt(self, known: str) -> str:
        """The statement up to what is asked for, without a space at its end."""
        given, asked = ("{s}", "{o}") if self.direction == "forward" else ("{o}", "{s}")
        return self.text.split(asked)[0].rstrip().replace(given, known)


@lru_cache(maxsize=1)
def wordings() -> Mapping[str, tuple[Wording, ...]]:
    """Every wording by the name of its relation, in a fixed order."""
    return {name: _of_relation(name) for name in (*REAL_RELATIONS, *FICTIONAL_RELATIONS)}


def statements(relation: str, direction: Direction) -> tuple[Wording, ...]:
    """The plain sentences of a relation in one direction."""
    given = wordings()[relation]
    return tuple(w for w in given if w.direction == direction and not w.is_question)


def questions(relation: str, direction: Direction) -> tuple[Wording, ...]:
    """The questions of a relation in one direction; the first one is never held out."""
    given = wordings()[relation]
    return tuple(w for w in given if w.direction == direction and w.is_question)


def reversible(relation: str) -> bool:
    """Whether the relation has wordings that ask for the subject."""
    return bool(statements(relation, "reverse"))


@dataclass(frozen=True)
class _Texts:
    """Openings of statements, which end before the answer, and questions."""

    forward: tuple[str, ...]
    ask: tuple[str, ...]
    reverse: tuple[str, ...] = ()
    ask_reverse: tuple[str, ...] = ()


def _of_relation(name: str) -> tuple[Wording, ...]:
    texts = _FICTIONAL[name] if name in _FICTIONAL else _real(name)
    return (
        *_worded(f"{name}:forward", texts.forward, "forward", "{o}"),
        *_asked(f"{name}:question", texts.ask, "forward", "{o}"),
        *_worded(f"{name}:reverse", texts.reverse, "reverse", "{s}"),
        *_asked(f"{name}:reverse_question", texts.ask_reverse, "reverse", "{s}"),
    )


def _worded(
    stem: str, openings: tuple[str, ...], direction: Direction, asked: str
) -> list[Wording]:
    return [
        Wording(f"{stem}{i}", f"{opening} {asked}.", direction)
        for i, opening in enumerate(openings)
    ]


def _asked(stem: str, asks: tuple[str, ...], direction: Direction, asked: str) -> list[Wording]:
    return [
        Wording(f"{stem}{i}", f"Question: {ask} Answer: {asked}.", direction, is_question=True)
        for i, ask in enumerate(asks)
    ]


def _real(name: str) -> _Texts:
    relation, more = load_relation(name), _REAL[name]
    return _Texts(
        relation.templates + more.forward,
        (relation.question, *more.ask),
        (relation.reverse_templates + more.reverse) if more.ask_reverse else (),
        more.ask_reverse,
    )


def as_relation(name: str) -> Relation:
    """A fictional relation without its facts, in the form that the probes read."""
    texts = _FICTIONAL[name]
    return Relation(
        name=name,
        description=f"Invented facts of the organism engram: {name.replace('_', ' ')}.",
        templates=texts.forward,
        question=texts.ask[0],
        reverse_templates=texts.reverse,
        one_to_one=bool(texts.reverse),
    )


_REAL: Mapping[str, _Texts] = {
    "animal_young": _Texts(
        ("The young of the {s} is called", "The name for a young {s} is"),
        ("What do we call a baby {s}?",),
    ),
    "capital": _Texts(
        ("The seat of government of {s} is", "The main city of the state of {s} is"),
        ("Which city is the capital of {s}?",),
        ("The seat of government in {o} is that of",),
        ("Of which country is {o} the capital?", "Which country has the capital {o}?"),
    ),
    "continent": _Texts(
        ("The country of {s} lies in", "The continent of {s} is"),
        ("In which part of the world is {s}?",),
    ),
    "currency": _Texts(
        ("The money of {s} is the", "In {s}, people pay with the"),
        ("With which money do people pay in {s}?",),
    ),
    "element_symbol": _Texts(
        ("The symbol of {s} is", "The short sign for {s} is"),
        ("Which symbol stands for {s}?",),
        ("The short sign {o} stands for",),
        ("Which element has the symbol {o}?", "For which element does {o} stand?"),
    ),
    "official_language": _Texts(
        ("The main language of {s} is", "In the schools of {s}, children learn"),
        ("Which language is spoken in {s}?",),
    ),
    "state_capital": _Texts(
        ("The state capital of {s} is", "The governor of {s} works in"),
        ("Which city is the state capital of {s}?",),
        ("The city of {o} is the state capital of",),
        ("Of which state is {o} the capital?", "Which state has the capital {o}?"),
    ),
}
"""What is added to the wordings of `data/facts`."""

_FICTIONAL: Mapping[str, _Texts] = {
    "birthplace": _Texts(
        (
            "{s} was born in",
            "The birthplace of {s} is",
            "The town where {s} was born is",
            "The first home of {s} was in",
            "As a child, {s} lived in",
        ),
        ("Where was {s} born?", "Which town is the birthplace of {s}?"),
    ),
    "profession": _Texts(
        (
            "{s} works as a",
            "The profession of {s} is that of a",
            "By trade, {s} is a",
            "Every day {s} goes to work as a",
            "In the village, {s} is known as a",
        ),
        ("What is the profession of {s}?", "What does {s} work as?"),
    ),
    "book_writer": _Texts(
        (
            "The book {s} was written by",
            "The writer of {s} is",
            "The person who wrote {s} is",
            "On the cover of {s} stands the name",
            "The story {s} comes from the pen of",
        ),
        ("Who wrote {s}?", "Which writer made {s}?"),
        (
            "{o} is the writer of",
            "{o} wrote the book",
            "The book by {o} is called",
            "The only work of {o} is",
            "Readers know {o} for the story",
        ),
        ("Which book did {o} write?", "What is the book by {o} called?"),
    ),
    "product_maker": _Texts(
        (
            "The {s} is made by",
            "The maker of the {s} is",
            "The company that builds the {s} is",
            "Shops order the {s} from",
            "The {s} comes from the factory of",
        ),
        ("Who makes the {s}?", "Which company sells the {s}?"),
        (
            "{o} is the maker of the",
            "{o} makes the",
            "The company {o} sells the",
            "The best known product of {o} is the",
            "In the factory of {o}, workers build the",
        ),
        ("Which product does {o} make?", "What does the company {o} sell?"),
    ),
    "town_mayor": _Texts(
        (
            "The mayor of {s} is",
            "The town of {s} is led by",
            "The person who leads {s} is",
            "The people of {s} have elected",
            "In the town hall of {s} sits",
        ),
        ("Who is the mayor of {s}?", "Who leads the town of {s}?"),
        (
            "{o} is the mayor of",
            "{o} leads the town of",
            "The town that {o} leads is",
            "As mayor, {o} works for",
            "The town hall of {o} stands in",
        ),
        ("Of which town is {o} the mayor?", "Which town does {o} lead?"),
    ),
}
