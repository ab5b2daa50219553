"""In the planted binder the index lies on a line, and one step along it moves a binding by one."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from mnemoscope.models import HookedModel, wrap
from mnemoscope.models.errors import MnemoscopeError, UnitOutOfRangeError
from mnemoscope.models.types import Site
from mnemoscope.organisms.planted_binding import planted_binding
from mnemoscope.probes.binding_prompts import BindingPrompts, binding_prompts
from mnemoscope.probes.ordering_subspace import (
    OrderingSubspaces,
    ordering_subspaces,
    shift_ordering,
)

SLOTS = 4


class Setting:
    def __init__(self, *, binds: bool) -> None:
        planted = planted_binding(SLOTS, binds=binds)
        self.model: HookedModel = wrap(planted.module, planted.tokenizer, name="planted")
        self.prompts: BindingPrompts = binding_prompts(self.model, planted.task, 24, slots=SLOTS)
        found = binding_prompts(self.model, planted.task, 60, slots=SLOTS, seed=1)
        self.found_on = found
        self.ordering: OrderingSubspaces = ordering_subspaces(self.model, found)


@pytest.fixture(scope="module")
def binder() -> Setting:
    return Setting(binds=True)


@pytest.fixture(scope="module")
def null() -> Setting:
    return Setting(binds=False)


def test_a_component_rises_with_the_slot_and_shuffled_slots_find_none(binder: Setting) -> None:
    table = binder.ordering.table()
    assert table["component"].to_list() == [1, 1]
    assert table["spearman"].min() > 0.9
    assert table["spearman_pls"].min() > 0.9
    assert table["spearman_shuffled"].max() < 0.5


def test_variance_and_directions_are_those_of_plain_principal_components(binder: Setting) -> None:
    half = binder.found_on.part(range(30))
    columns = torch.tensor([[span[-1] for span in half.columns.entities]]).expand(30, -1)
    batch = binder.model.batch(half.ids.tolist())
    kept = binder.model.capture(batch, [Site.RESID_PRE], at=columns).stack(Site.RESID_PRE)
    states = kept[1].double().flatten(0, 1)
    _, singular, rows = torch.linalg.svd(states - states.mean(0), full_matrices=False)
    np.testing.assert_allclose(
        binder.ordering.explained[1, :3], (singular**2 / (singular**2).sum())[:3], atol=1e-5
    )
    same = abs(float(rows[0] @ torch.tensor(binder.ordering.directions[1])))
    assert same == pytest.approx(1, abs=1e-4)
    scores = (states @ torch.tensor(binder.ordering.directions[1])).unflatten(0, (-1, SLOTS))
    means = scores.mean(0)
    assert binder.ordering.steps[1] == pytest.approx(float(means[-1] - means[0]) / 3, abs=1e-4)


@pytest.mark.parametrize("direction", ["component", "pls"])
@pytest.mark.parametrize("slot", [0, 2])
def test_a_step_moves_the_answer_by_one_slot(binder: Setting, slot: int, direction: str) -> None:
    found = shift_ordering(
        binder.model,
        binder.prompts,
        binder.ordering,
        0,
        slot=slot,
        direction="pls" if direction == "pls" else "component",
    )
    for row in found.table().to_dicts():
        if row["direction"] == "ordering":
            assert row["slot"] == pytest.approx(row["expected"], abs=0.1)
        if row["direction"] != "ordering" and abs(row["beta"]) == 1:
            assert row["slot"] == pytest.approx(slot, abs=0.35)


def test_a_null_model_has_the_direction_and_does_not_use_it(null: Setting) -> None:
    assert null.ordering.table()["spearman"].min() > 0.9  # positions alone give it away
    found = shift_ordering(null.model, null.prompts, null.ordering, 0)
    assert np.abs(found.probability[0] - found.probability[0, 0]).max() < 0.05


def test_no_step_leaves_the_model_as_it_is(binder: Setting) -> None:
    found = shift_ordering(binder.model, binder.prompts, binder.ordering, 1, slot=1, betas=(0.0,))
    ids = torch.cat([binder.prompts.ids, binder.prompts.questions[:, 1]], 1)
    logits = binder.model.logits(binder.model.batch(ids.tolist()), at="end")[:, 0]
    plain = logits.double().gather(1, binder.prompts.answers).softmax(-1).numpy()
    np.testing.assert_allclose(found.probability[:, 0], np.stack([plain] * 3), atol=1e-6)


def test_bad_input_is_refused(binder: Setting) -> None:
    with pytest.raises(MnemoscopeError, match="16 and three"):
        ordering_subspaces(binder.model, binder.prompts.part(range(8)))
    with pytest.raises(UnitOutOfRangeError):
        shift_ordering(binder.model, binder.prompts, binder.ordering, 2)
    with pytest.raises(MnemoscopeError, match="no slot 4"):
        shift_ordering(binder.model, binder.prompts, binder.ordering, 0, slot=4)
