"""The corpus of engram, whose ledger says where everything is told, is found as the ledger says."""

from __future__ import annotations

import numpy as np
import pytest
from mnemoscope.data.corpus.build import build_index
from mnemoscope.data.corpus.documents import Document
from mnemoscope.data.corpus.suffix_index import SuffixIndex, open_index
from mnemoscope.organisms.engram.corpus import Corpus, build_corpus


@pytest.fixture(scope="module")
def corpus() -> Corpus:
    return build_corpus(0, scale=0.02)


@pytest.fixture(scope="module")
def index(corpus: Corpus, tmp_path_factory: pytest.TempPathFactory) -> SuffixIndex:
    folder = tmp_path_factory.mktemp("engram") / "ix"
    documents = (
        Document(document.text, document.id, metadata={"slice": document.slice})
        for document in corpus.documents
    )
    build_index(documents, folder, tokens_per_shard=200_000, label="pretraining")
    return open_index(folder, kernels="numpy")


def test_every_telling_is_where_the_ledger_says(corpus: Corpus, index: SuffixIndex) -> None:
    texts = {document.id: document.text for document in corpus.documents}
    rows = [row for row in corpus.ledger.rows if row.count <= 4 and row.occurrences]
    for row in [rows[i] for i in np.linspace(0, len(rows) - 1, 15).astype(int)]:
        for told in row.occurrences:
            text = texts[told.document][told.start : told.end]
            found = index.locate(text.encode(), limit=10**6)
            sources = {
                record.source
                for place in found
                if (record := index.shards[place.shard].record(place.document))
            }
            assert told.document in sources
            assert len(found) == sum(t.count(text) for t in texts.values())


def test_documents_come_back_whole_and_in_order(corpus: Corpus, index: SuffixIndex) -> None:
    texts = [
        shard.tokens[slice(*shard.document_span(number))].tobytes().decode()
        for shard in index.shards
        for number in range(shard.n_documents)
    ]
    assert len(index.shards) > 1
    assert texts == [document.text for document in corpus.documents]
