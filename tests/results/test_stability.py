"""Stability: planted signal is reliable, noise is not, and ties do not fake agreement."""

import itertools

import numpy as np
import pytest
from mnemoscope.results.errors import StatisticsError
from mnemoscope.results.stability import rank_stability, split_half_reliability, top_k_jaccard
from scipy import stats


def test_split_half_equals_its_slow_twin():
    rng = np.random.default_rng(0)
    values, units = rng.normal(size=(9, 4)) + np.arange(4), [0, 0, 1, 1, 2, 3, 3, 4, 4]
    result = split_half_reliability(values, units, splits=6, seed=1)
    order = np.random.default_rng(1).permuted(np.tile(np.arange(5), (6, 1)), axis=1)
    slow = []
    for places in order:
        first = np.array([places[unit] < 2 for unit in units])
        slow.append(stats.pearsonr(values[first].mean(axis=0), values[~first].mean(axis=0))[0])
    np.testing.assert_allclose(result.half_correlations, slow, atol=1e-12)
    assert result.reliability == pytest.approx(2 * np.mean(slow) / (1 + np.mean(slow)))


def test_reliability_is_what_theory_says():
    # 40 units of signal variance 1 and noise variance 20: reliability 40 / (40 + 20) = 2 / 3.
    rng = np.random.default_rng(0)
    signal = rng.normal(size=4000)
    values = signal + np.sqrt(20) * rng.normal(size=(40, 4000))
    assert split_half_reliability(values, range(40), seed=0).reliability == pytest.approx(
        2 / 3, abs=0.03
    )
    noise = split_half_reliability(rng.normal(size=(40, 4000)), range(40), seed=0)
    assert abs(noise.reliability) < 0.1


def test_a_score_that_is_the_same_everywhere_has_no_reliability():
    assert np.isnan(split_half_reliability(np.zeros((4, 3)), range(4), seed=0).reliability)
    rows = np.repeat(np.random.default_rng(0).normal(size=(7, 1)), 33, axis=1)
    assert np.isnan(split_half_reliability(rows, range(7), seed=0).half_correlations).all()
    with pytest.raises(StatisticsError, match="two at least"):
        split_half_reliability(np.zeros((4, 1)), range(4), seed=0)


def test_rank_stability_is_spearman_of_every_pair():
    vectors = [np.random.default_rng(i).integers(0, 5, size=(3, 4)) for i in range(3)]
    result = rank_stability(vectors)
    pairs = list(itertools.combinations(range(3), 2))
    expected = {
        (i, j): stats.spearmanr(vectors[i].ravel(), vectors[j].ravel()).statistic for i, j in pairs
    }
    for (i, j), value in expected.items():
        assert result.matrix[i, j] == pytest.approx(value)
        assert result.matrix[j, i] == result.matrix[i, j]
    assert result.mean == pytest.approx(np.mean(list(expected.values())))
    with pytest.raises(StatisticsError, match="two or more"):
        rank_stability(vectors[:1])


def test_top_k_jaccard_against_a_permutation_null():
    rng = np.random.default_rng(0)
    a = rng.normal(size=60)
    b = a + 0.8 * rng.normal(size=60)
    result = top_k_jaccard(a, b, 12, seed=0)
    top = [set(np.argsort(-vector)[:12].tolist()) for vector in (a, b)]
    assert result.value == len(top[0] & top[1]) / len(top[0] | top[1])
    overlaps = np.array(
        [len(top[0] & set(np.argsort(-rng.permutation(b))[:12].tolist())) for _ in range(4000)]
    )
    assert result.null_mean == pytest.approx((overlaps / (24 - overlaps)).mean(), abs=0.005)
    assert result.p == pytest.approx((overlaps >= len(top[0] & top[1])).mean(), abs=0.005)


def test_zeros_do_not_agree_by_their_order():
    zeros = [top_k_jaccard(np.zeros(200), np.zeros(200), 20, seed=seed) for seed in range(100)]
    assert np.mean([one.value for one in zeros]) == pytest.approx(zeros[0].null_mean, abs=0.02)
    assert np.mean([one.p < 0.05 for one in zeros]) < 0.12


def test_k_must_fit():
    assert top_k_jaccard(np.arange(3), np.arange(3), 3, seed=0).value == 1.0
    for k in (0, 4):
        with pytest.raises(StatisticsError, match="top"):
            top_k_jaccard(np.arange(3), np.arange(3), k, seed=0)
