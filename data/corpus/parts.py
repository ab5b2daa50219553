"""A corpus cut into parts, so that workers who do not talk to each other index one each.

The files of a corpus are laid end to end, the bytes cut into as many equal runs as there are parts,
and a record belongs to the part in whose run it begins. Every worker finds the same cut on its own,
parts follow each other in the order of the documents, and none is told twice or left out.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple


class Window(NamedTuple):
    """Bytes [start, stop) of a file of `size` bytes: the records that begin there are meant."""

    start: int
    stop: int
    size: int

    def rows(self, n_rows: int) -> range:
        """The same run of a file that holds `n_rows` rows in no known place."""
        if not self.size:
            return range(n_rows)
        return range(n_rows * self.start // self.size, n_rows * self.stop // self.size)


@dataclass(frozen=True)
class Part:
    """Part `number` (from 1) `of` so many. Raises ValueError where there is no such part."""

    number: int
    of: int

    def __post_init__(self) -> None:
        if not 1 <= self.number <= self.of:
            raise ValueError(
                f"there is no part {self.number} of {self.of}: parts go from 1/{self.of} to "
                f"{self.of}/{self.of}."
            )

    def __str__(self) -> str:
        return f"{self.number}/{self.of}"

    @property
    def folder(self) -> str:
        """The name of its folder in that of the whole index."""
        return f"part-{self.number:05d}-of-{self.of:05d}"

    def run(self, size: int) -> slice:
        """Its run of `size` things."""
        return slice(size * (self.number - 1) // self.of, size * self.number // self.of)

    def deals(self, row: int) -> bool:
        """Whether it gets row `row` of a stream whose length is not known: dealt out in turn."""
        return row % self.of == self.number - 1


@dataclass(frozen=True)
class PartRecord:
    """What a part's index keeps of it; `cut_sha256` is the same for all parts of one corpus."""

    number: int
    of: int
    cut_sha256: str


def parse_part(text: str) -> Part:
    """`2/8` is the second of eight. Raises ValueError for anything else."""
    found = re.fullmatch(r"(\d+)/(\d+)", text.strip())
    if not found:
        raise ValueError(f"{text!r} names no part: write 2/8 for the second of eight.")
    return Part(int(found[1]), int(found[2]))


def windows(sizes: Sequence[int], splits: Sequence[bool], part: Part) -> list[Window | None]:
    """Per file of a corpus the bytes that belong to `part`; None where it holds nothing of it.

    A file that cannot be split belongs as a whole to the part in which it begins.
    """
    total, begin = sum(sizes), 0
    run = part.run(total)
    found: list[Window | None] = []
    for size, split in zip(sizes, splits, strict=True):
        begins = run.start <= begin < run.stop or (begin == total and part.number == part.of)
        start, stop = max(0, run.start - begin), min(size, run.stop - begin)
        if split and size:
            found.append(Window(start, stop, size) if start < stop else None)
        else:
            found.append(Window(0, size, size) if begins else None)
        begin += size
    return found


def cut_sha256(of: int, *facts: object) -> str:
    """One hash of all that decides where the parts of a corpus begin."""
    return hashlib.sha256(json.dumps([of, *facts]).encode()).hexdigest()
