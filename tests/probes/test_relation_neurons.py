"""Units that tell a relation in every wording come first; a null model has no relation's units."""

from __future__ import annotations

import weakref
from collections.abc import Iterator
from dataclasses import fields, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from families import tiny
from mnemoscope.data.facts.designs import Design, build_design
from mnemoscope.models import HookedModel, wrap
from mnemoscope.models.errors import MnemoscopeError, UnsupportedSiteError
from mnemoscope.models.types import NeuronId, Site
from mnemoscope.organisms.planted_units import (
    PlantedUnits,
    null_units_model,
    planted_units_model,
)
from mnemoscope.probes import relation_neurons as search
from mnemoscope.probes.neuron_nulls import (
    FOUND,
    NOTHING_FOUND,
    adjusted_by_relation,
    best_units,
    exchangeable_p,
    merged_tops,
    split_half,
    verdict,
)
from mnemoscope.probes.pooled_activations import pooled_activations
from mnemoscope.probes.relation_neuron_layers import plan_of
from mnemoscope.probes.relation_neuron_tables import (
    layer_counts,
    neuron_set,
    overlaps,
    ranking,
    stability,
    stable_core,
    table,
    verdicts,
    wording_tax,
)
from mnemoscope.probes.relation_neurons import RelationNeurons, find_relation_neurons
from mnemoscope.results.run_folder import open_run
from sklearn.metrics import average_precision_score

CONFIG = {"test": "relation neurons"}


class Setting:
    """A model with known units (or none), the design that asks about it, and what was found."""

    def __init__(self, planted: PlantedUnits) -> None:
        self.planted = planted
        self.model: HookedModel = wrap(planted.module, planted.tokenizer, name="planted units")
        self.design: Design = build_design(planted.relations, subjects=None, resamples=5, seed=0)
        self.found: RelationNeurons = find_relation_neurons(self.model, self.design)


@pytest.fixture(scope="module")
def units() -> Setting:
    return Setting(planted_units_model(dtype=torch.float32))


@pytest.fixture(scope="module")
def null() -> Setting:
    return Setting(null_units_model(dtype=torch.float32))


@pytest.fixture(scope="module")
def pooled(units: Setting) -> Any:
    """Pooled activations of all layers on the prompts of a block."""
    return partial(pooled_activations, units.model, layers=range(2))


def same(a: RelationNeurons, b: RelationNeurons) -> bool:
    """Every field bit by bit."""
    pairs = ((getattr(a, f.name), getattr(b, f.name)) for f in fields(RelationNeurons))
    return all(
        x.tobytes() == y.tobytes() and x.dtype == y.dtype if isinstance(x, np.ndarray) else x == y
        for x, y in pairs
    )


def ap(positive: np.ndarray, scores: np.ndarray) -> float:
    return float(average_precision_score(positive, scores))


def aps(positive: np.ndarray, scores: np.ndarray) -> np.ndarray:
    """AP of every row, in rank form where no scores tie."""
    ranks = np.argsort(np.argsort(-scores, axis=1), axis=1)[:, positive] + 1
    plain = (np.arange(1, positive.sum() + 1) / np.sort(ranks, axis=1)).mean(axis=1)
    tied = [i for i, row in enumerate(scores) if len(np.unique(row)) < len(row)]
    plain[tied] = [ap(positive, scores[i]) for i in tied]
    return plain


def inside(block: Any, kind: str, relation: str, draw: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """(positive, member) of a column as masks."""
    (row,) = (
        i
        for i, c in enumerate(block.columns)
        if (c.kind, c.relation, c.draw) == (kind, relation, draw)
    )
    return block.positive_matrix()[row], block.member_matrix()[row]


# -- ground truth ------------------------------------------------------------------------------


def test_the_planted_detector_comes_first_and_the_carrier_next(units: Setting) -> None:
    for relation, detector in units.planted.detectors.items():
        first, second = ranking(units.found, relation, 2)
        assert first == detector
        assert second == units.planted.carriers[relation]
        assert units.found.score[units.found.row(relation)][detector.layer, detector.index] == 1.0


def test_the_detector_stays_perfect_on_new_subjects_in_new_wordings(units: Setting) -> None:
    for relation, at in units.planted.detectors.items():
        row = units.found.row(relation)
        assert units.found.ap_same[row, at.layer, at.index] == pytest.approx(1)
        assert units.found.ap_new[row, at.layer, at.index] == pytest.approx(1)


def test_every_relation_of_the_planted_model_passes(units: Setting) -> None:
    for one in verdicts(units.found):
        assert one.found
        assert one.text == FOUND
        assert one.p == 1 / 41
        assert one.score > one.limit
        assert one.ap_new == pytest.approx(1, abs=0.05)


def test_on_a_null_model_no_relation_passes(null: Setting) -> None:
    for one in verdicts(null.found):
        assert not one.found
        assert one.text == NOTHING_FOUND == "no relation-specific set found"


def test_a_unit_turned_upside_down_scores_the_same_with_the_other_sign(units: Setting) -> None:
    relation, detector = next(iter(units.planted.detectors.items()))
    module = planted_units_model(dtype=torch.float32).module
    with torch.no_grad():  # the neuron's output is gate times up: a negated up negates it
        module.model.layers[detector.layer].mlp.up_proj.weight[detector.index] *= -1
    model = wrap(module, units.planted.tokenizer)
    found = find_relation_neurons(model, units.design)
    row = found.row(relation)
    assert units.found.sign[row, detector.layer, detector.index] == 1
    assert found.sign[row, detector.layer, detector.index] == -1
    assert found.score[row, detector.layer, detector.index] == 1.0
    assert ranking(found, relation, 1) == (detector,)
    assert neuron_set(found, relation, model).neurons[0].role == "low"


# -- what the numbers are ------------------------------------------------------------------------


def test_the_score_is_the_worst_wordings_ap_for_the_better_sign(
    units: Setting, pooled: Any
) -> None:
    found, relation = units.found, "teacher"
    row = found.row(relation)
    values = [pooled(block.prompts) for block in units.design.find_blocks]
    for layer, unit in ((0, 3), (0, 92), (1, 17), (1, 200)):
        signs = []
        for sign in (1, -1):
            by_wording = [
                ap(inside(block, "relation", relation)[0], sign * x[layer, unit].numpy())
                for block, x in zip(units.design.find_blocks, values, strict=True)
            ]
            signs.append((min(by_wording), sign, by_wording))
        score, sign, by_wording = max(signs)
        assert found.score[row, layer, unit] == pytest.approx(score, abs=1e-6)
        assert found.sign[row, layer, unit] == sign
        assert np.allclose(found.ap[row, :, layer, unit], by_wording, atol=1e-6)


def test_halves_resamples_and_pseudo_relations_have_the_same_statistic(
    units: Setting, pooled: Any
) -> None:
    found, blocks = units.found, units.design.find_blocks
    values = [pooled(block.prompts).flatten(0, 1).numpy() for block in blocks]

    def scores(kind: str, relation: str, draw: int) -> np.ndarray:
        worst = np.full((2, found.n_total), np.inf)
        for block, x in zip(blocks, values, strict=True):
            positive, member = inside(block, kind, relation, draw)
            for i, sign in enumerate((1, -1)):
                found_here = aps(positive[member], sign * x[:, member])
                worst[i] = np.minimum(worst[i], found_here)
        return worst.max(axis=0)

    half = scores("half", "spouse", 1)
    assert np.allclose(found.half[1, found.row("spouse")].ravel(), half, atol=1e-6)
    pseudo = next(c for c in blocks[0].columns if c.kind == "pseudo")
    highest = np.sort(scores("pseudo", pseudo.relation, pseudo.draw))[::-1][: found.k]
    assert found.pseudo[0] == pseudo.relation
    assert np.allclose(found.pseudo_scores[0], highest, atol=1e-6)
    chosen = np.zeros(found.n_total, dtype=int)
    for draw in range(found.resamples):
        chosen[np.argsort(-scores("resample", "capital", draw), kind="stable")[: found.k]] += 1
    assert np.array_equal(found.selected[found.row("capital")].ravel(), chosen)


def test_length_and_wording_have_an_ap_of_their_own(units: Setting, pooled: Any) -> None:
    found, relation, at = units.found, "harbour", (1, 5)
    row, worst = found.row(relation), []
    for block in units.design.find_blocks:
        positive, member = inside(block, "length", relation)
        x = pooled(block.prompts)[at].numpy()[member]
        worst.append([ap(positive[member], x), ap(positive[member], -x)])
    assert found.length_ap[row][at] == pytest.approx(np.min(worst, axis=0).max(), abs=1e-6)

    (block,) = (b for b in units.design.wording_pairs if b.columns[0].relation == relation)
    x, pairs = pooled(block.prompts)[at].numpy(), []
    for positive, member in zip(block.positive_matrix(), block.member_matrix(), strict=True):
        signs = (ap(positive[member], x[member]), ap(positive[member], -x[member]))
        pairs.append(max(signs))
    assert len(pairs) == 10
    assert found.wording_ap[row][at] == pytest.approx(np.mean(pairs), abs=1e-6)


def test_held_out_aps_are_means_over_wordings_with_the_sign_that_finding_chose(
    units: Setting, pooled: Any
) -> None:
    found, relation, at = units.found, "currency", (1, 9)
    row = found.row(relation)
    tested: dict[bool, list[float]] = {False: [], True: []}
    for block in units.design.test_blocks:
        x = found.sign[row][at] * pooled(block.prompts)[at].numpy()
        new = block.wording in units.design.evaluation
        tested[new].append(ap(inside(block, "relation", relation)[0], x))
    assert (len(tested[False]), len(tested[True])) == (5, 3)
    assert found.ap_same[row][at] == pytest.approx(np.mean(tested[False]), abs=1e-6)
    assert found.ap_new[row][at] == pytest.approx(np.mean(tested[True]), abs=1e-6)
    assert found.new_wordings == units.design.evaluation


def test_the_gap_is_in_units_of_the_pooled_standard_deviation(units: Setting, pooled: Any) -> None:
    found, relation, at = units.found, "captain", (1, 30)
    row, gaps, means = found.row(relation), [], []
    for block in units.design.find_blocks:
        x, positive = (
            pooled(block.prompts)[at].double().numpy(),
            inside(block, "relation", relation),
        )
        a, b = x[positive[0]], x[~positive[0]]
        spread = ((a - a.mean()) ** 2).sum() + ((b - b.mean()) ** 2).sum()
        gaps.append((a.mean() - b.mean()) / np.sqrt(spread / (len(x) - 2)))
        means.append((a.mean(), b.mean()))
    assert found.dprime[row][at] == pytest.approx(np.mean(gaps), rel=1e-4)
    assert found.mean_in[row][at] == pytest.approx(np.mean(means, axis=0)[0], rel=1e-4)
    assert found.mean_out[row][at] == pytest.approx(np.mean(means, axis=0)[1], rel=1e-4)


def test_p_of_the_worst_wording_is_doubled_and_adjusted_within_each_relation(
    units: Setting,
) -> None:
    sizes = plan_of(units.design).sizes
    n = units.design.subjects("find")
    assert (sizes == [n, 6 * n]).all()
    grid = np.array([0.2, 0.5, 1.0])[None, None, None, :].repeat(2, axis=1)
    grid[0, 0] = 1.0  # a better wording changes nothing
    p = exchangeable_p(grid.astype(np.float32), sizes[:1, :2])[0, 0]
    random = np.random.default_rng(1)
    ranks = np.argsort(random.random((20_000, 6 * n)), axis=1)[:, :n]
    draws = (np.arange(1, n + 1) / np.sort(ranks + 1, axis=1)).mean(axis=1)
    assert p[0] == pytest.approx(min(1, 2 * (draws >= 0.2).mean()), abs=0.02)
    assert p[0] > p[1] > p[2]
    assert p[2] < 1e-4
    q = adjusted_by_relation(np.array([[[0.01, 0.04]], [[1.0, 1.0]]], np.float32))
    assert np.allclose(q, [[[0.02, 0.04]], [[1.0, 1.0]]])


# -- invariances -----------------------------------------------------------------------------------


def blocks_of_layers(setting: Setting, memory_bytes: int) -> int:
    plan, n_units = plan_of(setting.design), setting.model.anatomy.n_units(Site.NEURON)
    return -(-2 // min(2, search._layers_at_once(plan, n_units, memory_bytes)))


def test_nothing_depends_on_how_many_layers_fit_the_memory(units: Setting) -> None:
    plan, n_units = plan_of(units.design), units.model.anatomy.n_units(Site.NEURON)
    least = n_units * plan.unit_bytes * 4 // 3 + 4
    assert blocks_of_layers(units, least) == 2
    assert blocks_of_layers(units, 2**31) == 1
    assert same(find_relation_neurons(units.model, units.design, memory_bytes=least), units.found)


def test_too_little_memory_is_refused_with_the_least_that_does(units: Setting) -> None:
    with pytest.raises(MnemoscopeError, match="allow at least") as caught:
        find_relation_neurons(units.model, units.design, memory_bytes=1000)
    least = int(str(caught.value).split("at least ")[1].split(",")[0])
    find_relation_neurons(units.model, units.design, memory_bytes=least)


def test_the_activations_and_scores_in_flight_fit_the_memory(
    units: Setting, monkeypatch: pytest.MonkeyPatch
) -> None:
    held: list[int] = []
    alive: list[weakref.ref[torch.Tensor]] = []

    def counted(*args: Any, **kwargs: Any) -> torch.Tensor:
        assert all(earlier() is None for earlier in alive)  # no two at once
        values = pooled_activations(*args, **kwargs)
        held.append(values.nbytes)
        alive.append(weakref.ref(values))
        return values

    monkeypatch.setattr(search, "pooled_activations", counted)
    least = 256 * plan_of(units.design).unit_bytes * 4 // 3 + 4
    find_relation_neurons(units.model, units.design, memory_bytes=least)
    assert max(held) <= least * 3 // 4
    assert len(held) == 2 * (1 + len(units.design.test_blocks))


class ProcessDiedError(Exception):
    """The process dies."""


def dying_model(model: HookedModel, runs: int) -> Iterator[None]:
    """Let a few batches through, then die."""
    for _ in range(runs):
        yield
    raise ProcessDiedError


def test_resumed_equals_uninterrupted(
    units: Setting, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    least = 256 * plan_of(units.design).unit_bytes * 4 // 3 + 4  # a layer at a time
    go = partial(find_relation_neurons, units.model, units.design)
    calls = dying_model(units.model, 1 + len(units.design.test_blocks) + 2)

    def until_it_dies(*args: Any, **kwargs: Any) -> torch.Tensor:
        next(calls)
        return pooled_activations(*args, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(search, "pooled_activations", until_it_dies)
        with pytest.raises(ProcessDiedError), open_run(tmp_path, "relation-neurons", CONFIG) as run:
            go(memory_bytes=least, run=run)
    told: list[tuple[int, int]] = []
    with open_run(tmp_path, "relation-neurons", CONFIG) as run:
        assert list(run.done) == ["relation-neurons-000"]
        resumed = go(run=run, progress=lambda done, total: told.append((done, total)))
        assert list(run.done) == ["relation-neurons-000", "relation-neurons-001"]
    assert same(resumed, units.found)
    assert told[-1] == (plan_of(units.design).n_prompts,) * 2  # one layer was left
    with monkeypatch.context() as patch:
        patch.setattr(search, "pooled_activations", None)  # all is read back
        with open_run(tmp_path, "relation-neurons", CONFIG) as run:
            assert same(go(run=run), units.found)


def test_a_run_of_another_search_is_refused(units: Setting, tmp_path: Path) -> None:
    with open_run(tmp_path, "relation-neurons", CONFIG) as run:
        find_relation_neurons(units.model, units.design, run=run)
        with pytest.raises(MnemoscopeError, match="another design, site, pooling or k"):
            find_relation_neurons(units.model, units.design, k=7, run=run)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_the_same_on_a_gpu_but_for_rounding(units: Setting) -> None:
    module = planted_units_model(dtype=torch.float32).module.to("cuda")
    found = find_relation_neurons(wrap(module, units.planted.tokenizer), units.design)
    close = np.isclose(found.score, units.found.score, atol=1e-3)
    assert close.mean() > 0.98  # rounding may swap two prompts of one score
    for relation, detector in units.planted.detectors.items():
        assert ranking(found, relation, 1) == (detector,)


def test_other_sites_poolings_and_sizes(units: Setting) -> None:
    found = find_relation_neurons(
        units.model, units.design, site=Site.MLP_OUT, pooling="mean_all", k=3
    )
    assert found.score.shape == (6, 2, units.model.anatomy.d_model)
    assert found.k == 3
    assert ranking(found, "spouse", 1)[0].site is Site.MLP_OUT
    assert neuron_set(found, "spouse", units.model).ids == ranking(found, "spouse", 3)
    with pytest.raises(MnemoscopeError, match="k=0"):
        find_relation_neurons(units.model, units.design, k=0)
    with pytest.raises(UnsupportedSiteError):
        find_relation_neurons(wrap(tiny("gpt2")), units.design, site=Site.UP)


def test_a_design_without_extras_leaves_gaps_instead_of_guesses(units: Setting) -> None:
    bare = build_design(units.planted.relations, subjects=4, pseudo=0, resamples=0, seed=0)
    bare = replace(bare, blocks=bare.find_blocks, wording_pairs=())
    found = find_relation_neurons(units.model, bare)
    assert np.isnan(found.ap_new).all()
    assert np.isnan(found.wording_ap).all()
    assert {one.text for one in verdicts(found)} == {
        "not tested: the design has no pseudo-relations"
    }
    assert wording_tax(found)["shared_new"].null_count() == 6
    assert table(found)["ap_new"].null_count() == len(table(found))
    assert stable_core(found, "capital") == ()


# -- tables ----------------------------------------------------------------------------------


def test_ties_go_by_new_wordings_then_by_the_gap_then_by_place(units: Setting) -> None:
    one = np.array
    grids = {
        "score": one([[[0.5, 0.5, 0.5], [0.9, 0.5, 0.5]]]),
        "ap_new": one([[[0.1, 0.4, 0.2], [0.0, 0.2, 0.2]]]),
        "dprime": one([[[9.0, 0.0, 1.0], [0.0, -2.0, 1.0]]]),
        "sign": one([[[1, 1, 1], [1, -1, 1]]], np.int8),
        "q": one([[[0.5, 0.5, 0.5], [0.0, 0.5, 0.5]]]),
        "half": np.full((2, 1, 2, 3), np.nan),
        "selected": np.zeros((1, 2, 3), np.int16),
    }
    found = replace(units.found, relations=("capital",), k=3, **grids)
    expected = [(1, 0), (0, 1), (1, 1), (0, 2), (1, 2), (0, 0)]
    assert ranking(found, "capital") == tuple(NeuronId(*at) for at in expected)
    assert stability(found)["tied_at_cut"].item() == 5
    assert stability(replace(found, k=1))["tied_at_cut"].item() == 0


def test_the_set_is_the_top_of_the_ranking_with_its_scores(units: Setting) -> None:
    for relation in units.found.relations:
        chosen = neuron_set(units.found, relation, units.model, run_id="run-1")
        assert chosen.ids == ranking(units.found, relation, units.found.k)
        assert chosen.run_id == "run-1"
        first = chosen.neurons[0]
        row = units.found.row(relation)
        assert first.score == units.found.score[row, first.neuron.layer, first.neuron.index]
        assert first.role == "high"
        assert stable_core(units.found, relation)[0] == first.neuron


def test_the_table_has_the_top_and_a_uniform_sample(units: Setting) -> None:
    rows = table(units.found, sample=50, seed=3)
    assert len(rows) == 6 * (units.found.k + 50)
    mine = rows.filter(rows["relation"] == "teacher")
    assert mine["rank"].to_list() == sorted(mine["rank"].to_list())
    assert mine["in_set"].sum() == units.found.k
    assert (mine["score"].diff().drop_nulls() <= 0).all()
    top = mine.row(0, named=True)
    assert (top["layer"], top["unit"]) == (0, units.planted.detectors["teacher"].index)
    assert top["score"] == min(top[f"ap_{w.replace(' ', '_')}"] for w in units.found.wordings)
    assert top["p_pseudo"] == 1 / 41
    assert mine.filter(~mine["in_set"])["p_pseudo"].null_count() == 50
    assert rows.equals(table(units.found, sample=50, seed=3))


def test_overlaps_stand_beside_chance_and_their_ceiling(units: Setting) -> None:
    found = units.found
    rows = overlaps(found)
    assert len(rows) == 15
    assert rows["chance"].unique().to_list() == [found.k**2 / 512]
    tops = {name: set(ranking(found, name, found.k)) for name in found.relations}
    own = dict(zip(found.relations, stability(found)["shared_halves"], strict=True))
    for row in rows.iter_rows(named=True):
        a, b = row["relation"], row["other"]
        assert row["shared"] == len(tops[a] & tops[b])
        assert row["ceiling"] == pytest.approx(np.sqrt(own[a] * own[b]))


def test_the_tax_is_what_new_wordings_cost_the_top(units: Setting) -> None:
    found = units.found
    for row in wording_tax(found).iter_rows(named=True):
        i = found.row(row["relation"])
        tops = ranking(found, row["relation"], found.k)
        same_ap, new_ap = (
            np.mean([grid[i, at.layer, at.index] for at in tops])
            for grid in (found.ap_same, found.ap_new)
        )
        assert row["tax"] == pytest.approx(same_ap - new_ap, abs=1e-6)
        ids = {at.layer * found.n_units + at.index for at in tops}
        assert row["shared_new"] == len(ids & set(found.top_new[i].tolist()))


def test_layers_add_up_to_the_set(units: Setting) -> None:
    counts = layer_counts(units.found)
    assert counts.tolist() == [[2, 0]] * 6


def test_unknown_relations_are_named(units: Setting) -> None:
    with pytest.raises(MnemoscopeError, match="choose among capital"):
        ranking(units.found, "capitol")


# -- nulls -----------------------------------------------------------------------------------


def test_the_bar_is_the_95th_percentile_of_the_pseudo_relations() -> None:
    pseudo = np.linspace(0, 1, 101)
    assert verdict("r", 0.951, pseudo, 0.5).found
    assert not verdict("r", 0.95, pseudo, 0.5).found
    assert verdict("r", 0.951, pseudo, 0.5).p == pytest.approx(6 / 102)
    assert verdict("r", 2.0, pseudo, 0.5).p == pytest.approx(1 / 102)
    forty = np.arange(40.0)
    assert not verdict("r", 37.5, forty, 0.5).found  # between the third and the second highest
    assert verdict("r", 38.5, forty, 0.5).found
    assert verdict("r", 38.5, forty, 0.5).p < 0.05


def test_the_best_of_all_layers_come_from_each_layers_best() -> None:
    random = np.random.default_rng(0)
    values = random.integers(0, 20, (4, 3, 50)) / 20  # many ties
    layers = []
    for layer in range(3):
        top, at = best_units(values[:, layer], 10)
        layers.append({"score": values[:, layer], "top_values": top, "top_units": at})
    best, ids = merged_tops(layers, 10)
    flat = values.reshape(4, -1)
    expected = np.argsort(-flat, axis=1, kind="stable")[:, :10]
    assert np.array_equal(ids, expected)
    assert np.array_equal(best, np.take_along_axis(flat, expected, axis=1))


def test_split_halves_count_what_both_select() -> None:
    half = np.array([[[5.0, 4, 3, 2, 1]], [[5.0, 1, 4, 2, 3]]])
    assert split_half(half, 2).shared == 1
    assert split_half(half, 3).shared == 2
    assert split_half(half, 1).spearman == pytest.approx(1 - 6 * (9 + 1 + 4) / (5 * 24))
