"""Matched random heads: same layers, similar norm, never a target."""

from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from mnemoscope.models.errors import MnemoscopeError
from mnemoscope.models.types import HeadId
from mnemoscope.results.controls import matched_random_heads
from mnemoscope.results.errors import StatisticsError


@st.composite
def targets(draw):
    heads = st.builds(HeadId, st.integers(0, 4), st.integers(0, 7))
    return draw(st.lists(heads, unique=True, min_size=1, max_size=20))


@settings(max_examples=50, deadline=None)
@given(target=targets(), seed=st.integers(0, 9), with_norms=st.booleans())
def test_controls_are_never_targets_and_stay_in_their_layers(target, seed, with_norms):
    norms = np.random.default_rng(seed).uniform(1, 2, size=(5, 8)) if with_norms else None
    matched = matched_random_heads(target, 5, 8, draws=20, seed=seed, norms=norms)
    wanted = Counter(head.layer for head in target)
    roomy = max(wanted.values()) <= 4
    assert len(matched.draws) == 20
    for controls in matched.draws:
        assert len(set(controls)) == len(target)
        assert not set(controls) & set(target)
        assert all(0 <= head.layer < 5 and 0 <= head.head < 8 for head in controls)
        if roomy:
            assert [head.layer for head in controls] == [head.layer for head in target]
    assert ("near layers" in matched.note) == (not roomy)


def test_the_same_seed_gives_the_same_controls():
    target = [HeadId(0, 0), HeadId(2, 5)]
    first, again, other = (matched_random_heads(target, 5, 8, seed=s) for s in (1, 1, 2))
    assert first == again != other


def test_the_nearest_in_norm_is_drawn_most():
    norms = np.array([[1.0, 2.0, 1.1, 9.0, 0.6]])
    matched = matched_random_heads([HeadId(0, 0)], 1, 5, draws=2000, seed=0, norms=norms)
    counts = Counter(controls[0].head for controls in matched.draws)
    weights = np.array([1, 1 / 2, 1 / 3, 1 / 4])
    for head, share in zip((2, 4, 1, 3), weights / weights.sum(), strict=True):
        assert counts[head] / 2000 == pytest.approx(share, abs=0.035)


def test_excluded_heads_are_no_controls():
    barred = [HeadId(0, head) for head in range(1, 7)]
    matched = matched_random_heads([HeadId(0, 0)], 1, 8, seed=0, exclude=barred)
    assert {controls[0] for controls in matched.draws} == {HeadId(0, 7)}
    assert "1 different control sets in 20 draws" in matched.note


def test_a_full_layer_borrows_from_the_nearest_and_says_so():
    target = [HeadId(2, 0), HeadId(2, 1), HeadId(2, 2)]
    matched = matched_random_heads(target, 5, 4, seed=0)
    for controls in matched.draws:
        layers = sorted(head.layer for head in controls)
        assert layers.count(2) == 1
        assert set(layers) <= {1, 2, 3}
    assert "layer 2" in matched.note


def test_a_layer_that_borrows_takes_nothing_that_its_neighbour_needs():
    target = [HeadId(0, 0), HeadId(0, 1), HeadId(0, 2), HeadId(1, 0), HeadId(1, 1)]
    for controls in matched_random_heads(target, 3, 4, seed=0).draws:
        assert [head.layer for head in controls[3:]] == [1, 1]
        assert sorted(head.layer for head in controls[:3]) == [0, 2, 2]


def test_what_cannot_be_matched_is_refused():
    with pytest.raises(StatisticsError, match="leave only 1"):
        matched_random_heads([HeadId(0, 0), HeadId(0, 1)], 1, 3, seed=0)
    with pytest.raises(StatisticsError, match=r"L1\.H0 does not exist"):
        matched_random_heads([HeadId(1, 0)], 1, 3, seed=0)
    with pytest.raises(StatisticsError, match="1 by 3"):
        matched_random_heads([HeadId(0, 0)], 1, 3, seed=0, norms=np.ones((3, 1)))
    with pytest.raises(MnemoscopeError, match="twice"):
        matched_random_heads([HeadId(0, 0), HeadId(0, 0)], 1, 3, seed=0)
    with pytest.raises(StatisticsError, match="a target head"):
        matched_random_heads([], 1, 3, seed=0)
