"""Steps of an answer: the planted heads take the turns that they were built to take."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from mnemoscope.data.facts.needles import reordered
from mnemoscope.models import HookedModel, MnemoscopeError, wrap
from mnemoscope.models.types import HeadId
from mnemoscope.organisms import (
    PlantedRetrieval,
    planted_retrieval_design,
    planted_retrieval_model,
)
from mnemoscope.probes.answer_steps import PLACES, STEPS, no_steps
from mnemoscope.probes.dynamic_heads import DynamicSets, dynamic_sets
from mnemoscope.probes.retrieval_heads import score_trials
from mnemoscope.probes.retrieval_readings import joined
from mnemoscope.probes.retrieval_trials import RetrievalTrials, measure_trials


@pytest.fixture(scope="module")
def planted() -> PlantedRetrieval:
    return planted_retrieval_model()


@pytest.fixture(scope="module")
def model(planted: PlantedRetrieval) -> HookedModel:
    return wrap(planted.module, planted.tokenizer, name="planted")


@pytest.fixture(scope="module")
def trials(planted: PlantedRetrieval, model: HookedModel) -> RetrievalTrials:
    return measure_trials(model, planted_retrieval_design(planted, lengths=(96,), rounds=1))


@pytest.fixture(scope="module")
def sets(trials: RetrievalTrials) -> DynamicSets:
    needles = [trial.needle_id for trial in trials.design.trials]
    return dynamic_sets(trials.forced_steps, needles, k=4)


# -- step by step ---------------------------------------------------------------------------------


def test_steps_are_the_rows_that_the_means_are_of(trials: RetrievalTrials) -> None:
    steps, whole = trials.forced_steps, trials.forced
    assert np.isfinite(steps.copied[:, :2]).all()  # two words, two rows
    assert np.isnan(steps.copied[:, 2:]).all()
    assert (steps.top_place[:, 2:] == -1).all()
    for name in ("needle_mass", "sink_mass", "rival_mass"):
        mean = getattr(steps, name)[:, :2].mean(1)
        np.testing.assert_allclose(mean, getattr(whole, name), atol=1e-6)
    np.testing.assert_array_equal(steps.copied[:, 0], whole.first_hit)
    np.testing.assert_array_equal(steps.copied[:, 1], whole.later_hits)
    np.testing.assert_allclose(
        np.nansum(steps.log_prob, axis=1), trials.forced_logprob, rtol=1e-4, atol=1e-5
    )


def test_the_highest_key_has_a_place(planted: PlantedRetrieval, trials: RetrievalTrials) -> None:
    for heads, place in ((planted.copy_heads, "needle"), (planted.sink_heads, "sink")):
        (head,) = heads
        there = trials.forced_steps.top_place[:, :2, head.layer, head.head]
        assert (there == PLACES.index(place)).all()


def test_free_steps_run_on_behind_the_answer(trials: RetrievalTrials) -> None:
    """The model says two words and a full stop; the gold answer has the two words."""
    steps = trials.free_steps
    assert np.isfinite(steps.log_prob).sum(1).tolist() == [3] * len(trials.accepted)
    np.testing.assert_allclose(
        steps.needle_mass[:, :2], trials.forced_steps.needle_mass[:, :2], atol=1e-5
    )
    assert (trials.free.steps == 2).all()  # means end with the answer


# -- who takes turns ------------------------------------------------------------------------------


def test_induction_joins_at_the_second_step(planted: PlantedRetrieval, sets: DynamicSets) -> None:
    always = {*planted.copy_heads, *planted.inert_readers, *planted.suppression_heads}
    assert set(sets.heads_at(0, 0.9)) == always
    assert set(sets.heads_at(1, 0.9)) == always | set(planted.induction_heads)
    (induction,), (copy,) = planted.induction_heads, planted.copy_heads
    assert sets.head_entropy[induction.layer, induction.head] == 0  # one step of the two
    assert sets.head_entropy[copy.layer, copy.head] == 1  # both, in bits
    assert sets.trials.tolist() == [24, 24]
    assert sets.table["step"].to_list() == [0, 1]


def test_sharing_and_overlap_are_counted_by_hand() -> None:
    """Two heads copy at step 0, one of them and a third at step 1: one of three in both."""
    one = no_steps(1, 4)
    copied = one.copied.copy()
    copied[0, :2] = 0
    copied[0, 0, 0, [0, 1]] = 1
    copied[0, 1, 0, [1, 2]] = 1
    steps = joined([replace(one, copied=copied)] * 4)
    found = dynamic_sets(steps, ["a", "a", "b", "b"], k=1)
    assert found.effective.tolist() == [2, 2]
    assert found.alike is not None
    assert float(found.alike.mean) == pytest.approx(1 / 3)
    assert float(found.fixed.mean) == pytest.approx(1 / 2)  # head 1: two of four copies
    assert found.head_entropy[0].tolist()[:3] == [0, 1, 0]
    assert np.isnan(found.head_entropy[0, 3])
    assert found.heads_at(1) == (HeadId(0, 1), HeadId(0, 2))


def test_sets_of_nobody_are_refused() -> None:
    with pytest.raises(MnemoscopeError, match="two are needed"):
        dynamic_sets(joined([no_steps(2, 3)] * 3), ["a", "b", "c"])
    assert no_steps(2, 3).copied.shape == (1, STEPS, 2, 3)


# -- a broken order of words ----------------------------------------------------------------------


def test_induction_cannot_copy_what_stands_in_another_order(
    planted: PlantedRetrieval, model: HookedModel, trials: RetrievalTrials
) -> None:
    mixed = replace(planted, needles=reordered(planted.needles))
    design = planted_retrieval_design(mixed, lengths=(96,), rounds=1)
    assert design.sha256 != trials.design.sha256
    broken = score_trials(measure_trials(model, design), mode="forced", among="all")
    straight = score_trials(trials, mode="forced", among="all")
    (head,) = planted.induction_heads
    assert straight.mean("continuation")[head.layer, head.head] == 1
    assert np.isnan(straight.values["jump"]).all()  # every step could be induced
    assert broken.mean("jump")[head.layer, head.head] == 0
    assert np.isfinite(broken.values["jump"]).all()
