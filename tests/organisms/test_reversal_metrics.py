"""Ranks, role cosines and overlap, against sums written out and states that are set by hand."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from mnemoscope.organisms.reversal_arms import ARMS, PRESETS, build_model
from mnemoscope.organisms.reversal_data import (
    ReversalWorld,
    WorldSettings,
    make_world,
    shared_tokens,
)
from mnemoscope.organisms.reversal_metrics import (
    consistency,
    entanglement,
    entity_ranks,
    probe_facts,
    ranks,
    recall,
    role_states,
    token_mrr,
)
from mnemoscope.organisms.reversal_models import NamePredictor, ToyModel
from mnemoscope.results.statistics import chance_mrr
from torch import Tensor

WORLD = make_world(WorldSettings(n_a=40, n_b=32, relation_pairs=2, multiplicity=3, seed=0))


class Oracle(ToyModel):
    """Knows every fact: predicts the very vector in which it perceives the object.

    With `rotated` the prediction is another code of the same entities.
    """

    def __init__(self, world: ReversalWorld, *, rotated: bool = False) -> None:
        super().__init__()
        random = torch.Generator().manual_seed(0)
        self.codes = torch.nn.Parameter(torch.randn(world.n_entities, 64, generator=random))
        turn = torch.linalg.qr(torch.randn(64, 64, generator=random)).Q
        self.turn = turn if rotated else torch.eye(64)
        facts = np.concatenate([world.told, world.test])
        self.answers = {(s, r): o for s, r, o in facts.tolist()}

    def loss(self, facts: Tensor) -> Tensor:
        raise NotImplementedError

    def perceived(self) -> Tensor:
        return self.codes + 10.0  # a common part, which centring has to take away

    def predicted(self, queries: Tensor) -> Tensor:
        objects = [self.answers[s, r] for s, r in queries.tolist()]
        return self.codes[objects] @ self.turn - 3.0

    def entity_scores(self, queries: Tensor) -> Tensor:
        return (self.predicted(queries) + 3.0) @ (self.codes @ self.turn).T

    def neurons(self, ids: Tensor) -> Tensor | None:
        return None


def test_chance_is_the_mean_reciprocal_rank_of_a_random_order() -> None:
    assert chance_mrr(3200) == pytest.approx(0.0027, abs=5e-5)
    assert chance_mrr(3) == pytest.approx((1 + 1 / 2 + 1 / 3) / 3)
    random = torch.rand(4000, 50, generator=torch.Generator().manual_seed(0))
    drawn = ranks(random, torch.zeros(4000, dtype=torch.long))
    assert (1 / drawn).mean() == pytest.approx(chance_mrr(50), rel=0.1)


def test_ranks_count_from_one_and_ties_share_the_middle() -> None:
    scores = torch.tensor([[3.0, 1.0, 2.0], [1.0, 1.0, 1.0], [0.0, 5.0, 5.0]])
    assert ranks(scores, torch.tensor([2, 0, 1])).tolist() == [2.0, 2.0, 1.5]


def test_recall_is_the_mean_with_intervals_around_it() -> None:
    facts = WORLD.test
    found = recall(np.where(np.arange(len(facts)) % 2, 1.0, 4.0), facts)
    assert found.mrr == pytest.approx(0.625)
    assert found.hit == 0.5
    assert found.mrr_low < 0.625 < found.mrr_high
    assert found.hit_low < 0.5 < found.hit_high
    assert found.asked == len(facts)


def test_an_oracle_ranks_first_and_is_perceived_as_predicted() -> None:
    oracle = Oracle(WORLD)
    assert (entity_ranks(oracle, WORLD.test) == 1).all()
    found = consistency(oracle, WORLD, limit=1000)
    assert found.test > 0.95
    assert found.train > 0.95
    assert abs(found.permuted) < 0.1


def test_a_rotated_code_answers_but_is_not_consistent() -> None:
    """Raw cosines near zero although every answer is right: what a map between roles is for."""
    oracle = Oracle(WORLD, rotated=True)
    assert (entity_ranks(oracle, WORLD.test) == 1).all()
    assert abs(consistency(oracle, WORLD, limit=1000).test) < 0.1
    states = role_states(oracle, WORLD.told)
    read = states.perceived[states.entity] - 10.0
    turn = np.linalg.lstsq(read, states.predicted + 3.0, rcond=None)[0]
    assert np.abs(turn @ turn.T - np.eye(64)).max() < 1e-3


def test_role_states_belong_to_the_objects_of_the_facts() -> None:
    states = role_states(Oracle(WORLD), WORLD.test)
    assert (states.entity == WORLD.test[:, 2]).all()
    assert states.perceived.shape == (WORLD.n_entities, 64)
    wanted = states.perceived[states.entity] - 13.0
    assert np.allclose(states.predicted, wanted, atol=1e-5)


def test_roles_by_entity_are_means_over_the_facts_that_ask_for_it() -> None:
    states = role_states(Oracle(WORLD), WORLD.told)
    random = np.random.default_rng(0).normal(size=states.predicted.shape)
    perceived, predicted = replace(states, predicted=random).by_entity()
    ids = sorted(set(states.entity.tolist()))
    assert len(perceived) == len(predicted) == len(ids)
    for row, entity in enumerate(ids):
        assert np.allclose(predicted[row], random[states.entity == entity].mean(0))
        assert (perceived[row] == states.perceived[entity]).all()


def test_overlap_is_how_far_a_step_on_another_entity_moves_this_one() -> None:
    """One SGD step on b's loss moves `W alpha_a` by `kappa` of what b's gradient at a would."""
    model = build_model(ARMS["jepa"], PRESETS["miniature"], WORLD, 0)
    chosen = torch.arange(WORLD.n_entities)
    neurons = model.neurons(chosen)
    assert neurons is not None
    alpha = neurons.detach().double().numpy()
    gradient = np.random.default_rng(1).normal(size=3)
    shared = shared_tokens(WORLD.names) == 1
    moved = [
        np.linalg.norm(np.outer(gradient, alpha[b]) @ alpha[a])
        / np.linalg.norm(np.outer(gradient, alpha[a]) @ alpha[a])
        for a, b in np.argwhere(shared)
    ]
    assert entanglement(model, WORLD).sharing == pytest.approx(np.mean(moved), rel=1e-5)


def test_namesakes_overlap_before_any_training_and_rows_of_ones_own_never_do() -> None:
    preset = PRESETS["miniature"]
    shared = entanglement(build_model(ARMS["jepa"], preset, WORLD, 0), WORLD)
    assert shared.sharing is not None
    assert shared.others is not None
    assert shared.sharing > 3 * shared.others
    assert shared.summed == pytest.approx(2 * (3 - 1) * shared.sharing)
    alone = entanglement(build_model(ARMS["jepa-memory"], preset, WORLD, 0), WORLD)
    assert (alone.sharing, alone.others, alone.summed) == (0.0, 0.0, 0.0)


def test_token_mrr_is_far_above_chance_where_the_first_name_gives_the_last_one_away() -> None:
    """Names only, no facts: the last name given the first is one of m, whatever is asked."""
    model = build_model(ARMS["surface"], PRESETS["miniature"], WORLD, 0)
    assert isinstance(model, NamePredictor)
    logits = model.token_logits(torch.from_numpy(WORLD.test))
    wanted = model.name_tokens(torch.from_numpy(WORLD.test)).reshape(-1, 2)
    reciprocal = [
        1 / (1 + int((logits[i, j] > logits[i, j, wanted[i, j]]).sum()))
        for i in range(len(wanted))
        for j in range(2)
    ]
    assert token_mrr(model, WORLD.test) == pytest.approx(np.mean(reciprocal))


def test_probe_facts_are_a_fixed_draw_of_the_split() -> None:
    chosen = probe_facts(WORLD, "test", 10)
    assert (chosen == probe_facts(WORLD, "test", 10)).all()
    assert {tuple(f) for f in chosen.tolist()} <= {tuple(f) for f in WORLD.test.tolist()}
    assert len(probe_facts(WORLD, "test", 10_000)) == len(WORLD.test)
    assert len(set(probe_facts(WORLD, "train", 30)[:, 1])) > 1
