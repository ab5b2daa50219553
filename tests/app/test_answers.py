"""Next tokens, the two answers and their probabilities, on a model whose answers are known."""

from __future__ import annotations

import pytest
import torch
from mnemoscope.app.answers import (
    Answers,
    Question,
    answer_probabilities,
    first_ids,
    first_word,
    greedy,
    last_word,
    next_token_table,
    resolve_answers,
    token_label,
)
from mnemoscope.models.errors import MnemoscopeError, PromptError
from mnemoscope.models.hooked import HookedModel
from planted_ground import CLAIM, CONTEXT, PROMPT, STORED


def test_a_context_goes_before_the_prompt_with_one_space_or_its_line_break() -> None:
    assert Question("b ", "a. ").texts == ("b", "a. b")
    assert Question("b", "a.\n\n").given == "a.\nb"
    assert Question("b", "  ").texts == ("b",)


@pytest.mark.parametrize(
    ("text", "first", "last"),
    [
        (" Paris.\n\nThe", "Paris", "The"),
        ("“Côte-d’Or”, he said", "Côte-d’Or", "said"),
        ("The capital is Rome.", "The", "Rome"),
        (" ... ", None, None),
    ],
)
def test_words_are_cut_from_their_punctuation(
    text: str, first: str | None, last: str | None
) -> None:
    assert first_word(text) == first
    assert last_word(text) == last


def test_answers_are_the_models_own_until_a_person_types_others(model: HookedModel) -> None:
    question = Question(PROMPT, CONTEXT)
    said = greedy(model, question)
    own = resolve_answers(question, said)
    assert own.both == (STORED, CLAIM)
    assert "without context" in own.memory_from
    assert "with context" in own.context_from
    assert resolve_answers(question, said, "qarto", " vinja ").both == ("qarto", "vinja")


def test_a_claim_that_the_model_does_not_follow_is_the_last_word_of_the_context() -> None:
    question = Question("The capital of France is", "The capital of France is Rome.")
    found = resolve_answers(question, (" Paris.", " Paris."))
    assert found.both == ("Paris", "Rome")
    assert "did not follow" in found.context_from


def test_without_context_or_with_an_agreeing_one_there_is_no_context_answer() -> None:
    assert resolve_answers(Question("p", ""), (" Paris.",)).context is None
    assert resolve_answers(Question("p", "is Paris."), (" Paris.", " Paris.")).context is None
    assert resolve_answers(Question("p", "x"), ("", "")).memory is None


def test_the_table_holds_the_largest_probabilities_in_order(model: HookedModel) -> None:
    table = next_token_table(model, PROMPT, 5)
    with torch.no_grad():
        ids = model.text_tokenizer(PROMPT, return_tensors="pt")["input_ids"]
        expected = model.module(ids).logits[0, -1].softmax(-1).topk(5)
    assert table["id"].to_list() == expected.indices.tolist()
    assert table["probability"].to_list() == pytest.approx(expected.values.tolist(), rel=1e-4)
    assert table["token"][0] == STORED
    assert next_token_table(model, PROMPT, 10**6).height == model.anatomy.d_vocab
    with pytest.raises(MnemoscopeError, match="one next token"):
        next_token_table(model, PROMPT, 0)


def test_probabilities_are_those_of_the_first_tokens_of_the_answers(model: HookedModel) -> None:
    answers = Answers(STORED, "", CLAIM, "")
    ids = first_ids(model, PROMPT, answers)
    table = next_token_table(model, PROMPT, model.anatomy.d_vocab)
    by_id = dict(zip(table["id"], table["probability"], strict=True))
    expected = {"memory": by_id[ids["memory"]], "context": by_id[ids["context"]]}
    assert answer_probabilities(model, PROMPT, ids) == pytest.approx(expected)
    assert set(first_ids(model, PROMPT, Answers(STORED, "", None, ""))) == {"memory"}


def test_answers_that_start_alike_are_refused(model: HookedModel) -> None:
    with pytest.raises(PromptError, match="start with the same token"):
        first_ids(model, PROMPT, Answers(STORED, "", STORED.upper(), ""))


def test_spaces_show_and_markup_stays_what_it_is() -> None:
    assert token_label(" a\n") == "␣a⏎"
    assert token_label("<script>") == "<script>"
    assert token_label("") == "∅"
