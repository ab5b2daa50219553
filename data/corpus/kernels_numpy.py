"""Queries of one shard where numba is missing: all searches of a call go on side by side.

Every round of the binary searches compares eight tokens of each query that is not decided yet.
Neither directory nor inverse array is read: the answers are the same without.
"""

from __future__ import annotations

import numpy as np
from jaxtyping import Bool, Int64, UInt8

from .kernels import ABSENT, Active, Plain

Keys = Int64[np.ndarray, " n"]
Ranks = Int64[np.ndarray, " q"]

_BLOCK = 8  # tokens compared at once
_END = -1  # the key past the end of the shard: a shorter suffix comes first


def keys_of(ids: Keys, width: int) -> tuple[Keys, int]:
    """Keys of ids, and where the first negative id or separator stands (-1: nowhere)."""
    separator = (1 << (8 * width)) - 1
    keys = np.zeros_like(ids)
    for step in range(width):
        keys = (keys << 8) | ((ids >> (8 * step)) & 255)
    wrong = np.flatnonzero((ids < 0) | (ids == separator))
    return np.where(ids > separator, ABSENT, keys), int(wrong[0]) if len(wrong) else -1


def find(shard: Plain, keys: Keys) -> tuple[int, int]:
    """Ranks [lo, hi) of the suffixes that begin with `keys`; lo == hi where there are none."""
    lo, hi = find_many(shard, keys, np.array([0]), np.array([len(keys)]))
    return int(lo[0]), int(hi[0])


def find_many(shard: Plain, keys: Keys, starts: Ranks, stops: Ranks) -> tuple[Ranks, Ranks]:
    """Ranks [lo, hi) of `keys[start:stop]` for every pair."""
    lo = _bounds(shard, keys, starts, stops, upper=False)
    return lo, _bounds(shard, keys, starts, stops, upper=True)


def match(shard: Plain, keys: Keys, n_starts: int) -> Keys:
    """For the first starts the length of the longest prefix of `keys[start:]` that occurs."""
    starts = np.arange(n_starts)
    stops = np.full(n_starts, len(keys))
    ranks = _bounds(shard, keys, starts, stops, upper=False)
    longest = np.zeros(n_starts, dtype=np.int64)
    for beside in (ranks, ranks - 1):
        there = np.flatnonzero((beside >= 0) & (beside < _size(shard)))
        lengths, _ = _compare(shard, beside[there], keys, starts[there], stops[there])
        longest[there] = np.maximum(longest[there], lengths)
    return longest


def advance(
    shard: Plain,
    number: int,
    state: Active,
    out: Active,
    keys: Keys,
    starts: Ranks,
    stops: Ranks,
) -> int:
    """Fill shard `number` of `out` with the state after beam b has read its range of `keys`;
    returns the most slots that a beam uses."""
    for b in range(len(starts)):
        lo, hi, depth = (part[b, number, state.depth[b, number] > 0] for part in state)
        for key in keys[starts[b] : stops[b]]:
            lo, hi, depth = _step(shard, lo, hi, depth, key)
        for part, target in zip((lo, hi, depth), out, strict=True):
            target[b, number, : len(part)] = part
    return int((out.depth[:, number] > 0).sum(axis=1).max())


def candidates(
    shard: Plain, number: int, state: Active, keys: Int64[np.ndarray, "beam k"], min_length: int
) -> tuple[Int64[np.ndarray, "beam k"], Int64[np.ndarray, "beam k"]]:
    """Length and count of the longest suffix, of at least `min_length`, that each next key ends."""
    lengths, counts = np.zeros_like(keys), np.zeros_like(keys)
    for b in range(len(keys)):
        alone = min_length <= 1
        slots = np.append(state.depth[b, number] > 0, alone)
        lo, hi, depth = (
            np.append(part[b, number], last)[slots]
            for part, last in zip(state, (0, _size(shard), 0), strict=True)
        )
        enough = depth + 1 >= min_length
        lo, hi, depth = lo[enough], hi[enough], depth[enough]
        if not len(depth):
            continue
        first, last = _narrow(
            shard, *np.broadcast_arrays(lo[:, None], hi[:, None], depth[:, None], keys[b])
        )
        there = last > first
        deepest = there.argmax(axis=0)
        column = np.arange(keys.shape[1])
        found = there.any(axis=0)
        lengths[b] = np.where(found, depth[deepest] + 1, 0)
        counts[b] = np.where(found, (last - first)[deepest, column], 0)
    return lengths, counts


def _step(shard: Plain, lo: Ranks, hi: Ranks, depth: Ranks, key: int) -> tuple[Ranks, Ranks, Ranks]:
    """Extend the intervals of one beam by `key`, and leave out those that a longer one covers."""
    lo, hi, depth = np.append(lo, 0), np.append(hi, _size(shard)), np.append(depth, 0)
    lo, hi = _narrow(shard, lo, hi, depth, np.full_like(lo, key))
    counts = hi - lo
    longer = np.maximum.accumulate(np.concatenate(([0], counts[:-1])))
    kept = counts > longer
    return lo[kept], hi[kept], depth[kept] + 1


def _bounds(shard: Plain, keys: Keys, starts: Ranks, stops: Ranks, *, upper: bool) -> Ranks:
    """The first rank whose suffix is not smaller than each query (`upper`: is greater and does not
    begin with it)."""
    lo = np.zeros(len(starts), dtype=np.int64)
    hi = np.full(len(starts), _size(shard), dtype=np.int64)
    while len(going := np.flatnonzero(lo < hi)):
        middle = (lo[going] + hi[going]) >> 1
        _, order = _compare(shard, middle, keys, starts[going], stops[going])
        right = order < (1 if upper else 0)
        lo[going[right]] = middle[right] + 1
        hi[going[~right]] = middle[~right]
    return lo


def _compare(
    shard: Plain, ranks: Ranks, keys: Keys, starts: Ranks, stops: Ranks
) -> tuple[Ranks, Ranks]:
    """Tokens shared by suffixes and queries, and how the suffixes compare: -1 smaller, 0 it begins
    with the query, 1 greater."""
    shared, order = np.zeros(len(ranks), np.int64), np.zeros(len(ranks), np.int64)
    places = _places(shard, ranks)
    going = np.arange(len(ranks))
    while len(going):
        window = shared[going, None] + np.arange(_BLOCK)
        found = _keys_at(shard, places[going, None] + window * shard.width)
        at = starts[going, None] + window
        inside = at < stops[going, None]
        wanted = np.append(keys, _END)[np.where(inside, at, -1)]
        stop = ~inside | (found != wanted)
        first = stop.argmax(axis=1)
        row = np.arange(len(going))
        decided = stop[row, first]
        shared[going] += np.where(decided, first, _BLOCK)
        sign = np.where(found < wanted, -1, 1)[row, first]
        order[going] = np.where(decided & inside[row, first], sign, 0)
        going = going[~decided]
    return shared, order


def _narrow(
    shard: Plain,
    lo: Int64[np.ndarray, "*q"],
    hi: Int64[np.ndarray, "*q"],
    depth: Int64[np.ndarray, "*q"],
    key: Int64[np.ndarray, "*q"],
) -> tuple[Int64[np.ndarray, "*q"], Int64[np.ndarray, "*q"]]:
    """Ranks of [lo, hi), whose suffixes share `depth` tokens, that go on with `key`."""
    first = _token_bound(shard, lo, hi, depth, key)
    return first, _token_bound(shard, first, hi, depth, key + 1)


def _token_bound(
    shard: Plain,
    lo: Int64[np.ndarray, "*q"],
    hi: Int64[np.ndarray, "*q"],
    depth: Int64[np.ndarray, "*q"],
    key: Int64[np.ndarray, "*q"],
) -> Int64[np.ndarray, "*q"]:
    """The first rank of [lo, hi) whose suffix has at least `key` at `depth`, else hi."""
    lo, hi = lo.copy(), hi.copy()
    while (going := lo < hi).any():
        middle = (lo[going] + hi[going]) >> 1
        found = _keys_at(shard, _places(shard, middle) + depth[going] * shard.width)
        right = found < key[going]
        lo[going] = np.where(right, middle + 1, lo[going])
        hi[going] = np.where(right, hi[going], middle)
    return lo


def _places(shard: Plain, ranks: Int64[np.ndarray, "*q"]) -> Int64[np.ndarray, "*q"]:
    """Byte offsets of the suffixes at `ranks`."""
    places = np.zeros(ranks.shape, dtype=np.uint64)
    for step in range(shard.ratio):
        byte = shard.table[ranks * shard.ratio + step].astype(np.uint64)
        places |= byte << np.uint64(8 * step)
    return np.minimum(places, np.uint64(len(shard.data))).astype(np.int64)


def _keys_at(shard: Plain, places: Int64[np.ndarray, "*q"]) -> Int64[np.ndarray, "*q"]:
    """Keys at byte offsets, `_END` past the end of the shard."""
    inside: Bool[np.ndarray, "*q"] = places <= len(shard.data) - shard.width
    at = np.where(inside, places, 0)
    keys = np.zeros(places.shape, dtype=np.int64)
    for step in range(shard.width):
        byte: UInt8[np.ndarray, "*q"] = shard.data[at + step]
        keys = (keys << 8) | byte
    return np.where(inside, keys, _END)


def _size(shard: Plain) -> int:
    return len(shard.data) // shard.width
