"""Ways of asking: their forms, where the subject stands, and that finding and judging differ."""

from dataclasses import replace

import pytest
from mnemoscope.data.facts import Relation, load_relation, relation_names
from mnemoscope.data.facts.wordings import DETECTION, EVALUATION, Wording, wordings

RELATION = Relation(
    name="founder",
    description="",
    templates=("The founder of {s} is", "{s} begins with its founder,", "Who began {s}? It was"),
    question="Who founded {s}?",
)
BY_NAME = {wording.name: wording for wording in wordings(RELATION)}


def test_each_family_has_its_form() -> None:
    assert BY_NAME["cloze 0"].prompt("Lego") == "The founder of Lego is"
    assert BY_NAME["answer 0"].prompt("Lego") == "The founder of Lego is? Answer:"
    assert BY_NAME["question 0"].prompt("Lego") == "Who founded Lego? Answer:"
    order, _, sentence = BY_NAME["instruction 0"].prompt("Lego").partition("\n")
    assert (order.endswith("."), sentence) == (True, "Who began Lego? It was")
    assert [w.family for w in BY_NAME.values()] == [
        *["cloze"] * 3,
        *["answer"] * 3,
        "question",
        "instruction",
    ]


def test_a_question_mark_replaces_the_comma_before_it() -> None:
    assert BY_NAME["answer 1"].prompt("Lego") == "Lego begins with its founder? Answer:"


@pytest.mark.parametrize("subject", ["Lego", "Åland Bank", "founder", "{s}"])
def test_the_span_holds_the_subject_and_nothing_else(subject: str) -> None:
    for wording in BY_NAME.values():
        start, end = wording.subject_span(subject)
        text = wording.prompt(subject)
        assert text[start:end] == subject
        assert text[:start] + "{s}" + text[end:] == wording.template


@pytest.mark.parametrize("template", ["The founder is", "{s} and {s} are"])
def test_a_template_names_its_subject_exactly_once(template: str) -> None:
    with pytest.raises(ValueError, match="exactly once"):
        Wording("cloze 0", "cloze", template)


def test_what_finds_and_what_judges_share_no_sentence() -> None:
    assert not set(DETECTION) & set(EVALUATION)
    sentences = (*RELATION.templates, RELATION.question)
    stems = [text.rstrip(",").replace("{s}", "Lego") for text in sentences]

    def used(names: tuple[str, ...]) -> set[str]:
        texts = [BY_NAME[name].prompt("Lego") for name in names]
        return {stem for stem in stems for text in texts if stem in text}

    assert used(DETECTION)
    assert used(EVALUATION)
    assert not used(DETECTION) & used(EVALUATION)


def test_a_relation_without_question_or_third_template_has_fewer_wordings() -> None:
    poor = wordings(replace(RELATION, question="", templates=RELATION.templates[:2]))
    assert [w.name for w in poor] == ["cloze 0", "cloze 1", "answer 0", "answer 1"]


@pytest.mark.parametrize("name", relation_names())
def test_shipped_relations_have_every_wording_of_three_families_and_more(name: str) -> None:
    made = {wording.name: wording for wording in wordings(load_relation(name))}
    assert set(DETECTION) | set(EVALUATION) <= set(made)
    assert len({made[name].family for name in DETECTION}) == 3
    texts = [wording.prompt("Xanadu") for wording in made.values()]
    assert len(set(texts)) == len(texts)
    assert not any(text.endswith(" ") for text in texts)
