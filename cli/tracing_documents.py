"""The work behind `trace docs`: the documents that hold a span, or one document by its number."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..models.errors import MnemoscopeError
from ..probes.index_spelling import SpelledText, spellings_of
from ..probes.provenance import BYTES_PER_TOKEN, span_document
from ..probes.traced_spans import SpanDocument
from .tracing_report import document_of
from .tracing_sources import OpenIndex, one_sentence, open_for


@dataclass(frozen=True)
class SpanPlaces:
    """Where a span stands: how often in each spelling of it, and some of the places."""

    index: str
    span: str
    counts: Mapping[str, int]
    places: tuple[SpanDocument, ...]
    longest: str

    @property
    def count(self) -> int:
        """Occurrences in all spellings."""
        return sum(self.counts.values())

    def document(self) -> dict[str, Any]:
        """The result as JSON."""
        return {
            "index": self.index,
            "span": self.span,
            "count": self.count,
            "counts": dict(self.counts),
            "longest": self.longest,
            "documents": [document_of(one) for one in self.places],
        }


@dataclass(frozen=True)
class OneDocument:
    """A document, or the part of it around a token."""

    index: str
    number: str
    source: str | None
    record: int | None
    metadata: Mapping[str, Any]
    length: int
    text: str

    def document(self) -> dict[str, Any]:
        """The result as JSON."""
        return {
            "index": self.index,
            "document": self.number,
            "source": self.source,
            "record": self.record,
            "metadata": dict(self.metadata),
            "length": self.length,
            "text": self.text,
        }


def places_of(
    folder: str | Path, span: str, *, limit: int, context: int, seed: int = 0, tokenizer: str = ""
) -> SpanPlaces:
    """The documents that hold `span` as a whole, with `context` tokens on each side.

    Over tokens it is looked for with its leading space and without. Raises `MnemoscopeError` for
    an empty span or an index that cannot be opened.
    """
    opened = open_for(folder, tokenizer)
    if not span.strip():
        raise MnemoscopeError("the span is empty: give at least a word of it.")
    spelled = spellings_of(span, opened.spelling)
    with one_sentence():
        found = [(one, opened.index.find(one.ids)) for one in spelled]
        counts = {one.name: sum(hi - lo for lo, hi in intervals) for one, intervals in found}
        places = [
            span_document(opened.index, opened.spelling, where, len(one.ids), _ids(opened, context))
            for one, intervals in found
            for where in opened.index.occurrences(intervals, limit, seed)
        ]
        longest = max((_longest(opened, one) for one in spelled), key=len)
    return SpanPlaces(str(folder), span, counts, tuple(places[:limit]), longest)


def document_at(
    folder: str | Path, number: str, *, at: int | None, context: int, tokenizer: str = ""
) -> OneDocument:
    """A document by its number (`7`, or `2/7` in the third shard), whole or around a token.

    Raises `MnemoscopeError` for a number that the index does not have.
    """
    opened = open_for(folder, tokenizer)
    shard, document = _number(number)
    with one_sentence():
        found = opened.index.document(shard, document)
    ids = found.ids.tolist()
    if at is not None:
        wide = _ids(opened, context)
        ids = ids[max(0, at - wide) : at + wide]
    return OneDocument(
        index=str(folder),
        number=f"{shard}/{document}",
        source=None if found.record is None else found.record.source,
        record=None if found.record is None else found.record.line,
        metadata={} if found.record is None else found.record.metadata,
        length=len(found.ids),
        text=opened.spelling.decode(ids),
    )


def _ids(opened: OpenIndex, tokens: int) -> int:
    """So many tokens in ids of the index."""
    return tokens * (BYTES_PER_TOKEN if opened.info.mode == "bytes" else 1)


def _longest(opened: OpenIndex, spelled: SpelledText) -> str:
    """The longest part of the span that stands in the index."""
    lengths = opened.index.matching_statistics(spelled.ids)
    best = int(lengths.argmax())
    if not lengths[best]:
        return ""
    start, stop = spelled.characters(best, best + int(lengths[best]))
    return spelled.text[start:stop]


def _number(number: str) -> tuple[int, int]:
    shard, _, document = number.rpartition("/")
    try:
        return int(shard or 0), int(document)
    except ValueError:
        raise MnemoscopeError(
            f"{number!r} is no document: write its number, or SHARD/NUMBER as traces name it."
        ) from None
