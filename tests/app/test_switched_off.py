"""Switched-off heads move the answers by what plain ablation moves them; controls are honest."""

from __future__ import annotations

import math

import pytest
from mnemoscope.app.answers import Answers, Question
from mnemoscope.app.switched_off import Reading, control, edit_of, no_better_than_random, readings
from mnemoscope.models.hooked import HookedModel
from mnemoscope.models.types import HeadId
from mnemoscope.results.errors import StatisticsError
from planted_ground import CLAIM, CONTEXT, CONTEXT_HEAD, MEMORY_HEAD, PROMPT, STORED

QUESTION = Question(PROMPT, CONTEXT)
ANSWERS = Answers(STORED, "", CLAIM, "")
MEMORY, COPY = HeadId.parse(MEMORY_HEAD), HeadId.parse(CONTEXT_HEAD)


def test_without_its_memory_head_the_model_forgets_and_without_the_other_it_recalls(
    model: HookedModel,
) -> None:
    before = readings(model, QUESTION, ANSWERS)
    assert [r.said.split()[0] for r in before] == [STORED, CLAIM]
    forgot = readings(model, QUESTION, ANSWERS, edit_of([MEMORY], 0.0))
    assert forgot[0].probability["memory"] < 0.05 < 0.9 < before[0].probability["memory"]
    assert forgot[1].said.split()[0] == CLAIM
    recalled = readings(model, QUESTION, ANSWERS, edit_of([COPY], 0.0))
    assert recalled[1].said.split()[0] == STORED


def test_the_contrast_is_the_log_ratio_of_the_probabilities(model: HookedModel) -> None:
    for reading in readings(model, QUESTION, ANSWERS):
        p = reading.probability
        assert reading.contrast == pytest.approx(math.log(p["memory"] / p["context"]), abs=1e-4)
    (alone,) = readings(model, Question(PROMPT, ""), Answers(STORED, "", None, ""))
    assert alone.contrast == pytest.approx(math.log(alone.probability["memory"]), abs=1e-5)
    (none,) = readings(model, Question(PROMPT, ""), Answers(None, "", None, ""))
    assert none.contrast is None


def test_scaling_by_one_changes_nothing_and_by_zero_is_switching_off(model: HookedModel) -> None:
    plain = readings(model, QUESTION, ANSWERS)
    same = readings(model, QUESTION, ANSWERS, edit_of([COPY], 1.0))
    assert [r.contrast for r in same] == pytest.approx([r.contrast for r in plain], abs=1e-5)
    assert edit_of([COPY], 0.0).op == "zero"
    assert edit_of([COPY], 0.5).value == 0.5


def test_random_heads_of_the_layer_do_less_than_the_planted_one(model: HookedModel) -> None:
    before = readings(model, QUESTION, ANSWERS)
    after = readings(model, QUESTION, ANSWERS, edit_of([MEMORY], 0.0))
    drawn = control(model, QUESTION, ANSWERS, [MEMORY], 0.0)
    assert len(drawn.contrast[0]) == 20
    assert not no_better_than_random(before[0], after[0], drawn.contrast[0])
    assert drawn.different <= 7  # seven other heads in the layer
    assert drawn.chance_outside == pytest.approx(2 / (drawn.different + 1))


def test_a_noise_head_is_not_better_than_random(model: HookedModel) -> None:
    noise = HeadId(0, 0)
    before = readings(model, QUESTION, ANSWERS)
    after = readings(model, QUESTION, ANSWERS, edit_of([noise], 0.0))
    drawn = control(model, QUESTION, ANSWERS, [noise], 0.0)
    assert no_better_than_random(before[1], after[1], drawn.contrast[1])


def test_the_range_includes_its_ends() -> None:
    def reading(contrast: float | None) -> Reading:
        return Reading("", {}, contrast)

    assert no_better_than_random(reading(0.0), reading(1.0), (1.0, -1.0))
    assert not no_better_than_random(reading(0.0), reading(1.1), (1.0, -1.0))
    assert not no_better_than_random(reading(None), reading(None), (1.0,))
    assert not no_better_than_random(reading(0.0), reading(1.0), ())


def test_a_list_that_leaves_no_heads_to_compare_with_is_refused(model: HookedModel) -> None:
    with pytest.raises(StatisticsError, match="choose fewer"):
        control(model, QUESTION, ANSWERS, model.anatomy.all_heads(), 0.0)
