"""Which of the documents that hold a span is about the same thing as the text?

BM25 (Robertson and Zaragoza 2009) of the text against the found snippets, as OLMoTrace orders them
(arXiv 2504.07096). It orders documents of one trace; scores of two traces are not comparable, since
how rare a word is comes from the snippets at hand.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence

import numpy as np
from jaxtyping import Float

_K1, _B = 1.5, 0.75
_WORD = re.compile(r"\w+")


def relevance(text: str, snippets: Sequence[str]) -> Float[np.ndarray, " snippet"]:
    """BM25 of each snippet for the words of `text`, 0 for no word in common; case is ignored.

    Each word of the text counts once. A snippet that is listed twice counts once for rarity.
    """
    if not snippets:
        return np.zeros(0)
    bags = [Counter(_words(snippet)) for snippet in snippets]
    lengths = np.array([bag.total() for bag in bags], dtype=np.float64)
    longer = lengths / max(1.0, float(lengths.mean()))
    distinct = [Counter(_words(snippet)) for snippet in dict.fromkeys(snippets)]
    scores = np.zeros(len(bags))
    for word in sorted({*_words(text)}):
        times = np.array([bag[word] for bag in bags], dtype=np.float64)
        if times.any():
            held = sum(word in bag for bag in distinct)
            rarity = np.log1p((len(distinct) - held + 0.5) / (held + 0.5))
            scores += rarity * times * (_K1 + 1) / (times + _K1 * (1 - _B + _B * longer))
    return scores


def _words(text: str) -> list[str]:
    return _WORD.findall(text.lower())
