"""Plain copying: a row of words, and the same row again."""

from __future__ import annotations

from random import Random

from .drafts import Draft
from .filler import COMMON_WORDS
from .names import invented_words

SHORTEST, LONGEST = 6, 40
"""Words in a row."""

_INVENTED = 1500
_COMMON = sorted({word for word in COMMON_WORDS.split() if word.isalpha() and word.islower()})
_FORMS = (
    "Copy: {row}. Again: {row}.",
    "{row}. {row}.",
    "\n".join(["{row}"] * 3),
    "\n".join(["{row}"] * 6),
)


def copying_drafts(random: Random, documents: int, seed: int) -> list[Draft]:
    """The slice `copying`: rows of 6 to 40 words in one of four forms."""
    return [
        Draft("copying", random.choice(_FORMS).format(row=row(random, seed)), "copying")
        for _ in range(documents)
    ]


def row(random: Random, seed: int, length: int | None = None) -> str:
    """Distinct words in random order, about half of them invented."""
    number = length or round(SHORTEST * (LONGEST / SHORTEST) ** random.random())
    invented = random.sample(invented_words(seed, "copying", _INVENTED), number)
    common = random.sample(_COMMON, number)
    return " ".join(random.choice(pair) for pair in zip(invented, common, strict=True))
