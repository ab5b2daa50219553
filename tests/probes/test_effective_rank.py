"""In how many directions states spread, and what the token that a name ends on explains of it."""

from __future__ import annotations

import numpy as np
import pytest
from mnemoscope.models.errors import MnemoscopeError
from mnemoscope.probes.effective_rank import name_tokens, state_spread
from role_rows import prompts_of, some_facts


def noise(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=shape)


def test_planted_dimensions_are_counted_layer_by_layer() -> None:
    basis = np.linalg.qr(noise(32, 32))[0]
    layers = [noise(400, k, seed=k) @ basis[:k] * 7 + 50 for k in (2, 8, 32)]
    states = np.stack(layers)[:, None]
    found = state_spread(states, ["x"] * 400, draws=10)
    assert found.effective_rank == pytest.approx([2, 8, 32], rel=0.05)
    assert found.participation == pytest.approx([2, 8, 32], rel=0.1)
    assert found.effective_rank[2] == pytest.approx(found.isotropic_rank, rel=0.02)


def test_wordings_are_averaged_not_pooled() -> None:
    states = noise(1, 2, 30, 6)
    states[0, 1] *= np.array([5, 1, 1, 1, 0.1, 0.1])
    tokens = [i % 3 for i in range(30)]
    both = state_spread(states, tokens, draws=10)
    apart = [state_spread(states[:, [w]], tokens, draws=10) for w in (0, 1)]
    mean = np.mean([one.effective_rank for one in apart], axis=0)
    assert both.effective_rank == pytest.approx(mean)
    assert both.explained == pytest.approx(np.mean([one.explained for one in apart], axis=0))


def test_the_share_is_that_of_a_one_way_analysis_of_variance_among_shared_tokens() -> None:
    tokens = ["a", "b", "a", "c", "b", "b", "d"]  # c and d are nobody else's
    states = noise(2, 1, 7, 5)
    found = state_spread(states, tokens, draws=10)
    kept = states[1, 0, [0, 1, 2, 4, 5]]
    centre = kept.mean(0)
    between = 2 * ((kept[[0, 2]].mean(0) - centre) ** 2).sum()
    between += 3 * ((kept[[1, 3, 4]].mean(0) - centre) ** 2).sum()
    assert found.explained[1] == pytest.approx(between / ((kept - centre) ** 2).sum())
    assert (found.n_shared, found.n_tokens, found.n_entities) == (5, 2, 7)


def test_planted_token_identity_is_found_and_noise_is_not() -> None:
    tokens = np.arange(40) % 8
    states = noise(2, 2, 40, 16)
    states[1] += 1.5 * noise(8, 16, seed=1)[tokens]
    found = state_spread(states, tokens.tolist(), draws=300)
    assert found.explained[1] > found.null_high[1]
    assert found.p[1] < 0.01
    assert found.explained[0] < found.null_high[0]
    # Even without any effect eight tokens explain 7 of 39 degrees of freedom.
    assert found.null == pytest.approx([7 / 39, 7 / 39], abs=0.02)


def test_the_p_of_noise_is_uniform() -> None:
    tokens = [i % 6 for i in range(24)]
    p = [
        state_spread(noise(1, 1, 24, 8, seed=seed), tokens, draws=99, seed=seed).p[0]
        for seed in range(200)
    ]
    assert 0.01 <= np.mean(np.array(p) <= 0.05) <= 0.10
    assert 0.43 <= np.mean(p) <= 0.57


def test_names_that_share_no_token_have_a_rank_but_nothing_to_explain() -> None:
    found = state_spread(noise(3, 1, 6, 4), list(range(6)), draws=10)
    assert (found.effective_rank > 1).all()
    assert np.isnan(found.explained).all()
    assert np.isnan(found.p).all()
    assert found.n_shared == 0
    assert found.table().shape == (3, 10)


def test_equal_states_spread_nowhere() -> None:
    same = np.tile(noise(4), (1, 1, 6, 1)) * 1e3
    found = state_spread(same, ["a", "a", "b", "b", "c", "c"], draws=10)
    assert found.effective_rank.tolist() == [0]
    assert found.explained.tolist() == [0]
    assert found.p.tolist() == [1]


def test_tokens_are_those_of_the_name() -> None:
    prompts = prompts_of(some_facts())
    assert name_tokens(prompts, "reverse") == (11, 13, 13, 17, 18)
    assert name_tokens(prompts, "forward", "first") == (11, 12, 14, 15, 18)


def test_states_that_fit_nothing_are_refused() -> None:
    with pytest.raises(MnemoscopeError, match="each entity's token"):
        state_spread(noise(1, 1, 5, 4), ["a"] * 4)
    with pytest.raises(MnemoscopeError, match="not finite"):
        state_spread(np.full((1, 1, 5, 4), np.inf), ["a"] * 5)
