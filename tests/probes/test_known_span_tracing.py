"""Tracing against the truth: what an index names for a span whose documents are known."""

from __future__ import annotations

import pytest
import torch
from mnemoscope.data.corpus.spans import Span
from mnemoscope.data.corpus.suffix_index import SuffixIndex
from mnemoscope.models import HookedModel, wrap
from mnemoscope.models.tokens import PlainEncoder
from mnemoscope.organisms.engram.tokenizer import train_tokenizer
from mnemoscope.organisms.engram.train import model_config
from mnemoscope.organisms.planted_belief_training import SMALL
from mnemoscope.organisms.planted_beliefs import (
    BeliefPlan,
    PlantedCorpus,
    fresh_scenes,
    plant_beliefs,
)
from mnemoscope.probes.known_span_tracing import (
    Attribution,
    Passage,
    TracingRule,
    attribution_table,
    attributions,
    found_documents,
    index_corpus,
)
from mnemoscope.probes.left_out_documents import attributed_documents
from transformers import LlamaForCausalLM

PLAN = BeliefPlan(counts=(1, 4, 20), lengths=(8, 32), beliefs_a_cell=2, running=20)
EVERY = TracingRule("every", documents_a_span=1000)
ACROSS = TracingRule("across", documents_a_span=1000, within_sentences=False)
PAPER = TracingRule("paper", max_count=3, documents_a_span=5)


@pytest.fixture(scope="module")
def corpus() -> PlantedCorpus:
    return plant_beliefs(PLAN)


@pytest.fixture(scope="module")
def model(corpus: PlantedCorpus) -> HookedModel:
    torch.manual_seed(0)
    tokenizer = train_tokenizer((d.text for d in corpus.documents), SMALL.vocab_size)
    return wrap(LlamaForCausalLM(model_config(SMALL)).eval(), tokenizer, name="fresh")


@pytest.fixture(scope="module")
def index(
    corpus: PlantedCorpus, model: HookedModel, tmp_path_factory: pytest.TempPathFactory
) -> SuffixIndex:
    return index_corpus(corpus.documents, tmp_path_factory.mktemp("corpus") / "index", model)


@pytest.fixture(scope="module")
def measured(
    corpus: PlantedCorpus, model: HookedModel, index: SuffixIndex
) -> dict[tuple[str, str], Attribution]:
    spans = [*corpus.beliefs, *corpus.harmless]
    found = attributions(
        index,
        PlainEncoder(model.text_tokenizer),
        spans,
        fresh_scenes(0, 5),
        rules=(EVERY, PAPER),
    )
    return {(one.span, one.rule): one for one in found}


def test_without_a_filter_every_document_is_named_and_no_other(
    corpus: PlantedCorpus, measured: dict[tuple[str, str], Attribution]
) -> None:
    for span in (*corpus.beliefs, *corpus.harmless):
        one = measured[span.id, "every"]
        assert (one.found, one.right, one.recall) == (span.count, span.count, 1.0)


def test_a_match_that_runs_on_by_chance_hides_documents(
    corpus: PlantedCorpus, model: HookedModel, index: SuffixIndex
) -> None:
    """What follows one of the twenty tellings follows here too: that match is longer, and alone."""
    belief = next(span for span in corpus.beliefs if span.count == 20)
    told = next(d.text for d in corpus.documents if d.id == belief.documents[3])
    after = told.split(belief.text)[1].strip()
    cut, whole = attributions(
        index,
        PlainEncoder(model.text_tokenizer),
        [belief],
        [after],
        rules=(EVERY, ACROSS),
    )
    assert (cut.right, cut.recall) == (20, 1.0)
    assert whole.recall <= 2 / 20


def test_the_filter_of_the_paper_loses_what_is_told_often(
    corpus: PlantedCorpus, measured: dict[tuple[str, str], Attribution]
) -> None:
    """Three occurrences at most: what is told 20 times, and remembered best, is not found."""
    for span in corpus.beliefs:
        recall = measured[span.id, "paper"].recall
        assert recall == 1 if span.count == 1 else recall < 1
        if span.count == 20:
            assert measured[span.id, "paper"].right == 0


def test_the_table_pools_documents_and_averages_spans(
    measured: dict[tuple[str, str], Attribution],
) -> None:
    rows = attribution_table(measured.values())
    assert [(r.rule, r.count, r.length) for r in rows] == [
        (rule, count, length)
        for rule in ("every", "paper")
        for count in (1, 4, 20)
        for length in (8, 32)
    ]
    for row in rows:
        cell = [
            one
            for one in measured.values()
            if (one.rule, one.count, one.length) == (row.rule, row.count, row.length)
        ]
        assert row.spans == len(cell) == 4
        assert row.recall == pytest.approx(sum(one.recall for one in cell) / 4)
        if found := sum(one.found for one in cell):
            assert row.precision == pytest.approx(sum(one.right for one in cell) / found)
        assert row.recall_low <= row.recall <= row.recall_high


def test_documents_named_for_the_surroundings_are_counted_apart(
    corpus: PlantedCorpus, model: HookedModel, index: SuffixIndex
) -> None:
    """Around the span stands a notice of the corpus: its documents are stray."""
    notice = "This page is kept in the old library of the town, and nobody may take it home."
    holding = {d.id for d in corpus.documents if notice in d.text}
    (one,) = attributions(
        index,
        PlainEncoder(model.text_tokenizer),
        corpus.beliefs[:1],
        [notice],
        rules=(EVERY,),
    )
    assert one.found == one.right == corpus.beliefs[0].count
    assert one.stray == len(holding - {*corpus.beliefs[0].documents}) > 5


def test_a_match_belongs_to_the_span_when_most_of_it_lies_there() -> None:
    passage = Passage([1] * 10, [2] * 10, [3] * 10)
    assert passage.ids == [1] * 10 + [2] * 10 + [3] * 10
    held = [passage.holds(Span(start, start + 8, 1, ())) for start in range(22)]
    assert held == [7 <= start <= 15 for start in range(22)]


def test_attributed_documents_are_those_of_the_spans(
    corpus: PlantedCorpus, model: HookedModel, index: SuffixIndex
) -> None:
    encode = PlainEncoder(model.text_tokenizer)
    taken = corpus.beliefs[::3]
    expected = {id_ for span in taken for id_ in span.documents}
    assert attributed_documents(index, encode, taken, EVERY) == expected
    assert found_documents(index, encode(corpus.beliefs[0].text), EVERY) == {
        *corpus.beliefs[0].documents
    }
