"""Maps between roles: the fit, the held-out retrieval, and the three planted answers."""

from __future__ import annotations

import warnings

import numpy as np
import pytest
from mnemoscope.probes.role_maps import (
    MappedRetrieval,
    binding_gap,
    binding_reading,
    binding_readings,
    fit_role_map,
    fit_role_maps,
    mapped_retrieval,
)
from mnemoscope.results.errors import StatisticsError
from mnemoscope.results.statistics import chance_mrr
from scipy.linalg import orthogonal_procrustes
from sklearn.decomposition import PCA
from sklearn.linear_model import Ridge

LAYERS, N, D, CONTENT = 2, 48, 60, 8


def planted(kind: str, seed: int = 0, noise: float = 0.2, n: int = N) -> tuple[np.ndarray, ...]:
    """Two roles that hold the same content alike, turned, or not at all, in layer 1 of two."""
    rng = np.random.default_rng(seed)
    content = rng.normal(size=(n, CONTENT))
    write, turned = rng.normal(size=(2, CONTENT, D))
    other = rng.normal(size=(n, CONTENT))
    second = {
        "same": content @ write,
        "turned": content @ turned,
        "absent": other @ turned,
    }[kind]
    unrelated = rng.normal(size=(n, D))
    s = np.stack([rng.normal(size=(n, D)), content @ write + noise * rng.normal(size=(n, D))])
    p = np.stack([unrelated, second + noise * rng.normal(size=(n, D))])
    return s + 30 * rng.normal(size=(1, 1, D)), p + 30 * rng.normal(size=(1, 1, D))


def measured(kind: str, **options: object) -> MappedRetrieval:
    return mapped_retrieval(*planted(kind), shuffles=60, **options)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("kind", "word"), [("same", "consistent"), ("turned", "rotated"), ("absent", "absent")]
)
@pytest.mark.parametrize("method", ["ridge", "procrustes"])
def test_the_three_planted_bindings_are_read_as_what_they_are(
    kind: str, word: str, method: str
) -> None:
    reading = binding_reading(measured(kind, method=method))
    assert reading.word == word
    if word != "absent":
        assert reading.layer == 1
        assert reading.mrr_low > 0.9
        assert reading.p == pytest.approx(1 / 61)
        assert (reading.share_low > 0.5) == (word == "consistent")
        assert (reading.share_high < 0.5) == (word == "rotated")
    else:
        assert np.isnan(reading.share)
        assert reading.mrr_high < 0.4


def test_raw_and_mapped_are_of_the_same_held_out_entities() -> None:
    turned = measured("turned")
    assert turned.chance == pytest.approx(chance_mrr(N // 2))
    assert turned.mapped.mean[1] > 0.95
    assert turned.raw.mean[1] == pytest.approx(turned.chance, abs=0.12)
    assert turned.mapped.mean[0] == pytest.approx(turned.chance, abs=0.12)
    np.testing.assert_allclose(turned.gap.mean, turned.mapped.mean - turned.raw.mean)
    np.testing.assert_allclose(turned.mapped_by_entity.mean(axis=0), turned.mapped.mean)
    same = measured("same")
    assert same.raw.mean[1] > 0.95


def test_the_gap_is_taken_where_the_mapped_retrieval_is_best() -> None:
    turned = measured("turned")
    gap = binding_gap(turned)
    assert gap.layer == 1
    assert gap.gap == pytest.approx(turned.mapped.mean[1] - turned.raw.mean[1])
    assert 0.5 < gap.low < gap.gap < gap.high
    assert gap.p == pytest.approx(1 / 61)
    same = binding_gap(measured("same"))
    assert same.gap == pytest.approx(0.0, abs=0.05)


def test_shuffled_pairs_find_nothing_even_where_there_is_much() -> None:
    turned = measured("turned")
    assert turned.mapped_null.shape == (60, LAYERS)
    assert turned.mapped_null[:, 1].mean() == pytest.approx(turned.chance, abs=0.03)
    assert turned.mapped_null.max() < 0.5


def test_nothing_is_found_in_nothing_more_often_than_the_level_says() -> None:
    alarms = 0
    for seed in range(40):
        s, p = planted("absent", seed=seed, n=24)
        reading = binding_reading(mapped_retrieval(s, p, shuffles=39, draws=20), draws=20)
        alarms += reading.word != "absent"
    assert alarms <= 6  # 2 expected; 7 or more have a chance of 0.4 %


def test_a_wide_state_does_not_let_the_fit_see_the_held_out_entities() -> None:
    rng = np.random.default_rng(0)
    s, p = rng.normal(size=(2, 1, 64, 2000))
    nothing = mapped_retrieval(s, p, shuffles=1)
    assert nothing.mapped.mean[0] == pytest.approx(nothing.chance, abs=0.08)


def test_held_out_retrieval_against_textbook_parts() -> None:
    """PCA, ridge and ranks of scikit-learn and loops, with the strength by explicit GCV."""
    s, p = planted("turned", noise=2.0)
    found = mapped_retrieval(s, p, shuffles=0, seed=3)
    quarters = np.array_split(np.random.default_rng(3).permutation(N), 4)
    expected = np.zeros(N)
    for a, b in ((0, 1), (2, 3), (0, 2), (1, 3), (0, 3), (1, 2)):
        fit = np.concatenate([quarters[a], quarters[b]])
        held = np.setdiff1d(np.arange(N), fit)
        x, y = PCA(N // 4).fit(s[1, fit]), PCA(N // 4).fit(p[1, fit])
        fitted_x, fitted_y = x.transform(s[1, fit]), y.transform(p[1, fit])
        ridge = Ridge(strength(fitted_x, fitted_y), fit_intercept=False).fit(fitted_x, fitted_y)
        subjects, objects = ridge.predict(x.transform(s[1, held])), y.transform(p[1, held])
        for i, entity in enumerate(held):
            cos = [
                objects[i] @ subject / np.linalg.norm(subject) / np.linalg.norm(objects[i])
                for subject in subjects
            ]
            expected[entity] += 1 / (1 + sum(c > cos[i] + 1e-9 for c in cos)) / 3
    np.testing.assert_allclose(found.mapped_by_entity[:, 1], expected, atol=1e-9)


def strength(x: np.ndarray, y: np.ndarray) -> float:
    """Of eight strengths the one with the least generalised cross-validation error."""
    n, k = x.shape
    best = []
    for ridge in 10.0 ** np.arange(-4, 4) * (x**2).sum() / k:
        hat = x @ np.linalg.solve(x.T @ x + ridge * np.eye(k), x.T)
        error = ((y - hat @ y) ** 2).sum() / (n - 1 - np.trace(hat)) ** 2
        best.append((error, ridge))
    return float(min(best)[1])


def test_a_map_that_has_an_inverse_is_its_own_way_back() -> None:
    s, p = planted("turned", noise=0.0)
    assert measured("turned").involution[1] < 0.8
    exact = mapped_retrieval(s[1:], p[1:], shuffles=5)
    # 12 components of which 8 hold something: the other 4 count as not undone.
    assert exact.involution[0] == pytest.approx(np.sqrt(4 / 12), abs=0.01)
    assert exact.involution_null.mean() > 0.9
    assert mapped_retrieval(s, p, method="procrustes", shuffles=0).involution.max() < 1e-6


def test_shuffles_and_folds_repeat_with_their_seed() -> None:
    one, two, other = measured("turned"), measured("turned"), measured("turned", seed=1)
    np.testing.assert_array_equal(one.mapped_null, two.mapped_null)
    assert not np.array_equal(one.mapped_null, other.mapped_null)


def test_a_role_without_content_is_at_chance_and_raises_no_warning() -> None:
    s, _ = planted("same")
    constant = np.ones_like(s)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = mapped_retrieval(s, constant, shuffles=3)
        readings = binding_readings(found)
        role_map = fit_role_map(s[1], constant[1])
    np.testing.assert_allclose(found.mapped.mean, found.chance)
    np.testing.assert_allclose(found.raw.mean, found.chance)
    np.testing.assert_allclose(found.involution, 1.0)
    assert {reading.word for reading in readings} == {"absent"}
    np.testing.assert_allclose(role_map.apply(s[1]), constant[1])
    assert role_map.rank_k(3).apply(s[1]).shape == s[1].shape


def test_fewer_than_sixteen_entities_are_refused() -> None:
    s, p = planted("same", n=15)
    with pytest.raises(StatisticsError, match="16 at least"):
        mapped_retrieval(s, p)
    with pytest.raises(StatisticsError, match="same entities"):
        fit_role_map(s[0], p[0, :7])


# -- the map itself


def test_a_planted_affine_map_is_found_and_undone() -> None:
    s, p = planted("turned", noise=0.0)
    role_map = fit_role_map(s[1, :40], p[1, :40])
    scale = np.abs(p[1] - p[1].mean(axis=0)).max()
    np.testing.assert_allclose(role_map.apply(s[1]), p[1], atol=0.01 * scale)
    np.testing.assert_allclose(role_map.invert(p[1]), s[1], atol=0.01 * scale)
    back = fit_role_map(p[1, :40], s[1, :40])
    np.testing.assert_allclose(back.apply(p[1]), s[1], atol=0.01 * scale)


def test_bases_are_the_principal_components_and_the_matrix_is_ridge() -> None:
    s, p = planted("turned", noise=1.0)
    role_map = fit_role_maps(s, p, dims=10)[1]
    x, y = PCA(10).fit(s[1]), PCA(10).fit(p[1])
    for basis, pca in ((role_map.basis_s, x), (role_map.basis_p, y)):
        np.testing.assert_allclose(basis @ basis.T, np.eye(10), atol=1e-8)
        np.testing.assert_allclose(np.abs(np.diag(basis @ pca.components_.T)), 1, atol=1e-8)
    np.testing.assert_allclose(role_map.spread**2 * N / (N - 1), x.explained_variance_)
    fitted_x = (s[1] - s[1].mean(axis=0)) @ role_map.basis_s.T
    fitted_y = (p[1] - p[1].mean(axis=0)) @ role_map.basis_p.T
    ridge = Ridge(strength(fitted_x, p[1] - p[1].mean(axis=0)), fit_intercept=False)
    np.testing.assert_allclose(role_map.matrix.T, ridge.fit(fitted_x, fitted_y).coef_, atol=1e-8)


def test_procrustes_is_the_nearest_rotation_and_its_inverse_its_transpose() -> None:
    s, p = planted("turned", noise=1.0)
    role_map = fit_role_map(s[1], p[1], method="procrustes", dims=10)
    fitted_x = (s[1] - s[1].mean(axis=0)) @ role_map.basis_s.T
    fitted_y = (p[1] - p[1].mean(axis=0)) @ role_map.basis_p.T
    np.testing.assert_allclose(
        role_map.matrix, orthogonal_procrustes(fitted_x, fitted_y)[0], atol=1e-8
    )
    round_trip = role_map.invert(role_map.apply(s[1])) - role_map.mean_s
    np.testing.assert_allclose(round_trip, role_map.subject_part(s[1] - role_map.mean_s), atol=1e-8)


@pytest.mark.parametrize("method", ["ridge", "procrustes"])
def test_a_rank_k_map_keeps_what_carries_most(method: str) -> None:
    s, p = planted("turned", noise=0.5)
    role_map = fit_role_map(s[1], p[1], method=method, dims=12)  # type: ignore[arg-type]
    whole = role_map.apply(s[1]) - role_map.mean_p
    np.testing.assert_allclose(role_map.rank_k(12).apply(s[1]) - role_map.mean_p, whole, atol=1e-8)
    left, values, right = np.linalg.svd(whole, full_matrices=False)
    for k in (1, 4, 8):
        reduced = role_map.rank_k(k)
        assert reduced.matrix.shape == (k, k)
        np.testing.assert_allclose(reduced.basis_s @ reduced.basis_s.T, np.eye(k), atol=1e-8)
        np.testing.assert_allclose(reduced.basis_p @ reduced.basis_p.T, np.eye(k), atol=1e-8)
        # No other k directions keep more of the mapped entities (Eckart and Young).
        best = (left[:, :k] * values[:k]) @ right[:k]
        np.testing.assert_allclose(reduced.apply(s[1]) - reduced.mean_p, best, atol=1e-7)


def test_a_rank_k_replacement_changes_those_directions_only() -> None:
    s, p = planted("turned")
    reduced = fit_role_map(s[1], p[1]).rank_k(4)
    h, v = s[1, 0], s[1, 1]
    new = h + reduced.subject_part(v - h)
    np.testing.assert_allclose(reduced.basis_s @ new, reduced.basis_s @ v)
    np.testing.assert_allclose(new - reduced.subject_part(new), h - reduced.subject_part(h))
    assert np.linalg.matrix_rank(reduced.object_part(np.eye(D))) == 4
