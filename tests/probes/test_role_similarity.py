"""Centred cosines and retrieval between roles: the definitions, ties at chance, hubs, strata."""

from __future__ import annotations

import numpy as np
import pytest
from mnemoscope.probes.role_similarity import (
    cosines,
    hub_corrected,
    permuted_mrr,
    reciprocal_ranks,
    reciprocal_table,
    retrieval,
    role_similarity,
)
from mnemoscope.results.errors import StatisticsError
from mnemoscope.results.statistics import bootstrap_weights, chance_mrr

LAYERS, N, D = 3, 24, 40


def states(seed: int = 0, noise: float = 1.0, offset: float = 50.0) -> tuple[np.ndarray, ...]:
    """Two roles that share their entities' vectors, far from the origin as residual streams are."""
    rng = np.random.default_rng(seed)
    content = rng.normal(size=(LAYERS, N, D))
    far = offset * rng.normal(size=(2, LAYERS, 1, D))
    a, b = (content + noise * rng.normal(size=(LAYERS, N, D)) + place for place in far)
    return a, b


def cosine(x: np.ndarray, y: np.ndarray) -> float:
    return float(x @ y / np.sqrt((x @ x) * (y @ y)))


def cosine_table(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    a, b = a - a.mean(axis=0), b - b.mean(axis=0)
    return np.array([[cosine(x, y) for y in b] for x in a])


def different(table: np.ndarray, mask: np.ndarray) -> list[float]:
    n = len(table)
    return [table[i, j] for i in range(n) for j in range(n) if i != j and mask[i, j]]


def test_cosines_are_of_states_centred_by_role() -> None:
    a, b = states()
    for layer in range(LAYERS):
        np.testing.assert_allclose(
            cosines(a, b)[layer], cosine_table(a[layer], b[layer]), atol=1e-12
        )


def test_same_and_different_entities_by_definition_and_by_stratum() -> None:
    a, b = states()
    mask = np.random.default_rng(1).random((N, N)) < 0.3
    for among in (None, mask):
        measured = role_similarity(a, b, mask=among)
        chosen = np.ones((N, N), bool) if among is None else mask
        for layer in range(LAYERS):
            table = cosine_table(a[layer], b[layer])
            apart = different(table, chosen)
            same = np.diag(table).mean()
            assert measured.n_pairs == len(apart)
            assert measured.cos_same.mean[layer] == pytest.approx(same)
            assert measured.cos_diff.mean[layer] == pytest.approx(np.mean(apart))
            score = (same - np.mean(apart)) / np.std(apart)
            assert measured.score.mean[layer] == pytest.approx(score)


def test_intervals_are_those_of_entities_drawn_one_by_one() -> None:
    a, b = states()
    draws = 60
    measured = role_similarity(a, b, draws=draws, seed=5)
    apart, score = np.zeros(draws), np.zeros(draws)
    table = cosine_table(a[0], b[0])
    for i, times in enumerate(bootstrap_weights(range(N), draws=draws, seed=5)):
        drawn = np.repeat(np.arange(N), times)
        values = [table[x, y] for x in drawn for y in drawn if x != y]
        apart[i] = np.mean(values)
        score[i] = (table[drawn, drawn].mean() - apart[i]) / np.std(values)
    for interval, expected in ((measured.cos_diff, apart), (measured.score, score)):
        low, high = np.quantile(expected, [0.025, 0.975])
        assert interval.low[0] == pytest.approx(low)
        assert interval.high[0] == pytest.approx(high)


def test_a_common_offset_and_a_common_rotation_change_nothing() -> None:
    a, b = states(offset=0.0)
    turn = np.linalg.qr(np.random.default_rng(2).normal(size=(D, D)))[0]
    plain, moved = role_similarity(a, b), role_similarity(a @ turn + 300.0, b @ turn - 100.0)
    np.testing.assert_allclose(moved.score.mean, plain.score.mean, rtol=1e-9)
    np.testing.assert_allclose(moved.cos_same.low, plain.cos_same.low, rtol=1e-9)


def test_shared_content_scores_and_unrelated_roles_do_not() -> None:
    a, b = states(noise=0.1)
    assert role_similarity(a, b).cos_same.mean.min() > 0.95
    assert retrieval(b, a).mrr.mean.min() == 1.0
    assert role_similarity(a, b).score.low.min() > 3
    c, _ = states(seed=9)
    nothing = role_similarity(a, c)
    assert (np.abs(nothing.score.mean) < 4 / np.sqrt(N)).all()
    found = retrieval(a, c, draws=10)
    assert found.mrr.mean.mean() == pytest.approx(found.chance, abs=0.1)


def test_ranks_by_counting() -> None:
    a, b = states(noise=3.0)
    found = retrieval(b, a)
    for layer in range(LAYERS):
        table = cosine_table(b[layer], a[layer])
        ranks = [1 + int((row > row[i]).sum()) for i, row in enumerate(table)]
        np.testing.assert_array_equal(found.rank[layer], ranks)
        np.testing.assert_allclose(found.reciprocal[layer], 1 / np.array(ranks))
        assert found.mrr.mean[layer] == pytest.approx(np.mean(1 / np.array(ranks)))
        assert found.hits.mean[layer] == pytest.approx(np.mean(np.array(ranks) == 1))
        assert found.mrr.low[layer] < found.mrr.mean[layer] < found.mrr.high[layer]


def test_states_that_say_nothing_score_exactly_at_chance() -> None:
    a, _ = states()
    constant = np.full_like(a, 7.3) + 1e-12 * np.random.default_rng(0).normal(size=a.shape)
    found = retrieval(constant, a)
    harmonic = sum(1 / k for k in range(1, N + 1)) / N
    assert found.chance == pytest.approx(harmonic) == chance_mrr(N)
    np.testing.assert_allclose(found.mrr.mean, harmonic)
    np.testing.assert_allclose(found.hits.mean, found.chance_hits)
    np.testing.assert_allclose(found.rank, (N + 1) / 2)
    np.testing.assert_array_equal(role_similarity(constant, a).score.mean, 0)


def test_keys_that_are_one_vector_share_their_rank() -> None:
    scores = np.array([[[0.9, 0.5, 0.5, 0.5, 0.1]]])
    assert reciprocal_ranks(scores, np.array([2]))[0, 0] == pytest.approx(
        (1 / 2 + 1 / 3 + 1 / 4) / 3
    )
    assert reciprocal_ranks(scores, np.array([0]))[0, 0] == 1


def test_candidates_limit_whom_an_entity_is_ranked_among() -> None:
    a, b = states(noise=3.0)
    mask = np.random.default_rng(3).random((N, N)) < 0.2
    mask[4] = False
    found = retrieval(b, a, candidates=mask)
    assert 4 not in found.asked
    table = cosine_table(b[0], a[0])
    expected, chance = [], []
    for i in found.asked:
        among = [j for j in range(N) if mask[i, j] or j == i]
        expected.append(1 / (1 + sum(table[i, j] > table[i, i] for j in among)))
        chance.append(chance_mrr(len(among)))
    np.testing.assert_allclose(found.reciprocal[0], expected)
    assert found.chance == pytest.approx(np.mean(chance))


def test_a_few_queries_among_many_keys() -> None:
    a, b = states(noise=0.2)
    few = np.array([5, 2, 19])
    found = retrieval(b[:, few], a, targets=few)
    assert found.reciprocal.shape == (LAYERS, 3)
    # Three queries share no mean with 24 keys, so only the order of most is sure.
    assert found.mrr.mean.mean() > 0.5
    assert found.chance == pytest.approx(chance_mrr(N))


def test_csls_is_the_papers_formula_and_takes_a_hub_away() -> None:
    table = cosines(*states())
    k = 10
    for i, j in ((0, 1), (7, 7), (23, 4)):
        expected = (
            2 * table[0, i, j]
            - np.sort(table[0, i])[-k:].mean()
            - np.sort(table[0, :, j])[-k:].mean()
        )
        assert hub_corrected(table)[0, i, j] == pytest.approx(expected)
    hub = np.eye(N)[None] * 0.5
    hub[0, :, 0] = 0.6
    plain = reciprocal_ranks(hub, np.arange(N))[0, 1:]
    mended = reciprocal_ranks(hub_corrected(hub), np.arange(N))[0, 1:]
    assert plain.max() == 0.5
    assert mended.min() == 1.0


def test_random_pairings_are_looked_up_in_the_same_ranks() -> None:
    rng = np.random.default_rng(0)
    scores = rng.integers(0, 5, size=(2, 9, 9)).astype(float)
    table = reciprocal_table(scores)
    for _ in range(5):
        pairing = rng.permutation(9)
        np.testing.assert_allclose(
            table[:, np.arange(9), pairing], reciprocal_ranks(scores, pairing)
        )


def test_the_floor_is_at_chance_however_alike_the_roles_are() -> None:
    a, b = states(noise=0.1)
    floor = permuted_mrr(b, a, draws=300)
    assert floor.shape == (300, LAYERS)
    assert floor.mean() == pytest.approx(chance_mrr(N), abs=0.01)
    assert floor.max() < retrieval(b, a).mrr.mean.min()


def test_layers_are_worked_on_apart() -> None:
    a, b = states()
    for layer in range(LAYERS):
        alone = role_similarity(a[layer, None], b[layer, None])
        together = role_similarity(a, b)
        assert alone.score.mean[0] == pytest.approx(together.score.mean[layer])
        assert alone.score.low[0] == pytest.approx(together.score.low[layer])


@pytest.mark.parametrize(
    ("a", "b", "says"),
    [
        (np.zeros((2, 5, 4)), np.zeros((3, 5, 4)), "same layers"),
        (np.zeros((2, 5)), np.zeros((2, 5)), "layer, entity, d"),
        (np.zeros((2, 5, 4)), np.zeros((2, 6, 4)), "same entities"),
        (np.full((2, 5, 4), np.nan), np.zeros((2, 5, 4)), "not finite"),
    ],
)
def test_states_that_do_not_fit_are_refused(a: np.ndarray, b: np.ndarray, says: str) -> None:
    with pytest.raises(StatisticsError, match=says):
        role_similarity(a, b)


def test_strata_without_pairs_and_wrong_masks_are_refused() -> None:
    a, b = states()
    with pytest.raises(StatisticsError, match="no pair"):
        role_similarity(a, b, mask=np.eye(N, dtype=bool))
    with pytest.raises(StatisticsError, match="mask of 24"):
        role_similarity(a, b, mask=np.ones((3, 3), bool))
    with pytest.raises(StatisticsError, match="fewer than two"):
        retrieval(a, b, candidates=np.zeros((N, N), bool))
    with pytest.raises(StatisticsError, match="as target"):
        retrieval(a, b, targets=np.full(N, N))
    with pytest.raises(StatisticsError, match="candidates must be"):
        retrieval(a, b, candidates=np.ones((N, 2), bool))
