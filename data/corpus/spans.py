"""Which spans of a text are reported: the longest that occur, inside sentences and whole words.

Liu et al. 2025 (OLMoTrace, arXiv 2504.07096), section 3. Nothing here reads an index: the matching
statistics of the text say all that is needed.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Int64


class Interval(NamedTuple):
    """Ranks [lo, hi) of one shard: the suffixes that begin with a span."""

    lo: int
    hi: int

    @property
    def size(self) -> int:
        """Occurrences in the shard."""
        return self.hi - self.lo


@dataclass(frozen=True)
class Span:
    """Tokens [start, stop) of a text, how often they occur, and where: an interval a shard."""

    start: int
    stop: int
    count: int
    intervals: tuple[Interval, ...]


def maximal_ranges(
    lengths: Int64[np.ndarray, " n"],
    ids: Int64[np.ndarray, " n"],
    *,
    word_starts: Bool[np.ndarray, " n"] | None = None,
    delimiters: Sequence[int] = (),
) -> tuple[Int64[np.ndarray, " span"], Int64[np.ndarray, " span"]]:
    """Starts and stops of the spans that occur and lie in no longer such span, in text order.

    `lengths` are the matching statistics of `ids`. A delimiter may only be the last token of a
    span. With `word_starts` (token i of the text begins a word) a span begins at the start of a
    word and stops before one, or at the end of the text. Raises ValueError where sizes differ.
    """
    begin = np.arange(len(ids))
    stops = begin + lengths
    if len(delimiters):
        stops = np.minimum(stops, _after_next(np.isin(ids, np.asarray(delimiters))))
    if word_starts is not None:
        words = np.asarray(word_starts, dtype=bool)
        if words.shape != ids.shape:
            raise ValueError(
                f"word_starts has {words.size} entries for {len(ids)} tokens: give one a token."
            )
        stops = np.where(words, _last_allowed(words)[stops], begin)
    before = np.maximum.accumulate(np.concatenate(([0], stops)))[:-1]
    kept = (stops > begin) & (stops > before)
    return begin[kept], stops[kept]


def _after_next(marked: Bool[np.ndarray, " n"]) -> Int64[np.ndarray, " n"]:
    """For each place the place after the next marked one, itself included; n where none follows."""
    n = len(marked)
    after = np.where(marked, np.arange(n) + 1, n)
    return np.minimum.accumulate(after[::-1])[::-1]


def _last_allowed(words: Bool[np.ndarray, " n"]) -> Int64[np.ndarray, " stop"]:
    """For each stop 0..n the last one not after it that is a word's start or the end; else 0."""
    n = len(words)
    allowed = np.where(words, np.arange(n), 0)
    return np.append(np.maximum.accumulate(allowed), n) if n else np.zeros(1, dtype=np.int64)
