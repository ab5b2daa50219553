"""The documents of a corpus, one at a time, from text, JSON lines, parquet or a `datasets` name."""

from __future__ import annotations

import glob
import gzip
import json
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO, Literal

import polars as pl

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
    sources: str | Path | Sequence[str | Path], *, field: str = "text", split: Split = "file"
) -> Iterator[Document]:
    """Stream the documents of files, folders, glob patterns or `datasets:owner/name[:config]`.

    `.jsonl` and `.parquet` files (`.jsonl.gz` too) hold a document a line or row, with its text
    under `field` and the rest kept as metadata; any other file is UTF-8 text (`.gz` is unpacked):
    one document, or with `split="blank-lines"` one a paragraph. A folder stands for all its files
    but hidden ones, in the order of their paths, and names them relative to itself. A line, a
    paragraph or 8,192 rows (or a row group) are held in memory at a time, and a whole file of text
    with `split="file"`.

    Raises FileNotFoundError when a source names no file, ValueError for text that is not UTF-8
    (with file and byte), for a line that is no JSON object and for records without `field`,
    ImportError when `datasets` is not installed.
    """
    given = [sources] if isinstance(sources, str | Path) else list(sources)
    found = [(source, _files(source)) for source in given if not _is_data_set(source)]
    empty = [str(source) for source, files in found if not files]
    if empty:
        raise FileNotFoundError(f"no file at {empty[0]}: check the path or the pattern.")
    return _stream(given, field, split)


def _stream(given: Sequence[str | Path], field: str, split: Split) -> Iterator[Document]:
    for source in given:
        if _is_data_set(source):
            yield from _read_data_set(str(source).removeprefix(_DATASETS), field)
            continue
        for path, name in _files(source):
            yield from _read_file(path, name, field, split)


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


def _read_file(path: Path, name: str, field: str, split: Split) -> Iterator[Document]:
    endings = [ending for ending in path.suffixes if ending != ".gz"]
    if path.suffix == ".parquet":
        yield from _read_parquet(path, name, field)
    elif endings and endings[-1] == ".jsonl":
        yield from _read_json_lines(_byte_lines(path), name, field)
    elif split == "blank-lines":
        yield from _read_paragraphs(_byte_lines(path), name)
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


def _read_paragraphs(lines: Iterable[bytes], name: str) -> Iterator[Document]:
    """Runs of lines that are not blank; the last line's end is left out."""
    paragraph: list[bytes] = []
    first = start = byte = 0
    for number, line in enumerate(lines):
        if line.strip():
            if not paragraph:
                first, start = number, byte
            paragraph.append(line)
        elif paragraph:
            yield Document(_decoded(b"".join(paragraph), name, start).rstrip("\r\n"), name, first)
            paragraph = []
        byte += len(line)
    if paragraph:
        yield Document(_decoded(b"".join(paragraph), name, start).rstrip("\r\n"), name, first)


def _read_json_lines(lines: Iterable[bytes], name: str, field: str) -> Iterator[Document]:
    byte = 0
    for number, line in enumerate(lines):
        text = _decoded(line, name, byte)
        byte += len(line)
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


def _read_parquet(path: Path, name: str, field: str) -> Iterator[Document]:
    try:
        table = pl.scan_parquet(path, glob=False)
        n_rows = int(table.select(pl.len()).collect().item())
        for start in range(0, n_rows, _PARQUET_ROWS):
            rows = table.slice(start, _PARQUET_ROWS).collect()
            for number, row in enumerate(rows.iter_rows(named=True), start):
                yield _from_row(row, name, number, field)
    except pl.exceptions.ComputeError as error:
        raise ValueError(f"{name} cannot be read as parquet ({error}): copy it again.") from error


def _read_data_set(name: str, field: str) -> Iterator[Document]:
    try:
        from datasets import load_dataset
    except ImportError as error:
        raise ImportError(
            "reading a data set by name needs the package datasets: pip install 'mnemoscope[data]'."
        ) from error
    owner_name, _, config = name.partition(":")
    for split, rows in load_dataset(owner_name, config or None, streaming=True).items():
        for number, row in enumerate(rows):
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
