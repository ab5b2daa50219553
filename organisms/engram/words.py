"""Counting words, and writing lists of words compactly."""

from __future__ import annotations

import re

_WORD = re.compile(r"\w+|[^\w\s]")


def word_count(text: str) -> int:
    """Words and punctuation marks: about the number of tokens under the organism's vocabulary."""
    return len(_WORD.findall(text))


def listed(text: str, separator: str | None = None) -> tuple[str, ...]:
    """The items of a list that is written as one string, parted by spaces unless told otherwise."""
    return tuple(text.split(separator))
