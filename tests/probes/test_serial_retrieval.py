"""Behind a question without its locate head, the planted copy head no longer finds the needle."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from mnemoscope.data.facts.needles import NeedleDesign
from mnemoscope.models import HookedModel, MnemoscopeError, wrap
from mnemoscope.organisms import (
    PlantedRetrieval,
    planted_retrieval_design,
    planted_retrieval_model,
)
from mnemoscope.probes.answer_curves import Ablation, gold_log_probs
from mnemoscope.probes.serial_retrieval import SerialReadings, measure_serial
from mnemoscope.results.run_folder import open_run

TRIALS = (0, 5, 9, 14)


@pytest.fixture(scope="module")
def planted() -> PlantedRetrieval:
    return planted_retrieval_model()


@pytest.fixture(scope="module")
def model(planted: PlantedRetrieval) -> HookedModel:
    return wrap(planted.module, planted.tokenizer, name="planted")


@pytest.fixture(scope="module")
def design(planted: PlantedRetrieval) -> NeedleDesign:
    return planted_retrieval_design(planted)


@pytest.fixture(scope="module")
def read(planted: PlantedRetrieval, model: HookedModel, design: NeedleDesign) -> SerialReadings:
    sets = ((), planted.locate_heads, planted.copy_heads, planted.noise_heads[:2])
    return measure_serial(model, design, sets, Ablation("knock_out", "question"), trials=TRIALS)


def test_emitting_heads_lose_the_needle_with_the_locate_head_and_with_no_other(
    planted: PlantedRetrieval, read: SerialReadings
) -> None:
    for head in (*planted.copy_heads, *planted.inert_readers):
        clean, located, copied, noise = read.mass[:, :, head.layer, head.head].mean(1)
        assert clean > 0.9
        assert located < 0.1
        # the copy head reads the needle in the answer, where it is not ablated
        assert abs(copied - clean) < 1e-3
        assert abs(noise - clean) < 1e-3


def test_heads_of_earlier_layers_never_change(
    planted: PlantedRetrieval, read: SerialReadings
) -> None:
    layer = planted.locate_heads[0].layer
    assert np.allclose(read.mass[1, :, : layer + 1], read.mass[0, :, : layer + 1], atol=1e-6)


@pytest.mark.parametrize("mode", ["zero", "knock_out"])
def test_log_probabilities_are_those_of_the_curves(
    planted: PlantedRetrieval, model: HookedModel, design: NeedleDesign, mode: str
) -> None:
    sets, ablation = ((), planted.locate_heads), Ablation(mode, "question")  # type: ignore[arg-type]
    found = measure_serial(model, design, sets, ablation, trials=TRIALS)
    expected = gold_log_probs(model, design, sets, ablation, TRIALS)
    assert np.allclose(found.log_prob, expected, atol=1e-4)
    assert found.needles == tuple(design.trials[i].needle_id for i in TRIALS)


def test_haystacks_are_kept_and_other_sets_are_not_taken_for_them(
    planted: PlantedRetrieval,
    model: HookedModel,
    design: NeedleDesign,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    run, ablation = open_run(tmp_path, "serial", {}), Ablation("knock_out", "question")
    options = {"trials": TRIALS[:2], "run": run}
    first = measure_serial(model, design, [(), planted.locate_heads], ablation, **options)
    other = measure_serial(model, design, [(), planted.copy_heads], ablation, **options)
    assert not np.allclose(first.mass, other.mass)
    monkeypatch.setattr(HookedModel, "prefill", None)  # nothing may run
    again = measure_serial(model, design, [(), planted.locate_heads], ablation, **options)
    assert np.array_equal(again.mass, first.mass)


def test_only_the_question_can_be_ablated(model: HookedModel, design: NeedleDesign) -> None:
    with pytest.raises(MnemoscopeError, match="'question'"):
        measure_serial(model, design, [()], Ablation("zero", "decode"))
    with pytest.raises(MnemoscopeError, match="a trial at least"):
        measure_serial(model, design, [()], Ablation("zero", "question"), trials=())
