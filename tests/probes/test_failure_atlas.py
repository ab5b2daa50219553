"""Failures that were made: without its locate head the planted model falls back on the sink; a
model that reads the other statement is told apart from it."""

from __future__ import annotations

from dataclasses import fields, replace

import numpy as np
import pytest
from mnemoscope.interventions.head_ablation import ablation_edits
from mnemoscope.models import HookedModel, MnemoscopeError, wrap
from mnemoscope.organisms import planted_retrieval_design, planted_retrieval_model
from mnemoscope.probes.answer_faithfulness import measure_faithfulness
from mnemoscope.probes.answer_steps import PLACES, StepReadings
from mnemoscope.probes.failure_atlas import failure_atlas, read_copying_heads
from mnemoscope.probes.retrieval_trials import RetrievalTrials, measure_trials

HEADS = 2


@pytest.fixture(scope="module")
def mixed() -> RetrievalTrials:
    """Every third trial was asked without the locate head: found nothing, answered nothing."""
    planted = planted_retrieval_model()
    model: HookedModel = wrap(planted.module, planted.tokenizer, name="planted")
    design = planted_retrieval_design(planted, lengths=(96,), rounds=1)
    whole = measure_trials(model, design, max_new_tokens=3)
    with model.intervene(ablation_edits("zero", planted.locate_heads)):
        blind = measure_trials(model, design, max_new_tokens=3)
    failed = np.arange(len(whole.accepted)) % 3 == 0
    assert whole.accepted.all()
    assert not blind.accepted.any()

    def of_both(kind: str) -> object:
        first, second = getattr(whole, kind), getattr(blind, kind)
        if isinstance(first, tuple):
            return tuple(b if out else a for a, b, out in zip(first, second, failed, strict=True))
        if isinstance(first, np.ndarray):
            return np.where(failed, second, first)
        return type(first)(
            *(
                np.where(failed.reshape(-1, *[1] * (getattr(first, f.name).ndim - 1)),
                         getattr(second, f.name), getattr(first, f.name))
                for f in fields(first)
            )
        )  # fmt: skip

    names = [f.name for f in fields(whole) if f.name != "design"]
    return replace(whole, **{name: of_both(name) for name in names})


def changed(trials: RetrievalTrials, **steps: np.ndarray) -> RetrievalTrials:
    return replace(trials, free_steps=replace(trials.free_steps, **steps))


def test_blind_trials_fall_back_on_the_sink(mixed: RetrievalTrials) -> None:
    atlas = failure_atlas(mixed, heads=HEADS)
    assert atlas.counts == {"needle": 16, "other": 8}
    right, wrong = atlas.rows["needle"], atlas.rows["other"]
    assert float(right["needle"].low) > 0.9
    assert float(right["top needle"].mean) == 1
    assert float(right["sink"].high) < 0.1
    assert float(wrong["sink"].low) > 0.9
    assert float(wrong["top sink"].mean) == 1
    assert float(wrong["needle"].high) < 0.1
    shares = sum(float(wrong[f"top {place}"].mean) for place in PLACES)
    assert shares == pytest.approx(1)
    assert {"verdict", "trials", "measure", "mean", "low", "high"} == set(atlas.table.columns)


def test_the_wrong_statement_is_another_kind_of_failure(mixed: RetrievalTrials) -> None:
    steps = mixed.free_steps
    failed = ~mixed.accepted
    verdicts = tuple("rival" if out else "needle" for out in failed)
    place, mass = steps.top_place.copy(), steps.rival_mass.copy()
    place[failed], mass[failed] = PLACES.index("rivals"), 0.8
    rival = replace(changed(mixed, top_place=place, rival_mass=mass), verdicts=verdicts)
    told = failure_atlas(rival, heads=HEADS).rows["rival"]
    assert float(told["top rivals"].mean) == 1
    assert float(told["rivals"].mean) == pytest.approx(0.8)


def test_a_trial_is_read_in_heads_that_others_chose(mixed: RetrievalTrials) -> None:
    """A head that copies in one trial alone would be chosen by it; it must not be read there."""
    forced = mixed.forced
    copied = np.zeros_like(forced.hits_set)
    copied[:, 0, 0] = 0.5
    copied[5, 4, 3] = 1000
    sink = np.zeros_like(mixed.free_steps.sink_mass)
    sink[5, :, 4, 3] = 1
    alone = replace(changed(mixed, sink_mass=sink), forced=replace(forced, hits_set=copied))
    assert (read_copying_heads(alone, heads=1).values["sink"] == 0).all()


# -- the score ------------------------------------------------------------------------------------


def test_the_sink_tells_wrong_answers_from_right_ones(mixed: RetrievalTrials) -> None:
    found = measure_faithfulness(mixed, heads=HEADS, draws=200)
    by_name = {one.name: one for one in found.detectors}
    for name in ("heads", "sink mass"):
        assert (by_name[name].auroc, by_name[name].low, by_name[name].high) == (1, 1, 1)
        assert by_name[name].brier < 0.1 < by_name[name].brier_of_rate
    p = found.probability["heads"]
    assert p[found.right].min() > 0.5 > p[~found.right].max()
    bins = found.calibration("heads", bins=3)
    assert bins["right"].to_list() == [0, 1, 1]
    assert bins["answers"].sum() == 24


def test_readings_that_are_all_the_same_score_half(mixed: RetrievalTrials) -> None:
    """Across folds they would score less: a fold with more right answers leaves its fit fewer."""
    same = {f.name: np.zeros_like(getattr(mixed.free_steps, f.name)) for f in fields(StepReadings)}
    for one in measure_faithfulness(changed(mixed, **same), heads=HEADS, draws=20).detectors:
        assert (one.auroc, one.low, one.high) == (0.5, 0.5, 0.5)


def test_noise_does_not_tell_right_from_wrong(mixed: RetrievalTrials) -> None:
    """A score that was read where it was fitted would reach 0.8 with five numbers of noise."""
    steps, areas = mixed.free_steps, []
    for seed in range(8):
        rng = np.random.default_rng(seed)
        noise = {
            f.name: rng.random(getattr(steps, f.name).shape).astype(np.float32)
            for f in fields(StepReadings)
            if f.name not in ("copied", "top_place")
        }
        noise["top_place"] = rng.integers(0, len(PLACES), steps.top_place.shape).astype(np.int8)
        found = measure_faithfulness(changed(mixed, **noise), heads=HEADS, draws=2, seed=seed)
        areas.append([one.auroc for one in found.detectors])
    assert np.mean(areas) < 0.62


def test_too_few_failures_are_refused(mixed: RetrievalTrials) -> None:
    few = replace(mixed, accepted=np.arange(24) != 3)
    with pytest.raises(MnemoscopeError, match="23 answers are right and 1 wrong"):
        measure_faithfulness(few)
    one = replace(mixed, known=np.arange(24) != 3)
    with pytest.raises(MnemoscopeError, match="two are needed"):
        failure_atlas(one)
