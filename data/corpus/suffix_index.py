"""Queries over an index: how often, where, and in which documents a sequence of ids occurs.

Every shard is sorted on its own: counts add, and the longest match is the longest of any shard. No
match crosses documents, since a query never holds the separator that stands between them. Ids that
the index cannot hold occur nowhere. Ranks are places in the suffix array; positions are token
indices in a shard.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import NamedTuple, TypeVar

import numpy as np
from jaxtyping import Bool, Int64, Integer

from .block_cache import BlockCache
from .index_info import IndexInfo
from .index_place import side_by_side
from .joined_index import open_joined
from .kernels import KernelName, Kernels, Plain, kernels_named, plain
from .layout import DocumentRecord, ShardArrays
from .ranged_array import RangedArray, Traffic
from .remote_folder import CACHE_BYTES
from .spans import Interval, Span, maximal_ranges

Ids = Integer[np.ndarray, " n"] | Sequence[int] | bytes
Queries = Integer[np.ndarray, "q n"] | Sequence[Ids]
A = TypeVar("A")
B = TypeVar("B")


class Occurrence(NamedTuple):
    """Where a span was found: position in its shard, its document, and the place in that (the
    first token of a document is 0)."""

    shard: int
    position: int
    document: int
    offset: int


@dataclass(frozen=True, eq=False)
class DocumentText:
    """A document's ids, and where it came from (None where the index keeps that not)."""

    ids: Int64[np.ndarray, " n"]
    record: DocumentRecord | None


@dataclass(frozen=True, eq=False)
class NextTokens:
    """The tokens after a span, commonest first, and how often each follows.

    `read` of the `total` occurrences were read: all, or an even sample where `exact` is False.
    At `ends` of them the document ended.
    """

    tokens: Int64[np.ndarray, " distinct"]
    counts: Int64[np.ndarray, " distinct"]
    ends: int
    read: int
    total: int

    @property
    def exact(self) -> bool:
        """Every occurrence was read."""
        return self.read == self.total


def open_index(
    folder: str | Path | Sequence[str | Path],
    *,
    kernels: KernelName = "auto",
    verify: bool = False,
    vocab_size: int | None = None,
    cache_bytes: int = CACHE_BYTES,
) -> SuffixIndex:
    """Open an index for queries: a folder, a URL (`s3://bucket/ix`, `https://...`), or several of
    them as one, parts and joined indexes too; `verify` checks the hashes of all files first.

    What lies elsewhere is read in ranges, of which the latest `cache_bytes` are kept.
    `vocab_size` is wanted for an index of infini-gram's with four-byte ids and no counts.

    Raises FileNotFoundError for a missing folder or file, ValueError for damage and for indexes of
    different tokens, ImportError where `kernels="numba"` is asked for and numba is missing, or the
    package for a protocol; PermissionError and ConnectionError where something cannot be read.
    """
    info, shards = open_joined(
        folder, verify=verify, vocab_size=vocab_size, cache=BlockCache(cache_bytes)
    )
    return SuffixIndex(info, shards, kernels)


@dataclass(frozen=True, eq=False)
class SuffixIndex:
    """An open index. Queries are ids (in mode "bytes" also `bytes`), never the separator."""

    info: IndexInfo
    shards: tuple[ShardArrays, ...]
    kernel_name: KernelName = "auto"

    @cached_property
    def kernels(self) -> Kernels:
        """The back end that answers."""
        return kernels_named(self.kernel_name, remote=self.remote)

    @cached_property
    def remote(self) -> bool:
        """Whether any of the index lies elsewhere and is read in ranges."""
        return any(shard.remote for shard in self.shards)

    @property
    def traffic(self) -> Traffic:
        """Ranged reads so far; none where the index is here."""
        arrays = (shard.tokens for shard in self.shards)
        found = {
            id(a.source.traffic): a.source.traffic for a in arrays if isinstance(a, RangedArray)
        }
        return sum(found.values(), Traffic())

    @cached_property
    def plain(self) -> tuple[Plain, ...]:
        """The shards as the kernels read them."""
        return tuple(self._each(lambda shard: plain(shard, self.info.vocab_size), self.shards))

    @property
    def n_tokens(self) -> int:
        """Tokens of all shards, separators included."""
        return self.info.n_tokens

    @cached_property
    def unigram_counts(self) -> Int64[np.ndarray, " vocab"]:
        """How often each id occurs, separators left out. Raises ValueError where that would be the
        download of an index of tokens that keeps no counts."""
        size = self.info.vocab_size
        if self.remote and self.info.mode == "bytes":
            return self.count_many(np.arange(size)[:, None])  # as many reads as there are bytes
        parts = self._each(lambda shard: shard.unigram_counts(size), self.shards)
        return np.stack(parts).sum(axis=0)

    def keys(self, ids: Ids) -> Int64[np.ndarray, " n"]:
        """Ids as the kernels compare them. Raises ValueError for the separator and for what is no
        sequence of ids."""
        if isinstance(ids, bytes) and self.info.mode != "bytes":
            raise ValueError("this index is over token ids, not over bytes: give the ids.")
        array = as_ids(ids)
        keys, wrong = self.kernels.keys_of(array, self.info.width)
        if wrong >= 0:
            raise ValueError(self._refusal(int(array[wrong]), wrong))
        return keys

    def find(self, ids: Ids) -> tuple[Interval, ...]:
        """Per shard the ranks whose suffixes begin with `ids`; no ids are found at every rank."""
        keys, find = self.keys(ids), self.kernels.find
        return tuple(self._each(lambda shard: Interval(*find(shard, keys)), self.plain))

    def count(self, ids: Ids) -> int:
        """How often `ids` occur."""
        if self.remote:
            return sum(interval.size for interval in self.find(ids))
        keys, count = self.keys(ids), 0
        for shard in self.plain:
            lo, hi = self.kernels.find(shard, keys)
            count += hi - lo
        return count

    def count_many(self, queries: Queries) -> Int64[np.ndarray, " q"]:
        """How often each query occurs; queries may differ in length."""
        parts = [as_ids(query) for query in queries]
        stops = np.cumsum([len(part) for part in parts], dtype=np.int64)
        starts = np.concatenate((np.zeros(1, np.int64), stops))[: len(stops)]
        flat = np.concatenate([np.zeros(0, np.int64), *parts])
        found = self._find_ranges(self.keys(flat), starts, stops)
        return np.stack([hi - lo for lo, hi in found]).sum(axis=0)

    def locate(self, ids: Ids, limit: int = 10, seed: int = 0) -> tuple[Occurrence, ...]:
        """At most `limit` places where `ids` occur; see `occurrences`."""
        return self.occurrences(self.find(ids), limit, seed)

    def occurrences(
        self, intervals: Sequence[Interval], limit: int = 10, seed: int = 0
    ) -> tuple[Occurrence, ...]:
        """At most `limit` places of the intervals (one a shard), all where there are no more.

        Otherwise one is drawn from each of `limit` equal parts of the ranks, so that different
        continuations are seen; the intervals are never listed. Same seed, same places.
        """
        ranks = list(enumerate(_sampled(intervals, limit, seed)))
        positions = self._each(lambda one: self._positions(*one), ranks)
        found = [(number, int(p)) for number, here in enumerate(positions) for p in here]
        return tuple(self._each(lambda one: self._occurrence(*one), found))

    def document(self, shard: int, document: int) -> DocumentText:
        """A document's ids and record. Raises IndexError outside the index."""
        start, stop = self._shard(shard).document_span(document)
        ids = self.shards[shard].tokens[start:stop].astype(np.int64)
        return DocumentText(ids, self.shards[shard].record(document))

    def context(self, where: Occurrence, before: int, after: int) -> Int64[np.ndarray, " n"]:
        """The ids from `before` tokens before an occurrence to `after` tokens from its start on,
        within its document. The occurrence begins at `min(before, where.offset)` of them."""
        shard = self._shard(where.shard)
        start, stop = shard.document_span(where.document)
        lo, hi = max(start, where.position - before), min(stop, where.position + after)
        return shard.tokens[lo:hi].astype(np.int64)

    def next_tokens(self, ids: Ids, *, limit: int = 100_000, seed: int = 0) -> NextTokens:
        """Which tokens follow `ids`, from all occurrences or from an even sample of `limit`.

        Where the index lies elsewhere each occurrence is a read: give a smaller limit.
        """
        keys = self.keys(ids)
        intervals = self.find(ids)
        following = [
            self._tokens_at(number, self._positions(number, ranks) + len(keys))
            for number, ranks in enumerate(_sampled(intervals, limit, seed))
        ]
        tokens, counts = np.unique(np.concatenate(following), return_counts=True)
        real = tokens != self.info.separator
        order = np.argsort(-counts[real], kind="stable")
        return NextTokens(
            tokens=tokens[real][order],
            counts=counts[real][order].astype(np.int64),
            ends=int(counts[~real].sum()),
            read=int(counts.sum()),
            total=sum(interval.size for interval in intervals),
        )

    def longest_prefix(self, ids: Ids) -> int:
        """How many of the first tokens of `ids` occur as they stand."""
        keys = self.keys(ids)
        starts = min(1, len(keys))
        found = self._each(lambda shard: self.kernels.match(shard, keys, starts), self.plain)
        return int(np.max(found, initial=0))

    def matching_statistics(self, ids: Ids) -> Int64[np.ndarray, " n"]:
        """For every start in `ids` the length of the longest match that begins there, in any shard
        (Chang and Lawler 1994)."""
        return self._match(self.keys(ids))

    def maximal_spans(
        self,
        ids: Ids,
        *,
        min_length: int = 1,
        max_count: int | None = None,
        word_starts: Bool[np.ndarray, " n"] | None = None,
        delimiters: Sequence[int] = (),
    ) -> tuple[Span, ...]:
        """Spans of `ids` that occur and lie in no longer one, in text order; see `maximal_ranges`.

        Of these are kept the ones of at least `min_length` tokens that occur at most `max_count`
        times.
        """
        array = as_ids(ids)
        keys = self.keys(array)
        starts, stops = maximal_ranges(
            self._match(keys), array, word_starts=word_starts, delimiters=delimiters
        )
        long = stops - starts >= min_length
        starts, stops = starts[long], stops[long]
        found = self._find_ranges(keys, starts, stops)
        spans = []
        for i, (start, stop) in enumerate(zip(starts.tolist(), stops.tolist(), strict=True)):
            intervals = tuple(Interval(int(lo[i]), int(hi[i])) for lo, hi in found)
            count = sum(interval.size for interval in intervals)
            if max_count is None or count <= max_count:
                spans.append(Span(start, stop, count, intervals))
        return tuple(spans)

    def _match(self, keys: Int64[np.ndarray, " n"]) -> Int64[np.ndarray, " n"]:
        found = self._each(lambda shard: self.kernels.match(shard, keys, len(keys)), self.plain)
        return np.maximum.reduce(found)

    def _find_ranges(
        self,
        keys: Int64[np.ndarray, " n"],
        starts: Int64[np.ndarray, " q"],
        stops: Int64[np.ndarray, " q"],
    ) -> list[tuple[Int64[np.ndarray, " q"], Int64[np.ndarray, " q"]]]:
        find_many = self.kernels.find_many
        return self._each(lambda shard: find_many(shard, keys, starts, stops), self.plain)

    def _each(self, work: Callable[[A], B], items: Sequence[A]) -> list[B]:
        """`work` on every item; where it waits for reads, side by side."""
        return side_by_side(work, items) if self.remote else [work(item) for item in items]

    def _positions(
        self, number: int, ranks: Int64[np.ndarray, " rank"]
    ) -> Int64[np.ndarray, " rank"]:
        """Positions of the suffixes at `ranks` of a shard."""
        shard = self.shards[number]
        places = np.zeros((len(ranks), 8), dtype=np.uint8)
        places[:, : shard.ratio] = shard.table[ranks]
        return places.view("<u8")[:, 0].astype(np.int64) // shard.width

    def _tokens_at(
        self, number: int, positions: Int64[np.ndarray, " n"]
    ) -> Int64[np.ndarray, " n"]:
        """Ids at positions, the separator past the end of the shard."""
        tokens = self.shards[number].tokens
        found = tokens[np.minimum(positions, len(tokens) - 1)].astype(np.int64)
        return np.where(positions < len(tokens), found, self.info.separator)

    def _occurrence(self, number: int, position: int) -> Occurrence:
        shard = self.shards[number]
        document = shard.document_of(position)
        return Occurrence(number, position, document, position - shard.document_span(document)[0])

    def _shard(self, number: int) -> ShardArrays:
        if not 0 <= number < len(self.shards):
            raise IndexError(f"there is no shard {number}: the index has {len(self.shards)}.")
        return self.shards[number]

    def _refusal(self, token: int, at: int) -> str:
        if token < 0:
            return f"id {token} at place {at} of the query is negative: give token ids."
        return (
            f"id {token} at place {at} of the query is the separator between documents, which no "
            "document holds: leave it out, or query the parts before and after it."
        )


def as_ids(ids: Ids) -> Int64[np.ndarray, " n"]:
    """One sequence of ids as an array."""
    if isinstance(ids, bytes):
        return np.frombuffer(ids, dtype=np.uint8).astype(np.int64)
    array = np.asarray(ids)
    if array.dtype != np.int64:
        if array.size and array.dtype.kind not in "iu":
            raise ValueError(f"a query is a sequence of ids, got {type(ids).__name__} {ids!r:.40}.")
        array = array.astype(np.int64)
    if array.ndim != 1:
        raise ValueError(f"a query is one sequence of ids, got an array of shape {array.shape}.")
    return np.ascontiguousarray(array)


def _sampled(
    intervals: Sequence[Interval], limit: int, seed: int
) -> list[Int64[np.ndarray, " rank"]]:
    """Per shard at most `limit` ranks in all, one from each equal part of the intervals."""
    ends = np.cumsum([interval.size for interval in intervals], dtype=np.int64)
    total = int(ends[-1])
    if total <= limit:
        return [np.arange(interval.lo, interval.hi) for interval in intervals]
    edges = np.array([i * total // limit for i in range(limit + 1)], dtype=np.int64)
    chosen = np.random.default_rng(seed).integers(edges[:-1], edges[1:])
    shards = np.searchsorted(ends, chosen, side="right")
    inside = chosen - np.concatenate(([0], ends))[shards]
    return [one.lo + inside[shards == number] for number, one in enumerate(intervals)]
