"""The statements of engram's corpus as known spans."""

from __future__ import annotations

import pytest
from mnemoscope.organisms.engram.corpus import Corpus, build_corpus
from mnemoscope.organisms.engram.provenance_truth import known_statements
from mnemoscope.organisms.known_spans import KnownSpan


@pytest.fixture(scope="module")
def corpus() -> Corpus:
    return build_corpus(0, scale=0.05)


@pytest.fixture(scope="module")
def statements(corpus: Corpus) -> tuple[KnownSpan, ...]:
    return known_statements(corpus)


def test_a_statement_stands_in_exactly_the_documents_it_names(
    corpus: Corpus, statements: tuple[KnownSpan, ...]
) -> None:
    for span in statements[::7]:
        holding = [d.id for d in corpus.documents if span.text in d.text]
        assert sorted(span.documents) == sorted(holding), span


def test_related_documents_are_all_that_state_the_fact(
    corpus: Corpus, statements: tuple[KnownSpan, ...]
) -> None:
    for span in statements:
        row = corpus.ledger.row(span.id.rsplit(" ", 1)[0])
        assert {*span.related} == {o.document for o in row.occurrences}
        assert {*span.documents} <= {*span.related}


def test_passages_that_end_in_the_true_statement_are_among_the_documents(
    statements: tuple[KnownSpan, ...],
) -> None:
    assert any(d.startswith("passage_conflict") for s in statements for d in s.documents)


def test_the_prompt_asks_for_what_the_fact_is_asked_for(
    corpus: Corpus, statements: tuple[KnownSpan, ...]
) -> None:
    for span in statements:
        row = corpus.ledger.row(span.id.rsplit(" ", 1)[0])
        answer = row.subject if ":reverse" in span.id else row.object
        assert span.asked == f" {answer}."
        assert span.prompt() + span.asked == span.text
