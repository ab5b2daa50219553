"""Queries of one shard where numba is missing or the files lie elsewhere: all searches of a call
go on side by side.

A search begins between the ranks that the counts of the first token and the directory leave, and
every round compares eight tokens of each query that is not decided yet. Elsewhere a round takes as
long as a read, so that there each looks at several ranks of a query at once. The inverse array is
not read: the answers are the same without.
"""

from __future__ import annotations

import numpy as np
from jaxtyping import Bool, Int64, UInt64

from .kernels import ABSENT, Active, Plain
from .layout import DIRECTORY_STRIDE, PREFIX_BYTES
from .ranged_array import RangedArray

Keys = Int64[np.ndarray, " n"]
Ranks = Int64[np.ndarray, " q"]

_BLOCK = 8  # tokens compared at once
_FAN = 3  # ranks of a query looked at in a round, where the files lie elsewhere
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
    column = np.arange(keys.shape[1])
    for b in range(len(keys)):
        slots = (state.depth[b, number] > 0) & (state.depth[b, number] + 1 >= min_length)
        lo, hi, depth = (part[b, number][slots] for part in state)
        first, last = _narrow(
            shard, *np.broadcast_arrays(lo[:, None], hi[:, None], depth[:, None], keys[b])
        )
        if min_length <= 1:
            alone = find_many(shard, keys[b], column, column + 1)
            first, last = np.vstack([first, alone[0]]), np.vstack([last, alone[1]])
            depth = np.append(depth, 0)
        there = last > first
        if not len(there):
            continue
        deepest, found = there.argmax(axis=0), there.any(axis=0)
        lengths[b] = np.where(found, depth[deepest] + 1, 0)
        counts[b] = np.where(found, (last - first)[deepest, column], 0)
    return lengths, counts


def _step(shard: Plain, lo: Ranks, hi: Ranks, depth: Ranks, key: int) -> tuple[Ranks, Ranks, Ranks]:
    """Extend the intervals of one beam by `key`, and leave out those that a longer one covers."""
    lo, hi = _narrow(shard, lo, hi, depth, np.full_like(lo, key))
    alone = find(shard, np.array([key]))
    lo, hi, depth = np.append(lo, alone[0]), np.append(hi, alone[1]), np.append(depth, 0)
    counts = hi - lo
    longer = np.maximum.accumulate(np.concatenate(([0], counts[:-1])))
    kept = counts > longer
    return lo[kept], hi[kept], depth[kept] + 1


def _bounds(shard: Plain, keys: Keys, starts: Ranks, stops: Ranks, *, upper: bool) -> Ranks:
    """The first rank whose suffix is not smaller than each query (`upper`: is greater and does not
    begin with it)."""
    lo, hi = _known(shard, keys, starts, stops, upper=upper)
    fan = _FAN if isinstance(shard.data, RangedArray) else 1
    while len(going := np.flatnonzero(lo < hi)):
        probes = _probes(lo[going], hi[going], fan)
        begin, end = np.repeat(starts[going], fan), np.repeat(stops[going], fan)
        _, order = _compare(shard, probes.reshape(-1), keys, begin, end)
        before = (order < (1 if upper else 0)).reshape(-1, fan)
        passed = np.where(before.all(axis=1), fan, before.argmin(axis=1))
        row = np.arange(len(going))
        last, first = np.maximum(passed - 1, 0), np.minimum(passed, fan - 1)
        lo[going] = np.where(passed > 0, probes[row, last] + 1, lo[going])
        hi[going] = np.where(passed < fan, probes[row, first], hi[going])
    return lo


def _probes(lo: Ranks, hi: Ranks, fan: int) -> Int64[np.ndarray, "q fan"]:
    """The ranks that cut [lo, hi) into `fan + 1` equal parts."""
    return lo[:, None] + (hi - lo)[:, None] * np.arange(1, fan + 1) // (fan + 1)


def _known(
    shard: Plain, keys: Keys, starts: Ranks, stops: Ranks, *, upper: bool
) -> tuple[Ranks, Ranks]:
    """Ranks [lo, hi] between which each bound lies, as far as no suffix need be looked at."""
    lo = np.zeros(len(starts), dtype=np.int64)
    hi = np.full(len(starts), _size(shard), dtype=np.int64)
    begun = np.flatnonzero(stops > starts)
    if not len(begun):
        return (hi if upper else lo), hi if upper else lo.copy()
    if len(shard.directory):
        lo[begun], hi[begun] = _from_directory(shard, keys, starts[begun], stops[begun], upper)
    lo[starts == stops] = _size(shard) if upper else 0
    hi[starts == stops] = _size(shard) if upper else 0
    if len(shard.total):
        tokens = _tokens(keys[starts[begun]], shard.width)
        listed = (keys[starts[begun]] != ABSENT) & (tokens < len(shard.total))
        at, token = begun[listed], tokens[listed]
        first, last = shard.first[token], shard.first[token] + shard.total[token]
        alone = stops[at] - starts[at] == 1
        lo[at] = np.maximum(lo[at], np.where(alone & upper, last, first))
        hi[at] = np.minimum(hi[at], np.where(alone & (not upper), first, last))
    return lo, hi


def _from_directory(
    shard: Plain, keys: Keys, starts: Ranks, stops: Ranks, upper: bool
) -> tuple[Ranks, Ranks]:
    """The same from every 512th suffix's first eight bytes.

    A suffix with a smaller key than the query's (filled up with zeros) comes before it; with a
    greater one than the query's (filled up with ones) it comes after all that begin with it.
    """
    bits = np.full(len(starts), 8 * PREFIX_BYTES)
    key, ones = np.zeros(len(starts), np.uint64), np.full(len(starts), upper)
    going = np.ones(len(starts), dtype=bool)
    for step in range(PREFIX_BYTES // shard.width):
        going &= starts + step < stops
        found = keys[np.where(going, starts + step, 0)]
        ones |= going & (found == ABSENT)  # an id that no width holds: after all others
        going &= found != ABSENT
        bits = np.where(going, bits - 8 * shard.width, bits)
        shifted = found.astype(np.uint64) << np.minimum(bits, 63).astype(np.uint64)
        key |= np.where(going, shifted, np.uint64(0))
    rest = np.where(bits < 64, (np.uint64(1) << np.minimum(bits, 63).astype(np.uint64)), 0)
    filled = key | np.where(bits < 64, rest - np.uint64(1), ~np.uint64(0))
    key = np.where(ones, filled, key)
    decided = ones & (bits > 0)  # then equal keys come before the bound, too
    below = _first_key(shard, key, after=decided)
    above = _first_key(shard, key, after=np.ones(len(key), dtype=bool))
    lo = np.where(below > 0, (below - 1) * DIRECTORY_STRIDE + 1, 0)
    return lo, np.minimum(above * DIRECTORY_STRIDE, _size(shard))


def _first_key(
    shard: Plain, wanted: UInt64[np.ndarray, " q"], after: Bool[np.ndarray, " q"]
) -> Ranks:
    """The first place of the directory with a key that is at least `wanted` (`after`: greater)."""
    lo = np.zeros(len(wanted), dtype=np.int64)
    hi = np.full(len(wanted), len(shard.directory), dtype=np.int64)
    while len(going := np.flatnonzero(lo < hi)):
        middle = (lo[going] + hi[going]) >> 1
        found = shard.directory[middle]
        right = np.where(after[going], found <= wanted[going], found < wanted[going])
        lo[going[right]] = middle[right] + 1
        hi[going[~right]] = middle[~right]
    return lo


def _tokens(keys: Keys, width: int) -> Keys:
    """The ids that keys stand for."""
    tokens = np.zeros_like(keys)
    for step in range(width):
        tokens |= ((keys >> (8 * step)) & 255) << (8 * (width - 1 - step))
    return tokens


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
    raw = shard.table[ranks[..., None] * shard.ratio + np.arange(shard.ratio)]
    places = np.zeros(ranks.shape, dtype=np.uint64)
    for step in range(shard.ratio):
        places |= raw[..., step].astype(np.uint64) << np.uint64(8 * step)
    return np.minimum(places, np.uint64(len(shard.data))).astype(np.int64)


def _keys_at(shard: Plain, places: Int64[np.ndarray, "*q"]) -> Int64[np.ndarray, "*q"]:
    """Keys at byte offsets, `_END` past the end of the shard."""
    inside: Bool[np.ndarray, "*q"] = places <= len(shard.data) - shard.width
    raw = shard.data[np.where(inside, places, 0)[..., None] + np.arange(shard.width)]
    keys = np.zeros(places.shape, dtype=np.int64)
    for step in range(shard.width):
        keys = (keys << 8) | raw[..., step]
    return np.where(inside, keys, _END)


def _size(shard: Plain) -> int:
    return len(shard.data) // shard.width
