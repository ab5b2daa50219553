"""Planted models, wrapped, with their conflict items."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from mnemoscope.data.facts.conflicts import ConflictItem, build_conflicts
from mnemoscope.interventions.end_chain import EndChain
from mnemoscope.interventions.path_patching import build_chain
from mnemoscope.models import HookedModel, wrap
from mnemoscope.organisms import PlantedModel, null_model, planted_model, planted_relation


class Setting:
    """A planted model with everything that a probe needs to run on it."""

    def __init__(self, planted: PlantedModel) -> None:
        self.planted = planted
        self.model: HookedModel = wrap(planted.module, planted.tokenizer, name="planted")
        self.chain: EndChain = build_chain(self.model)
        self.relation = planted_relation(planted)
        self.items: tuple[ConflictItem, ...] = build_conflicts(
            self.relation, self.relation.facts, template_id=0, seed=0
        ).items


@pytest.fixture(scope="session")
def planted() -> Setting:
    return Setting(planted_model(dtype=torch.float64))


@pytest.fixture(scope="session")
def superposed() -> Setting:
    return Setting(planted_model(dtype=torch.float64, separate=False))


@pytest.fixture(scope="session")
def null() -> Setting:
    return Setting(null_model(dtype=torch.float64))


@pytest.fixture(params=["planted", "superposed"])
def with_circuit(request: Any) -> Setting:
    return request.getfixturevalue(request.param)
