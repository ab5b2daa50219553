"""Role probes: the same fit as one by one, planted role directions, and none."""

from __future__ import annotations

import warnings

import numpy as np
import pytest
from mnemoscope.probes.role_decoding import fit_probes, role_decoding
from mnemoscope.results.errors import StatisticsError
from mnemoscope.results.logistic import fit_logistic

N, D = 64, 50


def roles(shift: float, spread: float = 0.0, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """The same content in both roles, and one direction that tells them apart, `shift` between
    their means, with a `spread` along it that no two states share."""
    rng = np.random.default_rng(seed)
    content = rng.normal(size=(N, D))
    axis = rng.normal(size=D)
    axis /= np.linalg.norm(axis)
    content -= np.outer(content @ axis, axis)
    along = spread * rng.normal(size=(2, N, 1)) + np.array([-shift / 2, shift / 2])[:, None, None]
    noise = 0.3 * rng.normal(size=(2, N, D))
    s, p = content + along * axis + noise
    return s[None], p[None]


def test_all_layers_are_fitted_as_each_alone() -> None:
    rng = np.random.default_rng(0)
    x = rng.normal(size=(4, 30, 6))
    labels = x[0, :, 0] + 0.5 * rng.normal(size=30) > 0
    x[2] *= 20.0  # separable or nearly: the ridge alone holds the weights
    x[3, :, 2] = np.where(labels, 5.0, -5.0)
    weights = fit_probes(x, labels)
    for layer in range(4):
        np.testing.assert_allclose(weights[layer], fit_logistic(x[layer], labels), atol=2e-4)


def test_the_slope_is_zero_where_newton_stops() -> None:
    rng = np.random.default_rng(1)
    x, labels = rng.normal(size=(3, 40, 5)), np.arange(40) >= 20
    weights = fit_probes(x, labels)
    design = np.concatenate([x, np.ones((3, 40, 1))], axis=2)
    chance = 1 / (1 + np.exp(-(design @ weights[:, :, None])[:, :, 0]))
    slope = ((chance - labels)[:, None] @ design)[:, 0]
    slope[:, :-1] += weights[:, :-1]
    np.testing.assert_allclose(slope, 0, atol=1e-7)


def test_one_role_direction_is_found_and_few_nulls_stop_it() -> None:
    found = role_decoding(*roles(shift=20.0))
    assert found.accuracy.mean[0] == 1.0
    assert 1 <= found.rank[0] <= 3
    assert found.curve[0, 0] == 1.0
    assert found.curve[0, -1] < 0.66


def test_roles_that_do_not_differ_need_no_nulling() -> None:
    ranks, accuracies = [], []
    for seed in range(10):
        found = role_decoding(*roles(shift=0.0, seed=seed), draws=20)
        ranks.append(found.rank[0])
        accuracies.append(found.accuracy.mean[0])
    assert np.mean(accuracies) == pytest.approx(0.5, abs=0.05)
    assert np.mean(ranks) <= 0.5


def test_entities_agree_once_the_role_is_nulled() -> None:
    found = role_decoding(*roles(shift=120.0, spread=20.0))
    assert found.cos_same[0] < 0.5
    assert found.cos_same_nulled[0] > 0.75
    assert abs(found.cos_diff_nulled[0]) < 0.1


def test_decoding_is_no_evidence_of_inconsistency() -> None:
    found = role_decoding(*roles(shift=20.0))
    assert found.accuracy.mean[0] == 1.0
    assert found.cos_same[0] > 0.85
    assert found.cos_same_nulled[0] > 0.85


def test_the_probe_does_not_know_the_entities_it_is_asked_about() -> None:
    rng = np.random.default_rng(0)
    s, p = rng.normal(size=(2, 3, 32, 500))
    found = role_decoding(s, p)
    assert found.accuracy.mean.mean() == pytest.approx(0.5, abs=0.12)
    assert (found.accuracy.low < 0.55).all()


def test_layers_stop_each_at_its_own_time() -> None:
    s, p = roles(shift=20.0)
    still, also = roles(shift=0.0, seed=3)
    alone = role_decoding(s, p)
    both = role_decoding(np.concatenate([s, still]), np.concatenate([p, also]))
    assert both.rank[0] == alone.rank[0]
    np.testing.assert_allclose(both.curve[0, : alone.curve.shape[1]], alone.curve[0])
    np.testing.assert_allclose(both.cos_same_nulled[0], alone.cos_same_nulled[0])
    assert both.rank[1] < both.rank[0]


def test_constant_states_are_at_chance_without_a_warning() -> None:
    s, _ = roles(shift=0.0)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = role_decoding(np.ones_like(s), np.ones_like(s))
        split = role_decoding(np.ones_like(s), 2 * np.ones_like(s))
    assert found.accuracy.mean[0] == 0.5
    assert found.rank[0] == 0
    assert split.accuracy.mean[0] == 1.0
    assert split.rank[0] == 1


def test_too_few_entities_are_refused() -> None:
    s, p = roles(shift=1.0)
    with pytest.raises(StatisticsError, match="16 at least"):
        role_decoding(s[:, :9], p[:, :9])
