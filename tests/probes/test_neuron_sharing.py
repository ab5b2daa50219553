"""Units that work together, units that relations share, and improvements that are real."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from mnemoscope.data.facts.wordings import wordings
from mnemoscope.interventions.neuron_ablation import neuron_edits, neutral_means
from mnemoscope.models import HookedModel, NeuronId, wrap
from mnemoscope.models.errors import MnemoscopeError
from mnemoscope.organisms.planted_units import planted_units_model
from mnemoscope.probes.neuron_effects import Effects
from mnemoscope.probes.neuron_margins import Asked, Margins, asked_facts, measure_margins
from mnemoscope.probes.neuron_sharing import (
    CumulativeCounts,
    cumulative_counts,
    cumulativity,
    cumulativity_table,
    interference,
    pooled_counts,
    sharing,
)
from mnemoscope.results.run_folder import open_run

EXACT = 1e-9


class Ground:
    """A planted model in which a noise unit has become the twin of the carrier of capitals: each
    of the two writes half of what the carrier wrote."""

    def __init__(self) -> None:
        self.planted = planted_units_model()
        self.carrier = self.planted.carriers["capital"]
        planted = {*self.planted.carriers.values(), *self.planted.detectors.values()}
        self.free = [unit for i in range(256) if (unit := NeuronId(0, i)) not in planted]
        self.twin = self.free.pop()
        mlp = self.planted.module.model.layers[0].mlp
        with torch.no_grad():
            for projection in (mlp.gate_proj, mlp.up_proj):
                projection.weight[self.twin.index] = projection.weight[self.carrier.index]
            mlp.down_proj.weight[:, self.carrier.index] /= 2
            mlp.down_proj.weight[:, self.twin.index] = mlp.down_proj.weight[:, self.carrier.index]
        self.model: HookedModel = wrap(self.planted.module, self.planted.tokenizer, name="twins")
        self.asked: tuple[Asked, ...] = tuple(
            one
            for relation in self.planted.relations
            if relation.name in ("capital", "teacher")
            for one in asked_facts(self.model, relation, relation.facts, wordings(relation)[0])
        )
        self.capital = tuple(one for one in self.asked if one.relation == "capital")
        self.facts = [
            unit for (name, _), unit in self.planted.fact_units.items() if name == "capital"
        ]


@pytest.fixture(scope="module")
def ground() -> Ground:
    return Ground()


# -- cumulativity -------------------------------------------------------------------------------


def test_counts_are_those_of_the_paper() -> None:
    a = np.array([True, True, True, True, False, True])
    b = np.array([False, False, False, True, False, False])
    rung = np.array([True, False, True, False, False, True])
    counts = cumulative_counts(a, b, rung)
    assert (counts.total, counts.affected) == (4, 1)
    assert counts.rate == pytest.approx(0.75)
    assert math.isnan(CumulativeCounts(0, 0).rate)


def test_the_papers_table_gives_its_pooled_values() -> None:
    """Ranks 10-50 of Table 3: seven relations, of which two lose nothing."""
    column = [(0, 0), (3, 3), (13, 11), (0, 0), (7, 2), (1, 0), (8, 7)]
    micro, macro = pooled_counts([[CumulativeCounts(*pair)] for pair in column])
    assert micro == pytest.approx(1 - 23 / 32)
    assert macro == pytest.approx(np.mean([0, 2 / 13, 5 / 7, 1, 1 / 8]))
    assert all(map(math.isnan, pooled_counts([[CumulativeCounts(0, 0)]])))


def test_twins_lose_the_answer_only_together(ground: Ground) -> None:
    """Each twin holds half of the evidence: without one, the answer still leads."""
    ranking = [ground.free[0], ground.carrier, ground.twin, ground.free[1]]
    found = cumulativity(ground.model, ground.capital, ranking, (1, 2, 3, 4), mode="zero")
    first_twin, second_twin, idle = found.target.counts
    n = len(ground.capital)
    assert (first_twin.total, idle.total) == (0, 0)
    assert second_twin.total >= 0.8 * n  # noise ranks a few right by luck
    assert second_twin.affected == 0
    assert second_twin.rate == 1
    assert np.abs(found.target.synergy).max() < 1  # halves add up in logits


def test_units_of_one_chain_do_the_same_work(ground: Ground) -> None:
    """Fact units read what the carriers write: either cut takes all, so the second adds none."""
    ranking = [ground.carrier, ground.twin, *ground.facts]
    sizes = (2, len(ranking))
    found = cumulativity(ground.model, ground.capital, ranking, sizes, mode="zero")
    whole, alone = found.target.loss[1].mean(), found.target.synergy.mean()
    assert whole > 8
    assert alone == pytest.approx(-whole, rel=0.1)


def test_synergy_is_the_formula_of_the_method(ground: Ground) -> None:
    ranking = [ground.carrier, ground.free[0], ground.twin, *ground.facts[:5]]
    means = neutral_means(ground.model, [one.prompt for one in ground.asked])
    found = cumulativity(ground.model, ground.capital, ranking, (1, 4, 8), means=means)

    def loss(units: Sequence[NeuronId]) -> np.ndarray:
        values = torch.stack([means[unit.layer, unit.index] for unit in units])
        edits = neuron_edits(units, "mean", values=values)
        after = measure_margins(ground.model, ground.capital, edits)
        return measure_margins(ground.model, ground.capital).margin - after.margin

    expected = [
        loss(ranking[:4]) - loss(ranking[:1]) - loss(ranking[1:4]),
        loss(ranking) - loss(ranking[:4]) - loss(ranking[4:]),
    ]
    assert np.allclose(found.target.synergy, expected, atol=EXACT)


def test_controls_and_random_orders_stand_beside_the_ranking(ground: Ground) -> None:
    ranking = [ground.carrier, ground.twin, *ground.free[:4]]
    controls = [ground.free[i : i + 6] for i in (10, 20, 30)]
    found = cumulativity(
        ground.model,
        ground.capital,
        ranking,
        (2, 4, 6),
        mode="zero",
        controls=controls,
        orders=4,
        seed=1,
    )
    assert (len(found.controls), len(found.random_orders)) == (3, 4)
    assert max(np.abs(one.loss).max() for one in found.controls) < 1
    for order in found.random_orders:  # all orders end at the same units
        assert np.allclose(order.loss[-1], found.target.loss[-1], atol=EXACT)
    assert any(order.loss[0].mean() < 1 for order in found.random_orders)
    table = cumulativity_table(found)
    assert table["from"].to_list() == [2, 4]
    assert table["random_order"].null_count() == 0
    assert table["total"].to_list() == [0, 0]
    assert table["cumulativity"].to_list() == [None, None]


def test_an_interrupted_ladder_goes_on(ground: Ground, tmp_path: Path) -> None:
    ranking, asked = [ground.carrier, ground.twin, *ground.free[:2]], ground.capital[:5]

    def climb(**more: object) -> np.ndarray:
        found = cumulativity(
            ground.model,
            asked,
            ranking,
            (1, 2, 4),
            mode="zero",
            orders=2,
            **more,  # type: ignore[arg-type]
        )
        return np.stack([one.synergy for one in (found.target, *found.random_orders)])

    def stop(done: int, total: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt), open_run(tmp_path, "ladder", {"a": 1}) as run:
        climb(run=run, progress=stop)
    with open_run(tmp_path, "ladder", {"a": 1}) as run:
        assert len(run.done) == 2
        resumed = climb(run=run)
        assert len(run.done) == 4
    assert np.array_equal(resumed, climb())


def test_cumulativity_needs_two_sizes(ground: Ground) -> None:
    with pytest.raises(MnemoscopeError, match="at least two"):
        cumulativity(ground.model, ground.capital, ground.free[:3], (2,), mode="zero")


# -- versatility --------------------------------------------------------------------------------


def test_a_shared_carrier_carries_the_cross_effect(ground: Ground) -> None:
    teacher = ground.planted.carriers["teacher"]
    sets = {
        "capital": [ground.carrier, ground.twin, teacher, ground.free[0]],
        "teacher": [teacher, ground.free[1]],
    }
    found = sharing(ground.model, ground.asked, sets, mode="zero")
    on_teacher, on_capital = found.cross
    assert (on_teacher.ablated, on_teacher.asked) == ("capital", "teacher")
    assert (on_teacher.n_shared, on_teacher.n_other) == (1, 3)
    assert on_teacher.carried == "carried by the shared units"
    assert on_teacher.shared == pytest.approx(on_teacher.whole, rel=0.05)
    assert abs(on_teacher.other) < 0.5
    assert on_capital.carried == "no cross effect"


def test_shared_units_that_do_nothing_do_not_carry_it(ground: Ground) -> None:
    teacher = ground.planted.carriers["teacher"]
    sets = {
        "capital": [ground.carrier, teacher, ground.free[0]],
        "teacher": [ground.free[0], ground.free[1]],
    }
    on_teacher, _ = sharing(ground.model, ground.asked, sets, mode="zero").cross
    assert on_teacher.carried == "carried by the other units"
    assert on_teacher.high < 0


def test_both_parts_can_carry_it(ground: Ground) -> None:
    """The twins, one shared and one not, seen from the other relation's set."""
    sets = {"teacher": [ground.carrier, ground.twin], "capital": [ground.carrier]}
    on_capital, _ = sharing(ground.model, ground.asked, sets, mode="zero").cross
    assert on_capital.whole > on_capital.shared > 2
    assert on_capital.shared == pytest.approx(on_capital.other, rel=1e-6)
    assert on_capital.carried == "carried by both"


def test_sets_without_a_common_unit_share_nothing(ground: Ground) -> None:
    sets = {"capital": [ground.carrier], "teacher": [ground.planted.carriers["teacher"]]}
    found = sharing(ground.model, ground.asked, sets, mode="zero")
    assert {cross.carried for cross in found.cross} == {"no shared units"}
    assert "shared" not in found.effects.ablated


@pytest.mark.parametrize("names", [("capital",), ("capital", "spouse")])
def test_sharing_needs_both_relations(ground: Ground, names: tuple[str, ...]) -> None:
    with pytest.raises(MnemoscopeError, match="facts and units of both"):
        sharing(ground.model, ground.asked, {name: [ground.carrier] for name in names})


# -- interference -------------------------------------------------------------------------------


def split(
    gain_of_b: float, *, prefix: str, seed: int, n: int = 60, relations: str = "abc"
) -> Effects:
    """Noise of one nat everywhere, but asking b without the units of a gains `gain_of_b`."""
    rng = np.random.default_rng(seed)
    names = [r for r in relations for _ in range(n)]
    subjects = tuple(f"{prefix}{i}" for i in range(len(names)))
    zero = np.zeros(len(names))

    def made(margin: np.ndarray) -> Margins:
        return Margins(tuple(names), subjects, margin, zero, margin > 0, zero)

    after = rng.normal(5, 1, (len(relations), len(names)))
    after[0] += gain_of_b * (np.array(names) == "b")
    return Effects(tuple(relations), made(zero + 5), tuple(made(row) for row in after))


def test_a_gain_that_comes_back_on_new_facts_holds() -> None:
    found = interference(split(1, prefix="x", seed=0), split(1, prefix="y", seed=1))
    assert len(found) == 6
    assert [(one.ablated, one.asked) for one in found if one.holds] == [("a", "b")]
    (cell,) = (one for one in found if one.holds)
    assert cell.n == 60
    assert cell.loss == pytest.approx(-1, abs=0.4)
    assert cell.q >= cell.p


def test_a_gain_that_does_not_come_back_does_not_hold() -> None:
    found = interference(split(1, prefix="x", seed=0), split(0, prefix="y", seed=1))
    assert not any(one.holds for one in found)
    assert min(one.q for one in found) < 0.05


def test_noise_and_losses_do_not_hold() -> None:
    for gain in (0.0, -2.0):
        found = interference(split(gain, prefix="x", seed=2), split(gain, prefix="y", seed=3))
        assert not any(one.holds for one in found)


def test_the_detectable_gain_is_the_textbook_one() -> None:
    """(1.960 + 0.842) sd / sqrt(n): 0.36 sd with 60 facts, half of it with 240."""
    few = interference(split(0, prefix="x", seed=0), split(0, prefix="y", seed=1))[0]
    many = interference(split(0, prefix="x", seed=0, n=240), split(0, prefix="y", seed=1))[0]
    assert few.detectable == pytest.approx(2.8016 / math.sqrt(60), rel=0.25)
    assert many.detectable == pytest.approx(few.detectable / 2, rel=0.25)


def test_a_replication_needs_new_facts_and_the_same_question() -> None:
    one = split(0, prefix="x", seed=0)
    with pytest.raises(MnemoscopeError, match="in both splits"):
        interference(one, one)
    with pytest.raises(MnemoscopeError, match="same relations"):
        interference(one, split(0, prefix="y", seed=1, relations="abd"))
    with pytest.raises(MnemoscopeError, match="ask two"):
        interference(*(split(0, prefix=x, seed=0, relations="a") for x in "xy"))
