"""Overlap of two sets of heads beside sets of the same layers."""

from __future__ import annotations

from itertools import combinations, product

import numpy as np
import pytest
from mnemoscope.results.errors import StatisticsError
from mnemoscope.results.set_overlap import set_overlap, shared_distribution


def mask(*rows: str) -> np.ndarray:
    return np.array([[cell == "x" for cell in row] for row in rows])


A = mask("xx..", "x...")
B = mask("x.x.", "x...")


def by_enumeration(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Every way to place b's heads within their layers, counted by what they share with a."""
    layers = [list(combinations(range(a.shape[1]), int(row.sum()))) for row in b]
    counts = np.zeros(int(min(a.sum(), b.sum())) + 1)
    for placed in product(*layers):
        counts[sum(a[i, h] for i, heads in enumerate(placed) for h in heads)] += 1
    return counts / counts.sum()


def test_chance_is_that_of_all_placements_within_layers() -> None:
    expected = by_enumeration(A, B)
    found = shared_distribution(A, B)
    np.testing.assert_allclose(found, expected[: len(found)], atol=1e-12)


def test_the_numbers_by_hand() -> None:
    found = set_overlap(A, B)
    chance = by_enumeration(A, B)
    jaccard = np.arange(4) / (6 - np.arange(4))
    assert (found.a, found.b, found.shared) == (3, 3, 2)
    assert found.jaccard == pytest.approx(0.5)
    assert found.chance == pytest.approx(float(chance @ jaccard))
    assert found.p == pytest.approx(chance[2:].sum())
    assert found.p_fewer == pytest.approx(chance[:3].sum())
    assert found.low <= found.chance <= found.high


def test_roles_of_the_same_crowded_layer_overlap_by_chance_alone() -> None:
    crowded = mask("xxxx", "....")
    assert set_overlap(crowded, crowded).p == 1.0
    spread = mask("xx......", "xx......")
    assert set_overlap(spread, spread).p == pytest.approx((1 / 28) ** 2)


def test_empty_sets_and_other_sizes_are_refused() -> None:
    with pytest.raises(StatisticsError, match="empty"):
        set_overlap(A, np.zeros_like(A))
    with pytest.raises(StatisticsError, match="cannot be compared"):
        set_overlap(A, B[:1])
