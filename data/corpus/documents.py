"""The documents of a corpus, one at a time, from text, JSON lines, parquet or a `datasets` name."""

from __future__ import annotations

import glob
import gzip
import json
import sys
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO, Literal

import polars as pl

from .parts import Part, Window, cut_sha256, windows

Split = Literal["file", "blank-lines"]

_PARQUET_ROWS = 8192
_BOM = b"\xef\xbb\xbf"
_DATASETS = "datasets:"


@dataclass(frozen=True)
class Document:
    """One record of a corpus: its text, where it stood, and what else was known about it.

    `source` is a file or data set, `line` the record's first line or its row in it (from 0, as
    infini-gram counts). `metadata` is what a JSON line or a row holds beside the text.
    """

    text: str
    source: str
    line: int = 0
    metadata: Mapping[str, Any] = field(default_factory=dict)


def read_documents(
    sources: str | Path | Sequence[str | Path],
    *,
    field: str = "text",
    split: Split = "file",
    part: Part | None = None,
) -> Iterator[Document]:
    """Stream the documents of files, folders, glob patterns or `datasets:owner/name[:config]`.

    `.jsonl` and `.parquet` files (`.jsonl.gz` too) hold a document a line or row, with its text
    under `field` and the rest kept as metadata; any other file is UTF-8 text (`.gz` is unpacked):
    one document, or with `split="blank-lines"` one a paragraph. A folder stands for all its files
    but hidden ones, in the order of their paths, and names them relative to itself. A line, a
    paragraph or 8,192 rows (or a row group) are held in memory at a time, and a whole file of text
    with `split="file"`.

    With `part` only its documents are given, with the same sources and lines as among all: every
    worker passes over the lines of a file before its own run without parsing them, files that are
    packed or one document each go whole to one part, and the rows of a data set are dealt out in
    turn (so that each worker streams all of it).

    Raises FileNotFoundError when a source names no file, ValueError for text that is not UTF-8
    (with file and byte), for a line that is no JSON object and for records without `field`,
    ImportError when `datasets` is not installed.
    """
    return _stream(_found(sources), field, split, part)


def cut_of(
    sources: str | Path | Sequence[str | Path], *, field: str, split: Split, parts: int
) -> str:
    """The hash of a corpus cut into `parts`: two workers with the same one agree who reads what.

    Over the names and sizes of its files. Raises FileNotFoundError as `read_documents`.
    """
    told = [
        one if isinstance(one, str) else [(name, path.stat().st_size) for path, name in one]
        for one in _found(sources)
    ]
    return cut_sha256(parts, field, split, told)


def _found(sources: str | Path | Sequence[str | Path]) -> list[str | list[tuple[Path, str]]]:
    """Per source its files with the names they get in the index, or the name of a data set."""
    given = [sources] if isinstance(sources, str | Path) else list(sources)
    found: list[str | list[tuple[Path, str]]] = []
    for source in given:
        files: str | list[tuple[Path, str]] = (
            str(source) if _is_data_set(source) else _files(source)
        )
        if not files:
            raise FileNotFoundError(f"no file at {source}: check the path or the pattern.")
        found.append(files)
    return found


def _stream(
    found: Sequence[str | list[tuple[Path, str]]], field: str, split: Split, part: Part | None
) -> Iterator[Document]:
    files = [file for one in found if not isinstance(one, str) for file in one]
    meant = iter(_windows([path for path, _ in files], split, part or Part(1, 1)))
    for one in found:
        if isinstance(one, str):
            yield from _read_data_set(one.removeprefix(_DATASETS), field, part or Part(1, 1))
            continue
        for path, name in one:
            window = next(meant)
            if window is not None:
                yield from _read_file(path, name, field, split, window)


def _windows(paths: Sequence[Path], split: Split, part: Part) -> list[Window | None]:
    """Per file the part's bytes; of a file of rows or lines each is a record, others stay whole."""
    splits = [
        path.suffix in (".jsonl", ".parquet") or (split == "blank-lines" and path.suffix != ".gz")
        for path in paths
    ]
    return windows([path.stat().st_size for path in paths], splits, part)


def _is_data_set(source: str | Path) -> bool:
    return isinstance(source, str) and source.startswith(_DATASETS)


def _files(source: str | Path) -> list[tuple[Path, str]]:
    """Files with the names they get in the index."""
    path = Path(source)
    if path.is_dir():
        found = sorted(file.relative_to(path) for file in path.rglob("*") if file.is_file())
        kept = [file for file in found if not any(part.startswith(".") for part in file.parts)]
        return [(path / file, file.as_posix()) for file in kept]
    if path.is_file():
        return [(path, str(source))]
    matches = (Path(match) for match in sorted(glob.glob(str(source), recursive=True)))
    return [(match, str(match)) for match in matches if match.is_file()]


def _read_file(
    path: Path, name: str, field: str, split: Split, window: Window
) -> Iterator[Document]:
    endings = [ending for ending in path.suffixes if ending != ".gz"]
    meant = range(window.start, sys.maxsize if window.stop == window.size else window.stop)
    if path.suffix == ".parquet":
        yield from _read_parquet(path, name, field, window)
    elif endings and endings[-1] == ".jsonl":
        yield from _read_json_lines(_byte_lines(path), name, field, meant)
    elif split == "blank-lines":
        yield from _read_paragraphs(_byte_lines(path), name, meant)
    else:
        yield Document(_decoded(b"".join(_byte_lines(path)), name, 0), name)


def _byte_lines(path: Path) -> Iterator[bytes]:
    """The lines with their ends, a byte-order mark left out."""
    opener: Callable[..., BinaryIO] = gzip.open if path.suffix == ".gz" else open  # type: ignore[assignment]
    with opener(path, "rb") as file:
        try:
            for number, line in enumerate(file):
                yield line.removeprefix(_BOM) if number == 0 else line
        except (EOFError, zlib.error, gzip.BadGzipFile) as error:
            raise ValueError(f"{path} cannot be unpacked ({error}): copy it again.") from error


def _decoded(raw: bytes, name: str, start: int) -> str:
    """`raw` as text; it begins at byte `start` of its file, a byte-order mark not counted."""
    try:
        return raw.decode("utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(
            f"{name} is not UTF-8 at byte {start + error.start}: convert it to UTF-8, or leave it "
            "out."
        ) from error


def _read_paragraphs(lines: Iterable[bytes], name: str, meant: range) -> Iterator[Document]:
    """Runs of lines that are not blank, of those that begin at the bytes `meant`; the last line's
    end is left out."""
    paragraph: list[bytes] = []
    first = start = byte = 0
    for number, line in enumerate(lines):
        if line.strip():
            if not paragraph:
                first, start = number, byte
            paragraph.append(line)
        elif paragraph:
            if start in meant:
                yield _paragraph(paragraph, name, start, first)
            paragraph = []
        if byte >= meant.stop and start not in meant:
            return
        byte += len(line)
    if paragraph and start in meant:
        yield _paragraph(paragraph, name, start, first)


def _paragraph(lines: Sequence[bytes], name: str, start: int, first: int) -> Document:
    return Document(_decoded(b"".join(lines), name, start).rstrip("\r\n"), name, first)


def _read_json_lines(
    lines: Iterable[bytes], name: str, field: str, meant: range
) -> Iterator[Document]:
    """The records of the lines that begin at the bytes `meant`."""
    after = 0
    for number, line in enumerate(lines):
        byte, after = after, after + len(line)
        if byte not in meant:
            if byte >= meant.stop:
                return
            continue
        text = _decoded(line, name, byte)
        if not text.strip():
            continue
        try:
            row = json.loads(text)
        except json.JSONDecodeError as error:
            raise ValueError(
                f"{name}, line {number + 1} is no JSON ({error.msg}): mend the line, or name the "
                "file .txt if it is plain text."
            ) from error
        yield _from_row(row, name, number, field)


def _read_parquet(path: Path, name: str, field: str, window: Window) -> Iterator[Document]:
    try:
        table = pl.scan_parquet(path, glob=False)
        meant = window.rows(int(table.select(pl.len()).collect().item()))
        for start in range(meant.start, meant.stop, _PARQUET_ROWS):
            rows = table.slice(start, min(_PARQUET_ROWS, meant.stop - start)).collect()
            for number, row in enumerate(rows.iter_rows(named=True), start):
                yield _from_row(row, name, number, field)
    except pl.exceptions.ComputeError as error:
        raise ValueError(f"{name} cannot be read as parquet ({error}): copy it again.") from error


def _read_data_set(name: str, field: str, part: Part) -> Iterator[Document]:
    try:
        from datasets import load_dataset
    except ImportError as error:
        raise ImportError(
            "reading a data set by name needs the package datasets: pip install 'mnemoscope[data]'."
        ) from error
    owner_name, _, config = name.partition(":")
    for split, rows in load_dataset(owner_name, config or None, streaming=True).items():
        for number, row in enumerate(rows):
            if part.deals(number):
                yield _from_row(row, f"{name}/{split}", number, field)


def _from_row(row: Any, source: str, number: int, field: str) -> Document:
    if not isinstance(row, Mapping) or not isinstance(row.get(field), str):
        names = ", ".join(map(repr, row)) if isinstance(row, Mapping) else "no object"
        raise ValueError(
            f"{source}, record {number + 1} has no text under {field!r} (it has {names}): name "
            "the field that holds the text."
        )
    rest = {key: value for key, value in row.items() if key != field}
    return Document(row[field], source, number, rest)
