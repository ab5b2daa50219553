"""Write one shard: first its tokens, then, from them, the order of its suffixes.

Both steps leave a small record when all their files are whole, so that a killed build goes on after
the last one. The same documents give the same bytes.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from jaxtyping import Int, UInt

from .checks import check_space, file_sha256
from .documents import Document
from .index_info import FileRecord, dtype_of, separator_of
from .layout import (
    DIRECTORY_STRIDE,
    OPTIONAL,
    REQUIRED,
    file_name,
    inverse_dtype,
    prefix_keys,
    ratio_of,
)
from .suffix_array import check_order, suffix_array

_CHUNK = 1 << 20


@dataclass(frozen=True)
class EncodedShard:
    """A shard whose tokens are written. `full`: it ended for its size, not for want of documents.

    `documents_sha256` is over text, source, line and metadata of its documents.
    """

    number: int
    n_documents: int
    n_tokens: int
    documents_sha256: str
    full: bool


@dataclass(frozen=True)
class SortPlan:
    """What the second step needs to know."""

    width: int
    directory: bool
    inverse: bool


class DocumentDigest:
    """SHA-256 over documents as they go by."""

    def __init__(self) -> None:
        self._hash = hashlib.sha256()

    def add(self, document: Document) -> tuple[bytes, bytes]:
        """Take one more document; its text and its line for `metadata.i` as bytes.

        Raises ValueError for text with half a surrogate pair, which has no UTF-8 form.
        """
        try:
            text = document.text.encode()
        except UnicodeEncodeError as error:
            raise ValueError(
                f"{document.source}, record {document.line + 1} holds half a surrogate pair at "
                f"character {error.start}: mend its text, or leave it out."
            ) from error
        raw = {
            "path": document.source,
            "linenum": document.line,
            "metadata": dict(document.metadata),
        }
        line = json.dumps(raw, default=str).encode() + b"\n"
        self._hash.update(len(text).to_bytes(8, "little") + text + line)
        return text, line

    def hexdigest(self) -> str:
        """The digest of all documents so far."""
        return self._hash.hexdigest()


class ShardWriter:
    """The files of a shard while documents are added to them."""

    def __init__(self, folder: Path, number: int, width: int) -> None:
        self.number, self.n_documents, self.n_tokens = number, 0, 0
        self._dtype, self._separator = dtype_of(width), separator_of(width)
        self._digest, self._line_bytes = DocumentDigest(), 0
        kinds = ("tokenized", "offset", "metadata", "metaoff")
        with ExitStack() as stack:
            self._files: dict[str, BinaryIO] = {
                kind: stack.enter_context((folder / file_name(kind, number)).open("wb"))
                for kind in kinds
            }
            self._open = stack.pop_all()

    def add(self, document: Document, ids: UInt[np.ndarray, " token"] | None) -> None:
        """Append a document with its checked ids, or, for None, with the bytes of its text."""
        text, line = self._digest.add(document)
        body = np.frombuffer(text, dtype=np.uint8) if ids is None else ids
        start = self.n_tokens * self._dtype.itemsize
        self._files["tokenized"].write(np.array([self._separator], dtype=self._dtype).tobytes())
        self._files["tokenized"].write(body.astype(self._dtype, copy=False).tobytes())
        self._files["offset"].write(start.to_bytes(8, "little"))
        self._files["metadata"].write(line)
        self._files["metaoff"].write(self._line_bytes.to_bytes(8, "little"))
        self._line_bytes += len(line)
        self.n_documents += 1
        self.n_tokens += 1 + len(body)

    def finish(self, records: Path, *, full: bool) -> EncodedShard:
        """Close the files and record that they are whole."""
        self.close()
        digest = self._digest.hexdigest()
        shard = EncodedShard(self.number, self.n_documents, self.n_tokens, digest, full)
        write_record(records / f"encoded.{self.number}.json", asdict(shard))
        return shard

    def close(self) -> None:
        """Close the files."""
        self._open.close()


def sort_shard(folder: Path, records: Path, number: int, plan: SortPlan) -> int:
    """Write the table and what else derives from the tokens of shard `number`; its number again.

    In memory at once: the tokens, what `suffix_array` needs, and with `plan.inverse` 4 bytes a
    token more. Does nothing when an earlier run finished it. Raises OSError when the disk is too
    full.
    """
    if sorted_files(folder, records, number) is not None:
        return number
    tokens = np.fromfile(folder / file_name("tokenized", number), dtype=dtype_of(plan.width))
    ratio = ratio_of(tokens.nbytes)
    a_token = ratio + (inverse_dtype(len(tokens)).itemsize if plan.inverse else 0)
    check_space(folder, a_token * len(tokens) + (1 << 20))
    positions = suffix_array(tokens)
    check_order(tokens, positions)
    if plan.width > 1:
        write_whole(folder / file_name("unigram", number), _unigram_lines(tokens))
    write_whole(folder / file_name("table", number), _table(positions, plan.width, ratio))
    if plan.directory:
        starts = positions[::DIRECTORY_STRIDE].astype(np.int64) * plan.width
        keys = prefix_keys(tokens.view(np.uint8), starts).astype("<u8")
        write_whole(folder / file_name("directory", number), iter([keys.tobytes()]))
    if plan.inverse:
        write_whole(folder / file_name("inverse", number), iter([_inverse(positions)]))
    _record_files(folder, records, number)
    return number


def sorted_files(folder: Path, records: Path, number: int) -> dict[str, FileRecord] | None:
    """The files of a finished shard, by name; None if it is not finished."""
    path = records / f"sorted.{number}.json"
    if not path.is_file():
        return None
    raw = json.loads(path.read_text("utf-8"))
    files = {name: FileRecord(**record) for name, record in raw.items()}
    whole = all(
        (folder / name).is_file() and (folder / name).stat().st_size == record.bytes
        for name, record in files.items()
    )
    return files if whole else None


def encoded_shard(folder: Path, records: Path, number: int, width: int) -> EncodedShard | None:
    """Shard `number` as an earlier run wrote its tokens; None if it did not."""
    path = records / f"encoded.{number}.json"
    tokens = folder / file_name("tokenized", number)
    if not path.is_file() or not tokens.is_file():
        return None
    shard = EncodedShard(**json.loads(path.read_text("utf-8")))
    return shard if tokens.stat().st_size == shard.n_tokens * width else None


def write_record(path: Path, value: Any) -> None:
    """A JSON file that is there whole or not at all, also after a power cut."""
    write_whole(path, iter([json.dumps(value, indent=1, sort_keys=True).encode() + b"\n"]))


def write_whole(path: Path, parts: Iterator[bytes | memoryview]) -> None:
    """Write a file that is there whole or not at all."""
    temporary = path.with_name(f".{path.name}.tmp")
    with temporary.open("wb") as file:
        for part in parts:
            file.write(part)
        file.flush()
        os.fsync(file.fileno())
    os.replace(temporary, path)


def _record_files(folder: Path, records: Path, number: int) -> None:
    paths = [folder / file_name(kind, number) for kind in (*REQUIRED, *OPTIONAL)]
    found = {
        path.name: asdict(FileRecord(path.stat().st_size, file_sha256(path)))
        for path in paths
        if path.is_file()
    }
    write_record(records / f"sorted.{number}.json", found)


def _table(positions: Int[np.ndarray, " rank"], width: int, ratio: int) -> Iterator[bytes]:
    """The low `ratio` bytes of every suffix's byte offset."""
    for start in range(0, len(positions), _CHUNK):
        places = positions[start : start + _CHUNK].astype("<u8") * np.uint64(width)
        yield places.view(np.uint8).reshape(-1, 8)[:, :ratio].tobytes()


def _inverse(positions: Int[np.ndarray, " rank"]) -> bytes | memoryview:
    """Per position its rank."""
    inverse = np.empty(len(positions), dtype=inverse_dtype(len(positions)))
    for start in range(0, len(positions), _CHUNK):
        part = positions[start : start + _CHUNK]
        inverse[part] = np.arange(start, start + len(part), dtype=inverse.dtype)
    return inverse.data


def _unigram_lines(tokens: UInt[np.ndarray, " position"]) -> Iterator[bytes]:
    """`id count` of every id that occurs, ascending, the separator last."""
    separator = separator_of(tokens.dtype.itemsize)
    counts, separators = np.zeros(0, dtype=np.int64), 0
    for start in range(0, len(tokens), _CHUNK):
        part = tokens[start : start + _CHUNK]
        kept = part[part != separator]
        separators += len(part) - len(kept)
        found = np.bincount(kept, minlength=len(counts))
        found[: len(counts)] += counts
        counts = found
    for token in np.flatnonzero(counts):
        yield f"{token} {counts[token]}\n".encode()
    yield f"{separator} {separators}\n".encode()
