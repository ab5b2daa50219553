"""De-biased linear CKA: the estimator by definition, what leaves it alone, and what it finds."""

from __future__ import annotations

import numpy as np
import pytest
from mnemoscope.probes.representation_alignment import linear_cka
from mnemoscope.results.errors import StatisticsError

LAYERS, N, D = 2, 20, 50


def states(seed: int = 0, noise: float = 1.0) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    content = rng.normal(size=(LAYERS, N, D))
    return content, content + noise * rng.normal(size=(LAYERS, N, D))


def hsic(k: np.ndarray, m: np.ndarray) -> float:
    """Song et al. 2012, equation 5, on kernel matrices with their diagonals set to 0."""
    n = len(k)
    k, m = k - np.diag(np.diag(k)), m - np.diag(np.diag(m))
    one = np.ones(n)
    total = (
        np.trace(k @ m)
        + (one @ k @ one) * (one @ m @ one) / ((n - 1) * (n - 2))
        - 2 / (n - 2) * (one @ k @ m @ one)
    )
    return float(total / (n * (n - 3)))


def cka(a: np.ndarray, b: np.ndarray) -> float:
    k, m = a @ a.T, b @ b.T
    return hsic(k, m) / np.sqrt(hsic(k, k) * hsic(m, m))


def test_the_estimator_by_its_definition() -> None:
    a, b = states()
    found = linear_cka(a, b, permutations=1)
    np.testing.assert_allclose(found.cka, [cka(x, y) for x, y in zip(a, b, strict=True)])


def test_the_interval_is_the_jackknife_over_entities() -> None:
    a, b = states()
    found = linear_cka(a, b, permutations=1)
    left = [cka(np.delete(a[0], i, axis=0), np.delete(b[0], i, axis=0)) for i in range(N)]
    error = np.sqrt((N - 1) / N * ((left - np.mean(left)) ** 2).sum())
    assert found.high[0] - found.cka[0] == pytest.approx(1.959964 * error)
    assert found.cka[0] - found.low[0] == pytest.approx(1.959964 * error)


def test_the_null_permutes_the_entities_of_one_role() -> None:
    a, b = states()
    found = linear_cka(a, b, permutations=4, seed=2)
    rng = np.random.default_rng(2)
    for row in found.null:
        order = rng.permutation(N)
        np.testing.assert_allclose(row, [cka(x, y[order]) for x, y in zip(a, b, strict=True)])


def test_turning_scaling_and_moving_leave_it_alone() -> None:
    a, _ = states()
    turn = np.linalg.qr(np.random.default_rng(1).normal(size=(D, D)))[0]
    found = linear_cka(a, 3 * a @ turn + 40)
    np.testing.assert_allclose(found.cka, 1)
    np.testing.assert_allclose(found.low, 1)
    np.testing.assert_allclose(found.p, 1 / 501)


def test_width_alone_brings_no_alignment() -> None:
    rng = np.random.default_rng(0)
    a, b = rng.normal(size=(2, 30, 25, 1000))
    found = linear_cka(a, b, permutations=100)
    centred = [x - x.mean(axis=1, keepdims=True) for x in (a, b)]
    k, m = (x @ x.transpose(0, 2, 1) for x in centred)
    plain = (k * m).sum((1, 2)) / np.sqrt((k**2).sum((1, 2)) * (m**2).sum((1, 2)))
    assert plain.min() > 0.9
    assert abs(found.cka.mean()) < 0.05
    assert (found.p < 0.05).sum() <= 6
    assert found.null.mean() == pytest.approx(0, abs=0.02)


def test_shared_content_is_found_across_widths_layer_by_layer() -> None:
    a, b = states(noise=0.5)
    wide = np.concatenate([b, np.zeros((LAYERS, N, 7))], axis=2)
    wide[1] = np.random.default_rng(3).normal(size=wide[1].shape)
    found = linear_cka(a, wide)
    assert found.cka[0] > 0.5
    assert found.p[0] == pytest.approx(1 / 501)
    assert found.low[0] > np.quantile(found.null[:, 0], 0.99)
    assert found.low[1] < 0.1


def test_constant_states_have_none() -> None:
    a, _ = states()
    found = linear_cka(a, np.ones_like(a), permutations=5)
    np.testing.assert_array_equal(found.cka, 0)
    np.testing.assert_array_equal(found.p, 1)


def test_states_that_do_not_fit_are_refused() -> None:
    a, b = states()
    with pytest.raises(StatisticsError, match="same entities"):
        linear_cka(a, b[:, :9])
    with pytest.raises(StatisticsError, match="5 at least"):
        linear_cka(a[:, :4], b[:, :4])
    with pytest.raises(StatisticsError, match="not finite"):
        linear_cka(a, b * np.inf)
