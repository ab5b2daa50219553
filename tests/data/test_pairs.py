"""Pairs asked both ways: prompts, spans, answers, and which pairs can be scored."""

from __future__ import annotations

from dataclasses import replace

import pytest
from mnemoscope.data.facts.items import load_relation
from mnemoscope.data.facts.pairs import (
    WAYS,
    Pair,
    PairRelation,
    pairs_of,
    pairs_sha256,
    usable_pairs,
    with_pairs,
)

ANNA = Pair("Anna", "Bert", b_aliases=("Bertie",), told="forward")
MOTHERS = PairRelation("mother", ("{a}'s mother is",), ("The child of {b} is",), (ANNA,))


def test_each_direction_names_one_and_asks_for_the_other() -> None:
    assert MOTHERS.prompt(ANNA, "forward") == "Anna's mother is"
    assert MOTHERS.prompt(ANNA, "reverse") == "The child of Bert is"
    assert ANNA.answers("forward") == ("Bert", "Bertie")
    assert ANNA.answers("reverse") == ("Anna",)


@pytest.mark.parametrize("way", WAYS)
def test_the_span_of_the_name_holds_the_name(way) -> None:
    relation = pairs_of(load_relation("capital"))
    for pair in relation.pairs[:20]:
        for wording in range(len(relation.wordings(way))):
            start, stop = relation.name_span(pair, way, wording)
            assert relation.prompt(pair, way, wording)[start:stop] == pair.named(way)


@pytest.mark.parametrize(
    ("forward", "reverse", "message"),
    [
        (("{a} is",), (), "no reverse wording"),
        (("The mother is",), ("{b} has",), "must hold {a} once"),
        (("{a} and {a} are",), ("{b} has",), "must hold {a} once"),
        (("{a} is",), ("{b}, whose child {a} is",), "not {a}"),
    ],
)
def test_wordings_that_cannot_be_asked_are_refused(forward, reverse, message) -> None:
    with pytest.raises(ValueError, match=message):
        PairRelation("mother", forward, reverse, (ANNA,))


def test_pairs_without_one_unspoken_partner_are_dropped_and_counted() -> None:
    pairs = [
        ANNA,
        Pair("Carl", "Dora"),
        Pair("Emil", "Dora"),  # Dora has two children
        Pair("Mexico", "Mexico City"),  # one name holds the other
        Pair("Ac", "actinium"),  # a beginning is no name
        Pair("Fritz", "Child"),  # stands in the wording that asks for it
    ]
    relation = PairRelation("mother", ("The child {a} has the mother",), MOTHERS.reverse, ())
    usable = usable_pairs(with_pairs(relation, pairs))
    assert usable.relation.pairs == (ANNA, Pair("Ac", "actinium"))
    assert usable.dropped == {
        "several partners": 2,
        "one name in the other": 1,
        "answer in the prompt": 1,
    }


def test_no_usable_pair_is_an_error() -> None:
    with pytest.raises(ValueError, match="no pair left"):
        usable_pairs(with_pairs(MOTHERS, [Pair("Mexico", "Mexico City")]))


def test_a_relation_that_is_told_one_way_only_has_no_pairs() -> None:
    with pytest.raises(ValueError, match="no wordings that ask for the subject"):
        pairs_of(load_relation("currency"))


def test_the_hash_sees_every_field() -> None:
    assert pairs_sha256(MOTHERS) == pairs_sha256(with_pairs(MOTHERS, [ANNA]))
    other = with_pairs(MOTHERS, [replace(ANNA, told="both")])
    assert pairs_sha256(MOTHERS) != pairs_sha256(other)
