"""The index folder: infini-gram v4 files that other engines read too, and a few of our own.

Per shard number `i` (Liu et al. 2024, arXiv 2401.17377, and the engine's own reader):

    tokenized.i  per document the separator (all bits one), then its ids, little-endian
    table.i      per rank the byte offset of a suffix, `ratio` bytes, little-endian
    offset.i     per document the byte offset of its separator, u64
    metadata.i   one JSON line a document;  metaoff.i  where each line starts, u64
    unigram.i    text lines `id count`, separator included (not for width 1)
    directory.i  ours: per 512th rank the suffix's first eight bytes, as one u64 key
    inverse.i    ours, optional: per position its rank, u32 (u64 from 2**32 tokens)

and once `mnemoscope.json`: what the index was made of. Suffixes are ordered by the little-endian
bytes of their ids, to the end of the shard, the shorter first. In files a place is a byte offset;
everywhere else in this package it is a position: a token index in its shard.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Int64, Shaped, UInt8, UInt64

from .index_place import ReadsText
from .ranged_array import RangedArray, count_until

DIRECTORY_STRIDE = 512
PREFIX_BYTES = 8
REQUIRED = ("tokenized", "table", "offset")
OPTIONAL = ("metadata", "metaoff", "unigram", "directory", "inverse")


@dataclass(frozen=True)
class DocumentRecord:
    """Where a document came from: file or name, line or row in it, and what else was known."""

    source: str
    line: int
    metadata: Mapping[str, Any]


@dataclass(frozen=True, eq=False)
class ShardArrays:
    """One shard's files as read-only arrays over mappings, or over ranged reads where the index
    lies elsewhere; nothing is read until touched.

    `table[rank]` are the little-endian bytes of the suffix's byte offset: divide by the width for
    its position. `offsets[d]` is the byte offset of document d's separator, the first one 0.
    `directory[k]` is `prefix_keys` of the suffix at rank `512 * k`, non-decreasing. `inverse[p]` is
    the rank of position p.
    """

    number: int
    tokens: Shaped[np.ndarray, " position"] | RangedArray
    table: UInt8[np.ndarray, "rank ratio"] | RangedArray
    offsets: UInt64[np.ndarray, " document"] | RangedArray
    directory: UInt64[np.ndarray, " key"] | RangedArray | None = None
    inverse: Shaped[np.ndarray, " position"] | RangedArray | None = None
    metadata: UInt8[np.ndarray, " byte"] | RangedArray | None = None
    metaoff: UInt64[np.ndarray, " document"] | RangedArray | None = None
    unigram_file: ReadsText | None = None

    @property
    def remote(self) -> bool:
        """Whether its files lie elsewhere."""
        return isinstance(self.tokens, RangedArray)

    @property
    def width(self) -> int:
        """Bytes of an id."""
        return self.tokens.dtype.itemsize

    @property
    def ratio(self) -> int:
        """Bytes of a place in `table`."""
        return self.table.shape[1]

    @property
    def n_tokens(self) -> int:
        """Tokens, separators included: as many as there are ranks."""
        return len(self.tokens)

    @property
    def n_documents(self) -> int:
        """Documents of this shard."""
        return len(self.offsets)

    def document_of(self, position: int) -> int:
        """The document that holds `position`; a separator belongs to the document after it."""
        if not 0 <= position < self.n_tokens:
            raise IndexError(
                f"position {position} is outside shard {self.number} of {self.n_tokens} tokens."
            )
        return count_until(self.offsets, position * self.width) - 1

    def document_span(self, document: int) -> tuple[int, int]:
        """Positions [start, stop) of the document's own tokens, without its separator."""
        if not 0 <= document < self.n_documents:
            raise IndexError(
                f"document {document} is outside shard {self.number} of {self.n_documents}."
            )
        last = document + 1 == self.n_documents
        stop = self.n_tokens if last else int(self.offsets[document + 1]) // self.width
        return int(self.offsets[document]) // self.width + 1, stop

    def record(self, document: int) -> DocumentRecord | None:
        """Source, line and metadata of a document; None where the index keeps none."""
        self.document_span(document)
        if self.metadata is None or self.metaoff is None:
            return None
        last = document + 1 == self.n_documents
        stop = len(self.metadata) if last else int(self.metaoff[document + 1])
        raw = json.loads(self.metadata[int(self.metaoff[document]) : stop].tobytes())
        rest = {key: raw[key] for key in raw if key not in ("path", "linenum")}
        return DocumentRecord(
            str(raw.get("path", "")), int(raw.get("linenum", 0)), raw.get("metadata", rest)
        )

    def unigram_counts(self, vocab_size: int) -> Int64[np.ndarray, " vocab"]:
        """How often each id occurs, the separator left out; read from its file, else counted.

        Raises ValueError where that would be the download of all tokens.
        """
        counts = np.zeros(vocab_size, dtype=np.int64)
        if self.unigram_file is not None:
            for line in self.unigram_file.read_text("ascii").splitlines():
                token, count = map(int, line.split())
                if token < vocab_size:
                    counts[token] = count
            return counts
        if self.remote:
            raise ValueError(
                "this index lies elsewhere and keeps no counts of its ids (unigram files), which "
                "are needed here: copy it to this machine, or build it with them."
            )
        for start in range(0, self.n_tokens, 1 << 20):
            part = self.tokens[start : start + (1 << 20)]
            counts += np.bincount(part[part < vocab_size], minlength=vocab_size)
        return counts


def ratio_of(n_bytes: int) -> int:
    """Bytes that a byte offset below `n_bytes` takes, at least one."""
    return max(1, ((n_bytes - 1).bit_length() + 7) // 8)


def file_name(kind: str, shard: int) -> str:
    """The name of a shard's file."""
    return f"{kind}.{shard}"


def prefix_keys(
    raw: UInt8[np.ndarray, " byte"], starts: Shaped[np.ndarray, " suffix"]
) -> UInt64[np.ndarray, " suffix"]:
    """The first eight bytes of each suffix (zeros after its end), as big-endian numbers.

    `starts` are byte offsets into `raw`, the little-endian bytes of the ids. Keys do not decrease
    with the rank: of two suffixes with different keys the one with the smaller key comes first.
    """
    keys = np.zeros(len(starts), dtype=np.uint64)
    places = np.asarray(starts, dtype=np.int64)
    for step in range(PREFIX_BYTES):
        inside = places + step < len(raw)
        found = np.zeros(len(starts), dtype=np.uint64)
        found[inside] = raw[places[inside] + step]
        keys = (keys << np.uint64(8)) | found
    return keys


def inverse_dtype(n_tokens: int) -> np.dtype[Any]:
    """The type of a rank in `inverse.i`."""
    return np.dtype("<u4" if n_tokens < 1 << 32 else "<u8")
