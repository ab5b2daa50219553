"""Statistics against slow twins that loop over the same resamples, and against scipy."""

import itertools

import numpy as np
import pytest
from mnemoscope.results import statistics
from mnemoscope.results.errors import StatisticsError
from mnemoscope.results.statistics import (
    benjamini_hochberg,
    bootstrap_mean,
    bootstrap_p,
    bootstrap_weights,
    mcnemar,
    paired_difference,
    sign_flip_p,
    wilson,
)
from scipy import stats

UNITS = ["Ada", "Bo", "Ada", ("c", 1), "Bo", "Ada", 7, 7]


def sample(shape=(8, 2, 3), seed=0):
    return np.random.default_rng(seed).normal(0.3, 1.0, shape)


def slow_bootstrap(values, units, draws, seed):
    """Repeat each row as often as its unit was drawn, and take the mean."""
    weights = bootstrap_weights(units, draws=draws, seed=seed)
    return np.array([np.repeat(values, weight, axis=0).mean(axis=0) for weight in weights])


def test_bootstrap_equals_its_slow_twin():
    values = sample()
    means = slow_bootstrap(values, UNITS, 200, seed=3)
    interval = bootstrap_mean(values, UNITS, draws=200, level=0.9, seed=3)
    np.testing.assert_allclose(interval.mean, values.mean(axis=0), atol=1e-12)
    np.testing.assert_allclose(interval.low, np.quantile(means, 0.05, axis=0), atol=1e-12)
    np.testing.assert_allclose(interval.high, np.quantile(means, 0.95, axis=0), atol=1e-12)
    assert (interval.n_units, interval.level) == (4, 0.9)
    p = np.minimum((means <= 0).sum(axis=0), (means >= 0).sum(axis=0))
    np.testing.assert_allclose(
        bootstrap_p(values, UNITS, draws=200, seed=3), np.minimum(2 * (p + 1) / 201, 1)
    )


def test_all_rows_of_a_unit_are_drawn_together_and_units_are_drawn_with_replacement():
    weights = bootstrap_weights(UNITS, draws=300, seed=0)
    assert (weights[:, 0] == weights[:, 2]).all()
    assert (weights[:, 0] == weights[:, 5]).all()
    first_rows = weights[:, [0, 1, 3, 6]]
    assert (first_rows.sum(axis=1) == 4).all()
    assert first_rows.mean() == pytest.approx(1.0)
    assert first_rows.max() > 2


def test_blocks_of_cells_change_nothing(monkeypatch):
    values = sample((8, 30))
    whole = bootstrap_mean(values, UNITS, draws=50, seed=1)
    flips = sign_flip_p(values, UNITS, draws=9, seed=1, family_wise=True)
    monkeypatch.setattr(statistics, "_BLOCK", 100)
    blocks = bootstrap_mean(values, UNITS, draws=50, seed=1)
    np.testing.assert_allclose(blocks.low, whole.low, atol=1e-12)
    np.testing.assert_allclose(
        sign_flip_p(values, UNITS, draws=9, seed=1, family_wise=True), flips, atol=1e-12
    )


def test_a_plain_list_of_numbers_gives_numbers():
    interval = bootstrap_mean(np.array([1.0, 2.0, 3.0]), ["a", "b", "c"], seed=0)
    assert float(interval.mean) == 2.0
    assert 1.0 <= float(interval.low) <= 2.0 <= float(interval.high) <= 3.0


def test_the_bootstrap_covers_the_truth_and_rows_taken_for_units_do_not():
    rng = np.random.default_rng(5)
    subjects = np.repeat(np.arange(40), 5)
    covered = {"subject": 0, "row": 0}
    for seed in range(200):
        values = 1.0 + rng.normal(size=40)[subjects] + 0.3 * rng.normal(size=200)
        for name, units in (("subject", subjects.tolist()), ("row", list(range(200)))):
            interval = bootstrap_mean(values, units, draws=300, seed=seed)
            covered[name] += bool(interval.low <= 1.0 <= interval.high)
    assert 0.89 <= covered["subject"] / 200 <= 0.98
    assert covered["row"] / 200 < 0.75


def slow_flip(values, units, signs_of_units):
    """p of every cell and the largest-statistic p, by flipping rows one pattern at a time."""
    names = list(dict.fromkeys(units))
    sums = np.array(
        [sum(v for v, u in zip(values, units, strict=True) if u == name) for name in names]
    )

    def statistic(table):
        return np.abs(table.sum(axis=0)) / np.sqrt((sums**2).sum(axis=0))

    observed = statistic(sums)
    flipped = np.array([statistic(np.array(s)[:, None] * sums) for s in signs_of_units])
    single = (flipped >= observed - 1e-9).mean(axis=0)
    largest = (flipped.max(axis=1)[:, None] >= observed - 1e-9).mean(axis=0)
    return single, largest


def test_sign_flips_are_enumerated_when_there_are_few():
    values = sample((8, 5), seed=2) + np.array([0, 0, 1, 2, 5])
    single, largest = slow_flip(values, UNITS, itertools.product((1, -1), repeat=4))
    np.testing.assert_allclose(sign_flip_p(values, UNITS, draws=16, seed=0), single)
    np.testing.assert_allclose(
        sign_flip_p(values, UNITS, draws=16, seed=0, family_wise=True), largest
    )
    assert (largest >= single).all()
    assert single[-1] == 2 / 16


def test_sign_flips_agree_with_scipy():
    values = sample((12,), seed=8)
    expected = stats.permutation_test(
        (values,), np.mean, permutation_type="samples", n_resamples=np.inf
    ).pvalue
    assert float(sign_flip_p(values, range(12), draws=4096, seed=0)) == pytest.approx(expected)
    assert float(sign_flip_p(values, range(12), draws=3000, seed=0)) == pytest.approx(
        expected, abs=0.04
    )


def test_sign_flip_p_is_uniform_without_an_effect_and_small_with_one():
    rng = np.random.default_rng(1)
    null = rng.normal(size=(30, 400))
    p = sign_flip_p(null, range(30), draws=999, seed=0)
    assert stats.kstest(p, "uniform").pvalue > 0.001
    assert (sign_flip_p(null, range(30), draws=999, seed=0, family_wise=True) > 0.05).all()
    null[:, 7] += 2
    assert sign_flip_p(null, range(30), draws=999, seed=0, family_wise=True)[7] == 1 / 1000
    assert sign_flip_p(np.zeros((4, 2)), range(4), draws=100, seed=0).tolist() == [1, 1]


def test_benjamini_hochberg_is_scipys_and_controls_false_discoveries():
    p = np.random.default_rng(0).uniform(size=(4, 5))
    adjusted = benjamini_hochberg(p)
    np.testing.assert_allclose(adjusted.ravel(), stats.false_discovery_control(p.ravel()))
    ordered = np.sort(p.ravel())
    by_hand = np.minimum.accumulate((ordered * 20 / np.arange(1, 21))[::-1])[::-1]
    np.testing.assert_allclose(np.sort(adjusted.ravel()), np.minimum(by_hand, 1))
    for wrong in ([], [0.5, np.nan], [-0.1], [1.1]):
        with pytest.raises(StatisticsError, match="between 0 and 1"):
            benjamini_hochberg(np.array(wrong))


def test_paired_difference_changes_sign_when_the_roles_swap():
    a, b = sample(seed=1), sample(seed=2)
    forward, backward = (paired_difference(*pair, UNITS, seed=0) for pair in ((a, b), (b, a)))
    np.testing.assert_allclose(forward.interval.mean, (a - b).mean(axis=0), atol=1e-12)
    np.testing.assert_allclose(forward.interval.low, -backward.interval.high, atol=1e-12)
    np.testing.assert_allclose(forward.p, backward.p)
    with pytest.raises(StatisticsError, match="one shape"):
        paired_difference(a, b[:4], UNITS, seed=0)


def test_mcnemar_counts_only_the_items_that_differ():
    a = np.array([1, 1, 1, 1, 1, 1, 0, 1, 0], dtype=bool)
    b = np.array([0, 0, 0, 0, 0, 0, 1, 1, 0], dtype=bool)
    test = mcnemar(a, b)
    assert (test.only_a, test.only_b) == (6, 1)
    assert test.p == pytest.approx(2 * (1 + 7) / 2**7)
    assert mcnemar(a, a).p == 1.0
    with pytest.raises(StatisticsError, match="one length"):
        mcnemar(a, b[:3])


def test_wilson_against_its_formula():
    k, n, z = 7, 20, stats.norm.ppf(0.975)
    centre = (k / n + z**2 / (2 * n)) / (1 + z**2 / n)
    half = z / (1 + z**2 / n) * np.sqrt(k / n * (1 - k / n) / n + z**2 / (4 * n**2))
    interval = wilson(k, n)
    assert (interval.low, interval.high) == pytest.approx((centre - half, centre + half))
    assert wilson(0, 5).low == 0.0
    assert wilson(0, 5).high > 0.3
    for k, n in ((3, 2), (-1, 2), (0, 0)):
        with pytest.raises(StatisticsError, match="no proportion"):
            wilson(k, n)


@pytest.mark.parametrize(
    ("values", "units", "message"),
    [
        (np.zeros((3, 2)), ["a", "b"], "do not fit"),
        (np.zeros((2, 2)), ["a", "a"], "two at least"),
        (np.array([1.0, np.nan]), ["a", "b"], "finite"),
        (np.zeros((2, 0)), ["a", "b"], "finite"),
    ],
)
def test_what_cannot_be_resampled_is_refused(values, units, message):
    for statistic in (bootstrap_mean, bootstrap_p, sign_flip_p):
        with pytest.raises(StatisticsError, match=message):
            statistic(values, units, draws=10, seed=0)


def test_a_level_outside_0_to_1_and_no_draws_are_refused():
    with pytest.raises(StatisticsError, match="level"):
        bootstrap_mean(np.zeros(2), ["a", "b"], level=95, seed=0)
    for statistic in (bootstrap_mean, sign_flip_p):
        with pytest.raises(StatisticsError, match="draws starts at 1"):
            statistic(np.zeros(2), ["a", "b"], draws=0, seed=0)
