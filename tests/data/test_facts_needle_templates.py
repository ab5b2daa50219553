"""Needles as text: unique answers, rare terms, and questions that share no more than they may."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from typing import Any

import pytest
from mnemoscope.data.facts.answers import leaks, normalise
from mnemoscope.data.facts.needle_templates import (
    TOPICS,
    content_words,
    make_needles,
    shared_content,
)
from mnemoscope.data.neutral import neutral_passages

LITERAL = make_needles("literal", 40, seed=3)
NON_LITERAL = make_needles("non-literal", 20, seed=3)


def test_there_are_over_a_hundred_literal_and_over_forty_non_literal_needles() -> None:
    assert len({n.statement for n in make_needles("literal", 140, 0)}) == 140
    assert len({n.statement for n in make_needles("non-literal", 45, 0)}) == 45


@pytest.mark.parametrize("kind", ["literal", "non-literal"])
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_no_needle_tells_the_answer_or_a_term_of_another_one(kind: Any, seed: int) -> None:
    needles = make_needles(kind, 45, seed)
    for needle in needles:
        text = " ".join((needle.statement, *needle.questions))
        assert not any(leaks(text, other.terms) for other in needles if other != needle)
        assert not any(leaks(question, [needle.answer]) for question in needle.questions)
        assert needle.before + needle.answer + needle.after == needle.statement


def test_both_kinds_take_different_names() -> None:
    assert not {n.terms[1] for n in LITERAL} & {n.answer for n in NON_LITERAL}


def test_all_non_literal_questions_share_no_content_word_with_their_statement() -> None:
    for needle in make_needles("non-literal", 47, 0):
        (question,) = needle.questions
        assert content_words(question)
        assert not shared_content(needle.statement, question)
        assert not any(
            a[:4] == b[:4] for a in content_words(question) for b in content_words(needle.statement)
        )


def test_literal_questions_name_the_person_in_two_wordings() -> None:
    for needle in LITERAL:
        assert len(needle.questions) == 2
        assert all(
            needle.terms[1] in shared_content(needle.statement, q) or needle.terms[1] in q
            for q in needle.questions
        )


def test_paraphrases_share_no_more_than_the_person_with_the_statement() -> None:
    for needle in make_needles("literal", 14, 0):
        shared = shared_content(needle.statement, needle.questions[1])
        assert shared == {needle.terms[1].lower()}, needle.statement


def test_the_neutral_text_tells_no_term() -> None:
    text = " ".join(neutral_passages())
    needles = (*make_needles("literal", 140, 0), *make_needles("non-literal", 47, 0))
    assert not any(leaks(text, needle.terms) for needle in needles)


def test_templates_take_turns_and_topics_can_be_chosen() -> None:
    counts = Counter(needle.topic for needle in make_needles("literal", 140, 0))
    assert set(counts) == set(TOPICS["literal"])
    assert set(counts.values()) == {20}
    chosen = make_needles("literal", 9, 0, topics=("password", "charm"))
    assert {needle.topic for needle in chosen} == {"password", "charm"}
    assert {n.topic for n in make_needles("non-literal", 9, 0, topics=("allergy",))} == {"allergy"}


def test_names_can_be_given() -> None:
    names = [f"Person{letter}" for letter in "ABCDEFGH"]
    needles = make_needles("literal", 8, 0, names=names)
    assert sorted(needle.terms[1] for needle in needles) == names


def test_the_same_seed_gives_the_same_needles_and_more_keep_the_first() -> None:
    assert make_needles("literal", 40, 3) == LITERAL
    assert make_needles("literal", 50, 3)[:40] == LITERAL
    assert make_needles("literal", 40, 4) != LITERAL


@pytest.mark.parametrize(
    ("arguments", "options", "message"),
    [
        (("spoken", 4, 0), {}, "unknown kind"),
        (("literal", 0, 0), {}, "at least 1"),
        (("literal", 3, 0), {"names": ["A", "B"]}, "2 names for 3"),
        (("literal", 2, 0), {"names": ["A", "A"]}, "given twice"),
        (("non-literal", 48, 0), {}, "47 non-literal needles, not 48"),
        (("literal", 400, 0), {"topics": ["town"]}, "no city is left"),
        (("literal", 4, 0), {"topics": ["place"]}, "choose from password"),
        (("literal", 4, 0), {"topics": []}, "choose from password"),
    ],
)
def test_needles_that_cannot_be_made_are_refused(
    arguments: Any, options: Any, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        make_needles(*arguments, **options)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"answer": " "}, "give it a word"),
        ({"questions": ()}, "needs a question"),
        ({"terms": ()}, "among its terms"),
        ({"after": f" and {NON_LITERAL[0].answer}."}, "tells its answer twice"),
        ({"questions": (f"Is it {NON_LITERAL[0].answer}?",)}, "has its answer in"),
        ({"questions": (f"Who {NON_LITERAL[0].after}?",)}, "is non-literal, but shares"),
    ],
)
def test_a_needle_that_gives_itself_away_is_refused(changes: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        replace(NON_LITERAL[0], **changes)


def test_names_are_unlike_each_other_once_folded() -> None:
    names = [normalise(needle.terms[1]) for needle in make_needles("literal", 140, 0)]
    assert len({*names}) == len(names)
    assert {len(name) for name in names} == {6}
