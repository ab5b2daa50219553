"""Forecasts that ask the machine: what a pace is made of and what follows from it."""

from __future__ import annotations

from dataclasses import replace

import pytest
from mnemoscope.app import forecast
from mnemoscope.app.forecast import Pace, maps_seconds, measured_pace, rough_pace, trial_seconds
from mnemoscope.models.hooked import HookedModel
from mnemoscope.models.load import load_model


@pytest.fixture(scope="module")
def engram() -> HookedModel:
    return load_model("engram")


def test_a_pace_is_a_pass_over_one_token_and_what_each_further_token_adds(
    engram: HookedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[int] = []

    def timed(model: HookedModel, tokens: int) -> float:
        asked.append(tokens)
        return 9.0 if len(asked) == 1 else 0.25 + 0.5 * (tokens - 1)

    monkeypatch.setattr(forecast, "_pass_seconds", timed)
    assert measured_pace(engram) == Pace(step=0.25, token=0.5), "the first, cold pass is left out"
    assert asked == [1, 1, 64]
    asked.clear()
    short = replace(engram, anatomy=replace(engram.anatomy, max_context=32))
    assert measured_pace(short) == Pace(0.25, 0.5)
    assert asked[-1] == 32


def test_a_model_that_is_slow_to_time_is_not_timed(
    engram: HookedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(forecast, "_CPU", 1e6)
    monkeypatch.setattr(forecast, "_pass_seconds", lambda model, tokens: pytest.fail("timed"))
    assert measured_pace(engram) == rough_pace(engram)


def test_it_is_timed_for_real(engram: HookedModel) -> None:
    pace = measured_pace(engram)
    assert 0 < pace.step < 5
    assert 0 <= pace.token < 1


def test_a_trial_is_its_tokens_their_looks_and_its_steps(engram: HookedModel) -> None:
    anatomy = engram.anatomy
    weights = sum(p.numel() for p in engram.module.parameters())
    pace = Pace(step=0.5, token=0.25)
    pairs = 1000 * 1000
    width = anatomy.n_layers * anatomy.n_heads * anatomy.d_v
    operations = pairs * width * 2 * 2  # multiply and add, for the scores and for the values
    looking = operations / (2 * weights / pace.token)
    assert trial_seconds(engram, pace, 1000, 32) == pytest.approx(1000 * 0.25 + looking + 32 * 0.5)
    assert maps_seconds(engram, pace, 1000) == pytest.approx(1.25 * looking)
    slower = Pace(pace.step, 3 * pace.token)
    assert maps_seconds(engram, slower, 1000) == pytest.approx(3.75 * looking)
