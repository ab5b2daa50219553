"""The swap test on units that are known to carry a relation, to detect it, or to do neither."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from mnemoscope.data.facts.designs import Prompt
from mnemoscope.data.facts.items import Relation
from mnemoscope.data.facts.wordings import Wording, wordings
from mnemoscope.models import HookedModel, wrap
from mnemoscope.models.edits import Edit
from mnemoscope.models.errors import MnemoscopeError
from mnemoscope.models.types import NeuronId
from mnemoscope.organisms.planted_units import PlantedUnits, planted_units_model
from mnemoscope.probes.neuron_swap import SwapFacts, swap_facts, swap_test, usual_values


@pytest.fixture(scope="module")
def planted() -> PlantedUnits:
    return planted_units_model()


@pytest.fixture(scope="module")
def model(planted: PlantedUnits) -> HookedModel:
    return wrap(planted.module, planted.tokenizer)


def relation(planted: PlantedUnits, name: str) -> Relation:
    return next(r for r in planted.relations if r.name == name)


def prompts_of(relation: Relation, wording: Wording) -> list[Prompt]:
    return [
        Prompt(wording.prompt(f.subject), relation.name, f.subject, wording.name, *span)
        for f in relation.facts
        if (span := wording.subject_span(f.subject))
    ]


def noise_sets(planted: PlantedUnits, n: int) -> list[tuple[NeuronId, ...]]:
    """Units of the carriers' layer that were not planted."""
    known = {*planted.carriers.values(), *planted.detectors.values()}
    free = [u for i in range(250) if (u := NeuronId(0, i)) not in known]
    return [(unit,) for unit in free[:n]]


@pytest.fixture(scope="module")
def facts(planted: PlantedUnits, model: HookedModel) -> SwapFacts:
    asked = relation(planted, "currency")
    return swap_facts(model, relation(planted, "capital"), asked, wordings(asked)[0])


@pytest.fixture(scope="module")
def usual(planted: PlantedUnits, model: HookedModel) -> torch.Tensor:
    capital = relation(planted, "capital")
    return usual_values(model, prompts_of(capital, wordings(capital)[0]), pooling="last")


def test_swap_facts_ask_one_relation_and_hold_the_answers_of_both(
    planted: PlantedUnits, facts: SwapFacts
) -> None:
    capital, currency = relation(planted, "capital"), relation(planted, "currency")
    assert len(facts.pairs) == len(facts.others) == 24
    for pair, other in zip(facts.pairs, facts.others, strict=True):
        assert pair.prompt == other.prompt == currency.prompt(pair.subject)
        assert pair.answers[0] == other.answers[0] == capital.fact(pair.subject).object
        assert pair.candidates == (currency.fact(pair.subject).object,)
        objects = {fact.object for fact in capital.facts}
        assert set(other.candidates) <= objects - {pair.answers[0]}


def test_a_carrier_takes_over_the_answers_of_its_sibling(
    planted: PlantedUnits, model: HookedModel, facts: SwapFacts, usual: torch.Tensor
) -> None:
    carrier = [planted.carriers["capital"]]
    controls = noise_sets(planted, 20)
    once = swap_test(model, facts, carrier, controls, values=usual)
    twice = swap_test(model, facts, carrier, controls, values=2 * usual)
    assert once.n_open == 24
    assert 0.3 < once.rate.effect < 0.7
    assert twice.rate.effect == 1
    assert once.rate.control_mean == twice.rate.control_mean == 0
    assert once.shift.p_loss == pytest.approx(1 / 21)
    assert 0 < once.shift.effect < twice.shift.effect
    assert once.own_shift.effect > 5  # this subject's capital, not just any capital
    interval = once.interval(seed=0)
    assert 0 < interval.low < interval.mean < interval.high
    assert float(interval.mean) == pytest.approx(once.shift.effect)


def test_a_detector_swaps_nothing(
    planted: PlantedUnits, model: HookedModel, facts: SwapFacts, usual: torch.Tensor
) -> None:
    detector = [planted.detectors["capital"]]
    found = swap_test(model, facts, detector, noise_sets(planted, 5), values=4 * usual)
    assert found.rate.effect == 0
    assert abs(found.shift.effect) < 0.5


def test_leads_are_differences_of_log_probabilities(
    planted: PlantedUnits, model: HookedModel, facts: SwapFacts
) -> None:
    carrier = planted.carriers["capital"]
    found = swap_test(model, facts, [carrier], (), factor=3.0)
    edit = Edit("scale", (carrier,), 3.0, positions="all_but_first")
    for i, pair in enumerate(facts.pairs[:3]):
        with model.intervene([edit]):
            logits = model.logits(model.tokens(pair.prompt), at="end")[0, 0]
        (right,) = model.answer_ids(pair.prompt, pair.answers[0])
        (asked,) = model.answer_ids(pair.prompt, pair.candidates[0])
        assert found.lead[i] == pytest.approx(float(logits[right] - logits[asked]), abs=1e-6)
    assert found.controls.shape == (0, 24)
    assert np.isnan(found.shift.z)


def test_subjects_are_matched_by_any_of_their_names(
    planted: PlantedUnits, model: HookedModel
) -> None:
    capital, currency = relation(planted, "capital"), relation(planted, "currency")
    renamed = replace(
        capital,
        facts=tuple(
            replace(f, subject=f"old {f.subject}", subject_aliases=(f.subject,))
            for f in capital.facts
        ),
    )
    chosen = [fact.subject for fact in currency.facts[:5]]
    found = swap_facts(model, renamed, currency, wordings(currency)[0], subjects=chosen)
    assert [one.subject for one in found.pairs] == chosen
    assert found.pairs[0].answers[0] == capital.fact(chosen[0]).object


def test_the_usual_value_is_a_median_over_prompts(
    planted: PlantedUnits, model: HookedModel, usual: torch.Tensor
) -> None:
    assert usual.shape == (model.anatomy.n_layers, model.anatomy.d_mlp)
    carrier, other = planted.carriers["capital"], planted.carriers["teacher"]
    at = usual[carrier.layer, carrier.index]
    assert float(at) > 5 * abs(float(usual[other.layer, other.index]))


def test_what_cannot_be_swapped_is_refused(
    planted: PlantedUnits, model: HookedModel, facts: SwapFacts, usual: torch.Tensor
) -> None:
    capital, teacher = relation(planted, "capital"), relation(planted, "teacher")
    with pytest.raises(MnemoscopeError, match="share none"):
        swap_facts(model, capital, teacher, wordings(teacher)[0])
    with pytest.raises(MnemoscopeError, match="contain one another"):
        swap_facts(model, capital, capital, wordings(capital)[0])
    carrier = [planted.carriers["capital"]]
    with pytest.raises(MnemoscopeError, match="one of them"):
        swap_test(model, facts, carrier, (), values=usual, factor=2.0)
    with pytest.raises(MnemoscopeError, match="one of them"):
        swap_test(model, facts, carrier, ())
    decided = swap_test(model, facts, carrier, (), values=2 * usual)
    with pytest.raises(MnemoscopeError, match="facts it knows"):
        _ = replace(decided, clean=decided.lead).rate
