"""Passkey samples: exact lengths, told and asked alike, seeded, and numbers that do not fit."""

from __future__ import annotations

import pytest
from mnemoscope.data.facts.needles import build_needle_design, make_needles
from mnemoscope.data.facts.passkeys import (
    ALPHABET,
    FEWEST_FILLER_TOKENS,
    ORDINALS,
    NeedleSamples,
    Passkeys,
    build_passkeys,
)
from word_tokenizer import BOS, Words

LENGTHS = (230, 260, 301)


@pytest.fixture(scope="module")
def words() -> Words:
    return Words()


@pytest.fixture(scope="module")
def source(words: Words) -> Passkeys:
    return build_passkeys(words.encode, lengths=LENGTHS, passkeys=3, words=5)


def test_samples_have_exactly_the_asked_lengths_each_once_an_epoch(source):
    epochs = [[len(source.sample(3 * e + i).ids) for i in range(3)] for e in range(6)]
    assert all(sorted(epoch) == list(LENGTHS) for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) > 1  # not the same order each time
    assert source.longest == 301


def test_each_passkey_is_told_in_the_context_and_answered_by_the_same_tokens(source, words):
    for step in range(4):
        sample = source.sample(step)
        assert len(sample.told) == len(sample.answers) == 3
        for told, answer in zip(sample.told, sample.answers, strict=True):
            assert told.stop <= sample.context <= answer.start
            tokens = sample.ids[told.start : told.stop]
            assert tokens == sample.ids[answer.start : answer.stop]
            assert set(words.decode(tokens).split()) <= set(ALPHABET)
            assert len(tokens) == 5


def test_ordinals_stand_in_order_of_depth_and_of_asking(source, words):
    sample = source.sample(7)
    starts = [span.start for span in sample.told]
    assert starts == sorted(starts)
    assert sample.depths == tuple(sorted(sample.depths))
    assert min(sample.depths) >= 0.05
    assert max(sample.depths) <= 0.95
    for told, answer, ordinal in zip(sample.told, sample.answers, ORDINALS, strict=False):
        before = words.decode(sample.ids[told.start - 8 : told.start])
        assert before.endswith(f"It is the {ordinal} passkey:")
        assert f"The {ordinal} passkey is:" in words.decode(
            sample.ids[answer.start - 6 : answer.start]
        )


def test_labels_are_everything_after_the_context(source):
    sample = source.sample(0)
    assert sample.labels == tuple(range(sample.context, len(sample.ids)))
    assert len(sample.answer_positions) == 15
    assert set(sample.answer_positions) < set(sample.labels)


def test_steps_and_seeds_differ_and_repeat(source, words):
    again = build_passkeys(words.encode, lengths=LENGTHS, passkeys=3, words=5)
    assert again.sample(5) == source.sample(5)
    assert again.sha256 == source.sha256
    other = source.with_seed(1)
    assert other.sha256 != source.sha256
    drawn = [s.sample(i) for s in (source, other) for i in range(3)]
    assert len({sample.ids for sample in drawn}) == 6
    assert len({sample.depths for sample in drawn}) == 6


def test_one_bos_at_the_start_and_none_at_a_seam(source):
    assert source.sample(2).ids[0] == BOS
    assert BOS not in source.sample(2).ids[1:]


def test_opening_and_closing_stand_around_the_context(words):
    made = build_passkeys(
        words.encode,
        lengths=(240,),
        passkeys=2,
        words=2,
        opening="User read this book.",
        closing=" Now answer.",
    )
    sample = made.sample(0)
    assert words.decode(sample.ids).startswith("User read this book.")
    assert words.decode(sample.ids[sample.context :]).startswith(" Now answer.\n\nWhat is")
    assert len(sample.ids) == 240


def test_own_text_is_the_filler(words):
    made = build_passkeys(
        words.encode, lengths=(150,), passkeys=2, words=2, text="Rain fell.\n\nWind blew slowly."
    )
    text = words.decode(made.sample(0).ids)
    assert "Rain fell." in text
    assert "Wind blew slowly." in text


def test_lengths_with_too_little_room_are_refused_before_any_step(words):
    with pytest.raises(ValueError, match="take lengths from") as error:
        build_passkeys(words.encode, lengths=(300, 90), passkeys=3, words=5)
    least = int(str(error.value).split("from ")[1].split(",")[0])
    made = build_passkeys(words.encode, lengths=(least,), passkeys=3, words=5)
    asked = len(made.sample(0).labels)
    told = sum(s.stop - s.start for s in made.sample(0).told)
    assert least - asked - told >= FEWEST_FILLER_TOKENS


@pytest.mark.parametrize(
    ("numbers", "message"),
    [
        ({"lengths": ()}, "different positive"),
        ({"lengths": (300, 300)}, "different positive"),
        ({"lengths": (300,), "passkeys": 11}, "1 to 10"),
        ({"lengths": (300,), "passkeys": 0}, "1 to 10"),
        ({"lengths": (300,), "words": 0}, "at least 1 word"),
    ],
)
def test_numbers_that_do_not_fit_are_refused(words, numbers, message):
    with pytest.raises(ValueError, match=message):
        build_passkeys(words.encode, **numbers)


def test_needle_trials_as_samples(words):
    design = build_needle_design(
        make_needles("literal", 4, 0),
        words.encode,
        words.decode,
        lengths=(150,),
        depths=2,
        needles_per_haystack=2,
        rounds=1,
    )
    source = NeedleSamples(design)
    drawn = [source.sample(step) for step in range(8)]
    assert {s.ids for s in drawn[:4]} == {design.prompt(t) + t.answer_ids for t in design.trials}
    assert {s.ids for s in drawn[4:]} == {s.ids for s in drawn[:4]}
    assert source.longest == max(len(s.ids) for s in drawn)
    for sample in drawn:
        (told,), (answer,) = sample.told, sample.answers
        assert sample.context == 150 < answer.start
        assert sample.ids[told.start : told.stop] == sample.ids[answer.start : answer.stop]
    assert NeedleSamples(design, seed=1).sha256 != source.sha256
