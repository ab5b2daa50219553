"""Set algebra on roles in words: `retrieval and not memory`, `copy & (locate | emit) - induction`.

Names are those of the roles on show; `not` binds before `and`, `and` before `or`; `-` and `minus`
read "and not". Nothing is evaluated as a program.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool

from ..models.errors import MnemoscopeError

Mask = Bool[np.ndarray, "layer head"]
_TOKEN = re.compile(r"\s*(?:([A-Za-z_][A-Za-z0-9_.]*)|([()&|!-]))")
_SIGNS = {"&": "and", "|": "or", "!": "not", "-": "minus"}
_WORDS = frozenset(_SIGNS.values())
MOST_SIGNS = 200


@dataclass(frozen=True)
class Chosen:
    """What an expression chose: the heads, and the roles it names, those that it asks for first.

    `wanted` are the names that stand without a `not` before them.
    """

    mask: Mask
    names: tuple[str, ...]
    wanted: tuple[str, ...]


def evaluate(expression: str, sets: Mapping[str, Mask]) -> Chosen:
    """The heads that an expression names; `sets` maps each role (and other names) to its heads.

    Raises `MnemoscopeError` for an unknown name, an unfinished expression and what is no word of
    it.
    """
    reader = _Reader(_tokens(expression), sets)
    mask = reader.alternatives(negated=False)
    if reader.place < len(reader.tokens):
        raise _broken(f"{reader.tokens[reader.place]!r} stands where 'and' or 'or' should")
    named = dict(reader.named)  # of a name that comes twice the last place counts
    wanted = tuple(name for name, negated in named.items() if not negated)
    return Chosen(mask, tuple(named), wanted)


def _tokens(expression: str) -> tuple[str, ...]:
    found: list[str] = []
    place = 0
    text = expression.strip()
    while place < len(text):
        match = _TOKEN.match(text, place)
        if match is None:
            raise _broken(f"{text[place:].strip()[:1]!r} is no part of an expression")
        word = match[1] or _SIGNS.get(match[2], match[2])
        found.append(word.lower() if word.lower() in _WORDS else word)
        place = match.end()
    if not found:
        raise _broken("there is no expression")
    if len(found) > MOST_SIGNS:
        raise _broken(f"more than {MOST_SIGNS} words are too many")
    return tuple(found)


class _Reader:
    """Reads tokens from left to right; each method reads what binds tighter first."""

    def __init__(self, tokens: Sequence[str], sets: Mapping[str, Mask]) -> None:
        self.tokens, self.sets, self.place = tokens, sets, 0
        self.named: list[tuple[str, bool]] = []

    def alternatives(self, *, negated: bool) -> Mask:
        """`a or b`."""
        mask = self.both(negated=negated)
        while self._took("or"):
            mask = mask | self.both(negated=negated)
        return mask

    def both(self, *, negated: bool) -> Mask:
        """`a and b`, `a minus b`."""
        mask = self.single(negated=negated)
        while True:
            if self._took("and"):
                mask = mask & self.single(negated=negated)
            elif self._took("minus"):
                mask = mask & ~self.single(negated=not negated)
            else:
                return mask

    def single(self, *, negated: bool) -> Mask:
        """`not a`, `(a)`, or a name."""
        if self._took("not"):
            return ~self.single(negated=not negated)
        if self._took("("):
            mask = self.alternatives(negated=negated)
            if not self._took(")"):
                raise _broken("a bracket is not closed")
            return mask
        return self._name(negated=negated)

    def _name(self, *, negated: bool) -> Mask:
        if self.place == len(self.tokens):
            raise _broken("it ends where a role should stand")
        word = self.tokens[self.place]
        if word in _WORDS or word == ")":
            raise _broken(f"{word!r} stands where a role should")
        if word not in self.sets:
            raise MnemoscopeError(
                f"there is no role {word!r} on show: use {', '.join(self.sets)}, "
                "or add a source that scores it."
            )
        self.place += 1
        self.named.append((word, negated))
        return self.sets[word]

    def _took(self, word: str) -> bool:
        if self.place < len(self.tokens) and self.tokens[self.place] == word:
            self.place += 1
            return True
        return False


def _broken(reason: str) -> MnemoscopeError:
    return MnemoscopeError(
        f"the expression cannot be read, {reason}: write for example retrieval and not memory."
    )
