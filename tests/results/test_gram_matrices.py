"""What inner products say: kappa, cosines, and how many directions vectors spread in."""

from __future__ import annotations

import numpy as np
import pytest
from mnemoscope.results.gram_matrices import (
    cosines,
    effective_rank,
    gram,
    participation_ratio,
    relative,
    variances,
)


def test_kappa_is_the_inner_product_in_units_of_the_first_ones_squared_length() -> None:
    inner = gram(np.array([[3.0, 4.0], [6.0, 8.0], [-4.0, 3.0]]))
    assert relative(inner) == pytest.approx(np.array([[1, 2, 0], [0.5, 1, 0], [0, 0, 1]]))
    assert cosines(inner) == pytest.approx(np.array([[1, 1, 0], [1, 1, 0], [0, 0, 1]]))


def test_a_vector_of_zeros_overlaps_with_nothing() -> None:
    inner = gram(np.array([[0.0, 0.0], [1.0, 2.0]]))
    assert relative(inner)[0].tolist() == [0, 0]
    assert cosines(inner)[0].tolist() == [0, 0]


@pytest.mark.parametrize(("n", "d"), [(40, 7), (7, 40)])
def test_variances_are_the_squared_singular_values_of_centred_rows(n: int, d: int) -> None:
    x = np.random.default_rng(0).normal(size=(2, 3, n, d)) + 5
    found = variances(x)
    centred = x[1, 2] - x[1, 2].mean(0)
    singular = np.linalg.svd(centred, compute_uv=False)
    assert found.shape == (2, 3, 7)
    assert found[1, 2] == pytest.approx(singular**2 / n, abs=1e-10)


def test_k_equal_axes_have_rank_k_by_both_measures() -> None:
    axes = np.eye(10)[:4] * 3
    rows = np.concatenate([axes, -axes]) + 100
    assert effective_rank(variances(rows)) == pytest.approx(4)
    assert participation_ratio(variances(rows)) == pytest.approx(4)


def test_unequal_axes_have_the_rank_of_their_entropy() -> None:
    share = np.array([0.7, 0.2, 0.1])
    assert effective_rank(5 * share) == pytest.approx(np.exp(-(share * np.log(share)).sum()))
    assert participation_ratio(5 * share) == pytest.approx(1 / (share**2).sum())
    assert participation_ratio(share) < effective_rank(share)


def test_equal_rows_have_no_rank_whatever_their_rounding() -> None:
    same = np.tile(np.random.default_rng(0).normal(size=16) * 1e3, (50, 1))
    assert effective_rank(variances(same)) == 0
    assert participation_ratio(variances(same)) == 0
