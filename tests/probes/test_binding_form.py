"""A form from mean states matches names and attributes; that alone is no sign of use."""

from __future__ import annotations

from itertools import permutations

import numpy as np
import pytest
from mnemoscope.models import wrap
from mnemoscope.models.errors import MnemoscopeError
from mnemoscope.organisms.planted_binding import planted_binding
from mnemoscope.probes.binding_form import (
    BindingForms,
    FormMatches,
    binding_forms,
    match_by_form,
    matched_slots,
)
from mnemoscope.probes.binding_prompts import binding_prompts
from mnemoscope.probes.binding_states import kept_states

SLOTS = 3


def matched(*, binds: bool) -> tuple[BindingForms, FormMatches]:
    planted = planted_binding(SLOTS, binds=binds)
    model = wrap(planted.module, planted.tokenizer, name="planted")
    forms = binding_forms(model, binding_prompts(model, planted.task, 60, slots=SLOTS, seed=1))
    prompts = binding_prompts(model, planted.task, 30, slots=SLOTS)
    return forms, match_by_form(model, prompts, forms, draws=8)


def test_the_form_of_a_binder_matches_every_name() -> None:
    _, found = matched(binds=True)
    table = found.table()
    assert table["exact"].to_list() == [1, 1]
    assert table["random"].max() < 0.4  # a sixth is chance
    assert table["chance"].to_list() == pytest.approx([1 / 6] * 2)
    assert table["behaviour"].to_list() == [1, 1]


def test_a_form_reads_the_order_of_telling_also_where_nothing_uses_it() -> None:
    _, found = matched(binds=False)
    assert found.table()["exact"].to_list() == [1, 1]
    assert found.table()["behaviour"].max() < 0.6


def test_the_form_is_the_sum_of_outer_products() -> None:
    planted = planted_binding(SLOTS)
    model = wrap(planted.module, planted.tokenizer, name="planted")
    prompts = binding_prompts(model, planted.task, 20, slots=SLOTS)
    forms = binding_forms(model, prompts)
    columns = [c for (c,) in (*prompts.columns.entities, *prompts.columns.attributes)]
    states = kept_states(model, prompts, columns).double().numpy()[1]
    means = states.mean(0)
    expected = sum(
        np.outer(means[k] - means[:SLOTS].mean(0), means[SLOTS + k] - means[SLOTS:].mean(0))
        for k in range(SLOTS)
    )
    found = forms.left[1] * forms.singular[1] @ forms.right[1].T
    np.testing.assert_allclose(found, expected, atol=1e-8)
    assert forms.singular.shape[1] == SLOTS - 1


def test_affinities_are_those_of_states_of_length_one() -> None:
    rng = np.random.default_rng(0)
    forms = BindingForms(*(rng.normal(size=s) for s in ((1, 6, 2), (1, 2), (1, 6, 2))), n=20)
    entities, attributes = rng.normal(size=(2, 1, 5, SLOTS, 6))
    affinity = forms.affinity(entities, attributes)
    h = forms.left[0] * forms.singular[0] @ forms.right[0].T
    s, t = entities[0, 2, 1], attributes[0, 2, 0]
    by_hand = s / np.linalg.norm(s) @ h @ (t / np.linalg.norm(t))
    assert affinity[0, 2, 1, 0] == pytest.approx(by_hand)


def test_the_matching_is_the_best_of_all_permutations() -> None:
    rng = np.random.default_rng(0)
    affinity = rng.normal(size=(2, 7, SLOTS, SLOTS))
    found = matched_slots(affinity)
    for layer, context in np.ndindex(2, 7):
        one = affinity[layer, context]
        best = max(permutations(range(SLOTS)), key=lambda p: one[range(SLOTS), list(p)].sum())
        assert found[layer, context].tolist() == [j == i for i, j in enumerate(best)]


def test_too_few_contexts_are_refused() -> None:
    planted = planted_binding(SLOTS)
    model = wrap(planted.module, planted.tokenizer, name="planted")
    with pytest.raises(MnemoscopeError, match="too few"):
        binding_forms(model, binding_prompts(model, planted.task, 8, slots=SLOTS))
