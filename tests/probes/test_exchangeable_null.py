"""The null of AP under exchangeable labels: its mean, its tail, and p-values that are uniform."""

from __future__ import annotations

from itertools import combinations

import numpy as np
import pytest
import torch
from mnemoscope.probes.average_precision import average_precision
from mnemoscope.probes.exchangeable_null import expected_ap, null_table, p_value
from mnemoscope.results.errors import StatisticsError
from scipy import stats

FEW = 20_000


def enumerated(positives: int, prompts: int) -> np.ndarray:
    """AP of every order there is."""
    ranks = 1 + np.array(list(combinations(range(prompts), positives)))
    return (np.arange(1, positives + 1) / ranks).mean(axis=1)


def random_labels(positives: int, prompts: int, orders: int, seed: int) -> torch.Tensor:
    keys = torch.rand(orders, prompts, generator=torch.Generator().manual_seed(seed))
    labels = torch.zeros(orders, prompts, dtype=torch.bool)
    return labels.scatter(1, keys.topk(positives, dim=1).indices, True)


@pytest.mark.parametrize(("positives", "prompts"), [(1, 1), (1, 6), (3, 9), (5, 5), (4, 12)])
def test_the_expected_ap_is_the_mean_over_all_orders(positives: int, prompts: int) -> None:
    want = enumerated(positives, prompts).mean()
    assert expected_ap(positives, prompts) == pytest.approx(want, abs=1e-12)


def test_the_expected_ap_is_that_of_the_method() -> None:
    assert expected_ap(50, 250) == pytest.approx(0.21639, abs=5e-6)
    assert expected_ap(250, 1250) == pytest.approx(0.20430, abs=5e-6)
    assert expected_ap(500, 2500) == pytest.approx(0.20237, abs=5e-6)


def test_permuted_labels_average_to_the_expected_ap() -> None:
    scores = torch.randn(1, 250, generator=torch.Generator().manual_seed(1))
    ap = average_precision(scores, random_labels(50, 250, 20_000, seed=2)).above.numpy()
    error = ap.std() / np.sqrt(ap.size)
    assert abs(ap.mean() - expected_ap(50, 250)) < 3 * error


def test_the_table_has_the_mean_and_quantiles_of_the_method() -> None:
    draws = null_table(200, 1000, FEW).draws
    assert abs(draws.mean() - expected_ap(200, 1000)) < 3 * 0.0135 / np.sqrt(FEW)
    assert draws.std() == pytest.approx(0.0135, rel=0.03)
    # Three standard errors of a quantile of 20,000 draws, from the density there.
    assert np.quantile(draws, 0.99) == pytest.approx(0.241, abs=1.5e-3)
    assert np.quantile(draws, 0.999) == pytest.approx(0.257, abs=4e-3)


def test_drawn_orders_are_all_equally_likely() -> None:
    every, draws = np.unique(enumerated(2, 5).round(12)), null_table(2, 5, 50_000).draws
    want = np.bincount(np.searchsorted(every, enumerated(2, 5).round(12)), minlength=len(every))
    got = np.bincount(np.searchsorted(every, draws.round(12)), minlength=len(every))
    assert stats.chisquare(got, want / want.sum() * len(draws)).pvalue > 1e-3


@pytest.mark.parametrize(("positives", "prompts"), [(60, 720), (20, 100)])
def test_p_values_of_permuted_labels_are_uniform(positives: int, prompts: int) -> None:
    table = null_table(positives, prompts)
    scores = torch.randn(1, prompts, generator=torch.Generator().manual_seed(3))
    ap = average_precision(scores, random_labels(positives, prompts, 20_000, seed=4))
    for signed in (ap.above, ap.below):
        p = p_value(table, signed.numpy()[:, 0])
        assert stats.kstest(p, "uniform").pvalue > 1e-3
        assert (p < 1e-2).mean() == pytest.approx(1e-2, rel=0.3)
        assert (p < 1e-3).mean() < 2e-3


def test_the_fitted_tail_agrees_with_many_more_draws() -> None:
    """What 20,000 draws say of 1 in 10,000, against 400,000 draws of another seed."""
    small, large = null_table(30, 240, FEW), null_table(30, 240, 400_000, seed=9)
    for share in (1e-3, 1e-4):
        rare = float(np.quantile(large.draws, 1 - share))
        assert share / 3 < float(p_value(small, rare)) < share * 3


def test_p_never_rises_with_ap_and_never_reaches_zero() -> None:
    table = null_table(60, 720, FEW)
    p = p_value(table, np.linspace(0, 1, 2001))
    assert (np.diff(p) <= 1e-12).all()
    assert p[0] == 1.0
    assert p[-1] > 0
    assert p[-1] < 1e-12
    assert p_value(table, 0.5).shape == ()


def test_a_few_large_atoms_are_counted_not_fitted() -> None:
    table = null_table(1, 12, FEW)
    assert table.tail_share == 0
    assert float(p_value(table, 1.0)) == pytest.approx(1 / 12, rel=0.1)
    assert float(p_value(table, 1 / 12)) == 1.0


def test_a_table_is_drawn_once_and_follows_its_seed() -> None:
    assert null_table(5, 40, 1000) is null_table(5, 40, 1000)
    assert not np.array_equal(null_table(5, 40, 1000, seed=1).draws, null_table(5, 40, 1000).draws)


def test_what_has_no_null_is_refused() -> None:
    with pytest.raises(StatisticsError, match="no AP"):
        expected_ap(0, 10)
    with pytest.raises(StatisticsError, match="no AP"):
        null_table(11, 10)
    with pytest.raises(StatisticsError, match="at least 1,000"):
        null_table(5, 10, draws=10)
    with pytest.raises(StatisticsError, match="between 0 and 1"):
        p_value(null_table(5, 40, 1000), [0.5, np.nan])
