"""The probes of the three questions, on engram in memory and half on disk: the same numbers."""

from __future__ import annotations

from dataclasses import fields
from functools import cache
from typing import Any

import numpy as np
import pytest
from mnemoscope.data.facts.designs import build_design
from mnemoscope.data.facts.items import load_relation
from mnemoscope.data.facts.passkeys import NeedleSamples
from mnemoscope.interventions.path_patching import build_chain
from mnemoscope.models import HookedModel
from mnemoscope.models.packaged import PACKAGED
from mnemoscope.models.placement import devices
from mnemoscope.probes.conflict_heads import Estimand, measure_effects
from mnemoscope.probes.elicitation import conflict_items
from mnemoscope.probes.relation_neurons import find_relation_neurons
from mnemoscope.probes.retrieval_designs import design_for
from mnemoscope.probes.retrieval_trials import measure_trials
from mnemoscope.probes.streaming_gates import GateSettings, train_gates
from placed import both


@cache
def pair() -> tuple[HookedModel, HookedModel]:
    resident, spread = both(PACKAGED["engram"]())
    assert devices(spread.module) == ("cpu", "disk")
    return resident, spread


def same(want: Any, got: Any) -> None:
    """All arrays of two results of one kind."""
    arrays = [f.name for f in fields(want) if isinstance(getattr(want, f.name), np.ndarray)]
    assert arrays
    for name in arrays:
        np.testing.assert_array_equal(getattr(got, name), getattr(want, name), err_msg=name)


@pytest.mark.parametrize("estimand", ["direct", "total_end"])
def test_conflict_heads(estimand: Estimand) -> None:
    relation = load_relation("capital")
    told = []
    for model in pair():
        known = conflict_items(model, relation, relation.facts[:12])
        assert known.items
        told.append(measure_effects(build_chain(model), known.items[:3], estimand=estimand))
    same(*told)


def test_relation_neurons() -> None:
    relations = [load_relation(name) for name in ("capital", "currency")]
    design = build_design(relations, subjects=4, pseudo=0, resamples=2, seed=0)
    same(*(find_relation_neurons(model, design) for model in pair()))


def test_retrieval_scores() -> None:
    design = design_for(pair()[0], lengths=(96,), needles=1, seed=1)
    want, got = (measure_trials(model, design) for model in pair())
    same(want, got)
    for part in ("forced", "free", "question"):
        same(getattr(want, part), getattr(got, part))


def test_streaming_gates() -> None:
    source = NeedleSamples(design_for(pair()[0], lengths=(96,), needles=1, seed=1))
    settings = GateSettings(sink=4, recent=16, steps=3, learning_rate=0.2)
    want, got = (train_gates(model, [source], settings) for model in pair())
    same(want, got)
    assert want.loss[0, -1] > 0
    assert want.alpha.min() < 1
