"""The planted binder has each route at a known layer; a null model has none; a fit finds planted
weights."""

from __future__ import annotations

import numpy as np
import pytest
from mnemoscope.models import HookedModel, wrap
from mnemoscope.models.errors import MnemoscopeError
from mnemoscope.organisms.planted_binding import planted_binding
from mnemoscope.probes.binding_mixture import (
    ROUTES,
    MixturePrompts,
    MixtureSwaps,
    mixture_prompts,
    mixture_swaps,
)
from mnemoscope.probes.binding_prompts import binding_prompts
from mnemoscope.probes.mixture_fit import fit_mixture

SLOTS, EXAMPLES = 5, 60


def setting(*, binds: bool) -> tuple[HookedModel, MixturePrompts]:
    planted = planted_binding(SLOTS, binds=binds)
    model = wrap(planted.module, planted.tokenizer, name="planted")
    prompts = binding_prompts(model, planted.task, EXAMPLES, slots=SLOTS)
    return model, mixture_prompts(model, prompts)


@pytest.fixture(scope="module")
def swaps() -> MixtureSwaps:
    return mixture_swaps(*setting(binds=True))


def shares(found: MixtureSwaps, layer: int) -> dict[str, float]:
    rows = found.table().to_dicts()
    return {row["route"]: row["share"] for row in rows if row["layer"] == layer}


def test_a_counterfactual_points_each_route_to_its_own_slot() -> None:
    _, prompts = setting(binds=True)
    for base, other, (p, k, i, asked) in zip(
        prompts.base.contexts, prompts.counterfactual.contexts, prompts.slots.tolist(), strict=True
    ):
        assert len({p, k, i, asked}) == 4
        assert other.entities[p] == base.entities[k]
        assert other.attributes[p] == base.attributes[i]
        assert sorted(other.entities) == sorted(base.entities)
        assert {*other.attributes} == {*base.attributes}


def test_the_last_word_carries_the_name_then_the_index_then_the_answer(swaps: MixtureSwaps) -> None:
    assert swaps.layers == (0, 1, 2)
    assert swaps.behaviour.mean() == 1
    for layer, route in enumerate(("lexical", "positional", "reflexive")):
        assert shares(swaps, layer)[route] == 1
    assert swaps.mass.min() > 0.9


def test_a_null_model_prefers_no_route() -> None:
    found = mixture_swaps(*setting(binds=False))
    for layer in range(3):
        assert all(shares(found, layer)[route] < 0.45 for route in ROUTES)
    assert found.behaviour.mean() < 0.45


def test_batches_do_not_matter() -> None:
    model, prompts = setting(binds=True)
    few = mixture_swaps(model, prompts, layers=[1], rows=7)
    many = mixture_swaps(model, prompts, layers=[1], rows=64)
    np.testing.assert_allclose(few.probability, many.probability, atol=1e-5)


def test_three_slots_cannot_tell_the_routes_apart() -> None:
    planted = planted_binding(3)
    model = wrap(planted.module, planted.tokenizer, name="planted")
    with pytest.raises(MnemoscopeError, match="four slots"):
        mixture_prompts(model, binding_prompts(model, planted.task, 4, slots=3))


def test_layers_that_are_not_there_are_refused() -> None:
    with pytest.raises(MnemoscopeError, match="not all among 0 to 2"):
        mixture_swaps(*setting(binds=True), layers=[3])


# -- the fit --------------------------------------------------------------------------------------


def drawn(n: int, seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return np.array([rng.permutation(SLOTS)[:4] for _ in range(n)])


def planted_mixture(slots: np.ndarray) -> np.ndarray:
    """w = 2 with sigma 0.8, g = 3, r = 1.5, as the formula says."""
    a = np.arange(SLOTS)
    p, k, i, _ = (slots[:, j, None] for j in range(4))
    logits = 2 * np.exp(-((a - p) ** 2) / (2 * 0.8**2)) + 3 * (a == k) + 1.5 * (a == i)
    powers = np.exp(logits)
    return np.asarray(powers / powers.sum(1, keepdims=True))


def test_a_fit_finds_the_weights_that_were_planted() -> None:
    slots = drawn(200)
    found = fit_mixture(planted_mixture(slots), slots, steps=600)
    assert found.score.mean > 0.999
    assert found.score.mean > found.shuffled.mean + 0.05
    assert found.shuffled.mean < 0.95
    np.testing.assert_allclose(found.lexical, 3, atol=0.3)
    np.testing.assert_allclose(found.reflexive, 1.5, atol=0.3)
    assert abs(found.weight - 2) < 0.4
    np.testing.assert_allclose(found.sigma, 0.8, atol=0.3)
    for term, lost in found.without.items():
        assert lost.interval.low > 0.005, term
        assert lost.p < 0.01, term


def test_only_the_term_that_a_layer_uses_is_missed(swaps: MixtureSwaps) -> None:
    found = fit_mixture(swaps.probability[1], swaps.slots, steps=300)  # the positional layer
    lost = {term: float(one.interval.mean) for term, one in found.without.items()}
    assert found.score.mean > 0.95
    assert lost["positional"] > 0.2
    assert max(abs(lost["lexical"]), abs(lost["reflexive"])) < 0.02


def test_even_answers_are_explained_by_nothing() -> None:
    slots = drawn(80)
    found = fit_mixture(np.full((80, SLOTS), 1 / SLOTS), slots, steps=300)
    assert found.uniform.mean == pytest.approx(1)
    assert all(abs(lost.interval.mean) < 0.01 for lost in found.without.values())


def test_too_few_examples_are_refused() -> None:
    with pytest.raises(MnemoscopeError, match="20 examples"):
        fit_mixture(np.full((5, SLOTS), 1 / SLOTS), drawn(5))
