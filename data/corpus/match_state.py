"""Matches of texts that are still being written: one step a token, for beams that fork.

The state of a beam are the ranks of every suffix of its text that occurs. Those suffixes are sorted
by their next token within the ranks, so a step is a binary search in each that compares one token a
probe, whatever the length of the text.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Int64, Integer

from .kernels import Active
from .spans import Interval
from .suffix_index import Ids, SuffixIndex, as_ids


def start(index: SuffixIndex, beams: int = 1) -> MatchState:
    """The state of `beams` empty texts."""
    nothing = np.zeros((beams, len(index.shards), 1), dtype=np.int64)
    return MatchState(index, Active(nothing, nothing, nothing), 0)


@dataclass(frozen=True, eq=False)
class MatchState:
    """What of the ends of some texts occurs in the index. Every method gives a new state.

    `active` holds at most `slots` suffixes a beam and shard, deepest first. There is one for every
    distinct count, so there are few, but for texts of one repeated token; each takes 24 bytes.
    """

    index: SuffixIndex
    active: Active
    slots: int

    @property
    def beams(self) -> int:
        """How many texts."""
        return len(self.active.depth)

    @property
    def longest(self) -> Int64[np.ndarray, " beam"]:
        """Tokens of the longest suffix of each text that occurs, 0 for none."""
        return self.active.depth[:, :, 0].max(axis=1)

    @property
    def counts(self) -> Int64[np.ndarray, " beam"]:
        """How often the longest suffix of each text occurs, 0 for none."""
        lo, hi, depth = (part[:, :, 0] for part in self.active)
        deepest = (depth > 0) & (depth == self.longest[:, None])
        return np.where(deepest, hi - lo, 0).sum(axis=1)

    def intervals(self, beam: int) -> tuple[Interval, ...]:
        """Per shard the ranks of the longest suffix of a text, for `SuffixIndex.occurrences`."""
        deepest = int(self.longest[beam])
        lo, hi, depth = (part[beam, :, 0].tolist() for part in self.active)
        return tuple(
            Interval(a, b) if d == deepest > 0 else Interval(0, 0)
            for a, b, d in zip(lo, hi, depth, strict=True)
        )

    def advance(self, tokens: Integer[np.ndarray, " beam"] | Sequence[int]) -> MatchState:
        """The state after one more token a text. Raises ValueError unless there is one for each."""
        keys = self.index.keys(tokens)
        return self._read(keys, np.arange(len(keys)), np.arange(1, len(keys) + 1))

    def extend(self, pieces: Sequence[Ids]) -> MatchState:
        """The state after each text has read its own piece, of any length (the bytes of a token,
        where the index is over bytes). Raises ValueError unless there is a piece for each."""
        parts = [as_ids(piece) for piece in pieces]
        stops = np.cumsum([len(part) for part in parts], dtype=np.int64)
        starts = stops - np.array([len(part) for part in parts], dtype=np.int64)
        keys = self.index.keys(np.concatenate([np.zeros(0, np.int64), *parts]))
        return self._read(keys, starts, stops)

    def fork(self, order: Integer[np.ndarray, " new"] | Sequence[int]) -> MatchState:
        """The state whose text i is the text `order[i]` of this one: re-ordered beams, copies."""
        chosen = np.asarray(order, dtype=np.int64)
        return MatchState(self.index, Active(*(part[chosen] for part in self.active)), self.slots)

    def candidates(
        self, tokens: Integer[np.ndarray, "beam k"], min_length: int = 1
    ) -> tuple[Int64[np.ndarray, "beam k"], Int64[np.ndarray, "beam k"]]:
        """For each next token the length of the longest suffix of the text with it that occurs, and
        how often; 0 and 0 where that is shorter than `min_length`. The state stays as it is."""
        wanted = np.asarray(tokens, dtype=np.int64)
        if wanted.ndim != 2 or len(wanted) != self.beams:
            raise ValueError(f"candidates of {self.beams} texts, got shape {wanted.shape}.")
        keys = self.index.keys(wanted.reshape(-1)).reshape(wanted.shape)
        longest, count = np.zeros_like(keys), np.zeros_like(keys)
        for number, shard in enumerate(self.index.plain):
            length, found = self.index.kernels.candidates(
                shard, number, self.active, keys, min_length
            )
            count = np.where(length > longest, found, count + found * (length == longest))
            longest = np.maximum(longest, length)
        return longest, count

    def _read(
        self,
        keys: Int64[np.ndarray, " n"],
        starts: Int64[np.ndarray, " beam"],
        stops: Int64[np.ndarray, " beam"],
    ) -> MatchState:
        if len(starts) != self.beams:
            raise ValueError(f"the state holds {self.beams} texts, got tokens for {len(starts)}.")
        most = int((stops - starts).max(initial=0))
        shape = (3, self.beams, len(self.index.shards), max(1, self.slots + most))
        out = Active(*np.zeros(shape, dtype=np.int64))
        slots = 0
        for number, shard in enumerate(self.index.plain):
            used = self.index.kernels.advance(shard, number, self.active, out, keys, starts, stops)
            slots = max(slots, used)
        return MatchState(self.index, out, slots)
