"""Attribution of the margin to units: true derivatives, true ablations, known units on top."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest
import torch
from families import FAMILIES, tiny
from mnemoscope.data.facts.wordings import wordings
from mnemoscope.models import HookedModel, wrap
from mnemoscope.models.edits import Edit
from mnemoscope.models.errors import MnemoscopeError, UnsupportedSiteError
from mnemoscope.models.types import NeuronId, Site
from mnemoscope.organisms.planted_units import PlantedUnits, planted_units_model
from mnemoscope.probes.asked_facts import Asked, asked_facts
from mnemoscope.probes.neuron_attribution import Attribution, attribute, single_unit_effects
from mnemoscope.probes.neuron_margins import measure_margins
from mnemoscope.probes.neuron_rankings import rankings
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

WITH_UNITS = [family for family in FAMILIES if family != "mixtral"]
POST_NORM = {"gemma2", "gemma3", "olmo2", "opt-post-ln"}


def words_model(family: str) -> HookedModel:
    """A tiny random model with a word `w0` ... `w60` for each of its token ids."""
    vocab = {f"w{i}": i for i in range(61)}
    bare = Tokenizer(models.WordLevel(vocab, unk_token="w0"))
    bare.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=bare, pad_token="w0", eos_token="w2")
    return wrap(tiny(family), tokenizer)


def questions(n: int = 5) -> tuple[Asked, ...]:
    """Prompts of several lengths, answers of one to three words that share their starts."""
    rng = np.random.default_rng(3)

    def words(k: int) -> str:
        return " ".join(f"w{i}" for i in rng.integers(3, 61, k))

    made = []
    for i in range(n):
        start = words(1)
        wrong = (
            f"{start} {words(1)}",
            f"{start} {words(2)}",
            *(words(1) for _ in range(1 + i % 2)),
        )
        made.append(Asked(words(4 + i % 3), (words(1 + i % 2),), wrong, f"s{i}", "r"))
    return tuple(made)


def some_means(model: HookedModel, site: Site = Site.NEURON) -> torch.Tensor:
    shape = (model.anatomy.n_layers, model.anatomy.n_units(site))
    generator = torch.Generator().manual_seed(5)
    return 0.3 * torch.randn(shape, generator=generator, dtype=torch.float64)


def step_of(model: HookedModel) -> float:
    """RMSNorm and GPT-J's attention compute in float32 whatever their type: rounding of some 1e-7
    needs a wider step there."""
    return 1e-5 if model.anatomy.model_type in ("gpt2", "gpt_neox", "opt", "phi") else 1e-2


def nudged(model: HookedModel, unit: NeuronId, mean: float, step: float) -> np.ndarray:
    """Margins with the unit moved by a share `step` of its way to the mean."""
    edits = (
        Edit("scale", (unit,), 1 - step, positions="all_but_first"),
        Edit("add", (unit,), step * mean, positions="all_but_first"),
    )
    return measure_margins(model, questions(), edits).margin


def slope(model: HookedModel, unit: NeuronId, mean: float) -> np.ndarray:
    h = step_of(model)
    return (nudged(model, unit, mean, -h) - nudged(model, unit, mean, h)) / (2 * h)


def check_against_slopes(model: HookedModel, found: Attribution, means: torch.Tensor) -> None:
    for layer, index in ((0, 3), (1, 17), (2, 30)):
        unit = NeuronId(layer, index, found.site)
        by_fact = slope(model, unit, float(means[layer, index]))
        near = {"rel": max(1e-6, step_of(model)), "abs": 0.03 * step_of(model)}
        assert found.mean[layer, index] == pytest.approx(by_fact.mean(), **near)
        assert found.sd[layer, index] == pytest.approx(by_fact.std(ddof=1), **near)


@pytest.mark.parametrize("family", WITH_UNITS)
def test_attribution_is_the_slope_of_the_margin_towards_the_mean(family: str) -> None:
    model = words_model(family)
    means = some_means(model)
    check_against_slopes(model, attribute(model, questions(), means), means)


@pytest.mark.parametrize("family", ["llama", "phi3"])  # separate and fused projections
@pytest.mark.parametrize("site", [Site.GATE_PRE, Site.UP, Site.MLP_OUT])
def test_every_site_has_its_own_slope(family: str, site: Site) -> None:
    model = words_model(family)
    means = some_means(model, site)
    check_against_slopes(model, attribute(model, questions(), means, site=site), means)


def test_margins_are_those_of_the_causal_measure() -> None:
    model = words_model("llama")
    found = attribute(model, questions(), some_means(model))
    assert found.margins == pytest.approx(measure_margins(model, questions()).margin, abs=1e-5)


def test_batch_size_and_chosen_layers_change_nothing() -> None:
    model = words_model("llama")
    means = some_means(model)
    whole = attribute(model, questions(), means, rows=100)
    single = attribute(model, questions(), means, rows=1)
    upper = attribute(model, questions(), means[1:], layers=(1, 2))
    np.testing.assert_allclose(single.mean, whole.mean, atol=1e-6)
    np.testing.assert_allclose(single.halves, whole.halves, atol=1e-6)
    np.testing.assert_allclose(upper.mean, whole.mean[1:], atol=1e-6)
    assert upper.layers == (1, 2)


def test_halves_average_to_the_mean_over_an_even_number_of_facts() -> None:
    model = words_model("llama")
    found = attribute(model, questions(6), some_means(model))
    np.testing.assert_allclose(found.halves.mean(0), found.mean, atol=1e-12)
    assert not np.allclose(found.halves[0], found.halves[1])


@pytest.mark.parametrize("family", WITH_UNITS)
def test_in_the_last_layer_the_direct_score_is_all_there_is(family: str) -> None:
    model = words_model(family)
    found = attribute(model, questions(), torch.zeros_like(some_means(model)))
    if family in POST_NORM:
        assert found.direct is None
    else:
        assert found.direct is not None
        np.testing.assert_allclose(found.direct[-1], found.mean[-1], atol=1e-5)
        assert not np.allclose(found.direct[0], found.mean[0])


def test_the_model_is_left_as_it_was() -> None:
    model = words_model("llama")
    before = measure_margins(model, questions()).margin
    with torch.no_grad():  # a caller's setting does not stop gradients inside
        attribute(model, questions(), some_means(model))
    hooks = [m for m in model.module.modules() if m._forward_hooks or m._forward_pre_hooks]
    assert not hooks
    assert all(p.grad is None and p.requires_grad for p in model.module.parameters())
    assert (measure_margins(model, questions()).margin == before).all()


def test_single_unit_effects_are_real_ablations() -> None:
    model = words_model("llama")
    means = some_means(model)
    units = [NeuronId(layer, i) for layer in range(3) for i in (0, 7, 21)]
    found = single_unit_effects(model, questions(), units, means, rows=7)
    clean = measure_margins(model, questions()).margin
    for unit, effect in zip(units, found, strict=True):
        mean = means[unit.layer, unit.index]
        edit = Edit("mean", (unit,), mean[None], positions="all_but_first")
        expected = clean - measure_margins(model, questions(), (edit,)).margin
        np.testing.assert_allclose(effect, expected, atol=1e-5)


@pytest.fixture(scope="module")
def planted() -> PlantedUnits:
    return planted_units_model()


@pytest.fixture(scope="module")
def known(planted: PlantedUnits) -> tuple[HookedModel, tuple[Asked, ...], str]:
    model = wrap(planted.module, planted.tokenizer)
    relation = planted.relations[0]
    wording = wordings(relation)[0]
    return model, asked_facts(model, relation, relation.facts, wording), relation.name


def means_of_other_relations(model: HookedModel, planted: PlantedUnits, name: str) -> torch.Tensor:
    texts = [r.prompt(f.subject) for r in planted.relations if r.name != name for f in r.facts[::6]]
    batch = model.tokens(texts)
    kept = model.capture(batch, (Site.NEURON,), reduce="mean")
    return kept.stack(Site.NEURON).mean(1)


def test_the_carrier_of_a_planted_relation_comes_first_and_its_detector_nowhere(
    planted: PlantedUnits, known: tuple[HookedModel, Sequence[Asked], str]
) -> None:
    model, asked, name = known
    found = attribute(model, asked, means_of_other_relations(model, planted, name))
    carrier, detector = planted.carriers[name], planted.detectors[name]
    best = np.unravel_index(np.argmax(found.mean), found.mean.shape)
    assert best == (carrier.layer, carrier.index)
    assert abs(found.mean[detector.layer, detector.index]) < 1e-3 * found.mean[best]
    both, chance = found.half_overlap(1)
    assert both == 1
    assert chance == 1 / found.mean.size


def test_attribution_orders_units_as_ablation_does(
    planted: PlantedUnits, known: tuple[HookedModel, Sequence[Asked], str]
) -> None:
    model, asked, name = known
    means = means_of_other_relations(model, planted, name)
    found = attribute(model, asked, means)
    top = np.argsort(-np.abs(found.mean).ravel())[:60]
    units = [NeuronId(*divmod(int(i), found.mean.shape[1])) for i in top]
    true = single_unit_effects(model, asked, units, means).mean(1)
    first_order = found.mean.ravel()[top]
    assert np.argmax(true) == np.argmax(first_order)
    assert np.corrcoef(true[1:], first_order[1:])[0, 1] > 0.9


def an_attribution(
    mean: Sequence[float], sd: Sequence[float], direct: Sequence[float] | None
) -> Attribution:
    shaped = np.array(mean, dtype=float).reshape(2, -1)
    return Attribution(
        Site.NEURON,
        (4, 6),
        shaped,
        np.array(sd, dtype=float).reshape(2, -1),
        np.stack([shaped, shaped]),
        None if direct is None else np.array(direct).reshape(2, -1),
        np.zeros(3),
    )


def test_rankings_of_six_units() -> None:
    found = an_attribution([3, 1, -2, 5, 0, 2], [1, 1, 1, 5, 0, 1], [0, 9, 0, 0, 0, 8])
    ap = np.array([[0.2, 0.9, 0.8], [0.7, 0.6, 0.5]])
    sign = np.array([[1, 1, 1], [-1, 1, 1]])
    top = rankings(found, ap, sign, 3)
    unit = [NeuronId(layer, i) for layer in (4, 6) for i in range(3)]
    assert top["ap"] == (unit[1], unit[2], unit[3])
    assert top["attribution"] == (unit[3], unit[0], unit[5])
    assert top["standardised"] == (unit[0], unit[5], unit[1])  # 3, 2, and 1 before unit 3's 1
    # places by AP 6 1 2 3 4 5, by effect 2 4 6 1 5 3: products 12 4 12 3 20 15
    assert top["geometric"] == (unit[3], unit[1], unit[0])
    assert top["filtered"] == (unit[1], unit[5], unit[0])  # high and for the answer
    assert top["direct"][:2] == (unit[1], unit[5])


def test_halves_are_compared_over_units() -> None:
    found = an_attribution([3, 1, -2, 5, 0, 2], [1] * 6, None)
    assert found.half_correlation == pytest.approx(1)
    assert found.half_overlap(2) == (1.0, 2 / 6)
    turned = replace(found, halves=np.stack([found.halves[0], -found.halves[0]]))
    assert turned.half_correlation == pytest.approx(-1)
    assert turned.half_overlap(2) == (0.0, 2 / 6)


def test_a_ranking_without_direct_scores_and_with_few_helpful_units() -> None:
    found = an_attribution([3, -1, -2, -5, 0, -2], [1] * 6, None)
    top = rankings(found, np.full((2, 3), 0.5), np.ones((2, 3), dtype=int), 4)
    assert "direct" not in top
    assert top["filtered"] == (NeuronId(4, 0),)


def test_what_cannot_be_attributed_is_refused() -> None:
    model = words_model("gpt2")
    means = some_means(model)
    with pytest.raises(MnemoscopeError, match="two facts"):
        attribute(model, questions(1), means)
    with pytest.raises(MnemoscopeError, match=r"\[layer, unit\]"):
        attribute(model, questions(), means[:1])
    with pytest.raises(MnemoscopeError, match="no single units"):
        attribute(model, questions(), means, site=Site.RESID_POST)
    with pytest.raises(UnsupportedSiteError):
        attribute(model, questions(), means, site=Site.UP)
    with pytest.raises(MnemoscopeError, match="one site"):
        single_unit_effects(model, questions(), [], means)
    found = attribute(model, questions(), means)
    with pytest.raises(MnemoscopeError, match="same site and layers"):
        rankings(found, np.ones((1, 3)), np.ones((1, 3), dtype=int), 1)
    with pytest.raises(MnemoscopeError, match="choose k"):
        found.half_overlap(0)
