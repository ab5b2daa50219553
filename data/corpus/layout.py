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
import mmap
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Int64, Shaped, UInt8, UInt64

from .checks import check_file
from .index_info import (
    INFO_NAME,
    WIDTHS,
    IndexInfo,
    Mode,
    dtype_of,
    read_info,
    separator_of,
)

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
    """One shard's files as plain read-only arrays over mappings; nothing is read until touched.

    `table[rank]` are the little-endian bytes of the suffix's byte offset: divide by the width for
    its position. `offsets[d]` is the byte offset of document d's separator, the first one 0.
    `directory[k]` is `prefix_keys` of the suffix at rank `512 * k`, non-decreasing. `inverse[p]` is
    the rank of position p.
    """

    number: int
    tokens: Shaped[np.ndarray, " position"]
    table: UInt8[np.ndarray, "rank ratio"]
    offsets: UInt64[np.ndarray, " document"]
    directory: UInt64[np.ndarray, " key"] | None = None
    inverse: Shaped[np.ndarray, " position"] | None = None
    metadata: UInt8[np.ndarray, " byte"] | None = None
    metaoff: UInt64[np.ndarray, " document"] | None = None
    unigram_file: Path | None = None

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
        at = np.uint64(position * self.width)
        return int(np.searchsorted(self.offsets, at, side="right")) - 1

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
        return DocumentRecord(raw["path"], raw["linenum"], raw["metadata"])

    def unigram_counts(self, vocab_size: int) -> Int64[np.ndarray, " vocab"]:
        """How often each id occurs, the separator left out; read from its file, else counted."""
        counts = np.zeros(vocab_size, dtype=np.int64)
        if self.unigram_file is not None:
            for line in self.unigram_file.read_text("ascii").splitlines():
                token, count = map(int, line.split())
                if token < vocab_size:
                    counts[token] = count
            return counts
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


def open_shards(
    folder: str | Path,
    *,
    verify: bool = False,
    width: int | None = None,
    mode: Mode | None = None,
) -> tuple[IndexInfo, tuple[ShardArrays, ...]]:
    """Map an index; opening costs the same for any size.

    Sizes are always checked, hashes with `verify` (which reads every byte). A folder without
    `mnemoscope.json`, as infini-gram's builder writes it, is opened as foreign: its width is taken
    from the sizes of its files and width 1 is taken for bytes, unless `width` and `mode` are given;
    one of width 4 is read through once for its largest id.
    A foreign index of version 5 (documents reversed) cannot be told from one of version 4.

    Raises FileNotFoundError for a missing folder or file, ValueError for damage.
    """
    place = Path(folder)
    if not place.is_dir():
        raise FileNotFoundError(
            f"there is no index folder {place}: check the path, or build it again."
        )
    if (place / INFO_NAME).is_file():
        info = read_info(place)
        for name, record in info.files.items():
            check_file(place / name, record.bytes, record.sha256 if verify else None)
    else:
        info = _foreign_info(place, width, mode)
    shards = tuple(_open_shard(place, number, info.width) for number in shard_numbers(place))
    if len(shards) != info.n_shards:
        raise ValueError(
            f"{place} holds {len(shards)} shards and {INFO_NAME} tells of {info.n_shards}: "
            "copy the folder again as a whole."
        )
    return _counted(info, shards), shards


def shard_numbers(folder: Path) -> tuple[int, ...]:
    """The numbers of the shards in `folder`, ascending.

    Other engines number them in the order of the names as text: 0, 1, 10, 11, 2 and so on.
    """
    numbers = [path.name.partition(".")[2] for path in folder.glob(f"{REQUIRED[0]}.*")]
    return tuple(sorted(int(number) for number in numbers if number.isdecimal()))


def _counted(info: IndexInfo, shards: tuple[ShardArrays, ...]) -> IndexInfo:
    """`info` if its counts are those of the shards."""
    tokens = sum(shard.n_tokens for shard in shards)
    documents = sum(shard.n_documents for shard in shards)
    if (tokens, documents) != (info.n_tokens, info.n_documents):
        raise ValueError(
            f"the index holds {tokens} tokens in {documents} documents and {INFO_NAME} tells of "
            f"{info.n_tokens} in {info.n_documents}: copy the folder again as a whole."
        )
    return info


def _foreign_info(folder: Path, width: int | None, mode: Mode | None) -> IndexInfo:
    numbers = shard_numbers(folder)
    if not numbers:
        raise FileNotFoundError(
            f"{folder} holds neither {INFO_NAME} nor {file_name('tokenized', 0)}: it is no index "
            "folder; check the path."
        )
    width = _foreign_width(folder, numbers[0]) if width is None else width
    sizes = [[_size(folder, kind, i) for kind in ("tokenized", "offset")] for i in numbers]
    return IndexInfo(
        mode=mode or ("bytes" if width == 1 else "tokens"),
        width=width,
        vocab_size=separator_of(width) if width < 4 else 1 + _largest_id(folder, numbers),
        n_shards=len(numbers),
        n_tokens=sum(size for size, _ in sizes) // dtype_of(width).itemsize,
        n_documents=sum(size for _, size in sizes) // 8,
        foreign=True,
    )


def _largest_id(folder: Path, numbers: tuple[int, ...]) -> int:
    largest = 0
    for number in numbers:
        tokens = _mapped(folder / file_name("tokenized", number), dtype_of(4))
        for start in range(0, len(tokens), 1 << 20):
            part = tokens[start : start + (1 << 20)]
            largest = max(largest, int(part.max(where=part != separator_of(4), initial=0)))
    return largest


def _foreign_width(folder: Path, number: int) -> int:
    """From the sizes: the table has one place of known bytes a token."""
    n_bytes, table = (_size(folder, kind, number) for kind in ("tokenized", "table"))
    for width in WIDTHS:
        if n_bytes and table * width == n_bytes * ratio_of(n_bytes):
            return width
    raise ValueError(
        f"the files of shard {number} in {folder} do not fit together ({n_bytes} bytes of tokens, "
        f"{table} of table): copy the folder again as a whole, or give the width."
    )


def _size(folder: Path, kind: str, number: int) -> int:
    path = folder / file_name(kind, number)
    try:
        return path.stat().st_size
    except FileNotFoundError as error:
        raise FileNotFoundError(
            f"{path} is missing: copy the folder again as a whole, or build it again."
        ) from error


def _open_shard(folder: Path, number: int, width: int) -> ShardArrays:
    sizes = {kind: _size(folder, kind, number) for kind in REQUIRED}
    n_tokens, rest = divmod(sizes["tokenized"], width)
    ratio, uneven = divmod(sizes["table"], n_tokens or 1)
    if not n_tokens or rest or uneven or not 1 <= ratio <= 8 or sizes["offset"] % 8:
        raise ValueError(
            f"shard {number} in {folder} is damaged or not of width {width} ({sizes}): copy the "
            "folder again as a whole, or build it again."
        )
    optional = {kind: folder / file_name(kind, number) for kind in OPTIONAL}
    here = {kind: path for kind, path in optional.items() if path.is_file()}
    shard = ShardArrays(
        number=number,
        tokens=_mapped(folder / file_name("tokenized", number), dtype_of(width), scattered=True),
        table=_mapped(folder / file_name("table", number), "u1", scattered=True).reshape(-1, ratio),
        offsets=_mapped(folder / file_name("offset", number), "<u8"),
        directory=_mapped(here["directory"], "<u8") if "directory" in here else None,
        inverse=_inverse(here.get("inverse"), n_tokens),
        metadata=_mapped(here["metadata"], "u1") if "metadata" in here else None,
        metaoff=_mapped(here["metaoff"], "<u8") if "metaoff" in here else None,
        unigram_file=here.get("unigram"),
    )
    _check_shard(shard, folder)
    return shard


def _check_shard(shard: ShardArrays, folder: Path) -> None:
    """The cheap signs that the files of a shard belong together."""
    separators = shard.offsets[[0, -1]] // np.uint64(shard.width)
    keys = -(-shard.n_tokens // DIRECTORY_STRIDE)
    fits = (
        int(separators[1]) < shard.n_tokens
        and int(separators[0]) == 0
        and bool((shard.tokens[separators] == separator_of(shard.width)).all())
        and (shard.directory is None or len(shard.directory) == keys)
        and (shard.metaoff is None or len(shard.metaoff) == shard.n_documents)
    )
    if not fits:
        raise ValueError(
            f"the files of shard {shard.number} in {folder} do not belong together: copy the "
            "folder again as a whole, or build it again."
        )


def _inverse(path: Path | None, n_tokens: int) -> Shaped[np.ndarray, " position"] | None:
    if path is None:
        return None
    inverse = _mapped(path, inverse_dtype(n_tokens), scattered=True)
    if len(inverse) != n_tokens:
        raise ValueError(f"{path} has {len(inverse)} entries for {n_tokens} tokens: build again.")
    return inverse


def inverse_dtype(n_tokens: int) -> np.dtype[Any]:
    """The type of a rank in `inverse.i`."""
    return np.dtype("<u4" if n_tokens < 1 << 32 else "<u8")


def _mapped(
    path: Path, dtype: np.dtype[Any] | str, *, scattered: bool = False
) -> Shaped[np.ndarray, " item"]:
    """The file as a read-only array; `scattered` asks the system not to read ahead."""
    with path.open("rb") as file:
        if not path.stat().st_size:
            return np.zeros(0, dtype=dtype)
        mapping = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    if scattered and hasattr(mmap, "MADV_RANDOM"):
        mapping.madvise(mmap.MADV_RANDOM)
    return np.frombuffer(mapping, dtype=dtype)
