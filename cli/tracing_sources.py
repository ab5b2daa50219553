"""What `trace` reads: corpora to index, indexes with the spelling of their texts, texts."""

from __future__ import annotations

import hashlib
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from ..data.corpus.documents import Document, Split, cut_of, read_documents
from ..data.corpus.index_info import IndexInfo, info_json
from ..data.corpus.parts import Part, PartRecord, cut_sha256
from ..data.corpus.suffix_index import SuffixIndex, open_index
from ..models.errors import MnemoscopeError
from ..models.load import load_tokenizer
from ..models.packaged import PACKAGED
from ..models.tokens import vocabulary_sha256
from ..probes.index_spelling import Spelling, byte_spelling, token_spelling

SHIPPED = "engram"
"""The source that stands for the shipped corpus; `engram:risk,benign` for some of its slices."""


@contextmanager
def one_sentence() -> Iterator[None]:
    """What `data/` raises, as the error that commands end with."""
    try:
        yield
    except OSError as error:
        named = f" ({error.filename})" if error.filename else ""
        raise MnemoscopeError(f"{error.strerror or error}{named}") from error
    except (ValueError, ImportError, IndexError) as error:
        raise MnemoscopeError(str(error)) from error


@dataclass(frozen=True, eq=False)
class OpenIndex:
    """An index and how its texts are spelled; `sha256` is that of its record of all files."""

    folder: str | Path
    index: SuffixIndex
    spelling: Spelling
    sha256: str

    @property
    def info(self) -> IndexInfo:
        """What the index was made of."""
        return self.index.info

    @property
    def words(self) -> str:
        """The index in a line."""
        info = self.info
        unit = "bytes" if info.mode == "bytes" else f"tokens of {info.tokenizer_name or 'unknown'}"
        label = f", {info.label}" if info.label else ""
        return f"{self.folder}{label}: {info.n_documents:,} documents, {info.n_tokens:,} {unit}"


def open_for(folder: str | Path, tokenizer: str = "") -> OpenIndex:
    """Open an index (a folder, a URL, joined parts) with the tokenizer that it records, or with the
    one that is named.

    Raises `MnemoscopeError` where there is no index, or another tokenizer than its own.
    """
    named = load_tokenizer(tokenizer) if tokenizer else None
    with one_sentence():
        index = open_index(folder, vocab_size=None if named is None else len(named))
    identity = hashlib.sha256(info_json(index.info).encode()).hexdigest()
    if index.info.mode == "bytes":
        return OpenIndex(folder, index, byte_spelling(), identity)
    name = tokenizer or index.info.tokenizer_name
    if not name:
        raise MnemoscopeError(
            f"{folder} does not record its tokenizer: name a model that has it with --tokenizer."
        )
    loaded = load_tokenizer(name) if named is None else named
    spelling = token_spelling(loaded, vocabulary_sha256(loaded))
    spelling.check(index.info)
    return OpenIndex(folder, index, spelling, identity)


def documents_of(
    sources: Sequence[str], *, field: str, paragraphs: bool, part: Part | None = None
) -> Iterator[Document] | Sequence[Document]:
    """Documents of files, folders, patterns, `datasets:NAME`, or of the shipped corpus; of a
    part of them, where one is named.

    Raises `MnemoscopeError` for the shipped corpus beside other sources.
    """
    shipped = [one for one in sources if one.partition(":")[0] == SHIPPED]
    if shipped and len(sources) > 1:
        raise MnemoscopeError(
            f"{shipped[0]!r} is the shipped corpus and stands alone: write ./{SHIPPED} for a file "
            "of that name, or build two indexes."
        )
    if shipped:
        found = shipped_documents(shipped[0].partition(":")[2])
        return found[part.run(len(found))] if part else found
    with one_sentence():
        return read_documents(list(sources), field=field, split=split_of(paragraphs), part=part)


def part_record(sources: Sequence[str], *, field: str, paragraphs: bool, part: Part) -> PartRecord:
    """What the index of a part keeps, so that its like from another corpus is told when joining.

    Raises `MnemoscopeError` for a source that names no file.
    """
    if sources[0].partition(":")[0] == SHIPPED:
        return PartRecord(part.number, part.of, cut_sha256(part.of, list(sources)))
    with one_sentence():
        cut = cut_of(list(sources), field=field, split=split_of(paragraphs), parts=part.of)
    return PartRecord(part.number, part.of, cut)


def split_of(paragraphs: bool) -> Split:
    """The name of the way in which text files are cut."""
    return "blank-lines" if paragraphs else "file"


def shipped_documents(slices: str = "") -> tuple[Document, ...]:
    """The corpus that engram was trained on, or some slices of it (by comma).

    Raises `MnemoscopeError` for a slice that it does not have.
    """
    from ..organisms.engram.corpus import build_corpus
    from ..organisms.engram.drafts import SLICES

    wanted = [name.strip() for name in slices.split(",") if name.strip()] or list(SLICES)
    unknown = [name for name in wanted if name not in SLICES]
    if unknown:
        raise MnemoscopeError(
            f"the shipped corpus has no slice {unknown[0]!r}: use {', '.join(SLICES)}."
        )
    return tuple(
        Document(one.text, one.id, i, {"id": one.id, "slice": one.slice})
        for i, one in enumerate(build_corpus(0).documents)
        if one.slice in wanted
    )


def read_given(text: str, file: Path | None) -> str:
    """The text of the command line, of `--file`, or of standard input (`-`).

    Raises `MnemoscopeError` unless exactly one is given, and for a file that is no text.
    """
    if bool(text) == (file is not None):
        raise MnemoscopeError(
            "give one text: on the command line, with --file, or on standard input with -."
        )
    try:
        if file is not None:
            return file.read_text(encoding="utf-8")
        return sys.stdin.read() if text == "-" else text
    except (OSError, UnicodeDecodeError) as error:
        raise MnemoscopeError(f"{file or 'standard input'} is no UTF-8 text ({error}).") from error


def tokenizer_name(name: str) -> str:
    """What an index keeps of a tokenizer so that it is found again: a folder's whole path."""
    path = Path(name).expanduser()
    folder = name and name not in PACKAGED and path.exists()
    return str(path.resolve()) if folder else name
