"""What counts as an answer: folding of spellings, confusion of two answers, and classification.

The rule (docs/facts.md): lower case, NFD without combining marks, punctuation to spaces, then
containment in the first five words of what the model says. If both answers are there, the one that
starts first counts.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal

Kind = Literal["memory", "context", "other"]


@dataclass(frozen=True)
class Outcome:
    """Which answer was given, and whether the text held `both` of them."""

    kind: Kind
    both: bool


@lru_cache(maxsize=65536)
def normalise(text: str) -> str:
    """Fold a spelling: lower case, NFD without combining marks, punctuation and symbols to
    spaces, runs of spaces to one, none at the ends. Idempotent."""
    folded = unicodedata.normalize("NFD", text.casefold())
    kept = (" " if _is_break(char) else char for char in folded if not unicodedata.combining(char))
    # Folding may give capitals or marks anew for a few letters; the second pass settles them.
    again = unicodedata.normalize("NFD", "".join(kept).casefold())
    return " ".join("".join(char for char in again if not unicodedata.combining(char)).split())


def classify(
    continuation: str, mem_answers: Sequence[str], ctx_answers: Sequence[str], words: int = 5
) -> Outcome:
    """Say whether `continuation` gives the memory answer, the context answer or something else.

    Only the first `words` whitespace-separated words are read. Answers match as whole words
    ("Niger" is not in "Nigeria"), except in scripts that write no spaces, where they match
    anywhere. With both present the one that starts first wins, at the same start the longer one;
    answers that tie even so (the same text on both sides) give `other`. Raises ValueError unless
    `words` is positive.
    """
    if words < 1:
        raise ValueError(f"words must be at least 1, got {words}.")
    text = normalise(" ".join(continuation.split()[:words]))
    memory, context = _first_match(text, mem_answers), _first_match(text, ctx_answers)
    both = memory is not None and context is not None
    if memory == context:
        return Outcome("other", both)
    if context is None or (memory is not None and memory < context):
        return Outcome("memory", both)
    return Outcome("context", both)


def confusable(answer: str, others: Sequence[str]) -> bool:
    """Whether `answer` equals, contains or is contained in one of `others`, folded.

    An answer that folds to nothing is confusable with everything.
    """
    mine = normalise(answer)
    return not mine or any(mine in other or other in mine for other in map(normalise, others))


def leaks(text: str, answers: Sequence[str]) -> bool:
    """Whether one of the answers can be read off `text` (whole words, folded)."""
    folded = normalise(text)
    return any(_find(folded, normalise(answer)) is not None for answer in answers)


def _first_match(text: str, answers: Sequence[str]) -> tuple[int, int] | None:
    """(start, minus length) of the earliest, then longest match; None if there is none."""
    found = []
    for answer in map(normalise, answers):
        start = _find(text, answer)
        if start is not None:
            found.append((start, -len(answer)))
    return min(found, default=None)


def _find(text: str, answer: str) -> int | None:
    if not answer:
        return None
    if any(map(_writes_no_spaces, answer)):
        start = text.find(answer)
        return start if start >= 0 else None
    start = f" {text} ".find(f" {answer} ")
    return start if start >= 0 else None


def _is_break(char: str) -> bool:
    return unicodedata.category(char)[0] in "PSZC"


def _writes_no_spaces(char: str) -> bool:
    """Chinese, Japanese, Korean particles (which attach to the word), Thai, Lao, Khmer, Burmese."""
    code = ord(char)
    return (
        0x2E80 <= code <= 0x9FFF
        or 0x20000 <= code <= 0x3FFFF
        or 0x1100 <= code <= 0x11FF  # Hangul letters, as NFD leaves them
        or 0x0E00 <= code <= 0x0EFF
        or 0x1000 <= code <= 0x109F
        or 0x1780 <= code <= 0x17FF
    )
