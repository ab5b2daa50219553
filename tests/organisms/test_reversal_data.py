"""The world of the reversal study: what is told both ways, one way and never."""

from __future__ import annotations

import numpy as np
import pytest
from mnemoscope.models.errors import MnemoscopeError
from mnemoscope.organisms.reversal_arms import ARMS, PRESETS, world_of
from mnemoscope.organisms.reversal_data import (
    WorldSettings,
    make_world,
    shared_names,
    shared_tokens,
)

SETTINGS = WorldSettings(n_a=40, n_b=24, relation_pairs=3, multiplicity=4, seed=1)


def _facts(rows: np.ndarray) -> set[tuple[int, ...]]:
    return set(map(tuple, rows.tolist()))


def _reverse(fact: tuple[int, ...], symmetric: bool = False) -> tuple[int, ...]:
    x, relation, y = fact
    return y, relation if symmetric else relation ^ 1, x


def test_group_a_is_told_both_ways_and_group_b_one_way_with_the_other_as_test() -> None:
    world = make_world(SETTINGS)
    train, atomic, test = (_facts(world.split(s)) for s in ("train", "atomic", "test"))
    assert {_reverse(fact) for fact in train} == train
    assert {_reverse(fact) for fact in atomic} == test
    assert not test & (train | atomic)
    assert _facts(world.told) == train | atomic


def test_counts_are_those_of_the_recipe() -> None:
    world = make_world(SETTINGS)
    assert (len(world.train), len(world.atomic), len(world.test)) == (3 * 40, 3 * 12, 3 * 12)
    paper = world_of(ARMS["jepa"], PRESETS["paper"], seed=0)
    counts = len(paper.train), len(paper.atomic), len(paper.test)
    assert counts == (300_000, 90_000, 90_000)
    assert 2 * paper.n_firsts + paper.n_relations + 2 == 16_014  # with a mask and a padding token
    assert paper.n_entities + paper.n_relations + 2 == 80_014


def test_every_entity_has_one_partner_a_relation_in_its_own_group() -> None:
    world = make_world(SETTINGS)
    for relation in range(world.n_relations):
        subjects = [*world.told, *world.test]
        asked = [fact for fact in subjects if fact[1] == relation]
        assert len({int(fact[0]) for fact in asked}) == len(asked)
    for facts, group in ((world.train, range(40)), (world.told[len(world.train) :], range(40, 64))):
        assert set(facts[:, 0]) | set(facts[:, 2]) == set(group)


def test_the_coin_tells_group_b_in_either_direction() -> None:
    world = make_world(WorldSettings(4, 2000, 2, 1))
    forward = (world.atomic[:, 1] % 2 == 0).mean()
    assert 0.45 < forward < 0.55


def test_test_subjects_were_seen_as_subjects_and_objects_of_other_relations() -> None:
    world = make_world(WorldSettings(4, 2000, 3, 1))
    asked, read, named = (set(x.tolist()) for x in (world.test[:, 0], *world.atomic[:, [0, 2]].T))
    assert len(asked & read) > 0.7 * len(asked)
    assert asked <= named


def test_symmetric_relations_have_one_token() -> None:
    world = make_world(WorldSettings(40, 24, 3, 4, symmetric=True))
    assert world.n_relations == 3
    assert {_reverse(f, symmetric=True) for f in _facts(world.atomic)} == _facts(world.test)


@pytest.mark.parametrize(("n", "m"), [(64, 1), (64, 4), (400, 10), (1600, 20)])
def test_each_name_token_is_borne_by_m_entities_and_no_full_name_twice(n: int, m: int) -> None:
    names = shared_names(n, m, np.random.default_rng(0))
    k = n // m
    assert (np.bincount(names[:, 0], minlength=k) == m).all()
    assert (np.bincount(names[:, 1] - k, minlength=k) == m).all()
    assert len(_facts(names)) == n


def test_an_entity_shares_a_token_with_2_m_minus_2_others() -> None:
    shared = shared_tokens(make_world(SETTINGS).names)
    assert (shared.diagonal() == 2).all()
    assert ((shared == 1).sum(1) == 2 * (4 - 1)).all()


def test_a_seed_decides_everything_and_the_facts_do_not_depend_on_the_names() -> None:
    one, again = make_world(SETTINGS), make_world(SETTINGS)
    other = make_world(WorldSettings(40, 24, 3, 4, seed=2))
    renamed = make_world(WorldSettings(40, 24, 3, 2, seed=1))
    assert (one.told == again.told).all()
    assert (one.names == again.names).all()
    assert (one.told != other.told).any()
    assert (one.told == renamed.told).all()
    assert (one.test == renamed.test).all()


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ((3, 2, 1, 1), "even sizes"),
        ((0, 2, 1, 1), "even sizes"),
        ((4, 4, 0, 1), "one pair of relations"),
        ((6, 4, 1, 3), "must divide"),
        ((8, 8, 1, 4), "too few names"),
        ((8, 8, 1, 0), "must divide"),
    ],
)
def test_impossible_worlds_are_refused(given: tuple[int, ...], says: str) -> None:
    with pytest.raises(MnemoscopeError, match=says):
        WorldSettings(*given)
