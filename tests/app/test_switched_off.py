"""Switched-off heads move the answers by what plain ablation moves them; controls are honest."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from mnemoscope.app.answers import Answers, Question
from mnemoscope.app.neuron_switched import neutral
from mnemoscope.app.switched_off import (
    HeadChange,
    Means,
    Switched,
    edits_in,
    edits_of,
    parse_units,
)
from mnemoscope.app.switched_readings import (
    Reading,
    control,
    no_better_than_random,
    other_tokens,
    random_changes,
    readings,
)
from mnemoscope.data.neutral import neutral_passages
from mnemoscope.interventions.head_means import mean_head_outputs
from mnemoscope.models.edits import mean, scale
from mnemoscope.models.errors import MnemoscopeError
from mnemoscope.models.hooked import HookedModel, wrap
from mnemoscope.models.load import load_tokenizer
from mnemoscope.models.types import HeadId, NeuronId, Site
from mnemoscope.results.errors import StatisticsError
from planted_ground import CLAIM, CONTEXT, CONTEXT_HEAD, MEMORY_HEAD, PROMPT, STORED
from transformers import LlamaConfig, LlamaForCausalLM

QUESTION = Question(PROMPT, CONTEXT)
ANSWERS = Answers(STORED, "", CLAIM, "")
MEMORY, COPY = HeadId.parse(MEMORY_HEAD), HeadId.parse(CONTEXT_HEAD)


def claim_place(model: HookedModel) -> int:
    """The position of the claim in the text with its context."""
    pieces = model.pieces(model.tokens(QUESTION.texts[1]).ids[0].tolist())
    return next(i for i, piece in enumerate(pieces) if CLAIM in piece)


def test_without_its_memory_head_the_model_forgets_and_without_the_other_it_recalls(
    model: HookedModel,
) -> None:
    before = readings(model, QUESTION, ANSWERS)
    assert [r.said.split()[0] for r in before] == [STORED, CLAIM]
    forgot = readings(model, QUESTION, ANSWERS, Switched((MEMORY,)))
    assert forgot[0].probability["memory"] < 0.05 < 0.9 < before[0].probability["memory"]
    assert forgot[1].said.split()[0] == CLAIM
    recalled = readings(model, QUESTION, ANSWERS, Switched((COPY,)))
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
    same = readings(model, QUESTION, ANSWERS, Switched((COPY,), HeadChange("scale", 1.0)))
    assert [r.contrast for r in same] == pytest.approx([r.contrast for r in plain], abs=1e-5)
    (off,) = edits_of(HeadChange(), [COPY])
    (half,) = edits_of(HeadChange("scale", 0.5), [COPY])
    assert (off.op, half.op, half.value) == ("zero", "scale", 0.5)


def test_random_heads_of_the_layer_do_less_than_the_planted_one(model: HookedModel) -> None:
    before = readings(model, QUESTION, ANSWERS)
    after = readings(model, QUESTION, ANSWERS, Switched((MEMORY,)))
    drawn = control(model, QUESTION, ANSWERS, Switched((MEMORY,)))
    assert len(drawn.contrast[0]) == 20
    assert not no_better_than_random(before[0], after[0], drawn.contrast[0])
    assert drawn.different <= 7  # seven other heads in the layer
    assert drawn.chance_outside == pytest.approx(2 / (drawn.different + 1))


def test_a_noise_head_is_not_better_than_random(model: HookedModel) -> None:
    noise = HeadId(0, 0)
    before = readings(model, QUESTION, ANSWERS)
    after = readings(model, QUESTION, ANSWERS, Switched((noise,)))
    drawn = control(model, QUESTION, ANSWERS, Switched((noise,)))
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
        control(model, QUESTION, ANSWERS, Switched(tuple(model.anatomy.all_heads())))


def test_the_mean_of_a_head_is_what_replaces_it(model: HookedModel) -> None:
    means = mean_head_outputs(model, [QUESTION.closed], model.anatomy.all_heads())
    changed = Switched((MEMORY,), HeadChange("mean"))
    after = readings(model, QUESTION, ANSWERS, changed, Means(means))
    with model.intervene([mean([MEMORY], means[MEMORY][None])]):
        logs = model.logits(model.tokens(QUESTION.closed), at="end")[0, 0].log_softmax(-1)
    stored = model.answer_ids(QUESTION.closed, STORED)[0]
    assert after[0].probability["memory"] == pytest.approx(float(logs[stored].exp()), abs=1e-6)


def test_hiding_the_claim_from_the_copying_head_brings_the_stored_answer_back(
    model: HookedModel,
) -> None:
    claim = claim_place(model)
    pieces = model.tokens(QUESTION.texts[1]).ids[0]
    changed = Switched((COPY,), HeadChange("edges off", hidden=(claim,), text=1))
    before = readings(model, QUESTION, ANSWERS)
    after = readings(model, QUESTION, ANSWERS, changed)
    assert after[1].said.split()[0] == STORED
    assert after[0] == before[0], "the other text is left alone"
    drawn = control(model, QUESTION, ANSWERS, changed)
    assert not no_better_than_random(before[1], after[1], drawn.contrast[1])
    assert set(drawn.contrast[0]) == {before[0].contrast}
    others = other_tokens((claim,), len(pieces), draws=50, seed=0)
    assert {key for keys in others for key in keys} == {*range(1, len(pieces))} - {claim}


def test_hiding_nothing_or_nearly_everything_is_refused() -> None:
    with pytest.raises(MnemoscopeError, match="choose at least one"):
        edits_of(HeadChange("edges off"), [COPY])
    with pytest.raises(StatisticsError, match="choose fewer"):
        other_tokens((1, 2, 3, 4), 7, draws=5, seed=0)
    with pytest.raises(MnemoscopeError, match="knows no 'blur'"):
        HeadChange("blur")  # type: ignore[arg-type]


def test_edges_weigh_nearly_nothing_as_if_they_were_off_and_once_as_they_are(
    model: HookedModel,
) -> None:
    claim = claim_place(model)

    def contrast(op: Any, factor: float) -> float:
        change = HeadChange(op, factor, (claim,), 1)
        found = readings(model, QUESTION, ANSWERS, Switched((COPY,), change))[1].contrast
        assert found is not None
        return found

    plain = readings(model, QUESTION, ANSWERS)[1].contrast
    assert contrast("edges scale", 1.0) == pytest.approx(plain, abs=1e-4)
    assert contrast("edges scale", 1e-9) == pytest.approx(contrast("edges off", 0.0), abs=1e-3)
    assert contrast("edges off", 0.0) > contrast("edges scale", 0.1) > plain


def test_a_head_that_sees_all_tokens_alike_copies_no_more(model: HookedModel) -> None:
    changed = Switched((COPY,), HeadChange("edges mean"))
    after = readings(model, QUESTION, ANSWERS, changed)
    assert after[1].said.split()[0] == STORED


# -- units and heads together ---------------------------------------------------------------------


@pytest.fixture(scope="module")
def small() -> HookedModel:
    """A random model with MLPs, and words that it can be asked about."""
    tokenizer = load_tokenizer("engram")
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=3,
        num_attention_heads=4,
    )
    return wrap(LlamaForCausalLM(config), tokenizer, name="small")


def test_heads_and_units_change_together_as_their_edits_do(small: HookedModel) -> None:
    question, answers = Question("The town where", "A river is"), Answers("Na", "", "Bo", "")
    units = parse_units("L1.N3, 0:7 L1.N3", small.anatomy)
    assert units == (NeuronId(1, 3), NeuronId(0, 7))
    changed = Switched((HeadId(1, 0),), HeadChange("scale", 2.0), units, "scale", 3.0)
    after = readings(small, question, answers, changed)
    edits = [scale([HeadId(1, 0)], 2.0), scale(units, 3.0, "all_but_first")]
    for text, found in zip(question.texts, after, strict=True):
        with small.intervene(edits):
            logs = small.logits(small.tokens(text), at="end")[0, 0].log_softmax(-1)
        first = small.answer_ids(text, "Na")[0]
        assert found.probability["memory"] == pytest.approx(float(logs[first].exp()), abs=1e-6)


def test_random_changes_draw_as_many_heads_and_units_of_the_same_layers(
    small: HookedModel,
) -> None:
    known = neutral(small, Site.NEURON, neutral_passages()[:2])
    changed = Switched((HeadId(1, 0),), HeadChange(), (NeuronId(1, 3), NeuronId(2, 7)))
    drawn = random_changes(small, changed, norms=None, tokens=0, neutral=known, draws=6)
    assert len(drawn.sets) == 6
    for one in drawn.sets:
        assert [head.layer for head in one.heads] == [1]
        assert HeadId(1, 0) not in one.heads
        assert sorted(unit.layer for unit in one.units) == [1, 2]
        assert not {*one.units} & {*changed.units}
        assert (one.change, one.unit_op) == (changed.change, changed.unit_op)
    assert 1 < drawn.different <= 6


def test_what_is_no_unit_is_told(small: HookedModel) -> None:
    assert parse_units(" ", small.anatomy) == ()
    with pytest.raises(MnemoscopeError, match=r"cannot read 'x' as a unit"):
        parse_units("L1.N3 x", small.anatomy)
    with pytest.raises(MnemoscopeError):
        parse_units("L99.N0", small.anatomy)
    with pytest.raises(MnemoscopeError, match="measure them first"):
        edits_in(Switched(units=(NeuronId(0, 0),), unit_op="mean"), 0, Means())
