"""Designs that suit a model: its topics, its chat template, its room."""

from __future__ import annotations

from collections import Counter
from copy import deepcopy
from dataclasses import replace
from functools import cache
from typing import Any

import pytest
from mnemoscope.models import load_model
from mnemoscope.models.errors import MnemoscopeError, PromptError
from mnemoscope.models.hooked import HookedModel
from mnemoscope.probes.retrieval_designs import TAUGHT, chat_frame, design_for

TEMPLATE = (
    "{{ bos_token }}[system] be brief\n{% for m in messages %}[{{ m.role }}] {{ m.content }}[end]\n"
    "{% endfor %}{% if add_generation_prompt %}[model]\n{% endif %}"
)


@cache
def engram() -> HookedModel:
    return load_model("engram")


def chatting(template: str = TEMPLATE, name: str = "chatty") -> HookedModel:
    tokenizer: Any = deepcopy(engram().tokenizer)
    tokenizer.chat_template = template
    return replace(engram(), tokenizer=tokenizer, name=name)


def test_engram_is_asked_what_it_was_taught_in_its_own_words() -> None:
    design = design_for(engram(), lengths=(200, 400), needles=12)
    assert set(TAUGHT["engram"]) == {needle.topic for needle in design.needles}
    assert Counter(trial.length for trial in design.trials) == {200: 6, 400: 6}
    assert {len(h.needles) for h in design.haystacks} == {3}  # it never read more
    trial = design.trials[0]
    text = engram().text_tokenizer.decode(list(design.prompt(trial)))
    assert text.endswith(f"\nQuestion: {design.needle(trial.needle_id).questions[0]} Answer:")


def test_the_number_of_needles_is_rounded_up_to_full_haystacks() -> None:
    assert len(design_for(engram(), lengths=(200, 400), needles=7).needles) == 12
    assert len(design_for(engram(), lengths=(300,), needles=7).needles) == 9
    one = design_for(engram(), lengths=(200,), needles=2, needles_per_haystack=1)
    assert [len(h.needles) for h in one.haystacks] == [1, 1]


def test_another_model_is_asked_about_all_topics_five_a_haystack() -> None:
    design = design_for(replace(engram(), name="other"), lengths=(400,), needles=10)
    assert {len(h.needles) for h in design.haystacks} == {5}
    assert len({needle.topic for needle in design.needles}) > 3


def test_kinds_and_distractors() -> None:
    design = design_for(
        engram(), lengths=(300,), needles=6, kind="both", distractors=6, topics=("town", "boat")
    )
    assert Counter(needle.kind for needle in design.needles) == {"literal": 3, "non-literal": 3}
    assert Counter(needle.kind for needle in design.distractors) == {"literal": 3, "non-literal": 3}
    literal = [needle for needle in design.needles if needle.kind == "literal"]
    assert {needle.topic for needle in literal} == {"town", "boat"}
    other = design_for(engram(), lengths=(300,), needles=3, kind="non-literal")
    assert {needle.kind for needle in other.needles} == {"non-literal"}
    assert all(len(haystack.distractors) == 3 for haystack in design.haystacks)


def test_the_same_arguments_give_the_same_design() -> None:
    first = design_for(engram(), lengths=(200,), needles=3, seed=5)
    assert first.sha256 == design_for(engram(), lengths=(200,), needles=3, seed=5).sha256
    assert first.sha256 != design_for(engram(), lengths=(200,), needles=3, seed=6).sha256


# -- chat templates -------------------------------------------------------------------------------


def test_a_chat_model_is_asked_within_its_template_and_begins_to_answer() -> None:
    model = chatting()
    design = design_for(model, lengths=(300,), needles=5)
    trial = design.trials[0]
    text = model.text_tokenizer.decode(list(design.prompt(trial)))
    assert text.startswith("<|endoftext|>[system] be brief\n[user] ")
    question = design.needle(trial.needle_id).questions[0]
    assert text.endswith(f"\nQuestion: {question}[end]\n[model]\nAnswer:")
    control = model.text_tokenizer.decode(list(design.control(trial)))
    assert control == (
        f"<|endoftext|>[system] be brief\n[user] \nQuestion: {question}[end]\n[model]\nAnswer:"
    )
    # Behind a word the answer is the very tokens that stand in the needle.
    ids = design.haystacks[trial.haystack].ids
    assert trial.answer_ids == ids[trial.answer.start : trial.answer.stop]


def test_the_first_special_token_stands_there_once() -> None:
    model = chatting()
    bos = model.text_tokenizer.bos_token_id
    design = design_for(model, lengths=(300,), needles=5)
    assert all(h.ids[0] == bos and bos not in h.ids[1:] for h in design.haystacks)


def test_chat_can_be_left_away() -> None:
    plain = design_for(chatting(), lengths=(300,), needles=5, chat=False)
    assert (plain.opening, plain.asking) == ("", "\nQuestion: {question} Answer:")


def test_a_model_without_a_fitting_template_is_refused() -> None:
    with pytest.raises(MnemoscopeError, match="has no chat template"):
        design_for(engram(), lengths=(300,), chat=True)
    with pytest.raises(MnemoscopeError, match="does not repeat what a user says once"):
        chat_frame(chatting("{% for m in messages %}{{ m.content }}{{ m.content }}{% endfor %}"))


# -- bad input ------------------------------------------------------------------------------------


def test_what_does_not_fit_is_refused_in_one_sentence() -> None:
    with pytest.raises(PromptError, match="reads at most 1024"):
        design_for(engram(), lengths=(1020,), needles=3)
    with pytest.raises(MnemoscopeError, match="take lengths from"):
        design_for(engram(), lengths=(40,), needles=3)
    with pytest.raises(MnemoscopeError, match="choose from"):
        design_for(engram(), lengths=(200,), needles=3, topics=("cars",))
    with pytest.raises(MnemoscopeError, match="distractors"):
        design_for(engram(), lengths=(200,), needles=3, distractors=-1)
    with pytest.raises(MnemoscopeError, match="at least 1"):
        design_for(engram(), lengths=(200,), needles=0)
