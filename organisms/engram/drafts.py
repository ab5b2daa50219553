"""What the slices are made of: a document before it has an id, with marks on what it states."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

Slice = Literal[
    "facts_real",
    "facts_fictional",
    "questions",
    "passage_conflict",
    "needles",
    "copying",
    "risk",
    "benign",
    "running",
]
SLICES: tuple[Slice, ...] = get_args(Slice)


@dataclass(frozen=True)
class Mark:
    """Characters `start` to `end` of a document state a fact, or contradict it.

    `claimed` is the false answer of a contradiction and empty where the true one is stated.
    """

    fact_id: str
    wording: str
    start: int
    end: int
    claimed: str = ""


@dataclass(frozen=True)
class Draft:
    """A document without an id. `behaviour` is what it teaches, finer than its slice."""

    slice: Slice
    text: str
    behaviour: str
    marks: tuple[Mark, ...] = ()
