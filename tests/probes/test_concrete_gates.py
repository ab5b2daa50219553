"""Switches with a budget: planted heads that need the context stay open, and so many stay open."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from mnemoscope.data.facts.passkeys import NeedleSamples
from mnemoscope.models import HookedModel, MnemoscopeError, wrap
from mnemoscope.organisms import (
    PlantedRetrieval,
    planted_retrieval_design,
    planted_retrieval_model,
)
from mnemoscope.probes import concrete_gates
from mnemoscope.probes.concrete_gates import ConcreteSettings, train_concrete_gates
from mnemoscope.probes.streaming_gates import GateSettings
from mnemoscope.results.run_folder import open_run

WINDOW = GateSettings(sink=1, recent=8, steps=40, learning_rate=0.3)


@pytest.fixture(scope="module")
def planted() -> PlantedRetrieval:
    return planted_retrieval_model(c_copy=100.0)


@pytest.fixture(scope="module")
def model(planted: PlantedRetrieval) -> HookedModel:
    return wrap(planted.module, planted.tokenizer, name="planted")


@pytest.fixture(scope="module")
def source(planted: PlantedRetrieval) -> NeedleSamples:
    return NeedleSamples(planted_retrieval_design(planted, lengths=(64,), needles_per_haystack=2))


def test_the_needed_heads_fill_the_budget(
    planted: PlantedRetrieval, model: HookedModel, source: NeedleSamples
) -> None:
    """Two of twenty heads need the context, and the budget is two of twenty."""
    found = train_concrete_gates(model, [source], ConcreteSettings(WINDOW, budget=0.1))
    needed = {(h.layer, h.head) for h in (*planted.copy_heads, *planted.locate_heads)}
    assert {tuple(map(int, at)) for at in np.argwhere(found.gate > 0.5)} == needed
    assert found.open_share[0, -1] == pytest.approx(0.1, abs=0.1)
    assert found.open_share[0, 0] > 0.95  # all open at first
    assert found.stability is None


def test_the_target_falls_to_the_budget_and_stays() -> None:
    settings = ConcreteSettings(replace(WINDOW, steps=100), budget=0.3)
    targets = [settings.target(step) for step in range(100)]
    assert targets[0] == pytest.approx(1 - 0.7 / 50)
    assert targets[49:] == pytest.approx([0.3] * 51)
    assert np.all(np.diff(targets) <= 1e-12)


def test_an_interrupted_training_goes_on_as_if_it_had_not_been(
    model: HookedModel, source: NeedleSamples, tmp_path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(concrete_gates, "STEPS_A_UNIT", 2)
    monkeypatch.setattr(concrete_gates, "_REFERENCE", 1)
    brief = ConcreteSettings(replace(WINDOW, steps=5))
    whole = train_concrete_gates(model, [source], brief)

    def stop(done: int, _: int) -> None:
        if done == 3:
            raise InterruptedError

    with pytest.raises(InterruptedError), open_run(tmp_path, "switches", {}) as run:
        train_concrete_gates(model, [source], brief, run=run, progress=stop)
    with open_run(tmp_path, "switches", {}) as run:
        again = train_concrete_gates(model, [source], brief, run=run)
        with pytest.raises(MnemoscopeError, match="other settings"):
            train_concrete_gates(model, [source], replace(brief, budget=0.2), run=run)
    assert np.array_equal(again.gate, whole.gate)
    assert np.array_equal(again.loss, whole.loss)
    assert np.array_equal(again.open_share, whole.open_share)


def test_budgets_that_leave_no_choice_are_refused(
    model: HookedModel, source: NeedleSamples
) -> None:
    for budget in (0.0, 1.0):
        with pytest.raises(MnemoscopeError, match="a share between 0 and 1"):
            train_concrete_gates(model, [source], ConcreteSettings(budget=budget))
