"""Binding contexts: what they say, and where the names stand."""

from __future__ import annotations

import pytest
from mnemoscope.data.facts.binding_contexts import (
    Attribute,
    BindingContext,
    BindingTask,
    binding_task,
    binding_task_names,
    draw_contexts,
    placed,
)

ATTRIBUTES = (Attribute("Peru", "Lima"), Attribute("Norway", "Oslo"))


@pytest.mark.parametrize("wording", ["{e} lives in {a}.", "In {a} lives {e}."])
def test_names_stand_where_the_spans_say(wording: str) -> None:
    task = BindingTask("home", (wording,), "Who is {e}:", ("Ann", "Ben"), ATTRIBUTES, "Homes:")
    told = placed(task, BindingContext(("Ben", "Ann"), ATTRIBUTES))
    assert told.text.startswith("Homes: ")
    assert [told.text[slice(*span)] for span in told.entities] == ["Ben", "Ann"]
    assert [told.text[slice(*span)] for span in told.attributes] == ["Peru", "Norway"]
    assert told.text.count(".") == 2
    assert task.asked("Ann") == " Who is Ann:"


def test_without_an_opening_the_text_starts_with_the_first_statement() -> None:
    task = BindingTask("home", ("{e} has {a}.",), "{e}:", ("Ann", "Ben"), ATTRIBUTES)
    context = BindingContext(("Ann", "Ben"), ATTRIBUTES)
    assert placed(task, context).text == "Ann has Peru. Ben has Norway."


@pytest.mark.parametrize("name", binding_task_names())
def test_shipped_tasks_have_words_that_differ(name: str) -> None:
    task = binding_task(name)
    assert len(task.statements) >= 2
    assert len(set(task.entities)) == len(task.entities) >= 20
    answers = [attribute.answer for attribute in task.attributes]
    assert len({a.text for a in task.attributes}) == len(answers) >= 40


def test_drawing_is_by_seed_and_without_repetition() -> None:
    task = binding_task("boxes")
    first, again, other = (
        draw_contexts(task.entities, task.attributes, 20, 5, seed) for seed in (0, 0, 1)
    )
    assert first == again != other
    assert all(len(set(c.entities)) == len(set(c.attributes)) == 5 for c in first)


@pytest.mark.parametrize(
    ("statements", "question"),
    [
        (("{e} has.",), "{e}:"),
        (("{e} has {a}.",), "what"),
        (("{e} has {a}.",), "{e} {a}"),
        ((), "{e}"),
    ],
)
def test_wordings_without_their_marks_are_refused(
    statements: tuple[str, ...], question: str
) -> None:
    with pytest.raises(ValueError, match=r"must hold|needs a statement"):
        BindingTask("bad", statements, question, ("Ann",), ATTRIBUTES)


def test_unknown_tasks_and_too_many_slots_are_refused() -> None:
    with pytest.raises(ValueError, match="choose home, capital, boxes"):
        binding_task("houses")
    with pytest.raises(ValueError, match="3 slots cannot be filled"):
        draw_contexts(("Ann", "Ben"), ATTRIBUTES, 1, 3, 0)
