"""One table for all methods: rank correlations with intervals, overlap of the tops against chance,
and gates of key/value heads beside scores of query heads."""

from __future__ import annotations

import numpy as np
import pytest
from mnemoscope.models.types import HeadId
from mnemoscope.probes.method_comparison import (
    auc_of,
    compare_methods,
    gate_agreement,
    listed_scores,
    on_kv_heads,
    on_query_heads,
    ranking_of,
)
from mnemoscope.results.errors import StatisticsError
from scipy import stats

RNG = np.random.default_rng(0)
BASE = RNG.normal(size=(12, 10))
SCORES = {
    "base": BASE,
    "monotone": np.exp(3 * BASE),
    "noisy": BASE + RNG.normal(size=BASE.shape),
    "other": RNG.normal(size=BASE.shape),
    "opposite": -BASE,
}


def test_rank_correlations_are_spearmans() -> None:
    found = compare_methods(SCORES, k=10)
    flat = np.stack([grid.ravel() for grid in SCORES.values()])
    expected = stats.spearmanr(flat, axis=1).statistic
    np.testing.assert_allclose(found.spearman, expected, atol=1e-12)


def test_intervals_hold_the_value_and_tell_agreement_from_none() -> None:
    found = compare_methods(SCORES, k=10)
    assert ((found.low <= found.spearman + 1e-9) & (found.spearman <= found.high + 1e-9)).all()
    noisy, other = (found.methods.index(name) for name in ("noisy", "other"))
    assert found.low[0, noisy] > 0.3
    assert found.low[0, other] < 0 < found.high[0, other]


def test_the_interval_covers_the_correlation_of_the_population() -> None:
    truth = stats.spearmanr(*RNG.multivariate_normal([0, 0], [[1, 0.6], [0.6, 1]], 20_000).T)[0]
    inside = 0
    for seed in range(60):
        pair = np.random.default_rng(seed).multivariate_normal([0, 0], [[1, 0.6], [0.6, 1]], 80)
        found = compare_methods({"a": pair[None, :, 0], "b": pair[None, :, 1]}, k=5, seed=seed)
        inside += found.low[0, 1] <= truth <= found.high[0, 1]
    assert inside >= 52  # of 60; fewer than 1 in 100 times by chance at a level of 0.95


def test_overlap_of_the_tops_and_its_chance() -> None:
    found = compare_methods(SCORES, k=10)
    assert found.jaccard[0].tolist()[:2] == [1.0, 1.0]
    assert found.jaccard[0, 4] == 0
    shared = len(set(ranking_of(SCORES["base"], 10)) & set(ranking_of(SCORES["noisy"], 10)))
    assert found.jaccard[0, 2] == shared / (20 - shared)
    assert found.p[0, 2] == pytest.approx(stats.hypergeom(120, 10, 10).sf(shared - 1))
    assert found.p[0, 4] == 1


def test_auc_of_one_methods_top_under_another() -> None:
    found = compare_methods(SCORES, k=10)
    top = set(ranking_of(SCORES["base"], 10))
    heads = [HeadId(int(layer), int(head)) for layer, head in np.ndindex(BASE.shape)]
    wins = [
        SCORES["noisy"][a.layer, a.head] > SCORES["noisy"][b.layer, b.head]
        for a in top
        for b in heads
        if b not in top
    ]
    assert found.auc[0, 2] == pytest.approx(np.mean(wins))
    assert found.auc[0, 1] == 1
    assert found.auc[0, 4] == 0


def test_ties_count_half() -> None:
    assert auc_of(np.array([1.0, 1.0, 1.0]), np.array([True, False, False])) == 0.5


def test_heads_without_a_score_are_left_out_of_all_pairs() -> None:
    holes = {name: grid.copy() for name, grid in SCORES.items()}
    holes["other"][3] = np.nan
    found = compare_methods(holes, k=10)
    kept = {name: np.delete(grid, 3, axis=0) for name, grid in SCORES.items()}
    assert found.n_heads == 110
    np.testing.assert_array_equal(found.spearman, compare_methods(kept, k=10).spearman)


def test_the_table_has_a_row_for_each_pair() -> None:
    table = compare_methods({**SCORES, "flat": np.ones_like(BASE)}, k=10).table()
    assert len(table) == 15
    assert table.row(0, named=True)["spearman"] is None or table["spearman"].drop_nulls().max() == 1
    flat = table.filter((table["method"] == "flat") | (table["other"] == "flat"))
    assert flat["spearman"].null_count() == 5


@pytest.mark.parametrize("k", [0, 120])
def test_a_top_that_is_none_or_all_is_refused(k: int) -> None:
    with pytest.raises(StatisticsError, match="choose k from 1 to 119"):
        compare_methods(SCORES, k=k)


def test_grids_of_different_models_are_refused() -> None:
    with pytest.raises(StatisticsError, match="one model"):
        compare_methods({"a": BASE, "b": BASE[:3]}, k=2)


def test_a_ranking_puts_the_highest_first_and_leaves_out_what_has_no_score() -> None:
    grid = np.array([[1.0, np.nan], [5.0, 1.0]])
    assert ranking_of(grid, 3) == (HeadId(1, 0), HeadId(0, 0), HeadId(1, 1))
    with pytest.raises(StatisticsError, match="3 heads have a score"):
        ranking_of(grid, 4)


# -- key/value heads -------------------------------------------------------------------------------


def test_query_heads_and_key_value_heads() -> None:
    gates = np.array([[0.1, 0.9]])
    assert on_query_heads(gates, 4).tolist() == [[0.1, 0.1, 0.9, 0.9]]
    scores = np.array([[0.0, 0.3, np.nan, np.nan]])
    np.testing.assert_array_equal(on_kv_heads(scores, 2), [[0.3, np.nan]])
    with pytest.raises(StatisticsError, match="do not divide"):
        on_query_heads(gates, 5)


def test_gates_beside_scores() -> None:
    """Two heads on, with gates 1 and 0.6; three off, with 0.5, 0.7 and 0."""
    gates = np.array([[1.0, 0.5, 0.0], [0.6, 0.7, 0.2]])
    scores = np.array([[0.0, 0.9, 0.0, 0.05, 0, 0], [0.1, 0.0, 0.09, 0, np.nan, np.nan]])
    found = gate_agreement(gates, scores)
    assert (found.on, found.total) == (2, 5)
    assert found.gate_on == pytest.approx(0.8)
    assert found.gate_off == pytest.approx(0.4)
    assert found.auc == pytest.approx(5 / 6)
    best = np.array([0.9, 0.05, 0.0, 0.1, 0.09])
    assert found.spearman == pytest.approx(
        stats.spearmanr(best, [1.0, 0.5, 0.0, 0.6, 0.7]).statistic
    )


def test_gates_where_no_head_scores_have_no_auc() -> None:
    assert np.isnan(gate_agreement(np.ones((1, 2)), np.zeros((1, 4))).auc)


# -- lists -----------------------------------------------------------------------------------------


def test_a_bare_list_ranks_its_heads_above_all_others() -> None:
    heads = (HeadId(1, 0), HeadId(0, 1))
    grid = listed_scores(heads, 2, 2)
    assert grid.tolist() == [[0, 1], [2, 0]]
    assert ranking_of(grid, 2) == heads


@pytest.mark.parametrize("heads", [(), (HeadId(2, 0),), (HeadId(0, 0), HeadId(0, 0))])
def test_a_list_that_does_not_fit_is_refused(heads: tuple[HeadId, ...]) -> None:
    with pytest.raises(StatisticsError, match="each once"):
        listed_scores(heads, 2, 2)
