"""Candidate margins equal a slow computation by hand, and outcome classes read what was said."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from mnemoscope.data.facts.items import Fact
from mnemoscope.data.facts.wordings import Wording, wordings
from mnemoscope.interventions.neuron_ablation import nested_edits, neuron_edits
from mnemoscope.models import HookedModel, NeuronId, wrap
from mnemoscope.models.edits import Edit
from mnemoscope.models.errors import EditNeverFiredError, MnemoscopeError
from mnemoscope.organisms.planted_units import (
    PlantedUnits,
    null_units_model,
    planted_units_model,
)
from mnemoscope.probes.neuron_margins import (
    Asked,
    Margins,
    asked_facts,
    kept_margins,
    margin_rows,
    measure_doses,
    measure_margins,
)
from mnemoscope.probes.neuron_outcomes import (
    greedy_outcomes,
    loss_of,
    losses,
    outcome_of,
    prefix_right,
)
from mnemoscope.results.run_folder import open_run

EXACT = 1e-9


class Ground:
    """A planted model, wrapped, and its capital facts asked in the first wording."""

    def __init__(self, planted: PlantedUnits) -> None:
        self.planted = planted
        self.model: HookedModel = wrap(planted.module, planted.tokenizer, name="planted units")
        self.capital = next(r for r in planted.relations if r.name == "capital")
        self.wording: Wording = wordings(self.capital)[0]
        self.asked = asked_facts(self.model, self.capital, self.capital.facts, self.wording)


@pytest.fixture(scope="module")
def ground() -> Ground:
    return Ground(planted_units_model())


@pytest.fixture(scope="module")
def long_answers() -> tuple[Asked, ...]:
    """Answers of one to four tokens that start alike in many ways."""
    right = ("brimburg", "brimburg kolvburg", "dunburg the capital", "nagburg")
    wrong = (
        "brimburg nagburg",
        "kolvburg",
        "dunburg",
        "dunburg the",
        "brimburg nagburg of dunburg",
        "gormburg of",
    )
    prompts = ("The capital of balia is", "Everyone knows that the capital of coria is")
    return tuple(
        Asked(prompts[i % 2], (answer,), wrong[i:], f"subject {i}", "capital")
        for i, answer in enumerate(right)
    )


def by_hand(model: HookedModel, prompt: str, answer: str) -> tuple[float, float]:
    """(mean, sum) of the token log-probabilities of one answer, in a row of its own."""
    ids = list(model.text_tokenizer(prompt)["input_ids"])
    more = list(model.answer_ids(prompt, answer))
    with torch.no_grad():
        logits = model.module(torch.tensor([ids + more])).logits[0].double()
    told = [float(logits[len(ids) - 1 + t].log_softmax(-1)[token]) for t, token in enumerate(more)]
    return float(np.mean(told)), float(np.sum(told))


def expected(model: HookedModel, asked: Sequence[Asked]) -> tuple[list[float], list[float]]:
    """Margins by the formula of the method, and the log of the type's mass."""
    margins, masses = [], []
    for one in asked:
        gold, gold_sum = by_hand(model, one.prompt, one.answers[0])
        wrong = [by_hand(model, one.prompt, text) for text in one.candidates]
        margins.append(gold - math.log(np.mean([math.exp(mean) for mean, _ in wrong])))
        masses.append(
            math.log(sum(math.exp(total) for total in [gold_sum, *(s for _, s in wrong)]))
        )
    return margins, masses


# -- margins ------------------------------------------------------------------------------------


def test_margins_are_what_the_formula_gives_answer_by_answer(
    ground: Ground, long_answers: tuple[Asked, ...]
) -> None:
    found = measure_margins(ground.model, long_answers)
    margins, masses = expected(ground.model, long_answers)
    assert np.allclose(found.margin, margins, atol=EXACT)
    assert np.allclose(found.in_type, masses, atol=EXACT)


def test_margins_under_an_edit_are_those_of_the_edited_model(
    ground: Ground, long_answers: tuple[Asked, ...]
) -> None:
    noisy = [NeuronId(1, i) for i in range(40)]
    edits = neuron_edits(noisy, "scale", factor=3.0, positions="all")
    found = measure_margins(ground.model, long_answers, edits)
    with ground.model.intervene(edits):
        margins, _ = expected(ground.model, long_answers)
    assert np.allclose(found.margin, margins, atol=EXACT)
    assert not np.allclose(found.margin, measure_margins(ground.model, long_answers).margin)


def test_the_right_answer_is_first_only_when_it_beats_every_candidate(ground: Ground) -> None:
    one = ground.asked[0]
    (gold, *rest) = (one.answers[0], *one.candidates)
    swapped = replace(one, answers=(rest[0],), candidates=(gold, *rest[1:]))
    found = measure_margins(ground.model, [one, swapped])
    assert found.first.tolist() == [True, False]
    assert found.margin[0] > 0 > found.margin[1]


def test_answers_share_rows_and_no_row_is_the_start_of_another(
    ground: Ground, long_answers: tuple[Asked, ...]
) -> None:
    assert len(margin_rows(ground.model, ground.asked).rows) == len(ground.asked)
    plan = margin_rows(ground.model, long_answers)
    assert len(plan.rows) < sum(1 + len(one.candidates) for one in long_answers)
    first = margin_rows(ground.model, long_answers[:1]).rows
    assert not any(a != b and b[: len(a)] == a for a in first for b in first)


@pytest.mark.parametrize("rows", [1, 3, 64])
def test_the_batch_size_does_not_matter(
    ground: Ground, long_answers: tuple[Asked, ...], rows: int
) -> None:
    whole = measure_margins(ground.model, long_answers)
    assert np.allclose(
        whole.margin, measure_margins(ground.model, long_answers, rows=rows).margin, atol=EXACT
    )


@pytest.mark.parametrize("rows", [1, 7, 64])
def test_doses_in_one_batch_equal_doses_one_by_one(
    ground: Ground, long_answers: tuple[Asked, ...], rows: int
) -> None:
    ranking = [ground.planted.carriers["capital"], *(NeuronId(1, i) for i in range(20))]
    sizes = (1, 5, 21)
    together = measure_doses(
        ground.model,
        long_answers,
        len(sizes),
        lambda n: nested_edits(ranking, sizes, n, "zero"),
        rows=rows,
    )
    for size, found in zip(sizes, together, strict=True):
        alone = measure_margins(ground.model, long_answers, neuron_edits(ranking[:size], "zero"))
        assert np.allclose(found.margin, alone.margin, atol=EXACT)
        assert np.allclose(found.in_type, alone.in_type, atol=EXACT)


def test_the_planted_facts_lead_and_a_null_model_knows_none(ground: Ground) -> None:
    known = measure_margins(ground.model, ground.asked)
    assert known.first.all()
    assert known.margin.min() > 5
    null = Ground(null_units_model())
    assert np.abs(measure_margins(null.model, null.asked).margin).max() < 1


@pytest.mark.parametrize(
    "edit",
    [
        Edit("zero", (NeuronId(0, 1),), positions="end", phase="prefill"),
        Edit("zero", (NeuronId(0, 1),), positions=(-2,), phase="prefill"),
        Edit("zero", (NeuronId(0, 1),), phase="prefill"),
        Edit("zero", (NeuronId(0, 1),), phase="decode"),
    ],
)
def test_edits_that_a_forced_answer_would_move_are_refused(ground: Ground, edit: Edit) -> None:
    with pytest.raises(MnemoscopeError, match="where the prompt ends"):
        measure_margins(ground.model, ground.asked[:2], [edit])


def test_what_cannot_be_measured_is_refused(ground: Ground) -> None:
    with pytest.raises(MnemoscopeError, match="at least one"):
        measure_margins(ground.model, [])
    with pytest.raises(MnemoscopeError, match="no candidates"):
        measure_margins(ground.model, [replace(ground.asked[0], candidates=())])
    silent = Edit("zero", (NeuronId(0, 1),), positions=(200,), phase="prefill")
    with pytest.raises(EditNeverFiredError):
        measure_margins(ground.model, ground.asked[:1], [silent])


def test_a_kept_measurement_is_read_back_and_never_mixed_up(ground: Ground, tmp_path: Path) -> None:
    plan = margin_rows(ground.model, ground.asked)
    calls: list[int] = []

    def measure() -> tuple[Margins, ...]:
        calls.append(1)
        return (measure_margins(ground.model, plan),)

    with open_run(tmp_path, "margins", {"a": 1}) as run:
        (first,) = kept_margins(run, "clean", plan, measure)
        (again,) = kept_margins(run, "clean", plan, measure)
        other = margin_rows(ground.model, ground.asked[:3])
        with pytest.raises(MnemoscopeError, match="kept other facts"):
            kept_margins(run, "clean", other, measure)
    assert len(calls) == 1
    assert (again.relations, again.subjects) == (first.relations, first.subjects)
    for name in ("gold", "distractors", "first", "in_type"):
        assert np.array_equal(getattr(again, name), getattr(first, name))


# -- asked facts --------------------------------------------------------------------------------


def test_candidates_are_wrong_answers_of_the_relation(ground: Ground) -> None:
    objects = {fact.object for fact in ground.capital.facts}
    for fact, one in zip(ground.capital.facts, ground.asked, strict=True):
        assert one.subject == fact.subject
        assert one.prompt == ground.wording.prompt(fact.subject)
        assert one.answers[0] == fact.object
        assert set(one.candidates) == objects - {fact.object}  # 11, fewer than 20
        assert set(one.others) == objects - {fact.object}


def test_the_draw_of_candidates_depends_on_seed_and_subject_only(ground: Ground) -> None:
    def ask(facts: Sequence[Fact], seed: int) -> tuple[Asked, ...]:
        return asked_facts(
            ground.model, ground.capital, facts, ground.wording, n_candidates=4, seed=seed
        )

    facts = ground.capital.facts
    assert ask(facts, 3) == ask(facts, 3)
    assert ask(facts[5:7], 3) == ask(facts, 3)[5:7]
    assert [a.candidates for a in ask(facts, 3)] != [a.candidates for a in ask(facts, 4)]
    assert {len(one.candidates) for one in ask(facts, 3)} == {4}


def test_another_right_answer_is_no_candidate(ground: Ground) -> None:
    fact = ground.capital.facts[0]
    second = replace(fact, object=ground.capital.facts[1].object, aliases=())
    relation = replace(ground.capital, facts=(*ground.capital.facts, second), exclusive=False)
    (one,) = asked_facts(ground.model, relation, [fact], ground.wording)
    assert second.object not in one.candidates
    assert second.object in one.answers


def test_facts_that_give_their_answer_away_are_left_out(ground: Ground) -> None:
    leaking = Fact("brimburg of balia", "brimburg")
    fair = ground.capital.facts[0]
    found = asked_facts(ground.model, ground.capital, [leaking, fair], ground.wording)
    assert [one.subject for one in found] == [fair.subject]
    with pytest.raises(MnemoscopeError, match="Try another relation or wording"):
        asked_facts(ground.model, ground.capital, [leaking], ground.wording)


def test_demonstrations_stand_before_the_question_and_are_not_asked(ground: Ground) -> None:
    shown, facts = ground.capital.facts[:2], ground.capital.facts[:3]
    (one,) = asked_facts(ground.model, ground.capital, facts, ground.wording, shown=shown)
    lines = [f"The capital of {fact.subject} is {fact.object}." for fact in shown]
    assert one.prompt.splitlines() == [*lines, f"The capital of {facts[2].subject} is"]
    assert not {fact.object for fact in shown} & set(one.candidates)


# -- outcome classes ----------------------------------------------------------------------------

FRANCE = Asked(
    prompt="The capital of Germany is Berlin.\nThe capital city of France is called",
    answers=("Paris", "Lutetia"),
    candidates=("Madrid", "Rome"),
    subject="France",
    relation="capital",
    others=("Madrid", "Rome", "The Hague", "Berlin"),
)


@pytest.mark.parametrize(
    ("text", "outcome"),
    [
        (" Paris, of course", "gold"),
        (" the old city of Lutetia", "gold"),
        ("\n\nPARIS\nThe capital of Spain is Madrid", "gold"),
        ("The capital city of France is called Paris", "gold"),
        (" Madrid, not Paris", "type"),
        (" Rome", "type"),
        (" The Hague", "type"),
        (" Berlin", "type"),
        (" A city like Rome", "type"),
        (" Angela Merkel", "other"),
        (" I do not know", "other"),
        (" The Beatles", "other"),
        ("", "degenerate"),
        (" \n ", "degenerate"),
        (" ...", "degenerate"),
        ("The capital city of France is called", "degenerate"),
        ("The capital of Germany is Berlin", "degenerate"),
        (" France", "degenerate"),
        (" The", "degenerate"),
        (" the city of lights", "degenerate"),
        (" A. The largest", "degenerate"),
        (" B) something", "degenerate"),
        (" and and and", "degenerate"),
    ],
)
def test_outcome_classes(text: str, outcome: str) -> None:
    assert outcome_of(FRANCE, text) == outcome


@pytest.mark.parametrize(
    ("before", "after", "loss"),
    [
        ("gold", "gold", "unchanged"),
        ("other", "other", "unchanged"),
        ("gold", "type", "answer lost"),
        ("gold", "other", "type lost"),
        ("type", "other", "type lost"),
        ("gold", "degenerate", "format lost"),
        ("other", "degenerate", "format lost"),
        ("type", "gold", "gained"),
        ("degenerate", "other", "gained"),
    ],
)
def test_what_went_lost(before: str, after: str, loss: str) -> None:
    assert loss_of(before, after) == loss  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("text", "right"),
    [
        (" Par", True),
        (" Paris", True),
        (" PARIS.", True),
        (" Paris is", True),
        (" Parish", False),
        (" The", False),
        ("", False),
        (" Lut", True),
    ],
)
def test_two_tokens_are_right_as_the_start_of_an_answer(text: str, right: bool) -> None:
    assert prefix_right(FRANCE, text) == right


def test_ablating_the_carrier_takes_the_type_of_its_relation_only(ground: Ground) -> None:
    teacher = next(r for r in ground.planted.relations if r.name == "teacher")
    other = asked_facts(ground.model, teacher, teacher.facts, wordings(teacher)[0])
    asked = (*ground.asked, *other)
    before = greedy_outcomes(ground.model, asked)
    edits = neuron_edits([ground.planted.carriers["capital"]], "zero")
    after = greedy_outcomes(ground.model, asked, edits, rows=5)
    assert {one.outcome for one in before} == {"gold"}
    assert all(one.prefix_right for one in before)
    n = len(ground.asked)
    assert losses(before[:n], after[:n])["type lost"] == n  # the model falls back on another word
    assert losses(before[n:], after[n:])["unchanged"] == len(other)
    assert not any(one.prefix_right for one in after[:n])
    with pytest.raises(MnemoscopeError, match="same questions"):
        losses(before[:n], after[n:])
