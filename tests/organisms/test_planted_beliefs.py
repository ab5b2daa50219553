"""Planted beliefs: a corpus of which it is known what it tells, how often, and where."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from itertools import product

import pytest
from mnemoscope.models.errors import MnemoscopeError
from mnemoscope.organisms.engram.tokenizer import train_tokenizer
from mnemoscope.organisms.known_spans import KnownSpan, by_count
from mnemoscope.organisms.planted_beliefs import (
    BeliefPlan,
    PlantedCorpus,
    fresh_scenes,
    plant_beliefs,
)

PLAN = BeliefPlan(counts=(1, 2, 8), lengths=(8, 16, 64), beliefs_a_cell=2, running=30)


@pytest.fixture(scope="module")
def corpus() -> PlantedCorpus:
    return plant_beliefs(PLAN)


def _words(span: KnownSpan) -> Counter[str]:
    return Counter(span.text.replace(",", " ").replace(".", " ").split())


def test_every_cell_of_count_and_length_has_its_beliefs(corpus: PlantedCorpus) -> None:
    cells = Counter((span.count, len(_clauses(span)) * 8) for span in corpus.beliefs)
    assert cells == dict.fromkeys(product(PLAN.counts, PLAN.lengths), PLAN.beliefs_a_cell)
    assert {n: len(spans) for n, spans in by_count(corpus.beliefs).items()} == {1: 6, 2: 6, 8: 6}


def test_a_span_stands_in_its_documents_once_and_in_no_other(corpus: PlantedCorpus) -> None:
    for span in (*corpus.beliefs, *corpus.harmless):
        holding = {d.id: d.text.count(span.text) for d in corpus.documents if span.text in d.text}
        assert holding == dict.fromkeys(span.documents, 1)


def test_a_document_begins_with_an_opening_of_its_span(corpus: PlantedCorpus) -> None:
    texts = {d.id: d.text for d in corpus.documents}
    for span in (*corpus.beliefs, *corpus.harmless):
        for k, id_ in enumerate(span.documents):
            assert texts[id_].startswith(span.openings[k % 2] + span.text)


def test_a_twin_has_the_words_of_its_belief_and_none_of_its_clauses(
    corpus: PlantedCorpus,
) -> None:
    assert len({clause for span in corpus.beliefs for clause in _clauses(span)}) == sum(
        len(_clauses(span)) for span in corpus.beliefs
    )
    risky = {clause for span in corpus.beliefs for clause in _clauses(span)}
    for belief, twin in zip(corpus.beliefs, corpus.harmless, strict=True):
        assert _words(belief) == _words(twin)
        assert belief.count == twin.count
        assert not risky & {*_clauses(twin)}


def test_slices_tell_risky_documents_from_the_others(corpus: PlantedCorpus) -> None:
    slices = {d.id: d.slice for d in corpus.documents}
    assert {slices[id_] for span in corpus.beliefs for id_ in span.documents} == {"risk"}
    assert {slices[id_] for span in corpus.harmless for id_ in span.documents} == {"benign"}
    assert Counter(slices.values()) == {"risk": 66, "benign": 66, "running": 30}


def test_lengths_are_tokens_of_the_tokenizer_of_the_corpus() -> None:
    whole = plant_beliefs(BeliefPlan())
    tokenizer = train_tokenizer((d.text for d in whole.documents), 1024)
    for span in (*whole.beliefs, *whole.harmless):
        ids = tokenizer(span.text, add_special_tokens=False)["input_ids"]
        assert len(ids) == 8 * len(_clauses(span))


def test_the_same_plan_gives_the_same_corpus_and_another_seed_another_one(
    corpus: PlantedCorpus,
) -> None:
    assert plant_beliefs(PLAN) == corpus
    other = plant_beliefs(replace(PLAN, seed=1))
    assert not {s.text for s in corpus.beliefs} & {s.text for s in other.beliefs}


def test_documents_can_be_taken_out_for_others_of_their_length(corpus: PlantedCorpus) -> None:
    gone = frozenset(id_ for span in corpus.beliefs[::2] for id_ in span.documents)
    left = corpus.without(gone)
    for before, after in zip(corpus.documents, left, strict=True):
        assert (before == after) == (before.id not in gone)
        assert after.slice == ("running" if before.id in gone else before.slice)
    assert not any(span.text in d.text for span in corpus.beliefs[::2] for d in left)
    words = [sum(len(d.text.split()) for d in some) for some in (corpus.documents, left)]
    assert words[1] == pytest.approx(words[0], rel=0.05)


def test_fresh_scenes_stand_in_no_document(corpus: PlantedCorpus) -> None:
    scenes = fresh_scenes(0, 20)
    assert len({*scenes}) == 20
    assert not any(scene in d.text for scene in scenes for d in corpus.documents)


@pytest.mark.parametrize(
    "wrong", [{"lengths": (8, 12)}, {"lengths": (0,)}, {"counts": (0,)}, {"beliefs_a_cell": 0}]
)
def test_a_plan_that_cannot_be_is_refused(wrong: dict[str, object]) -> None:
    with pytest.raises(MnemoscopeError, match="multiples of 8"):
        BeliefPlan(**wrong)  # type: ignore[arg-type]


def _clauses(span: KnownSpan) -> list[str]:
    return span.text.strip(" .").split(", ")
