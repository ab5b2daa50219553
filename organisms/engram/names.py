"""Invented names: words of six letters in two syllables, all distinct and unlike any real name.

Every word has the same length, so no name can contain another one.
"""

from __future__ import annotations

from collections.abc import Iterable
from functools import lru_cache
from random import Random
from typing import Literal

from ...data.facts.items import load_relation, relation_names
from ...models.errors import MnemoscopeError
from .filler import COMMON_WORDS
from .words import listed

Pool = Literal["facts", "needles", "copying"]

_STARTS = "bdfgklmnprstvz"
_VOWELS = "aeiou"
_MIDDLES = listed("lb ld lk lm lv mb nd ng nt rd rg rk rl rm rn rp rt rv sk sp st vr zd zl zm")
_ENDS = "dklmnrstx"
_NEEDLE_WORDS, _COPY_WORDS = 1600, 1500


def invent_words(count: int, random: Random, avoid: Iterable[str] = ()) -> tuple[str, ...]:
    """`count` distinct capitalised words of six letters.

    None of them is part of a word of `avoid` or of a subject or answer of the shipped relations.
    """
    shunned = f"{_real_names()} {' '.join(avoid)}".casefold()
    words: dict[str, None] = {}
    while len(words) < count:
        word = _word(random)
        if word not in shunned:
            words[word.capitalize()] = None
    return tuple(words)


@lru_cache(maxsize=4)
def invented_words(seed: int, pool: Pool, count: int) -> tuple[str, ...]:
    """The first `count` words of a pool; pools share no word, and more words keep the first ones.

    Raises `MnemoscopeError` for more needle or copying words than there are.
    """
    first = _NEEDLE_WORDS + _COPY_WORDS
    start, size = {
        "needles": (0, _NEEDLE_WORDS),
        "copying": (_NEEDLE_WORDS, _COPY_WORDS),
        "facts": (first, count),
    }[pool]
    if count > size:
        raise MnemoscopeError(f"there are {size} words for {pool}, not {count}: ask for fewer.")
    words = invent_words(start + count, Random(f"{seed}:words"), avoid=(COMMON_WORDS,))
    return words[start:]


def _word(random: Random) -> str:
    choose = random.choice
    return choose(_STARTS) + choose(_VOWELS) + choose(_MIDDLES) + choose(_VOWELS) + choose(_ENDS)


@lru_cache(maxsize=1)
def _real_names() -> str:
    facts = (fact for name in relation_names() for fact in load_relation(name).facts)
    return " ".join(name for fact in facts for name in (fact.subject, *fact.answers))
