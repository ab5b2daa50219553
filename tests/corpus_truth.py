"""A small index made in memory by sorting slices, and the same questions answered by looking."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
from jaxtyping import UInt
from mnemoscope.data.corpus.index_info import IndexInfo, dtype_of, separator_of
from mnemoscope.data.corpus.kernels import KernelName
from mnemoscope.data.corpus.layout import DIRECTORY_STRIDE, ShardArrays, prefix_keys, ratio_of
from mnemoscope.data.corpus.suffix_index import SuffixIndex

Documents = Sequence[Sequence[int]]


@dataclass(frozen=True)
class Truth:
    """Shards of documents; every answer comes from looking at all of them, a token as a letter."""

    shards: tuple[Documents, ...]

    @cached_property
    def texts(self) -> list[list[str]]:
        """The documents as text."""
        return [[_text(document) for document in documents] for documents in self.shards]

    def places(self, ids: Sequence[int]) -> list[tuple[int, int, int]]:
        """Shard, document and offset of every occurrence."""
        wanted = _text(ids)
        return [
            (number, d, place)
            for number, texts in enumerate(self.texts)
            for d, text in enumerate(texts)
            for place in _found(text, wanted)
        ]

    def count(self, ids: Sequence[int]) -> int:
        return len(self.places(ids))

    def holds(self, ids: Sequence[int]) -> bool:
        wanted = _text(ids)
        return any(wanted in text for texts in self.texts for text in texts)

    def longest_prefix(self, ids: Sequence[int]) -> int:
        return next((n for n in range(len(ids), 0, -1) if self.holds(ids[:n])), 0)

    def longest_suffix(self, ids: Sequence[int]) -> int:
        return next((n for n in range(len(ids), 0, -1) if self.holds(ids[-n:])), 0)


def _text(ids: Sequence[int]) -> str:
    return "".join(chr(min(token, sys.maxunicode)) for token in ids)


def _found(text: str, wanted: str) -> Iterator[int]:
    place = text.find(wanted)
    while place >= 0:
        yield place
        place = text.find(wanted, place + 1)


def index_of(
    shards: Sequence[Documents],
    *,
    width: int = 2,
    kernels: KernelName = "numba",
    directory: bool = True,
    inverse: bool = False,
    counts: Path | None = None,
) -> SuffixIndex:
    """An index over shards of documents; `counts` is a folder for files of token counts."""
    arrays = tuple(
        _shard(number, documents, width, directory, inverse, counts)
        for number, documents in enumerate(shards)
    )
    info = IndexInfo(
        mode="tokens",
        width=width,
        vocab_size=min(separator_of(width), 70_000),
        n_shards=len(arrays),
        n_tokens=sum(shard.n_tokens for shard in arrays),
        n_documents=sum(shard.n_documents for shard in arrays),
    )
    return SuffixIndex(info, arrays, kernels)


def _shard(
    number: int,
    documents: Documents,
    width: int,
    directory: bool,
    inverse: bool,
    counts: Path | None,
) -> ShardArrays:
    separator = separator_of(width)
    lengths = [0, *(len(document) + 1 for document in documents)]
    flat = [token for document in documents for token in (separator, *document)]
    tokens = np.array(flat, dtype=dtype_of(width))
    raw = tokens.tobytes()
    order = sorted(range(len(tokens)), key=lambda p: raw[p * width :])
    starts = np.array(order, dtype="<u8") * np.uint64(width)
    bytes_of = np.frombuffer(raw, dtype=np.uint8)
    ranks = np.empty(len(tokens), dtype="<u4")
    ranks[order] = np.arange(len(tokens))
    return ShardArrays(
        number=number,
        tokens=tokens,
        table=starts.view(np.uint8).reshape(-1, 8)[:, : ratio_of(len(raw))],
        offsets=np.cumsum(lengths[:-1], dtype=np.uint64) * np.uint64(width),
        directory=prefix_keys(bytes_of, starts[::DIRECTORY_STRIDE]) if directory else None,
        inverse=ranks if inverse else None,
        unigram_file=_counted(counts / f"unigram.{number}", tokens) if counts else None,
    )


def _counted(path: Path, tokens: UInt[np.ndarray, " n"]) -> Path:
    ids, counts = np.unique(tokens, return_counts=True)
    path.write_text("".join(f"{i} {n}\n" for i, n in zip(ids, counts, strict=True)))
    return path
