"""Switched-off heads move the answers by what plain ablation moves them; controls are honest."""

from __future__ import annotations

import math

import pytest
from mnemoscope.app.answers import Answers, Question
from mnemoscope.app.switched_off import (
    OFF,
    HeadChange,
    Reading,
    control,
    edits_of,
    no_better_than_random,
    other_tokens,
    readings,
)
from mnemoscope.interventions.head_means import mean_head_outputs
from mnemoscope.models.edits import mean
from mnemoscope.models.errors import MnemoscopeError
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
    forgot = readings(model, QUESTION, ANSWERS, edits_of(OFF, [MEMORY]))
    assert forgot[0].probability["memory"] < 0.05 < 0.9 < before[0].probability["memory"]
    assert forgot[1].said.split()[0] == CLAIM
    recalled = readings(model, QUESTION, ANSWERS, edits_of(OFF, [COPY]))
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
    same = readings(model, QUESTION, ANSWERS, edits_of(HeadChange("scale", 1.0), [COPY]))
    assert [r.contrast for r in same] == pytest.approx([r.contrast for r in plain], abs=1e-5)
    (off,) = edits_of(OFF, [COPY])
    (half,) = edits_of(HeadChange("scale", 0.5), [COPY])
    assert (off.op, half.op, half.value) == ("zero", "scale", 0.5)


def test_random_heads_of_the_layer_do_less_than_the_planted_one(model: HookedModel) -> None:
    before = readings(model, QUESTION, ANSWERS)
    after = readings(model, QUESTION, ANSWERS, edits_of(OFF, [MEMORY]))
    drawn = control(model, QUESTION, ANSWERS, [MEMORY])
    assert len(drawn.contrast[0]) == 20
    assert not no_better_than_random(before[0], after[0], drawn.contrast[0])
    assert drawn.different <= 7  # seven other heads in the layer
    assert drawn.chance_outside == pytest.approx(2 / (drawn.different + 1))


def test_a_noise_head_is_not_better_than_random(model: HookedModel) -> None:
    noise = HeadId(0, 0)
    before = readings(model, QUESTION, ANSWERS)
    after = readings(model, QUESTION, ANSWERS, edits_of(OFF, [noise]))
    drawn = control(model, QUESTION, ANSWERS, [noise])
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
        control(model, QUESTION, ANSWERS, model.anatomy.all_heads())


def test_the_mean_of_a_head_is_what_replaces_it(model: HookedModel) -> None:
    means = mean_head_outputs(model, [QUESTION.closed], model.anatomy.all_heads())
    edits = edits_of(HeadChange("mean"), [MEMORY], means)
    after = readings(model, QUESTION, ANSWERS, edits)
    with model.intervene([mean([MEMORY], means[MEMORY][None])]):
        logs = model.logits(model.tokens(QUESTION.closed), at="end")[0, 0].log_softmax(-1)
    stored = model.answer_ids(QUESTION.closed, STORED)[0]
    assert after[0].probability["memory"] == pytest.approx(float(logs[stored].exp()), abs=1e-6)


def test_hiding_the_claim_from_the_copying_head_brings_the_stored_answer_back(
    model: HookedModel,
) -> None:
    given = QUESTION.texts[1]
    pieces = model.pieces(model.tokens(given).ids[0].tolist())
    claim = next(i for i, piece in enumerate(pieces) if CLAIM in piece)
    change = HeadChange("hide tokens", hidden=(claim,), text=1)
    before = readings(model, QUESTION, ANSWERS)
    after = readings(model, QUESTION, ANSWERS, edits_of(change, [COPY]), only=1)
    assert after[1].said.split()[0] == STORED
    assert after[0] == before[0], "the other text is left alone"
    drawn = control(model, QUESTION, ANSWERS, [COPY], change)
    assert not no_better_than_random(before[1], after[1], drawn.contrast[1])
    assert set(drawn.contrast[0]) == {before[0].contrast}
    others = other_tokens(model, QUESTION, change, draws=50, seed=0)
    assert {key for keys in others for key in keys} <= {*range(1, len(pieces))} - {claim}


def test_hiding_nothing_or_nearly_everything_is_refused(model: HookedModel) -> None:
    with pytest.raises(MnemoscopeError, match="choose at least one"):
        edits_of(HeadChange("hide tokens"), [COPY])
    most = HeadChange("hide tokens", hidden=tuple(range(1, 5)), text=0)
    with pytest.raises(StatisticsError, match="choose fewer"):
        other_tokens(model, QUESTION, most, draws=5, seed=0)
