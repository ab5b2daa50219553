"""A file that lies elsewhere as a read-only array: only the blocks that are touched are fetched.

`RangedArray` answers what the queries ask of a mapped array: its length, items at any integer
indices (as an array), slices. All blocks of one question that are missing are fetched at once.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol, TypeAlias

import numpy as np
from jaxtyping import Int64, Shaped, UInt8

from .block_cache import Block


@dataclass
class Traffic:
    """Ranged reads so far, the bytes they brought, and the rounds: reads that waited together."""

    reads: int = 0
    bytes: int = 0
    rounds: int = 0

    def __add__(self, other: Traffic) -> Traffic:
        return Traffic(
            self.reads + other.reads, self.bytes + other.bytes, self.rounds + other.rounds
        )

    def __sub__(self, other: Traffic) -> Traffic:
        return Traffic(
            self.reads - other.reads, self.bytes - other.bytes, self.rounds - other.rounds
        )


class BlockSource(Protocol):
    """A file of `size` bytes in blocks of `block_bytes` (the last one may be shorter)."""

    @property
    def size(self) -> int: ...

    @property
    def block_bytes(self) -> int: ...

    @property
    def traffic(self) -> Traffic: ...

    def blocks(self, numbers: Int64[np.ndarray, " n"]) -> dict[int, Block]: ...


class RangedArray:
    """Items of `dtype` one after the other, or rows of `columns` of them."""

    def __init__(self, source: BlockSource, dtype: np.dtype[Any] | str, columns: int = 0) -> None:
        self.source, self.dtype, self.columns = source, np.dtype(dtype), columns
        self._item = self.dtype.itemsize * max(1, columns)
        length = source.size // self._item
        self.shape = (length, columns) if columns else (length,)

    def __len__(self) -> int:
        return self.shape[0]

    @property
    def nbytes(self) -> int:
        """The size of the file."""
        return self.source.size

    def __getitem__(self, at: Any) -> Any:
        """Items at an index, at a slice without a step, or at an array of indices of any shape."""
        if isinstance(at, slice):
            start, stop, step = at.indices(len(self))
            if step != 1:
                return self[np.arange(start, stop, step)]
            return self._typed(self._run(start * self._item, stop * self._item), (stop - start,))
        chosen = np.asarray(at, dtype=np.int64)
        chosen = np.where(chosen < 0, chosen + len(self), chosen)
        if chosen.size and not 0 <= chosen.min() <= chosen.max() < len(self):
            raise IndexError(f"an index is outside the {len(self)} items of the file.")
        places = chosen.reshape(-1, 1) * self._item + np.arange(self._item)
        found = self._typed(self._gathered(places.reshape(-1)), chosen.shape)
        return found[()] if not found.ndim else found

    def as_bytes(self) -> RangedArray:
        """The same file byte by byte."""
        return RangedArray(self.source, "u1")

    def count_until(self, value: int) -> int:
        """How many items of a non-decreasing file are at most `value`.

        A place is guessed from the values at both ends, whose block mostly holds the answer; each
        second guess is the middle, so that no file takes more than a few reads.
        """
        low, high = 0, len(self)
        least, most = 0, max(value, 1)
        for turn in range(2 * 64):
            if low >= high:
                break
            share = 0.5 if turn % 2 else min(1.0, max(0, value - least) / max(1, most - least))
            guess = min(high - 1, low + int(share * (high - low)))
            first, stop = self._block_items(guess)
            items = self[max(first, low) : min(stop, high)]
            if value < int(items[0]):
                high, most = max(first, low), int(items[0])
            elif value >= int(items[-1]):
                low, least = min(stop, high), int(items[-1])
            else:
                return max(first, low) + int(np.searchsorted(items, value, side="right"))
        return low

    def _block_items(self, index: int) -> tuple[int, int]:
        """The whole items of the block that holds item `index`."""
        first = index * self._item // self.source.block_bytes * self.source.block_bytes
        return -(-first // self._item), max(
            index + 1, (first + self.source.block_bytes) // self._item
        )

    def _typed(self, raw: UInt8[np.ndarray, " byte"], shape: tuple[int, ...]) -> Any:
        return raw.view(self.dtype).reshape((*shape, *self.shape[1:]))

    def _run(self, start: int, stop: int) -> UInt8[np.ndarray, " byte"]:
        """Bytes [start, stop)."""
        if start >= stop:
            return np.zeros(0, np.uint8)
        size = self.source.block_bytes
        numbers = np.arange(start // size, (stop - 1) // size + 1)
        found = self.source.blocks(numbers)
        whole = np.concatenate([found[number] for number in numbers.tolist()])
        return whole[start - int(numbers[0]) * size :][: stop - start].copy()

    def _gathered(self, places: Int64[np.ndarray, " n"]) -> UInt8[np.ndarray, " n"]:
        """The bytes at places anywhere in the file."""
        out = np.empty(len(places), np.uint8)
        if not len(places):
            return out
        numbers = places // self.source.block_bytes
        inside = places - numbers * self.source.block_bytes
        order = np.argsort(numbers, kind="stable")
        unique, begins = np.unique(numbers[order], return_index=True)
        found = self.source.blocks(unique)
        for number, mine in zip(unique.tolist(), np.split(order, begins[1:]), strict=True):
            out[mine] = found[number][inside[mine]]
        return out


Stored: TypeAlias = Shaped[np.ndarray, "..."] | RangedArray
"""An array over a mapped file, or over one that lies elsewhere."""


def flat_bytes(array: Stored) -> Stored:
    """The bytes of an array in one row, without a copy."""
    if isinstance(array, RangedArray):
        return array.as_bytes()
    return array.reshape(-1).view(np.uint8)


def count_until(array: Stored, value: int) -> int:
    """How many items of a non-decreasing array are at most `value`."""
    if isinstance(array, RangedArray):
        return array.count_until(value)
    return int(np.searchsorted(array, np.uint64(value), side="right"))
