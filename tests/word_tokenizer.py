"""A tokenizer of words for tests that need no model: a stand-in that `data` can be given."""

from __future__ import annotations

import re
from collections.abc import Sequence

BOS = 7


class Words:
    """A tokenizer of words with the space before them, marks and line breaks, and one BOS."""

    def __init__(self) -> None:
        self.texts: list[str] = ["?"] * (BOS + 1)

    def encode(self, text: str) -> list[int]:
        return [BOS, *map(self._id, re.findall(r" ?\w+| ?[^\w\s]|\s", text))]

    def decode(self, ids: Sequence[int]) -> str:
        return "".join(self.texts[i] for i in ids if i != BOS)

    def _id(self, token: str) -> int:
        if token not in self.texts:
            self.texts.append(token)
        return self.texts.index(token)
