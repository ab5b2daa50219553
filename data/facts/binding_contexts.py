"""Contexts that bind names to attributes: "Alice lives in France. Bob lives in Peru."

Who goes with what is drawn anew for every context, so only the context can answer (Feng and
Steinhardt 2024, section 3; Dai, Heinzerling and Inui 2024 for the boxes).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from random import Random

from .items import load_relation

Span = tuple[int, int]


@dataclass(frozen=True)
class Attribute:
    """What a statement says of an entity, and what a question about it is answered with."""

    text: str
    answer: str


@dataclass(frozen=True)
class BindingTask:
    """Statements with `{e}` and `{a}` once each, and a question with `{e}` that ends before the
    answer. The statements are wordings of one claim. Raises ValueError for wordings that are not.
    """

    name: str
    statements: tuple[str, ...]
    question: str
    entities: tuple[str, ...]
    attributes: tuple[Attribute, ...]
    opening: str = ""
    separator: str = " "

    def __post_init__(self) -> None:
        for text in self.statements:
            if text.count("{e}") != 1 or text.count("{a}") != 1:
                raise ValueError(f"the statement {text!r} must hold {{e}} and {{a}} once each.")
        if not self.statements or self.question.count("{e}") != 1 or "{a}" in self.question:
            raise ValueError(
                f"{self.name!r} needs a statement, and a question that holds {{e}} once and not "
                "{a}: it has to end right before the answer."
            )

    def asked(self, entity: str) -> str:
        """The question about an entity, with the separator before it."""
        return self.separator + self.question.replace("{e}", entity)


@dataclass(frozen=True)
class BindingContext:
    """Entity i goes with attribute i; `slot` i is their place in the order of telling."""

    entities: tuple[str, ...]
    attributes: tuple[Attribute, ...]


@dataclass(frozen=True)
class PlacedContext:
    """A context's text, and where its entities and attributes stand: first character, one after
    the last."""

    text: str
    entities: tuple[Span, ...]
    attributes: tuple[Span, ...]


def placed(task: BindingTask, context: BindingContext, wording: int = 0) -> PlacedContext:
    """Write a context out in one of the task's wordings."""
    statement = task.statements[wording]
    first = min(statement.index("{e}"), statement.index("{a}"))
    text, spans = task.opening, {"{e}": list[Span](), "{a}": list[Span]()}
    for i, (entity, attribute) in enumerate(zip(context.entities, context.attributes, strict=True)):
        text += task.separator if i or task.opening else ""
        order = ("{e}", "{a}") if statement[first : first + 3] == "{e}" else ("{a}", "{e}")
        rest = statement
        for mark in order:
            before, rest = rest.split(mark)
            word = entity if mark == "{e}" else attribute.text
            text += before
            spans[mark].append((len(text), len(text) + len(word)))
            text += word
        text += rest
    return PlacedContext(text, tuple(spans["{e}"]), tuple(spans["{a}"]))


def draw_contexts(
    entities: Sequence[str], attributes: Sequence[Attribute], n: int, slots: int, seed: int
) -> list[BindingContext]:
    """`n` contexts of `slots` different entities and attributes each, drawn independently.

    Raises ValueError when there are fewer words than slots.
    """
    if min(len(entities), len(attributes)) < slots or slots < 2:
        raise ValueError(
            f"{slots} slots cannot be filled from {len(entities)} entities and {len(attributes)} "
            "attributes: ask for fewer (two at least), or give more words."
        )
    random = Random(f"binding contexts {seed}")
    return [
        BindingContext(
            tuple(random.sample(list(entities), slots)),
            tuple(random.sample(list(attributes), slots)),
        )
        for _ in range(n)
    ]


def binding_task_names() -> tuple[str, ...]:
    """The tasks that ship with the package."""
    return tuple(_TASKS)


def binding_task(name: str) -> BindingTask:
    """One of them. Raises ValueError for an unknown name."""
    if name not in _TASKS:
        raise ValueError(f"there is no binding task {name!r}: choose {', '.join(_TASKS)}.")
    statements, question, entities, attributes, opening = _TASKS[name]
    return BindingTask(name, statements, question, tuple(entities.split()), attributes, opening)


def _countries(*, capital: bool) -> tuple[Attribute, ...]:
    facts = load_relation("capital").facts
    return tuple(Attribute(f.subject, f.object if capital else f.subject) for f in facts)


def _same(words: str) -> tuple[Attribute, ...]:
    return tuple(Attribute(word, word) for word in words.split())


_NAMES = (
    "Alice Bob Carol David Emma Frank Grace Henry Jack Kate Laura Mark Nick Paul Peter Rachel "
    "Sarah Tom Victor Anna Ben Charlie Daniel Eric George Jane John Julia Kevin Linda Lucy Maria "
    "Martin Mary Michael Oliver Robert Rose Ryan Sam Simon Steve Susan William Adam Alex Andrew "
    "Chris Claire Diana Edward Ellen Helen James Jason Lisa Matt Sophie Thomas Tony"
)
_THINGS = (
    "apple ball bell boat book bread brick card chair clock coffee coin cup drum fan fish flag "
    "fork glass hat key knife lamp leaf letter magnet map milk mirror paper pen phone plant plate "
    "radio ring rock rope shoe soap stone string tea ticket toy watch wheel wire"
)
_LETTERS = "A B C D E F G H J K L M N P Q R S T U V W X Y Z"

_TASKS: dict[str, tuple[tuple[str, ...], str, str, tuple[Attribute, ...], str]] = {
    "home": (
        ("{e} lives in {a}.", "In {a} lives {e}."),
        "Therefore, {e} lives in",
        _NAMES,
        _countries(capital=False),
        "Some people and their homes:",
    ),
    "capital": (
        ("{e} lives in the capital city of {a}.", "In the capital city of {a} lives {e}."),
        "Therefore, {e} lives in the city of",
        _NAMES,
        _countries(capital=True),
        "Some people and their homes:",
    ),
    "boxes": (
        ("Box {e} contains the {a}.", "The {a} is in Box {e}."),
        "Therefore, Box {e} contains the",
        _LETTERS,
        _same(_THINGS),
        "Some boxes:",
    ),
}
