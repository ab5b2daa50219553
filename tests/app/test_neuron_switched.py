"""Changed units change the answer as the model was planted; random units of their size do not."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from mnemoscope.app.neuron_switched import (
    NEW_TOKENS,
    Neutral,
    neutral,
    unit_control,
    unit_edits,
    unit_reading,
)
from mnemoscope.models import HookedModel, wrap
from mnemoscope.models.types import NeuronId, Site
from mnemoscope.organisms.planted_units import PlantedUnits, planted_units_model
from mnemoscope.results.errors import StatisticsError

TEXTS = ("a sentence of the words that all have in common .", "tell me what this is about .")


@pytest.fixture(scope="module")
def planted() -> PlantedUnits:
    return planted_units_model(dtype=torch.float32)


@pytest.fixture(scope="module")
def units_model(planted: PlantedUnits) -> HookedModel:
    return wrap(planted.module, planted.tokenizer)


@pytest.fixture(scope="module")
def known(units_model: HookedModel) -> Neutral:
    return neutral(units_model, Site.NEURON, TEXTS)


def asked(planted: PlantedUnits, name: str) -> tuple[str, str]:
    """A prompt of the relation and its answer."""
    relation = next(one for one in planted.relations if one.name == name)
    fact = relation.facts[0]
    return relation.templates[0].replace("{s}", fact.subject), fact.object


@pytest.mark.parametrize("change", ["zero", "mean"])
def test_without_its_carrier_a_relation_is_lost_and_others_are_not(
    planted: PlantedUnits, units_model: HookedModel, known: Neutral, change
) -> None:
    edits = unit_edits([planted.carriers["capital"]], change, 0.0, known.means)
    for name in ("capital", "currency"):
        prompt, answer = asked(planted, name)
        assert unit_reading(units_model, prompt).said.split()[0] == answer
        kept = unit_reading(units_model, prompt, edits).said.split()[0] == answer
        assert kept == (name != "capital")


def test_a_factor_of_one_changes_nothing(
    planted: PlantedUnits, units_model: HookedModel, known: Neutral
) -> None:
    prompt, _ = asked(planted, "capital")
    before = unit_reading(units_model, prompt + " ")
    same = unit_edits([planted.carriers["capital"]], "scale", 1.0, known.means)
    after = unit_reading(units_model, prompt, same)
    assert after.said == before.said
    np.testing.assert_allclose(after.log_p, before.log_p, atol=1e-5)
    assert np.exp(before.log_p).sum() == pytest.approx(1, abs=1e-4)
    assert before.table["id"][0] == before.first == int(before.log_p.argmax())
    assert len(units_model.tokens(before.said).ids[0]) <= NEW_TOKENS


def test_random_units_do_less_than_the_carrier(
    planted: PlantedUnits, units_model: HookedModel, known: Neutral
) -> None:
    prompt, _ = asked(planted, "capital")
    carrier = planted.carriers["capital"]
    before = unit_reading(units_model, prompt)
    after = unit_reading(units_model, prompt, unit_edits([carrier], "zero", 0.0, known.means))
    drawn = unit_control(
        units_model,
        prompt,
        [carrier],
        "zero",
        0.0,
        known,
        before.first,
        spared=tuple(planted.carriers.values()),
    )
    assert len(drawn.log_p) == 20
    assert not drawn.holds(float(after.log_p[before.first]))
    assert drawn.holds(drawn.log_p[3])
    assert drawn.reading.log_p[before.first] == pytest.approx(drawn.log_p[0], abs=1e-5)
    assert drawn.chance_outside == pytest.approx(2 / (drawn.different + 1))


def test_spared_units_are_never_drawn(
    planted: PlantedUnits, units_model: HookedModel, known: Neutral
) -> None:
    prompt, _ = asked(planted, "capital")
    carrier = planted.carriers["capital"]
    layer = [NeuronId(carrier.layer, i) for i in range(known.writes.shape[1])]
    spared = [unit for unit in layer if unit != carrier][3:]
    drawn = unit_control(
        units_model, prompt, [carrier], "zero", 0.0, known, 0, spared=spared, draws=30
    )
    assert 1 <= drawn.different <= 3


def test_nothing_left_to_draw_from_is_refused(
    planted: PlantedUnits, units_model: HookedModel, known: Neutral
) -> None:
    every = [NeuronId(layer, i) for layer in range(2) for i in range(known.writes.shape[1])]
    with pytest.raises(StatisticsError):
        unit_control(units_model, "the capital", every, "zero", 0.0, known, 0)
