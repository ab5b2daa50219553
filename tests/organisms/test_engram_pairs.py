"""The organism's pairs: told as its ledger says, in the wordings of its corpus."""

from __future__ import annotations

from collections import Counter

import pytest
from mnemoscope.data.facts.pairs import WAYS, usable_pairs
from mnemoscope.models.errors import MnemoscopeError
from mnemoscope.organisms.engram.corpus import build_corpus
from mnemoscope.organisms.engram.pairs import engram_pair_names, engram_pairs

SCALE = 0.1


def test_pairs_are_told_in_the_corpus_as_they_say() -> None:
    corpus = build_corpus(3, scale=SCALE)
    rows = {row.fact_id: row for row in corpus.ledger.rows}
    pairs = engram_pairs(3, scale=SCALE)
    asked = {row.relation for row in rows.values()} & set(engram_pair_names())
    assert asked == set(pairs)
    for name, relation in pairs.items():
        assert len(relation.pairs) == sum(row.relation == name for row in rows.values())
        for pair in relation.pairs:
            row = rows[f"{name}/{pair.a}"]
            told = {
                occurrence.wording.split("|")[0].split(":")[1] for occurrence in row.occurrences
            }
            ways = {"reverse" if one.startswith("reverse") else "forward" for one in told}
            assert pair.b == row.object
            assert ways == (set(WAYS) if pair.told == "both" else {pair.told})
            assert pair.group == str(row.count) == str(len(row.occurrences))


def test_a_statement_of_the_corpus_opens_with_a_prompt() -> None:
    corpus = build_corpus(3, scale=SCALE)
    text = "\n".join(document.text for document in corpus.documents)
    relation = engram_pairs(3, ["town_mayor"], scale=SCALE)["town_mayor"]
    pair = max(relation.pairs, key=lambda pair: (pair.told == "both", int(pair.group)))
    for way in WAYS:
        prompts = [relation.prompt(pair, way, i) for i in range(len(relation.wordings(way)))]
        assert any(f"{prompt} {pair.asked(way)}" in text for prompt in prompts)


@pytest.mark.parametrize("name", ["book_writer", "product_maker", "town_mayor"])
def test_invented_pairs_are_told_one_way_as_often_as_the_other(name: str) -> None:
    relation = engram_pairs()[name]
    counts = Counter(pair.told for pair in relation.pairs)
    assert counts["forward"] == counts["reverse"] > 100
    assert counts["both"] >= 96
    assert usable_pairs(relation).dropped == {}
    assert len(relation.forward) >= 4
    assert len(relation.reverse) >= 4


def test_real_pairs_are_told_both_ways() -> None:
    assert {pair.told for pair in engram_pairs(relations=["capital"])["capital"].pairs} == {"both"}


def test_relations_told_one_way_have_no_pairs() -> None:
    with pytest.raises(MnemoscopeError, match=r"birthplace.*town_mayor"):
        engram_pairs(relations=["birthplace"])
