"""Sort the suffixes of a token sequence with one call of a byte sorter.

The suffixes of the little-endian bytes are sorted and those that start at a token are kept: the
order that infini-gram's engine searches (Liu et al. 2024, arXiv 2401.17377). Ids of few distinct
values are first replaced by their rank in that order, written in fewer bytes: the same order from
less memory.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from jaxtyping import Bool, Int, Shaped, UInt, UInt8
from pydivsufsort import divsufsort

from .index_info import separator_of

_CHUNK = 1 << 22
_LARGEST_LISTED = 1 << 24
_COMPARED_TOKENS = 1 << 20


def suffix_array(tokens: UInt[np.ndarray, " position"]) -> Int[np.ndarray, " rank"]:
    """Positions of the suffixes of `tokens` in lexicographic order of their little-endian bytes.

    A suffix ends with the sequence, and of two that agree so far the shorter comes first. `tokens`
    are u8, u16 or u32; the answer is int32 below 2**31 bytes to sort, else int64.

    Memory beside `tokens`: 4 bytes (8 above 2**31) for each byte that is sorted, that is for each
    byte of an id, or 1 byte a token when at most 256 distinct ids occur, or 2 when at most 65,536.
    Raises ValueError for no tokens.
    """
    if not len(tokens):
        raise ValueError("there is nothing to sort: the sequence is empty.")
    keys, width = _sort_keys(tokens)
    return _aligned(divsufsort(keys), width)


def check_order(
    tokens: UInt[np.ndarray, " position"],
    positions: Int[np.ndarray, " rank"],
    *,
    samples: int = 200,
    seed: int = 0,
) -> None:
    """Raise ValueError unless sampled neighbours stand in order (compared for 2**20 tokens)."""
    if len(positions) != len(tokens):
        raise ValueError(f"{len(positions)} positions for {len(tokens)} tokens: sort again.")
    ranks = np.random.default_rng(seed).integers(1, max(2, len(tokens)), samples)
    for rank in ranks if len(tokens) > 1 else ():
        first, second = int(positions[rank - 1]), int(positions[rank])
        if first == second or not _comes_first(tokens, first, second):
            raise ValueError(
                f"the suffixes at ranks {rank - 1} and {rank} are out of order: the memory or the "
                "sorter is at fault; sort again."
            )


def _comes_first(tokens: UInt[np.ndarray, " position"], first: int, second: int) -> bool:
    """Whether the suffix at `first` sorts before that at `second`, as far as compared."""
    length, done = 64, 0
    while done < _COMPARED_TOKENS:
        a = tokens[first + done : first + done + length].tobytes()
        b = tokens[second + done : second + done + length].tobytes()
        if a != b:
            return a < b
        done, length = done + length, 2 * length
    return True


def _aligned(order: Int[np.ndarray, " byte"], width: int) -> Int[np.ndarray, " rank"]:
    """Keep, in place, the byte suffixes that start at a token; byte offsets become positions."""
    if width == 1:
        return order
    kept = 0
    for start in range(0, len(order), _CHUNK):
        part = order[start : start + _CHUNK]
        part = part[(part & (width - 1)) == 0] >> (width.bit_length() - 1)
        order[kept : kept + len(part)] = part
        kept += len(part)
    return order[:kept]


def _sort_keys(
    tokens: UInt[np.ndarray, " position"],
) -> tuple[UInt8[np.ndarray, " byte"], int]:
    """Bytes in the order of the ids' little-endian bytes, and how many of them stand for one id."""
    width = tokens.dtype.itemsize
    if width == 1:
        return _writable_bytes(tokens), 1
    present = _present(tokens)
    narrow = width if present is None else _narrowest(int(present.sum()))
    if present is None or narrow >= width:
        return _writable_bytes(tokens), width
    ranks = _ranks(present, tokens.dtype, narrow)
    keys = np.empty(len(tokens), dtype=ranks.dtype)
    for start in range(0, len(tokens), _CHUNK):
        keys[start : start + _CHUNK] = ranks[_folded(tokens[start : start + _CHUNK], len(present))]
    return keys.view(np.uint8), narrow


def _narrowest(distinct: int) -> int:
    return 1 if distinct <= 1 << 8 else 2 if distinct <= 1 << 16 else 4


def _present(tokens: UInt[np.ndarray, " position"]) -> Bool[np.ndarray, " vocab"] | None:
    """Which ids occur, the last entry the separator's whatever its value; None for huge ids."""
    separator = separator_of(tokens.dtype.itemsize)
    parts = [tokens[start : start + _CHUNK] for start in range(0, len(tokens), _CHUNK)]
    largest = max(int(np.max(part, where=part != separator, initial=0)) for part in parts)
    if largest > _LARGEST_LISTED:
        return None
    present = np.zeros(largest + 2, dtype=bool)
    for part in parts:
        present[_folded(part, len(present))] = True
    return present


def _folded(part: UInt[np.ndarray, " position"], size: int) -> UInt[np.ndarray, " position"]:
    """The ids with the separator moved down to the last entry of a list of `size`."""
    return np.minimum(part, part.dtype.type(min(size - 1, separator_of(part.dtype.itemsize))))


def _ranks(
    present: Bool[np.ndarray, " vocab"], dtype: np.dtype[Any], narrow: int
) -> Shaped[np.ndarray, " vocab"]:
    """Per id its rank by little-endian bytes among those present, as `narrow` big-endian bytes."""
    ids = np.flatnonzero(present)
    values = ids.astype(dtype)
    if present[-1]:
        values[-1] = separator_of(dtype.itemsize)
    order = np.argsort(values.byteswap(), kind="stable")
    ranks = np.zeros(len(present), dtype=f">u{narrow}")
    ranks[ids[order]] = np.arange(len(ids))
    return ranks


def _writable_bytes(tokens: UInt[np.ndarray, " position"]) -> UInt8[np.ndarray, " byte"]:
    """The sorter wants contiguous writable bytes, which it leaves unchanged."""
    whole = np.ascontiguousarray(tokens)
    return (whole if whole.flags.writeable else whole.copy()).view(np.uint8)
