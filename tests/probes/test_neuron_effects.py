"""The planted carriers hurt their own relation and no other, and beat their matched controls."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from mnemoscope.data.facts.wordings import wordings
from mnemoscope.interventions.neuron_ablation import neuron_edits, neutral_means, write_size
from mnemoscope.models import HookedModel, NeuronId, Site, wrap
from mnemoscope.models.errors import MnemoscopeError
from mnemoscope.organisms.planted_units import (
    PlantedUnits,
    null_units_model,
    planted_units_model,
)
from mnemoscope.probes.neuron_effects import (
    DoseCurve,
    Effects,
    against_controls,
    area_between,
    curve_table,
    dose_curve,
    effect_matrix,
    factor_curve,
    matrix_table,
    specificity,
)
from mnemoscope.probes.neuron_margins import Asked, Margins, asked_facts, measure_margins
from mnemoscope.results.neuron_controls import matched_random_neurons
from mnemoscope.results.run_folder import open_run

EXACT = 1e-9
SIZES = (1, 2, 4, 8)


class Ground:
    """A planted model, wrapped, with all its relations asked in the first wording."""

    def __init__(self, planted: PlantedUnits) -> None:
        self.planted = planted
        self.model: HookedModel = wrap(planted.module, planted.tokenizer, name="planted units")
        self.asked: tuple[Asked, ...] = tuple(
            one
            for relation in planted.relations
            for one in asked_facts(
                self.model, relation, relation.facts, wordings(relation)[0], n_candidates=6
            )
        )
        self.texts = [one.prompt for one in self.asked[::4]]

    def of(self, relation: str) -> tuple[Asked, ...]:
        return tuple(one for one in self.asked if one.relation == relation)

    def ranking(self, first: NeuronId, n: int = 8) -> tuple[NeuronId, ...]:
        """One unit at the top, then units of its layer that nobody planted."""
        planted = {*self.planted.carriers.values(), *self.planted.detectors.values()}
        free = [unit for i in range(256) if (unit := NeuronId(0, i)) not in planted]
        return (first, *free[: n - 1])

    def controls(self, target: Sequence[NeuronId], draws: int = 20) -> Sequence[Sequence[NeuronId]]:
        sizes = write_size(self.model, self.texts).numpy()
        barred = {*self.planted.carriers.values(), *self.planted.detectors.values()}
        return matched_random_neurons(
            target, sizes, draws=draws, seed=0, exclude=barred - set(target)
        ).draws


@pytest.fixture(scope="module")
def ground() -> Ground:
    return Ground(planted_units_model())


@pytest.fixture(scope="module")
def matrix(ground: Ground) -> Effects:
    carriers = ground.planted.carriers
    return effect_matrix(
        ground.model, ground.asked, {r: neuron_edits([u], "zero") for r, u in carriers.items()}
    )


def margins(
    values: Sequence[float], relations: Sequence[str], subjects: Sequence[str] | None = None
) -> Margins:
    """Made-up margins, right where they are positive."""
    x = np.array(values, dtype=float)
    names = subjects or [f"s{i}" for i in range(len(x))]
    return Margins(tuple(relations), tuple(names), x, np.zeros_like(x), x > 0, np.zeros_like(x))


# -- the matrix ---------------------------------------------------------------------------------


def test_a_carrier_hurts_its_own_relation_and_no_other(matrix: Effects) -> None:
    table = matrix_table(matrix)
    assert len(table) == 36
    own, others = table.filter("own"), table.filter(~table["own"])
    assert own["low"].min() > 8  # the planted answers are worth about 10 nats
    assert others["loss"].abs().max() < 0.2
    assert own["q"].max() < 0.01
    assert own["n"].to_list() == [24] * 6


def test_a_cell_is_the_mean_loss_of_its_facts(ground: Ground, matrix: Effects) -> None:
    edits = neuron_edits([ground.planted.carriers["spouse"]], "zero")
    clean = measure_margins(ground.model, ground.of("captain"))
    after = measure_margins(ground.model, ground.of("captain"), edits)
    table = matrix_table(matrix)
    cell = table.filter((table["ablated"] == "spouse") & (table["asked"] == "captain"))
    assert cell["loss"].item() == pytest.approx(float((clean.margin - after.margin).mean()))
    assert cell["right_before"].item() == clean.first.mean() == 1
    assert cell["drop"].item() == pytest.approx(1 - after.first.mean())


def test_a_detector_of_a_relation_does_nothing(ground: Ground) -> None:
    found = effect_matrix(
        ground.model,
        ground.asked,
        {r: neuron_edits([u], "zero") for r, u in ground.planted.detectors.items()},
    )
    assert np.abs(found.loss).max() < 0.1  # it moves the sum that the norm divides by, no more


def test_specificity_is_near_one_for_carriers(matrix: Effects) -> None:
    found = specificity(matrix)
    assert [s.relation for s in found] == list(matrix.relations)
    assert all(s.low > 0.9 and s.low <= s.index <= s.high <= 1 for s in found)


def test_specificity_is_the_formula_of_the_method() -> None:
    relations = ["a", "a", "b", "b", "c", "c"]
    clean = margins([5] * 6, relations)
    effects = Effects(("a",), clean, (margins([1, 3, 4, 4, 6, 6], relations),))
    (found,) = specificity(effects)  # losses 3, 1 and -1
    assert found.own == pytest.approx(3)
    assert found.others == pytest.approx(0)
    assert found.index == pytest.approx((3 - 0) / (3 + 1))
    assert -1 <= found.low <= found.index <= found.high <= 1


def test_a_set_that_hurts_all_alike_is_not_specific() -> None:
    relations = ["a"] * 30 + ["b"] * 30
    rng = np.random.default_rng(0)
    clean = margins([5.0] * 60, relations)
    effects = Effects(("a",), clean, (margins(list(2 + rng.normal(size=60)), relations),))
    (found,) = specificity(effects)
    assert found.low < 0.1
    assert abs(found.index) < 0.2


def test_specificity_needs_another_relation_and_a_set_of_one_asked() -> None:
    one = margins([1, 2], ["a", "a"])
    two = margins([1, 2], ["a", "b"])
    for effects in (Effects(("a",), one, (one,)), Effects(("z",), two, (two,))):
        with pytest.raises(MnemoscopeError, match="ask two relations"):
            specificity(effects)


def test_facts_that_differ_are_not_compared() -> None:
    effects = Effects(("a",), margins([1], ["a"], ["x"]), (margins([1], ["a"], ["y"]),))
    with pytest.raises(MnemoscopeError, match="different facts"):
        _ = effects.loss
    with pytest.raises(MnemoscopeError, match="was not asked"):
        effects.rows_of("b")


def test_a_matrix_that_was_interrupted_goes_on(ground: Ground, tmp_path: Path) -> None:
    asked = ground.of("capital")[:6]
    edits = {r: neuron_edits([u], "zero") for r, u in list(ground.planted.carriers.items())[:3]}

    def stop(done: int, total: int) -> None:
        if done == 2:
            raise KeyboardInterrupt

    straight = effect_matrix(ground.model, asked, edits)
    with pytest.raises(KeyboardInterrupt), open_run(tmp_path, "matrix", {"a": 1}) as run:
        effect_matrix(ground.model, asked, edits, run=run, progress=stop)
    with open_run(tmp_path, "matrix", {"a": 1}) as run:
        assert len(run.done) == 2
        resumed = effect_matrix(ground.model, asked, edits, run=run)
        assert len(run.done) == 4
    assert np.array_equal(straight.loss, resumed.loss)
    with pytest.raises(MnemoscopeError, match="at least one set"):
        effect_matrix(ground.model, asked, {})


# -- dose curves --------------------------------------------------------------------------------


def test_a_ranking_with_the_carrier_on_top_beats_its_matched_controls(ground: Ground) -> None:
    ranking = ground.ranking(ground.planted.carriers["capital"])
    means = neutral_means(ground.model, ground.texts)
    curve = dose_curve(
        ground.model,
        ground.of("capital"),
        ranking,
        SIZES,
        mode="zero",
        controls=ground.controls(ranking),
    )
    table = curve_table(curve)
    assert table["dose"].to_list() == list(SIZES)
    assert table["loss"].min() > 8
    assert table["p_loss"].max() == pytest.approx(1 / 21)
    assert table["z"].min() > 5
    assert table["right_before"].min() == 1
    area = area_between(curve)
    assert area.low > 8
    assert area.against.p_loss == pytest.approx(1 / 21)
    by_mean = dose_curve(
        ground.model, ground.of("capital"), ranking, SIZES, mode="mean", means=means
    )
    assert 0 < by_mean.loss.mean() < curve.loss.mean()  # a neutral carrier is not off, but low


def test_a_ranking_with_the_detector_on_top_does_no_more_than_its_controls(ground: Ground) -> None:
    ranking = ground.ranking(ground.planted.detectors["capital"])
    controls = ground.controls(ranking)
    curve = dose_curve(
        ground.model, ground.of("capital"), ranking, SIZES, mode="zero", controls=controls
    )
    assert abs(area_between(curve).value) < 0.2
    assert curve_table(curve)["loss"].abs().max() < 0.2


def test_the_null_model_has_no_curve() -> None:
    null = Ground(null_units_model())
    ranking = [NeuronId(0, i) for i in range(8)]
    curve = dose_curve(null.model, null.of("capital"), ranking, SIZES, mode="zero")
    assert np.abs(curve.loss).max() < 0.5
    assert curve.control_loss.shape == (0, 4, 24)
    assert curve_table(curve)["z"].to_list() == [None] * 4
    assert curve_table(curve)["p_loss"].to_list() == [None] * 4


def test_factors_weaken_and_amplify(ground: Ground) -> None:
    carrier = ground.planted.carriers["capital"]
    factors = (0.0, 0.5, 1.0, 2.0)
    control = ground.controls([carrier], draws=3)
    curve = factor_curve(ground.model, ground.of("capital"), [carrier], factors, controls=control)
    loss = curve.loss.mean(1)
    assert loss[0] > loss[1] > loss[2] > loss[3]
    assert np.allclose(curve.loss[2], 0, atol=EXACT)
    zeroed = measure_margins(ground.model, ground.of("capital"), neuron_edits([carrier], "zero"))
    assert np.allclose(curve.target[0].margin, zeroed.margin, atol=EXACT)
    assert area_between(curve).low > 0
    assert np.abs(curve.control_loss).max() < 0.5


def test_units_of_several_sites_are_scaled_together(ground: Ground) -> None:
    carrier = ground.planted.carriers["capital"]
    same = [NeuronId(carrier.layer, carrier.index, site) for site in (Site.NEURON, Site.UP)]
    curve = factor_curve(ground.model, ground.of("capital")[:4], same, (0.5, 1.0))
    twice = neuron_edits([carrier], "scale", factor=0.25)  # half of the unit's half
    expected = measure_margins(ground.model, ground.of("capital")[:4], twice)
    assert np.allclose(curve.target[0].margin, expected.margin, atol=EXACT)
    means = neutral_means(ground.model, ground.texts)
    with pytest.raises(MnemoscopeError, match="one site"):
        dose_curve(ground.model, ground.asked[:2], same, (1, 2), mode="mean", means=means)


def test_factors_run_in_half_precision() -> None:
    ground = Ground(planted_units_model(dtype=torch.bfloat16))
    carrier = ground.planted.carriers["capital"]
    curve = factor_curve(ground.model, ground.of("capital")[:4], [carrier], (0.0, 1.0))
    assert curve.loss[0].min() > 5


def test_doses_run_in_half_precision() -> None:
    ground = Ground(planted_units_model(dtype=torch.bfloat16))
    ranking = ground.ranking(ground.planted.carriers["capital"])
    curve = dose_curve(ground.model, ground.of("capital")[:4], ranking, SIZES, mode="zero")
    assert curve.loss.min() > 5


def test_the_area_is_that_of_trapezoids() -> None:
    clean = margins([10, 10], ["a", "a"])
    after = [margins([10 - loss] * 2, ["a", "a"]) for loss in (1, 2, 4)]
    controls = tuple(
        tuple(margins([10 - loss] * 2, ["a", "a"]) for _ in range(3)) for loss in (0.5, 1.5)
    )
    curve = DoseCurve("size", (1.0, 10.0, 1000.0), clean, tuple(after), controls)
    area = area_between(curve)
    mean_loss = ((1 + 2) / 2 * 1 + (2 + 4) / 2 * 2) / 3  # over log 10: one decade, then two
    assert area.value == pytest.approx(mean_loss - 1)
    assert area.against.effect == pytest.approx(mean_loss)
    assert area.against.control_mean == pytest.approx(1)
    factors = DoseCurve("factor", (0.0, 1.0, 2.0), clean, (after[2], clean, after[0]), ())
    assert area_between(factors).value == pytest.approx((4 / 2 * 1 - 1 / 2 * 1) / 2)


def test_z_and_p_among_controls() -> None:
    found = against_controls(3.0, np.array([0.0, 1.0, 2.0, 3.0]))
    sd = math.sqrt(5 / 3)
    assert found.z == pytest.approx((3 - 1.5) / sd)
    assert found.p_loss == pytest.approx(2 / 5)  # itself and the control that does as much
    assert found.p_gain == pytest.approx(5 / 5)
    assert math.isnan(against_controls(1.0, np.array([2.0])).z)
    assert math.isnan(against_controls(1.0, np.array([2.0, 2.0])).z)


@pytest.mark.parametrize("sizes", [(), (0, 1), (2, 2), (3, 1), (1, 9)])
def test_sizes_must_grow_and_fit(ground: Ground, sizes: tuple[int, ...]) -> None:
    ranking = ground.ranking(ground.planted.carriers["capital"])
    with pytest.raises(MnemoscopeError, match="sizes must grow"):
        dose_curve(ground.model, ground.asked[:2], ranking, sizes, mode="zero")


def test_controls_must_be_as_long_as_the_largest_size(ground: Ground) -> None:
    ranking = ground.ranking(ground.planted.carriers["capital"])
    with pytest.raises(MnemoscopeError, match="sizes must grow from 1 at least to 3"):
        dose_curve(
            ground.model, ground.asked[:2], ranking, (1, 4), mode="zero", controls=[ranking[:3]]
        )


@pytest.mark.parametrize("factors", [(), (1.0, 0.5), (1.0, 1.0)])
def test_factors_must_grow(ground: Ground, factors: tuple[float, ...]) -> None:
    with pytest.raises(MnemoscopeError, match="factors that grow"):
        factor_curve(ground.model, ground.asked[:2], [NeuronId(0, 0)], factors)


def test_a_curve_is_read_back_from_its_run(ground: Ground, tmp_path: Path) -> None:
    ranking = ground.ranking(ground.planted.carriers["capital"])
    controls = ground.controls(ranking, draws=2)
    asked = ground.of("capital")[:5]
    with open_run(tmp_path, "curve", {"a": 1}) as run:
        once, again = (
            dose_curve(ground.model, asked, ranking, SIZES, mode="zero", controls=controls, run=run)
            for _ in range(2)
        )
        assert list(run.done) == [
            "doses: clean",
            "doses: target",
            "doses: control 0",
            "doses: control 1",
        ]
    assert np.array_equal(once.loss, again.loss)
    assert np.array_equal(once.control_loss, again.control_loss)
