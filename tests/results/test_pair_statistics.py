"""Statistics of pairs of entities: the entities are drawn and renamed, never the pairs."""

from __future__ import annotations

import numpy as np
import pytest
from mnemoscope.results.errors import StatisticsError
from mnemoscope.results.pair_statistics import (
    pair_correlation,
    pair_gap_p,
    pair_mean,
    renamed_sums,
)
from mnemoscope.results.statistics import bootstrap_weights


def table(n: int, seed: int, entity_effect: float = 0.0) -> np.ndarray:
    """Noise, and an effect of each row's and each column's entity: pairs are not independent."""
    generator = np.random.default_rng(seed)
    effect = entity_effect * generator.normal(size=n)
    return np.asarray(generator.normal(size=(n, n)) + effect[:, None] + effect)


def groups(n: int, seed: int) -> np.ndarray:
    label = np.random.default_rng(seed).integers(0, 3, n)
    return np.asarray(label[:, None] == label) & ~np.eye(n, dtype=bool)


# -- the mean of a class of pairs -----------------------------------------------------------------


def test_the_mean_is_over_counted_pairs_of_different_entities() -> None:
    values = table(6, 0)
    counted = np.ones((6, 6), dtype=bool)
    counted[2, 4] = False
    found = pair_mean(values[None], counted, seed=0)
    counted &= ~np.eye(6, dtype=bool)
    assert found.mean == pytest.approx([values[counted].mean()])
    assert found.n_units == 6


def test_a_pair_counts_as_often_as_both_of_its_entities_were_drawn() -> None:
    values, counted, rows = table(5, 1)[:3], np.ones((3, 5), dtype=bool), np.array([1, 4, 2])
    draws = bootstrap_weights(range(5), draws=50, seed=3)
    means = []
    for drawn in draws:
        weight = drawn[rows][:, None] * drawn * (rows[:, None] != np.arange(5))
        if weight.sum():
            means.append((weight * values).sum() / weight.sum())
    found = pair_mean(values[None], counted, rows=rows, draws=50, level=0.9, seed=3)
    assert [found.low[0], found.high[0]] == pytest.approx(np.quantile(means, [0.05, 0.95]).tolist())


def test_intervals_hold_the_truth_where_pairs_share_entities_and_cells_would_not() -> None:
    held, by_cells = 0, 0
    for seed in range(100):
        values = table(30, seed, entity_effect=1.0)
        found = pair_mean(values[None], np.ones((30, 30), bool), draws=200, seed=seed)
        held += found.low[0] <= 0 <= found.high[0]
        cells = values[~np.eye(30, dtype=bool)]
        by_cells += abs(cells.mean()) <= 1.96 * cells.std() / np.sqrt(len(cells))
    assert held >= 88
    assert by_cells <= 50


def test_a_mean_of_no_pair_or_of_no_number_is_refused() -> None:
    with pytest.raises(StatisticsError, match="there must be one"):
        pair_mean(np.ones((1, 3, 3)), np.eye(3, dtype=bool), seed=0)
    with pytest.raises(StatisticsError, match="finite"):
        pair_mean(np.full((1, 3, 3), np.nan), np.ones((3, 3), bool), seed=0)
    with pytest.raises(StatisticsError, match="do not fit"):
        pair_mean(np.ones((1, 3, 3)), np.ones((3, 4), bool), seed=0)


# -- do two classes differ? -----------------------------------------------------------------------


def test_renamed_sums_rename_rows_and_columns_alike() -> None:
    values, weights = table(4, 0)[None], table(4, 1)[None]
    found = renamed_sums(values, weights, draws=3, seed=5)
    generator = np.random.default_rng(5)
    for draw in found:
        new = generator.permutation(4)
        assert draw[0, 0] == pytest.approx((weights[0][np.ix_(new, new)] * values[0]).sum())


def test_a_planted_difference_of_classes_is_found_and_its_sign_does_not_matter() -> None:
    same = groups(30, 0)
    values = table(30, 1, entity_effect=1.0) + same
    p = pair_gap_p(np.stack([values, -values, table(30, 2)]), same, ~same, draws=300, seed=0)
    assert p[0] < 0.01
    assert p[1] == p[0]
    assert p[2] > 0.05


def test_entities_that_differ_are_no_difference_of_classes() -> None:
    p = [
        pair_gap_p(table(24, s, 1.0)[None], groups(24, s + 500), ~groups(24, s + 500), draws=99,
                   seed=s)[0]
        for s in range(200)
    ]  # fmt: skip
    assert 0.01 <= np.mean(np.array(p) <= 0.05) <= 0.10
    assert 0.4 <= np.mean(p) <= 0.6


# -- correlations ---------------------------------------------------------------------------------


def test_the_correlation_is_over_pairs_of_different_entities() -> None:
    x, y = table(12, 0), table(12, 1)
    rows = np.array([3, 7, 0, 11])
    found = pair_correlation(x[None], y[rows], rows=rows, draws=50, seed=0)
    counted = rows[:, None] != np.arange(12)
    expected = np.corrcoef(x[rows][counted], y[rows][counted])[0, 1]
    assert found.r == pytest.approx([expected])
    assert found.r2 == pytest.approx([expected**2])
    assert found.n_pairs == 44


def test_its_interval_repeats_pairs_as_drawn() -> None:
    x, y = table(8, 0), table(8, 1)
    found = pair_correlation(x[None], y, draws=40, level=0.8, seed=2)
    spread = []
    for drawn in bootstrap_weights(range(8), draws=40, seed=2):
        weight = (np.outer(drawn, drawn) * ~np.eye(8, dtype=bool)).ravel()
        spread.append(np.corrcoef(x.ravel().repeat(weight), y.ravel().repeat(weight))[0, 1])
    assert [found.low[0], found.high[0]] == pytest.approx(np.quantile(spread, [0.1, 0.9]).tolist())


def test_a_planted_predictor_is_found_among_layers_that_say_nothing() -> None:
    outcome = table(30, 0, entity_effect=1.0)
    layers = np.stack([table(30, 1, 1.0), outcome + table(30, 2), table(30, 3, 1.0)])
    found = pair_correlation(layers, outcome, draws=300, seed=0)
    assert int(found.r2.argmax()) == 1
    assert found.r2[1] > 5 * found.null[1]
    assert found.p[1] < 0.01
    assert found.p_any < 0.01
    assert found.low[1] > 0
    assert found.p[0] > 0.05


def test_a_null_whose_entities_differ_is_found_no_more_often_than_promised() -> None:
    found = [
        pair_correlation(
            np.stack([table(20, s, 1.0), table(20, s + 300, 1.0)]),
            table(20, s + 700, 1.0),
            draws=59,
            seed=s,
        )
        for s in range(80)
    ]
    assert np.mean([one.p[0] <= 0.05 for one in found]) <= 0.10
    assert np.mean([one.p_any <= 0.05 for one in found]) <= 0.10


def test_a_constant_predictor_goes_with_nothing_and_a_constant_outcome_is_refused() -> None:
    flat = np.full((1, 6, 6), 0.1) * np.ones((1, 6, 1))
    found = pair_correlation(flat, table(6, 0), draws=20, seed=0)
    assert found.r.tolist() == [0]
    assert found.p.tolist() == [1]
    with pytest.raises(StatisticsError, match="outcomes that differ"):
        pair_correlation(table(6, 0)[None], np.ones((6, 6)), seed=0)
