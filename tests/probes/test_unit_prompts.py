"""The prompts at a unit's top: right by hand, whatever the batches; a detector's are its own."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from mnemoscope.data.facts.designs import build_design
from mnemoscope.models import wrap
from mnemoscope.models.errors import MnemoscopeError, UnitOutOfRangeError
from mnemoscope.models.types import NeuronId, Site
from mnemoscope.organisms.planted_units import PlantedUnits, planted_units_model
from mnemoscope.probes import unit_prompts
from mnemoscope.probes.pooled_activations import pooled_activations
from mnemoscope.probes.unit_prompts import strongest, top_prompts, unit_activations


@pytest.fixture(scope="module")
def planted() -> PlantedUnits:
    return planted_units_model(dtype=torch.float32)


@pytest.fixture(scope="module")
def model(planted: PlantedUnits):
    return wrap(planted.module, planted.tokenizer)


@pytest.fixture(scope="module")
def prompts(planted: PlantedUnits):
    return build_design(planted.relations, subjects=4, pseudo=0, resamples=0, seed=0).prompts


def test_a_detector_is_strongest_on_its_own_relation(planted, model, prompts) -> None:
    ours = sum(prompt.relation == "teacher" for prompt in prompts)
    top = top_prompts(model, prompts, planted.detectors["teacher"], "max", ours)
    assert set(top["relation"]) == {"teacher"}
    assert top["rank"].to_list() == list(range(1, ours + 1))
    assert top["activation"].is_sorted(descending=True)
    low = top_prompts(model, prompts, planted.detectors["teacher"], "max", 10, sign=-1)
    assert "teacher" not in set(low["relation"])
    assert low["activation"].is_sorted()


def test_activations_are_the_pooled_ones_whatever_runs_together(
    model, prompts, monkeypatch: pytest.MonkeyPatch
) -> None:
    units = [NeuronId(1, 7), NeuronId(0, 3), NeuronId(1, 9, Site.UP), NeuronId(1, 7, Site.MLP_OUT)]
    monkeypatch.setattr(unit_prompts, "_AT_ONCE", 37)
    values = unit_activations(model, prompts, units, "mean_all")
    for row, unit in zip(values, units, strict=True):
        whole = pooled_activations(
            model, prompts, site=unit.site, pooling="mean_all", layers=[unit.layer]
        )
        np.testing.assert_allclose(row, whole[0, unit.index].numpy(), rtol=1e-4, atol=1e-5)


def test_ties_keep_the_order_of_the_prompts(prompts) -> None:
    values = np.zeros(len(prompts), np.float32)
    values[5] = -1
    assert strongest(prompts, values, 1, sign=-1)["prompt"][0] == prompts[5].text
    assert strongest(prompts, values, 3)["prompt"].to_list() == [p.text for p in prompts[:3]]
    assert strongest(prompts, values, 10**6).height == len(prompts)


def test_what_cannot_be_meant_is_refused(model, prompts) -> None:
    with pytest.raises(MnemoscopeError, match="sign"):
        strongest(prompts, np.zeros(len(prompts)), 3, sign=0)
    with pytest.raises(MnemoscopeError, match="fit"):
        strongest(prompts, np.zeros(2), 3)
    with pytest.raises(UnitOutOfRangeError):
        top_prompts(model, prompts, NeuronId(0, 10**6))
