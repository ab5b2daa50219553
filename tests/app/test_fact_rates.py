"""Rates over facts of the planted model: its memory head recalls, its other head follows."""

from __future__ import annotations

import pytest
from mnemoscope.app.fact_rates import FactRates, fact_answers, rate_table
from mnemoscope.app.switched_off import NOTHING, HeadChange, Means, Switched
from mnemoscope.app.switched_readings import random_changes
from mnemoscope.data.facts.conflicts import ConflictItem
from mnemoscope.models.hooked import HookedModel
from mnemoscope.models.types import HeadId
from mnemoscope.organisms import planted_model, planted_relation
from mnemoscope.probes.elicitation import conflict_items
from planted_ground import CONTEXT_HEAD, MEMORY_HEAD

MEMORY, COPY = HeadId.parse(MEMORY_HEAD), HeadId.parse(CONTEXT_HEAD)
RECALLS, STAYS, FOLLOWS = range(3)


@pytest.fixture(scope="module")
def items(model: HookedModel) -> tuple[ConflictItem, ...]:
    relation = planted_relation(planted_model())
    return conflict_items(model, relation, relation.facts[:8], demonstrations=0).items


def rates(
    model: HookedModel, items: tuple[ConflictItem, ...], switched: Switched, draws: int = 0
) -> FactRates:
    sets: tuple[Switched, ...] = ()
    if draws:
        sets = random_changes(model, switched, norms=None, tokens=0, neutral=None, draws=draws).sets
    asked = (fact_answers(model, items, one, Means()) for one in (NOTHING, switched, *sets))
    before, after, *drawn = asked
    return FactRates(before, after, tuple(drawn))


def test_without_its_memory_head_it_recalls_nothing(
    model: HookedModel, items: tuple[ConflictItem, ...]
) -> None:
    found = rates(model, items, Switched((MEMORY,)), draws=3)
    table = rate_table(found)
    assert found.items == len(items)
    assert table["unchanged"][RECALLS] == 1, "only facts that the model knows are asked"
    assert table["changed"][RECALLS] < 0.3
    assert table["verdict"][RECALLS] == "outside the random range"
    change = table["changed"] - table["unchanged"]
    assert table["change"].to_list() == pytest.approx(change.to_list())
    assert (table["low"] <= table["change"]).all()
    assert (table["change"] <= table["high"]).all()


def test_a_head_that_sees_all_alike_follows_no_context(
    model: HookedModel, items: tuple[ConflictItem, ...]
) -> None:
    table = rate_table(rates(model, items, Switched((COPY,), HeadChange("edges mean"))))
    assert table["changed"][FOLLOWS] < table["unchanged"][FOLLOWS]
    assert table["changed"][STAYS] > table["unchanged"][STAYS]
    assert table["changed"][RECALLS] == 1
    assert table["random, low"].null_count() == 3


def test_a_noise_head_is_not_better_than_random(
    model: HookedModel, items: tuple[ConflictItem, ...]
) -> None:
    table = rate_table(rates(model, items, Switched((HeadId(0, 0),)), draws=3))
    assert table["change"].to_list() == [0, 0, 0]
    assert set(table["verdict"]) == {"not better than random"}
