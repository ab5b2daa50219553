"""Shards: every unit in exactly one part, checkpoints whole, parts alike in weight."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from mnemoscope.results.errors import LedgerError
from mnemoscope.results.shards import WHOLE, Shard, Unit, parts

GROUPS = st.sampled_from(["a", "b", "c", ""])
SIZES = st.one_of(st.none(), st.integers(1, 1000))
UNITS = st.lists(st.tuples(GROUPS, SIZES), max_size=30).map(
    lambda found: [Unit(f"unit {i}", group, size) for i, (group, size) in enumerate(found)]
)
COUNTS = st.integers(1, 9)


@given(UNITS, COUNTS)
def test_every_unit_is_in_exactly_one_part(units: list[Unit], count: int) -> None:
    dealt = [unit for i in range(count) for unit in Shard(i + 1, count).of(units)]
    assert sorted(dealt, key=units.index) == units
    for i in range(count):
        part = Shard(i + 1, count).of(units)
        assert list(part) == sorted(part, key=units.index), "in their order"


@given(UNITS)
def test_one_part_is_all_units(units: list[Unit]) -> None:
    assert WHOLE.of(units) == tuple(units)


@given(st.lists(st.integers(1, 1000), min_size=1, max_size=40), COUNTS)
def test_no_part_is_heavier_than_its_share_and_one_unit(sizes: list[int], count: int) -> None:
    units = [Unit(f"unit {i}", "", size) for i, size in enumerate(sizes)]
    loads = [sum(unit.size or 0 for unit in Shard(i + 1, count).of(units)) for i in range(count)]
    assert max(loads) <= sum(sizes) / count + max(sizes)


@given(st.lists(st.integers(1, 6), min_size=1, max_size=12), COUNTS)
def test_a_group_that_is_no_more_than_a_share_stays_together(counts: list[int], n: int) -> None:
    units = [Unit(f"{g} {i}", f"group {g}", 7) for g, k in enumerate(counts) for i in range(k)]
    part_of = parts(units, n)
    for g, k in enumerate(counts):
        found = {
            part for unit, part in zip(units, part_of, strict=True) if unit.group[6:] == str(g)
        }
        assert len(found) == 1 or k > len(units) / n


def test_one_checkpoint_with_many_probes_is_split() -> None:
    units = [Unit(f"unit {i}", "one checkpoint", 70) for i in range(8)]
    assert [len(Shard(i, 4).of(units)) for i in (1, 2, 3, 4)] == [2, 2, 2, 2]


def test_a_big_checkpoint_has_a_worker_of_its_own() -> None:
    units = [Unit(str(size), str(size), size) for size in (8, 9, 70, 10, 11)]
    assert [unit.size for unit in Shard(1, 2).of(units)] == [70]


def test_unknown_sizes_weigh_as_much_as_the_others_do() -> None:
    units = [Unit("known", "a", 100), Unit("new", "b"), Unit("newer", "c"), Unit("also", "d", 100)]
    assert [len(Shard(i, 2).of(units)) for i in (1, 2)] == [2, 2]


def test_the_split_is_a_constant() -> None:
    """Workers of any machine and version have to agree: if this changes, ledgers change meaning."""
    units = [Unit(f"m{m}/p{p}", f"m{m}", size) for m, size in enumerate((3, 50, 7)) for p in (0, 1)]
    assert parts(units, 3) == (3, 3, 1, 2, 3, 3)


@pytest.mark.parametrize("text", ["0/2", "3/2", "2", "1/0", "-1/2", "1 / 2", "a/b", "1/2/3", ""])
def test_what_is_no_shard(text: str) -> None:
    with pytest.raises(LedgerError):
        Shard.parse(text)


def test_a_shard_is_read_as_it_is_written() -> None:
    assert Shard.parse(str(Shard(2, 8))) == Shard(2, 8)
