"""What counts as the memory answer, the context answer, both or neither."""

import unicodedata

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from mnemoscope.data.facts import Outcome, classify, normalise
from mnemoscope.data.facts.answers import confusable, leaks

# Machines under load are slow; that is no failure of the code under test.
UNHURRIED = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)


@pytest.mark.parametrize(
    ("text", "folded"),
    [
        ("  Brasília ", "brasilia"),
        ("Washington, D.C.", "washington d c"),
        ("N'Djamena", "n djamena"),
        ("PORT-AU-PRINCE\n", "port au prince"),
        ("Москва!", "москва"),
        ("東京。", "東京"),
        ("...", ""),
        ("Straße", "strasse"),
    ],
)
def test_spellings_are_folded(text: str, folded: str) -> None:
    assert normalise(text) == folded


@UNHURRIED
@given(TEXT)
def test_folding_is_idempotent_and_blind_to_case_and_accents(text: str) -> None:
    folded = normalise(text)
    assert normalise(folded) == folded
    assert normalise(unicodedata.normalize("NFC", text)) == folded
    assert not any(unicodedata.combining(char) for char in folded)


@pytest.mark.parametrize(
    ("said", "kind", "both"),
    [
        (" Paris.", "memory", False),
        (" Rome, of course", "context", False),
        (" the city of Paris", "memory", False),
        (" not Paris but Rome", "memory", True),
        (" not Rome but Paris", "context", True),
        (" a big and very old Paris", "other", False),  # the sixth word
        (" Berlin", "other", False),
        (" Parisian", "other", False),
        ("", "other", False),
        (" PÁRIS", "memory", False),
        (" Paris's", "memory", False),
    ],
)
def test_the_first_answer_within_five_words_counts(said: str, kind: str, both: bool) -> None:
    assert classify(said, ["Paris"], ["Rome"]) == Outcome(kind, both)


def test_any_spelling_counts() -> None:
    memory = ["Washington", "the District of Columbia"]
    assert classify(" the District of Columbia", memory, ["Rome"]).kind == "memory"
    assert classify(" Brasilia", ["Brasília"], ["Rome"]).kind == "memory"
    assert classify(" Brasília", ["Brasilia"], ["Rome"]).kind == "memory"


def test_at_the_same_start_the_longer_answer_counts() -> None:
    assert classify("New York City", ["New York"], ["New York City"]) == Outcome("context", True)
    assert classify("New York City", ["New York City"], ["New York"]) == Outcome("memory", True)


def test_the_same_answer_on_both_sides_is_neither() -> None:
    assert classify("Paris", ["Paris"], ["PARIS"]) == Outcome("other", True)


def test_empty_answers_match_nothing() -> None:
    assert classify("Paris", ["", "..."], []) == Outcome("other", False)


def test_answers_in_scripts_without_spaces_match_inside_a_sentence() -> None:
    assert classify("首都は東京です", ["東京"], ["大阪"]).kind == "memory"
    assert classify("서울입니다", ["서울"], ["부산"]).kind == "memory"


def test_the_number_of_words_can_be_set_but_not_to_nothing() -> None:
    assert classify("it is called Paris", ["Paris"], ["Rome"], words=3).kind == "other"
    with pytest.raises(ValueError, match="at least 1"):
        classify("x", ["a"], ["b"], words=0)


@UNHURRIED
@given(TEXT, st.lists(TEXT, max_size=3), st.lists(TEXT, max_size=3))
def test_swapping_the_roles_swaps_the_outcome(
    said: str, memory: list[str], context: list[str]
) -> None:
    swap = {"memory": "context", "context": "memory", "other": "other"}
    there, back = classify(said, memory, context), classify(said, context, memory)
    assert back == Outcome(swap[there.kind], there.both)


@UNHURRIED
@given(TEXT, TEXT)
def test_confusion_is_symmetric_and_reflexive(a: str, b: str) -> None:
    assert confusable(a, [b]) == confusable(b, [a]) or not normalise(a) or not normalise(b)
    assert confusable(a, [a])


def test_answers_inside_one_another_are_confusable() -> None:
    assert confusable("Niger", ["Nigeria"])
    assert confusable("Brasilia", ["Brasília"])
    assert not confusable("Niger", ["Chad"])


def test_a_leak_is_a_whole_word() -> None:
    assert leaks("Mexico City", ["Mexico"])
    assert not leaks("helium", ["He"])
