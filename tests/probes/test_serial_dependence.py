"""The planted copy head is led by the locate head, and by nothing else."""

from __future__ import annotations

import pytest
from mnemoscope.data.facts.needles import NeedleDesign
from mnemoscope.models import HookedModel, MnemoscopeError, wrap
from mnemoscope.organisms import (
    PlantedRetrieval,
    planted_retrieval_design,
    planted_retrieval_model,
)
from mnemoscope.probes.serial_dependence import SerialDependence, serial_dependence

TRIALS = tuple(range(8))


@pytest.fixture(scope="module")
def planted() -> PlantedRetrieval:
    return planted_retrieval_model()


@pytest.fixture(scope="module")
def model(planted: PlantedRetrieval) -> HookedModel:
    return wrap(planted.module, planted.tokenizer, name="planted")


@pytest.fixture(scope="module")
def design(planted: PlantedRetrieval) -> NeedleDesign:
    return planted_retrieval_design(planted, lengths=(96,), rounds=1)


@pytest.fixture(scope="module")
def led(planted: PlantedRetrieval, model: HookedModel, design: NeedleDesign) -> SerialDependence:
    emit = (*planted.copy_heads, *planted.inert_readers)
    return serial_dependence(model, design, planted.locate_heads, emit, TRIALS, draws=9)


def test_the_emitting_heads_lose_the_needle_beyond_random_heads(led: SerialDependence) -> None:
    assert float(led.before.mean) > 0.9
    assert led.share > 0.9
    assert float(led.fall.low) > 0.8
    assert float(led.beyond.low) > 0.8
    assert led.against.n_controls == 3  # nine draws of one of three heads
    assert led.against.p_loss == 1 / 4  # more than under each of them
    assert abs(led.against.control_mean) < 0.01
    assert float(led.loss.low) > 5
    assert led.loss_against.p_loss == 1 / 4


def test_the_fall_is_that_of_the_led_heads_only(
    planted: PlantedRetrieval, led: SerialDependence
) -> None:
    fall = led.of_heads.mean
    for head in (*planted.copy_heads, *planted.inert_readers):
        assert fall[head.layer, head.head] > 0.8
    for head in (*planted.sink_heads, *planted.duplicate_heads, *planted.offset_heads):
        assert abs(fall[head.layer, head.head]) < 0.05


def test_noise_heads_lead_nobody(
    planted: PlantedRetrieval, model: HookedModel, design: NeedleDesign
) -> None:
    noise = [head for head in planted.noise_heads if head.layer < 3][:1]
    found = serial_dependence(model, design, noise, planted.copy_heads, TRIALS[:3], draws=3)
    assert abs(found.share) < 0.01
    assert found.against.p_loss >= 0.25


def test_heads_that_stand_before_cannot_be_led(
    planted: PlantedRetrieval, model: HookedModel, design: NeedleDesign
) -> None:
    with pytest.raises(MnemoscopeError, match="behind the 1 locate heads"):
        serial_dependence(model, design, planted.copy_heads, planted.locate_heads, TRIALS)
