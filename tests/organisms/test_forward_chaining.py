"""The task's world: counts as derived, links that add up, and an oracle that says what follows."""

from __future__ import annotations

from dataclasses import replace
from itertools import product

import numpy as np
import pytest
from mnemoscope.models.errors import MnemoscopeError
from mnemoscope.organisms.chaining_oracle import solve
from mnemoscope.organisms.forward_chaining import (
    PRESETS,
    ChainingSettings,
    ChainingWorld,
    chaining_settings,
    core_relations,
    expected_facts,
    make_chaining_world,
)

SMALL = PRESETS["small"]


@pytest.fixture(scope="module")
def small() -> ChainingWorld:
    return make_chaining_world(SMALL)


@pytest.mark.parametrize(("b", "facts"), [(10, 416), (20, 1644), (30, 3684), (40, 6536)])
def test_the_expected_facts_are_those_derived_for_the_paper(b: int, facts: int) -> None:
    assert expected_facts(b) == facts


def test_drawn_problems_have_as_many_facts_as_expected() -> None:
    world = make_chaining_world(PRESETS["paper"])
    counts = [len(problem.facts) for problem in world.problems]
    # 84 dead leaves lose one fact or six by a coin: the standard deviation is 5 / 2 * sqrt(84).
    assert np.mean(counts) == pytest.approx(416, abs=4 * 2.5 * 84**0.5 / 20**0.5)
    assert len(set(counts)) > 1
    assert world.settings.n_core == 100_070


def test_the_share_of_live_leaves(small: ChainingWorld) -> None:
    live = SMALL.branching - SMALL.killed
    for problem in small.problems:
        assert problem.live_1.sum() == live
        assert (problem.live_2.sum(axis=1) == live * problem.live_1).all()


def test_every_fact_adds_up_and_has_an_addend(small: ChainingWorld) -> None:
    addends = set(small.addends)
    for problem in small.problems:
        first, second, total = small.values[problem.facts].T
        np.testing.assert_array_equal(first + second, total)
        assert all(addends & {a, b} for a, b in zip(first, second, strict=True))
        assert len(np.unique(problem.facts, axis=0)) == len(problem.facts)


def test_links_are_read_forwards_and_backwards_and_terms_are_swapped(small: ChainingWorld) -> None:
    facts = np.concatenate([problem.facts for problem in small.problems])
    hidden = facts >= SMALL.n_core
    core_only = ~hidden[:, :2].any(axis=1)
    assert not core_only.all()
    assert 0.3 < hidden[:, 2].mean() < 0.8
    assert 0.35 < hidden[:, 0].sum() / (hidden[:, 0] | hidden[:, 1]).sum() < 0.65


def test_a_dead_leaf_lost_its_parent_or_its_core_links(small: ChainingWorld) -> None:
    for problem in small.problems:
        for node, row, alive in zip(problem.level_1, problem.level_2, problem.live_2, strict=True):
            for leaf, live in zip(row, alive, strict=True):
                of_leaf = problem.facts[(problem.facts == leaf).any(axis=1)]
                parents = int((of_leaf == node).any(axis=1).sum())
                others = len(of_leaf) - parents
                assert (parents, others) in ([(1, 6)] if live else [(1, 0), (0, 6)])


def test_the_same_seed_draws_the_same_world_and_another_another(small: ChainingWorld) -> None:
    again, other = make_chaining_world(SMALL), make_chaining_world(replace(SMALL, seed=1))
    for one, two in zip(small.problems, again.problems, strict=True):
        np.testing.assert_array_equal(one.facts, two.facts)
    assert not np.array_equal(small.values, other.values)


def test_core_relations_are_all_pairs_of_both_ends_split_at_random(small: ChainingWorld) -> None:
    relations = core_relations(small)
    facts = np.concatenate([relations.told, relations.held_out])
    assert len(relations.told) == round(0.3 * len(facts))
    values = small.values[facts]
    np.testing.assert_array_equal(values[:, :2].sum(axis=1) % SMALL.modulus, values[:, 2])
    addend = np.isin(values[:, 0], small.addends)
    others = np.where(addend, values[:, 1], values[:, 0])
    a, b = small.addends
    banned = {
        (s - i * a - j * b) % SMALL.modulus
        for s in (a, b)
        for i, j in product(range(5), repeat=2)
        if i + j <= 4
    }
    assert len(facts) == (SMALL.modulus - len(banned)) * 2 * SMALL.multiplicity**2
    assert not banned & set(others[~np.isin(values[:, 1], small.addends)].tolist())


def test_the_oracle_finds_every_number_in_five_waves(small: ChainingWorld) -> None:
    for problem in small.problems:
        found = solve(problem.facts, small.known, SMALL.modulus)
        for level, waves in (("X", {3}), ("level-1", {2, 4}), ("level-2", {1, 3, 5})):
            entities = problem.at(level)
            np.testing.assert_array_equal(found.values[entities], small.values[entities])
            assert set(found.waves[entities].tolist()) <= waves
        np.testing.assert_array_equal(found.waves[problem.level_1] == 2, problem.live_1)


def test_without_its_live_leaves_x_is_undetermined_and_so_is_all_that_hangs_on_it(
    small: ChainingWorld,
) -> None:
    problem = small.problems[0]
    cut = np.isin(problem.facts, problem.level_2[problem.live_2]).any(axis=1)
    found = solve(problem.facts[~cut], small.known, SMALL.modulus)
    assert not found.solved[problem.hidden]
    assert not found.solved[problem.level_1].any()
    assert found.solved[: SMALL.n_core].all()


def test_the_oracle_agrees_with_trying_all_numbers() -> None:
    random = np.random.default_rng(0)
    modulus, n = 5, 6
    seen = set()
    for _ in range(60):
        truth = random.integers(modulus, size=n)
        rows = random.integers(n, size=(5, 3))
        facts = rows[(truth[rows[:, 0]] + truth[rows[:, 1]] - truth[rows[:, 2]]) % modulus == 0]
        sums = random.integers(n, size=(40, 3))
        more = sums[(truth[sums[:, 0]] + truth[sums[:, 1]] - truth[sums[:, 2]]) % modulus == 0][:4]
        facts = np.concatenate([facts, more])
        known = np.where(np.arange(n) < 2, truth, -1)
        rest = np.array(list(product(range(modulus), repeat=n - 2)))
        worlds = np.concatenate([np.tile(truth[:2], (len(rest), 1)), rest], axis=1)
        worlds = worlds[~(worlds[:, facts] @ [1, 1, -1] % modulus).any(axis=1)]
        sure = (worlds == worlds[0]).all(axis=0)
        found = solve(facts, known, modulus)
        np.testing.assert_array_equal(found.solved, sure)
        np.testing.assert_array_equal(found.values[sure], worlds[0][sure])
        seen.add(bool((found.waves > found.chained).any()))
    assert seen == {True, False}  # some needed elimination, some did not


def test_contradictions_are_refused() -> None:
    known = np.array([1, 2, -1])
    with pytest.raises(MnemoscopeError, match="contradict"):
        solve(np.array([[0, 0, 2], [0, 1, 2]]), known, 7)
    two = np.array([1, -1, -1, -1])
    with pytest.raises(MnemoscopeError, match="no solution"):
        solve(np.array([[1, 2, 3], [2, 1, 3], [1, 1, 1], [3, 0, 2]]), two, 7)
    with pytest.raises(MnemoscopeError, match="prime"):
        solve(np.array([[1, 1, 2]]), two, 8)


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        ({"branching": 1}, "branching of 2"),
        ({"addends": (4, 4)}, "two addends"),
        ({"hidden": (10, 65)}, "move the hidden numbers"),
        ({"core_links": 17}, "fewer core links"),
        ({"told": 1.0}, "share"),
    ],
)
def test_sizes_that_do_not_fit_are_refused(wrong: dict[str, object], says: str) -> None:
    with pytest.raises(MnemoscopeError, match=says):
        replace(SMALL, **wrong)


def test_too_few_hidden_numbers_and_unknown_presets_are_refused() -> None:
    with pytest.raises(MnemoscopeError, match="widen the range"):
        make_chaining_world(replace(SMALL, hidden=(30, 40)))
    with pytest.raises(MnemoscopeError, match="choose one of"):
        chaining_settings("huge")
    assert chaining_settings("paper") == ChainingSettings()
