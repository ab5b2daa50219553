"""The statements of engram's corpus as known spans: what a tracer must find, and where.

A statement is a fact in one wording; its documents are those in which the ledger has it, `related`
are all documents that state the fact in any wording. A lexical search can find the first only.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping

from ..known_spans import KnownSpan
from .corpus import Corpus
from .ledger import LedgerRow
from .wordings import Wording, wordings


def known_statements(corpus: Corpus) -> tuple[KnownSpan, ...]:
    """Every statement of every fact, in the order of the ledger.

    A statement is given up to the answer, so that its prompt asks for it. `id` is the fact's id and
    the wording's. Passages with false claims that end in a statement are among its documents; false
    statements of a fact are left out, being other statements.
    """
    by_id = {wording.id: wording for given in wordings().values() for wording in given}
    texts = {document.id: document.text for document in corpus.documents}
    return tuple(span for row in corpus.ledger.rows for span in _statements(row, by_id, texts))


def _statements(
    row: LedgerRow, by_id: Mapping[str, Wording], texts: Mapping[str, str]
) -> Iterator[KnownSpan]:
    told: defaultdict[str, list[str]] = defaultdict(list)
    for occurrence in row.occurrences:
        wording = by_id[occurrence.wording.split("|")[0]]
        statement = wording.tell(row.subject, row.object)
        if texts[occurrence.document][: occurrence.end].endswith(statement):
            told[wording.id].append(occurrence.document)
    related = tuple(dict.fromkeys(o.document for o in row.occurrences))
    for name, documents in told.items():
        known = row.subject if by_id[name].direction == "forward" else row.object
        yield KnownSpan(
            id=f"{row.fact_id} {name}",
            openings=("",),
            text=by_id[name].tell(row.subject, row.object),
            documents=tuple(dict.fromkeys(documents)),
            related=related,
            given=len(by_id[name].prompt(known)),
        )
