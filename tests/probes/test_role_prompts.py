"""Roles of entities in prompts: which tokens show them, in every wording and both directions."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from families import tiny
from mnemoscope.data.facts.items import load_relation
from mnemoscope.data.facts.pairs import (
    WAYS,
    Pair,
    PairRelation,
    Way,
    pairs_of,
    usable_pairs,
    with_pairs,
)
from mnemoscope.models import HookedModel, load_model, wrap
from mnemoscope.models.errors import PromptError
from mnemoscope.probes.role_prompts import (
    ENTITIES,
    MERGED,
    OTHER_CARRIER,
    ROLES,
    RoleRow,
    role_prompts,
    way_of,
)
from pair_ground import MOTHERS, PAIRS, tiny_reader
from tokenizers import Regex, Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

READER = tiny_reader()


def words(row: RoleRow, offsets: tuple[int, ...], model: HookedModel = READER) -> list[str]:
    return model.pieces([row.ids[i] for i in offsets])


def test_a_reverse_prompt_reads_b_and_predicts_a() -> None:
    row = role_prompts(READER, MOTHERS).reverse[0][1]
    assert READER.pieces(row.ids) == ["the", "child", "of", "fay", "moe", "is", "bob", "lee"]
    assert READER.pieces(row.prompt) == ["the", "child", "of", "fay", "moe", "is"]
    assert READER.pieces(row.answer) == ["bob", "lee"]
    assert words(row, row.offsets("S")) == ["moe"]
    assert words(row, row.offsets("P")) == ["is"]
    assert words(row, row.offsets("O")) == ["lee"]
    assert words(row, row.offsets("P_mean")) == ["is", "bob"]  # the tokens that predict bob, lee


def test_a_role_of_b_is_read_in_one_direction_and_that_of_a_in_the_other() -> None:
    prompts = role_prompts(READER, MOTHERS)
    assert [way_of("b", role) for role in ROLES] == ["reverse", "forward", "forward", "forward"]
    assert [way_of("a", role) for role in ROLES] == ["forward", "reverse", "reverse", "reverse"]
    for entity in ENTITIES:
        for role in ("S", "O"):
            for wording, rows in enumerate(prompts.showing(entity, role)):
                places = prompts.positions(entity, role, wording)
                for pair, row, offsets in zip(PAIRS, rows, places, strict=True):
                    assert words(row, offsets) == [getattr(pair, entity).split()[-1]]


def test_every_wording_and_pair_has_its_row() -> None:
    prompts = role_prompts(READER, MOTHERS)
    assert [len(prompts.forward), len(prompts.reverse)] == [2, 3]
    for way in WAYS:
        for wording, rows in enumerate(prompts.rows(way)):
            for pair, row in zip(PAIRS, rows, strict=True):
                assert row.ids == tuple(
                    READER.tokens(f"{MOTHERS.prompt(pair, way, wording)} {pair.asked(way)}")
                    .row(0)
                    .tolist()
                )


@pytest.mark.parametrize("way", WAYS)
def test_only_the_name_differs_between_the_pairs_of_a_wording(way: Way) -> None:
    model = load_model("engram")  # whose names are of several tokens
    relation = usable_pairs(pairs_of(load_relation("capital"))).relation
    prompts = role_prompts(model, relation)
    assert len(prompts.kept) == len(relation.pairs)
    assert max(row.named[1] - row.named[0] for row in prompts.rows(way)[0]) > 2
    for wording, rows in enumerate(prompts.rows(way)):
        assert len({(row.ids[: row.named[0]], row.prompt[row.named[1] :]) for row in rows}) == 1
        for pair, row in zip(relation.pairs, rows, strict=True):
            text = relation.prompt(pair, way, wording)
            assert row.answer == model.answer_ids(text, pair.asked(way))
            named = model.text_tokenizer.decode(row.ids[slice(*row.named)])
            assert named.strip() == pair.named(way)


def test_in_context_the_prompt_opens_with_the_fact_in_the_other_direction() -> None:
    prompts = role_prompts(READER, MOTHERS, in_context=True)
    assert prompts.in_context
    reverse, forward = prompts.reverse[1][0], prompts.forward[0][0]
    assert READER.pieces(reverse.ids) == [
        "ann",
        "lee",
        "has",
        "the",
        "mother",
        "eve",
        "lee",
        ".",
        "eve",
        "lee",
        "has",
        "one",
        "child",
        "called",
        "ann",
        "lee",
    ]
    assert reverse.named == (8, 10)  # not the name in the statement before
    assert words(reverse, reverse.offsets("P")) == ["called"]
    assert READER.pieces(forward.ids) == [
        "the",
        "child",
        "of",
        "eve",
        "lee",
        "is",
        "ann",
        "lee",
        ".",
        "the",
        "mother",
        "of",
        "ann",
        "lee",
        "is",
        "eve",
        "lee",
    ]
    third = prompts.reverse[2][0]  # two forward wordings: the first states it again
    assert READER.pieces(third.ids[:9]) == [
        "the",
        "mother",
        "of",
        "ann",
        "lee",
        "is",
        "eve",
        "lee",
        ".",
    ]


def test_chosen_pairs_replace_those_of_the_relation() -> None:
    prompts = role_prompts(READER, MOTHERS, PAIRS[2:4])
    assert prompts.relation.pairs == PAIRS[2:4]
    assert len(prompts.reverse[0]) == 2


def merging_tokenizer() -> Any:
    """Letters, with `ex` merged; an `x` behind an `f` is split from what comes behind it."""
    letters = "abcdefghijklmnopqrstuvwxyz"
    vocab = {piece: i for i, piece in enumerate(["<unk>", *letters, "ex", "xy"])}
    made = Tokenizer(models.BPE(vocab, [("e", "x"), ("x", "y")]))
    made.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.WhitespaceSplit(),
            pre_tokenizers.Split(Regex("(?<=f)x"), behavior="isolated"),
        ]
    )
    return PreTrainedTokenizerFast(tokenizer_object=made, unk_token="<unk>")


def test_names_that_change_the_tokens_around_them_are_dropped_and_counted() -> None:
    model = wrap(tiny("llama"), merging_tokenizer())
    names = ("a", "b", "ce", "df", "g")  # "cexy" reads c|ex|y, "dfxy" d|f|x|y, "axy" a|xy
    relation = PairRelation(
        "spelt", ("{a}xy to",), ("of {b} is",), tuple(Pair(name, "m") for name in names)
    )
    prompts = role_prompts(model, relation)
    assert prompts.dropped == {MERGED: 1, OTHER_CARRIER: 1}
    assert prompts.kept == (0, 1, 4)
    assert [pair.a for pair in prompts.relation.pairs] == ["a", "b", "g"]
    assert len(prompts.forward[0]) == len(prompts.reverse[0]) == 3


def test_a_wording_that_merges_with_every_name_is_refused() -> None:
    relation = replace(MOTHERS, forward=("the mother of {a}s is",))
    with pytest.raises(PromptError, match=r"0 of 5 pairs.*merges.*put spaces around"):
        role_prompts(READER, relation)


def test_a_wording_that_ends_with_its_name_is_refused() -> None:
    with pytest.raises(PromptError, match="ends with its name"):
        role_prompts(READER, replace(MOTHERS, reverse=("the child of {b} ",)))


def test_an_empty_name_is_refused() -> None:
    with pytest.raises(PromptError, match="empty name"):
        role_prompts(READER, with_pairs(MOTHERS, [*PAIRS, Pair("ann lee", " ")]))


def test_a_row_longer_than_the_context_is_refused() -> None:
    relation = replace(MOTHERS, forward=("the mother of {a} is" + " the" * 60,))
    with pytest.raises(PromptError, match="reads at most 64"):
        role_prompts(READER, relation)
