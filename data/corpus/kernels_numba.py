"""Queries of one shard, compiled: binary search over the suffixes with the lengths that both
bounds are known to share with the query (Manber and Myers 1993), begun in the directory.

No table entry is trusted: a place past the end of the data compares as an empty suffix, so a
damaged index gives wrong answers but no crash. Indices are unsigned, since numba would wrap signed
ones, and since mixing signs would make them float64.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import numpy as np
from jaxtyping import Int64
from numba import njit  # type: ignore[import-untyped]

from .kernels import ABSENT, Active, Plain
from .layout import DIRECTORY_STRIDE, PREFIX_BYTES
from .ranged_array import Stored

F = TypeVar("F", bound=Callable[..., object])
_jit: Callable[[F], F] = njit(cache=True, nogil=True)

Keys = Int64[np.ndarray, " n"]
U = np.uint64
_ONES = U((1 << 64) - 1)
_UPWARD = 8  # factor of the steps by which the end of an interval is sought


@_jit
def keys_of(ids: Keys, width: int) -> tuple[Keys, int]:
    """Keys of ids, and where the first negative id or separator stands (-1: nowhere)."""
    separator = (np.int64(1) << (8 * width)) - 1
    keys = np.empty(len(ids), np.int64)
    wrong = -1
    for i in range(len(ids)):
        token = ids[i]
        if (token < 0 or token == separator) and wrong < 0:
            wrong = i
        keys[i] = ABSENT if token > separator else _reversed(token, width)
    return keys, wrong


@_jit
def find(shard: Plain, keys: Keys) -> tuple[int, int]:
    """Ranks [lo, hi) of the suffixes that begin with `keys`; lo == hi where there are none."""
    return _find(shard, keys, 0, len(keys))


@_jit
def find_many(
    shard: Plain,
    keys: Keys,
    starts: Int64[np.ndarray, " q"],
    stops: Int64[np.ndarray, " q"],
) -> tuple[Int64[np.ndarray, " q"], Int64[np.ndarray, " q"]]:
    """Ranks [lo, hi) of `keys[start:stop]` for every pair."""
    lo, hi = np.empty(len(starts), np.int64), np.empty(len(starts), np.int64)
    for i in range(len(starts)):
        lo[i], hi[i] = _find(shard, keys, starts[i], stops[i])
    return lo, hi


@_jit
def match(shard: Plain, keys: Keys, n_starts: int) -> Keys:
    """For the first starts the length of the longest prefix of `keys[start:]` that occurs.

    With an inverse array the search for the next start begins at the rank of the place one token
    on from the best match, which shares all but one of its tokens.
    """
    n, ranks = len(keys), _ranks(shard)
    lengths = np.zeros(n_starts, np.int64)
    near, shared = -1, 0
    for i in range(n_starts):
        if near >= 0:
            below, above, left, right = _around(shard, keys, i, n, near, shared)
        else:
            below, above = _bracket(shard, keys, i, n, False)
            left, right = 0, 0
        rank, left, right = _bound(shard, keys, i, n, below, above, left, right, False)
        best, at = 0, -1
        if rank < ranks:
            best, at = _compare(shard, rank, keys, i, n, right)[0], rank
        if rank > 0:
            length = _compare(shard, rank - 1, keys, i, n, left)[0]
            if length > best:
                best, at = length, rank - 1
        lengths[i] = best
        near, shared = _next_rank(shard, at, best), best - 1
    return lengths


@_jit
def advance(
    shard: Plain,
    number: int,
    state: Active,
    out: Active,
    keys: Keys,
    starts: Int64[np.ndarray, " beam"],
    stops: Int64[np.ndarray, " beam"],
) -> int:
    """Fill shard `number` of `out` with the state after beam b has read its range of `keys`;
    returns the most slots that a beam uses.

    `out` has a slot more than `state` for each token read; its depths are zero.
    """
    most = 0
    for b in range(len(starts)):
        used = 0
        while used < state.depth.shape[2] and state.depth[b, number, used] > 0:
            out.lo[b, number, used] = state.lo[b, number, used]
            out.hi[b, number, used] = state.hi[b, number, used]
            out.depth[b, number, used] = state.depth[b, number, used]
            used += 1
        for i in range(starts[b], stops[b]):
            used = _step(
                shard, out.lo[b, number], out.hi[b, number], out.depth[b, number], used, keys, i
            )
        most = max(most, used)
    return most


@_jit
def candidates(
    shard: Plain, number: int, state: Active, keys: Int64[np.ndarray, "beam k"], min_length: int
) -> tuple[Int64[np.ndarray, "beam k"], Int64[np.ndarray, "beam k"]]:
    """Length and count of the longest suffix, of at least `min_length`, that each next key ends."""
    lengths, counts = np.zeros(keys.shape, np.int64), np.zeros(keys.shape, np.int64)
    for b in range(keys.shape[0]):
        for j in range(keys.shape[1]):
            for slot in range(state.depth.shape[2]):
                depth = state.depth[b, number, slot]
                if depth == 0 or depth + 1 < min_length:
                    break
                lo, hi = state.lo[b, number, slot], state.hi[b, number, slot]
                lo, hi = _narrow(shard, lo, hi, depth, keys[b, j])
                if lo < hi:
                    lengths[b, j], counts[b, j] = depth + 1, hi - lo
                    break
            if lengths[b, j] == 0 and min_length <= 1:
                lo, hi = _find(shard, keys[b], j, j + 1)
                if lo < hi:
                    lengths[b, j], counts[b, j] = 1, hi - lo
    return lengths, counts


@_jit
def _step(shard: Plain, lo: Keys, hi: Keys, depth: Keys, used: int, keys: Keys, i: int) -> int:
    """Extend the first `used` intervals of one beam by `keys[i]`; returns how many are left."""
    kept, most = 0, 0
    for slot in range(used):
        below, above = _narrow(shard, lo[slot], hi[slot], depth[slot], keys[i])
        if above - below > most:
            lo[kept], hi[kept], depth[kept] = below, above, depth[slot] + 1
            kept, most = kept + 1, above - below
    below, above = _find(shard, keys, i, i + 1)
    if above - below > most:
        lo[kept], hi[kept], depth[kept] = below, above, 1
        kept += 1
    for slot in range(kept, used):
        depth[slot] = 0
    return kept


@_jit
def _find(shard: Plain, keys: Keys, start: int, stop: int) -> tuple[int, int]:
    ranks = _ranks(shard)
    if start == stop:
        return 0, ranks
    if stop - start == 1 and keys[start] != ABSENT:
        token = _reversed(keys[start], shard.width)
        if token < len(shard.total):
            first = shard.first[U(token)]
            return first, first + shard.total[U(token)]
    below, above = _bracket(shard, keys, start, stop, False)
    lo, _, right = _bound(shard, keys, start, stop, below, above, 0, 0, False)
    if lo == ranks or _compare(shard, lo, keys, start, stop, right)[1] != 0:
        return lo, lo
    below, above = _bracket(shard, keys, start, stop, True)
    below, step = max(below, lo), 1  # this suffix begins with the query
    while below + step < above:
        if _compare(shard, below + step, keys, start, stop, 0)[1] > 0:
            above = below + step
            break
        below += step
        step *= _UPWARD
    return lo, _bound(shard, keys, start, stop, below, above, stop - start, 0, True)[0]


@_jit
def _bound(
    shard: Plain,
    keys: Keys,
    start: int,
    stop: int,
    below: int,
    above: int,
    left: int,
    right: int,
    upper: bool,
) -> tuple[int, int, int]:
    """The first rank whose suffix is not smaller than the query (`upper`: that is greater and does
    not begin with it), and what the suffixes before and at it are known to share with the query.

    Rank `below` is known to come before the bound (-1: none), `above` not (the number of ranks:
    none); they share `left` and `right` tokens with the query.
    """
    while above - below > 1:
        middle = (below + above) >> 1
        length, order = _compare(shard, middle, keys, start, stop, min(left, right))
        if order < 0 or (upper and order == 0):
            below, left = middle, length
        else:
            above, right = middle, length
    return above, left, right


@_jit
def _around(
    shard: Plain, keys: Keys, start: int, stop: int, near: int, shared: int
) -> tuple[int, int, int, int]:
    """Ranks below and above the lower bound, found from rank `near` in doubling steps."""
    ranks = _ranks(shard)
    length, order = _compare(shard, near, keys, start, stop, shared)
    step = 1
    if order < 0:
        below, left = near, length
        while below + step < ranks:
            length, order = _compare(shard, below + step, keys, start, stop, 0)
            if order >= 0:
                return below, below + step, left, length
            below, left = below + step, length
            step *= 2
        return below, ranks, left, 0
    above, right = near, length
    while above - step >= 0:
        length, order = _compare(shard, above - step, keys, start, stop, 0)
        if order < 0:
            return above - step, above, length, right
        above, right = above - step, length
        step *= 2
    return -1, above, 0, right


@_jit
def _next_rank(shard: Plain, rank: int, shared: int) -> Any:
    """The rank of the suffix one token shorter, or -1 where that is no good place to begin."""
    if len(shard.inverse) == 0 or shared < 2:
        return -1
    position = _place(shard, rank) // U(shard.width) + U(1)
    if position >= U(len(shard.inverse)):
        return -1
    found = np.int64(shard.inverse[position])
    return found if found < _ranks(shard) else -1


@_jit
def _bracket(shard: Plain, keys: Keys, start: int, stop: int, upper: bool) -> tuple[int, int]:
    """Ranks below and above a bound that the directory knows, by the query's first eight bytes."""
    size = len(shard.directory)
    if size == 0:
        return -1, _ranks(shard)
    key, bits = U(0), 64
    open_end = upper
    for i in range(start, min(stop, start + PREFIX_BYTES // shard.width)):
        if keys[i] == ABSENT:
            open_end = True
            break
        bits -= 8 * shard.width
        key |= U(keys[i]) << U(bits)
    if open_end and bits:
        key |= _ONES >> U(64 - bits)
    first = _lower_key(shard.directory, 0, size, key)
    after = first
    while after < size and shard.directory[U(after)] == key and after < first + 4:
        after += 1
    if after == first + 4:
        after = size if key == _ONES else _lower_key(shard.directory, first, size, key + U(1))
    above = _ranks(shard) if after == size else after * DIRECTORY_STRIDE
    return (first - 1) * DIRECTORY_STRIDE if first else -1, above


@_jit
def _lower_key(directory: Stored, lo: int, hi: int, key: np.uint64) -> int:
    """The first place in [lo, hi) with at least `key`, else hi."""
    while lo < hi:
        middle = (lo + hi) >> 1
        if directory[U(middle)] < key:
            lo = middle + 1
        else:
            hi = middle
    return lo


@_jit
def _narrow(shard: Plain, lo: int, hi: int, depth: int, key: int) -> tuple[int, int]:
    """Ranks of [lo, hi), whose suffixes share `depth` tokens, that go on with `key`.

    They are sorted by that token, so one token a probe is compared.
    """
    if key == ABSENT:
        return hi, hi
    below, above, last, end = _narrow_bracket(shard, lo, hi, depth, key)
    while above - below > 1:
        middle = (below + above) >> 1
        if _key_at(shard, middle, depth) < key:
            below = middle
        else:
            above = middle
    first = above
    if first == hi or _key_at(shard, first, depth) != key:
        return first, first
    last, step = max(last, first), 1
    while last + step < end:
        if _key_at(shard, last + step, depth) != key:
            end = last + step
            break
        last += step
        step *= _UPWARD
    while end - last > 1:
        middle = (last + end) >> 1
        if _key_at(shard, middle, depth) != key:
            end = middle
        else:
            last = middle
    return first, end


@_jit
def _narrow_bracket(
    shard: Plain, lo: int, hi: int, depth: int, key: int
) -> tuple[int, int, int, int]:
    """Ranks below and above both bounds of `_narrow`, as far as the directory knows.

    A directory key that stands for fewer tokens (the end of the shard) can only be at `lo`, the
    shortest suffix of all that share `depth` tokens, and that one is not looked at.
    """
    bits = 64 - 8 * shard.width * (depth + 1)
    first, stop = lo // DIRECTORY_STRIDE + 1, (hi - 1) // DIRECTORY_STRIDE + 1
    if bits < 0 or len(shard.directory) == 0 or first >= stop:
        return lo - 1, hi, lo, hi
    smallest = U(key) << U(bits)
    for i in range(depth):
        smallest |= U(_key_at(shard, lo, i)) << U(64 - 8 * shard.width * (i + 1))
    after = smallest + (U(1) << U(bits))
    start = _lower_key(shard.directory, first, stop, smallest)
    end = stop if after == U(0) else _lower_key(shard.directory, start, stop, after)
    return (
        (start - 1) * DIRECTORY_STRIDE if start > first else lo - 1,
        start * DIRECTORY_STRIDE if start < stop else hi,
        (end - 1) * DIRECTORY_STRIDE if end > first else lo,
        end * DIRECTORY_STRIDE if end < stop else hi,
    )


@_jit
def _compare(
    shard: Plain, rank: int, keys: Keys, start: int, stop: int, shared: int
) -> tuple[int, int]:
    """Tokens shared by the suffix at `rank` and the query, at least `shared` of which are known;
    and how the suffix compares: -1 smaller, 0 it begins with the query, 1 greater."""
    width = U(shard.width)
    at = _place(shard, rank) + U(shared) * width
    size = U(len(shard.data))
    for i in range(start + shared, stop):
        if at > size - width:
            return i - start, -1
        key = _key(shard, at)
        if key != keys[i]:
            return i - start, -1 if key < keys[i] else 1
        at += width
    return stop - start, 0


@_jit
def _key_at(shard: Plain, rank: int, depth: int) -> Any:
    """The key `depth` tokens into the suffix at `rank`; -1 past the end of the shard."""
    width = U(shard.width)
    at = _place(shard, rank) + U(depth) * width
    return np.int64(-1) if at > U(len(shard.data)) - width else _key(shard, at)


@_jit
def _key(shard: Plain, at: np.uint64) -> Any:
    data = shard.data
    if shard.width == 2:
        return (np.int64(data[at]) << 8) | np.int64(data[at + U(1)])
    if shard.width == 1:
        return np.int64(data[at])
    upper = (np.int64(data[at]) << 24) | (np.int64(data[at + U(1)]) << 16)
    return upper | (np.int64(data[at + U(2)]) << 8) | np.int64(data[at + U(3)])


@_jit
def _place(shard: Plain, rank: int) -> np.uint64:
    """Byte offset of the suffix at `rank`."""
    table, ratio = shard.table, U(shard.ratio)
    at = U(rank) * ratio
    if ratio == U(4):
        low = U(table[at]) | (U(table[at + U(1)]) << U(8))
        return low | (U(table[at + U(2)]) << U(16)) | (U(table[at + U(3)]) << U(24))
    place = U(0)
    for i in range(shard.ratio):
        place |= U(table[at + U(i)]) << U(8 * i)
    return place


@_jit
def _ranks(shard: Plain) -> int:
    return len(shard.data) // shard.width


@_jit
def _reversed(token: int, width: int) -> Any:
    """The token's little-endian bytes read as a big-endian number."""
    key = np.int64(0)
    for _ in range(width):
        key = (key << 8) | (token & 255)
        token >>= 8
    return key
