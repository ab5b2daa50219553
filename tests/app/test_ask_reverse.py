"""Asking a prompt back: known pairs, mere wordings, and why not."""

from __future__ import annotations

import pytest
from mnemoscope.app.ask_reverse import ask_back, scored_tokens, worded
from mnemoscope.models.hooked import HookedModel
from mnemoscope.models.load import load_model

ONE_WAY, BOTH_WAYS = "The mayor of Tastos is", "The mayor of Dilvit is"


@pytest.fixture(scope="module")
def engram() -> HookedModel:
    return load_model("engram")


def test_the_wording_and_the_pair_of_a_prompt_are_found() -> None:
    match = worded("engram", ONE_WAY)
    assert match is not None
    assert (match.relation.name, match.way, match.named) == ("town_mayor", "forward", "Tastos")
    assert match.relation.prompt(match.pairs[0], match.way, match.wording) == ONE_WAY
    reverse = worded("engram", "Dorlad Galkar is the mayor of")
    assert reverse is not None
    assert (reverse.way, reverse.pairs) == ("reverse", match.pairs)


def test_a_known_pair_is_preferred_to_a_wording_that_also_fits() -> None:
    match = worded("engram", "The capital of the U.S. state of Florida is")
    assert match is not None
    assert match.relation.name == "state_capital"


def test_another_model_knows_the_shipped_relations_only() -> None:
    assert worded("elsewhere", ONE_WAY) is None
    match = worded("elsewhere", "The capital of France is")
    assert match is not None
    assert match.pairs[0].b == "Paris"


@pytest.mark.parametrize(("prompt", "holds", "told"), [
    (ONE_WAY, False, "forward"), (BOTH_WAYS, True, "both"),
])  # fmt: skip
def test_what_was_told_one_way_holds_one_way(
    engram: HookedModel, prompt: str, holds: bool, told: str
) -> None:
    (said,) = engram.continuations([prompt], 8)
    found = ask_back(engram, "engram", prompt, said)
    assert found.there is not None
    assert found.back is not None
    assert found.pair is not None
    assert found.pair.told == told
    assert (found.there.exact, found.back.exact) == (True, holds)
    assert found.there.rank == 1
    assert (found.back.rank == 1) is holds
    assert found.back.right == found.pair.a


def test_a_reverse_prompt_is_asked_back_forward(engram: HookedModel) -> None:
    found = ask_back(engram, "engram", "Kespim Luzlex is the mayor of", " Dilvit.")
    assert found.way == "reverse"
    assert found.back is not None
    assert found.back.prompt == BOTH_WAYS
    assert found.back.exact


def test_nobody_known_is_asked_back_about_the_models_own_answer(engram: HookedModel) -> None:
    found = ask_back(engram, "engram", "The mayor of Notown is", " Kespim Luzlex. The")
    assert found.back_prompt == "Kespim Luzlex is the mayor of"
    assert "Dilvit" in found.back_said
    assert not found.back_holds
    assert found.there is None


@pytest.mark.parametrize(("prompt", "said", "why"), [
    ("Hello there", " you", "no wording"),
    ("The mayor of Notown is", " Notown.", "repeats"),
    ("The mayor of Notown is", " .", "no answer"),
])  # fmt: skip
def test_what_cannot_be_asked_back_says_why(
    engram: HookedModel, prompt: str, said: str, why: str
) -> None:
    assert why in ask_back(engram, "engram", prompt, said).why


def test_whoever_has_several_partners_is_not_asked_back(engram: HookedModel) -> None:
    found = ask_back(engram, "elsewhere", "The author of Anna Karenina is", " Leo Tolstoy.")
    assert found.pair is not None
    assert "several partners" in found.why


def test_work_is_foretold_by_the_number_of_names(engram: HookedModel) -> None:
    pairs = worded("engram", ONE_WAY).relation.pairs  # type: ignore[union-attr]
    assert scored_tokens(engram, "engram", ONE_WAY) > 2 * len(pairs)
    assert scored_tokens(engram, "engram", "Hello") < 100
