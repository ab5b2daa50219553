"""Blocks of files that lie elsewhere, the latest kept in bounded memory."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable
from threading import Lock

import numpy as np
from jaxtyping import UInt8

Block = UInt8[np.ndarray, " byte"]
Name = tuple[str, int]
"""A file and the number of a block in it."""


class BlockCache:
    """At most `limit` bytes of blocks, those asked for longest ago given up first; for threads."""

    def __init__(self, limit: int) -> None:
        self.limit, self.held = limit, 0
        self._blocks: OrderedDict[Name, Block] = OrderedDict()
        self._lock = Lock()

    def get(self, names: Iterable[Name]) -> dict[Name, Block]:
        """Those of the blocks that are here."""
        with self._lock:
            found = {name: self._blocks[name] for name in names if name in self._blocks}
            for name in found:
                self._blocks.move_to_end(name)
            return found

    def put(self, blocks: dict[Name, Block]) -> None:
        """Keep blocks, as far as there is room."""
        with self._lock:
            for name, block in blocks.items():
                old = self._blocks.pop(name, None)
                self.held += len(block) - (0 if old is None else len(old))
                self._blocks[name] = block
            while self.held > self.limit and self._blocks:
                _, gone = self._blocks.popitem(last=False)
                self.held -= len(gone)
