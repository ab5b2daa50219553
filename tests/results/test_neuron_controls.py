"""Control sets for MLP units: same layer, site and decile of write size, never a target."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from mnemoscope.models.types import NeuronId, Site
from mnemoscope.results.errors import StatisticsError
from mnemoscope.results.neuron_controls import matched_random_neurons, uniform_random_neurons

LAYERS, UNITS = 4, 60
SIZES = np.random.default_rng(0).lognormal(sigma=1.5, size=(LAYERS, UNITS))
HANDLES = (Site.NEURON, Site.GATE_PRE, Site.UP)


def decile(unit: NeuronId, sizes: np.ndarray = SIZES) -> int:
    """By counting: how many tenths of the layer's units write no more than this one."""
    row = np.sort(sizes[unit.layer])
    return int((row < sizes[unit.layer, unit.index]).sum() * 10 // len(row))


def place(unit: NeuronId) -> tuple[int, int]:
    return unit.layer, unit.index


@st.composite
def targets(draw):
    units = st.builds(
        NeuronId, st.integers(0, LAYERS - 1), st.integers(0, UNITS - 1), st.sampled_from(HANDLES)
    )
    return draw(st.lists(units, unique=True, min_size=1, max_size=50))


@settings(max_examples=60, deadline=None)
@given(target=targets(), seed=st.integers(0, 5))
def test_controls_match_layer_site_and_decile(target, seed):
    matched = matched_random_neurons(target, SIZES, seed=seed)
    wanted = Counter((one.layer, decile(one)) for one in target)
    taken = Counter((layer, decile(NeuronId(layer, m))) for layer, m in {place(u) for u in target})
    roomy = all(wanted[cell] <= 6 - taken[cell] for cell in wanted)
    assert len(matched.draws) == 20
    for controls in matched.draws:
        assert len({place(one) for one in controls}) == len(target)  # none at two sites either
        assert not {place(one) for one in controls} & {place(one) for one in target}
        assert [(c.layer, c.site) for c in controls] == [(t.layer, t.site) for t in target]
        if roomy:
            assert [decile(c) for c in controls] == [decile(t) for t in target]
    assert ("near deciles" in matched.note) == (not roomy)


def test_every_free_unit_of_the_decile_is_drawn_equally_often():
    target = [
        NeuronId(1, int(np.argsort(SIZES[1])[20])),
        NeuronId(1, int(np.argsort(SIZES[1])[23])),
    ]
    counts: Counter[int] = Counter()
    slots = np.zeros(2)
    peers = [int(m) for m in np.argsort(SIZES[1])[18:24] if NeuronId(1, int(m)) not in target]
    for controls in matched_random_neurons(target, SIZES, draws=4000, seed=0).draws:
        counts.update(one.index for one in controls)
        slots += [one.index == peers[0] for one in controls]
    assert sorted(counts) == sorted(peers)
    assert all(counts[m] / 4000 == pytest.approx(2 / 4, abs=0.04) for m in peers)
    assert slots / 4000 == pytest.approx([1 / 4, 1 / 4], abs=0.04)  # either slot may have any


def test_the_same_seed_gives_the_same_controls():
    target = [NeuronId(0, 0), NeuronId(2, 5)]
    first, again, other = (matched_random_neurons(target, SIZES, seed=s) for s in (1, 1, 2))
    assert first == again != other


def test_excluded_units_are_barred_at_all_their_sites():
    order = [int(m) for m in np.argsort(SIZES[2])[30:36]]
    target = NeuronId(2, order[0], Site.GATE_PRE)
    barred = [NeuronId(2, m, site) for m, site in zip(order[1:5], HANDLES * 2, strict=False)]
    matched = matched_random_neurons([target], SIZES, seed=0, exclude=barred)
    assert {one for draw in matched.draws for one in draw} == {NeuronId(2, order[5], Site.GATE_PRE)}
    assert "1 different control sets in 20 draws" in matched.note


def test_a_full_decile_borrows_from_the_next_and_says_so():
    order = [int(m) for m in np.argsort(SIZES[0])]
    target = [NeuronId(0, m) for m in order[24:29]]  # five of the six units of decile 4
    matched = matched_random_neurons(target, SIZES, seed=0)
    for controls in matched.draws:
        assert sorted(decile(one) for one in controls) in ([3, 3, 3, 3, 4], [4, 5, 5, 5, 5])
    assert matched.note.startswith("4 of 5 controls from near deciles")


def test_a_borrower_takes_nothing_that_its_neighbours_need():
    order = [int(m) for m in np.argsort(SIZES[0])]
    target = [NeuronId(0, m) for m in (*order[24:29], *order[18:21], *order[30:33])]
    matched = matched_random_neurons(target, SIZES, seed=0)
    for controls in matched.draws:
        assert [decile(one) for one in controls[5:]] == [3, 3, 3, 5, 5, 5]
        assert {decile(one) for one in controls[:5]} <= {2, 4, 6}


def test_a_full_layer_borrows_from_the_nearest_layers_and_says_so():
    target = [NeuronId(1, m) for m in range(40)]
    matched = matched_random_neurons(target, SIZES, seed=0)
    for controls in matched.draws:
        layers = Counter(one.layer for one in controls)
        assert layers[1] == 20
        assert layers[0] + layers[2] == 20
    assert "too few other units in layer 1: 20 controls from near layers" in matched.note


def test_the_note_says_when_controls_write_less_than_targets():
    sizes = np.ones((2, 50)) + np.arange(50) / 1000
    sizes[0, 49] = 40.0
    even = [NeuronId(1, m) for m in (3, 11, 14, 22, 25, 33, 36, 49)]
    plain = matched_random_neurons(even, sizes, seed=0)
    assert plain.note == ""
    tail = matched_random_neurons([NeuronId(0, 49), *even], sizes, seed=0)
    assert tail.note == "controls at neuron write 0.19 times as much as the targets"


def test_dimensions_of_the_mlp_output_have_their_own_table():
    stream = np.arange(1.0, 21.0)[None].repeat(LAYERS, 0)
    target = [NeuronId(0, 3), NeuronId(0, 3, Site.MLP_OUT), NeuronId(2, 19, Site.MLP_OUT)]
    tables = {Site.NEURON: SIZES, Site.MLP_OUT: stream}
    matched = matched_random_neurons(target, tables, seed=0)
    for hidden, low, high in matched.draws:
        assert (hidden.site, decile(hidden)) == (Site.NEURON, decile(target[0]))
        assert low == NeuronId(0, 2, Site.MLP_OUT)  # the other of two units in its decile
        assert high == NeuronId(2, 18, Site.MLP_OUT)
    with pytest.raises(StatisticsError, match="mlp_out need the write sizes"):
        matched_random_neurons(target, SIZES, seed=0)


def test_units_that_never_write_are_matched_with_their_like():
    sizes = np.concatenate([np.zeros(30), np.arange(1.0, 31.0)])[None]
    for controls in matched_random_neurons([NeuronId(0, 4)], sizes, seed=0).draws:
        assert sizes[0, controls[0].index] == 0


def test_what_cannot_be_matched_is_refused():
    with pytest.raises(StatisticsError, match="leave only 1 units"):
        matched_random_neurons([NeuronId(0, 0), NeuronId(0, 1)], np.ones((1, 3)), seed=0)
    with pytest.raises(StatisticsError, match=r"L4\.N0 does not exist"):
        matched_random_neurons([NeuronId(4, 0)], SIZES, seed=0)
    with pytest.raises(StatisticsError, match=r"L0\.N60 does not exist"):
        matched_random_neurons([NeuronId(0, 0)], SIZES, seed=0, exclude=[NeuronId(0, 60)])
    with pytest.raises(StatisticsError, match="named twice"):
        matched_random_neurons([NeuronId(0, 0)] * 2, SIZES, seed=0)
    with pytest.raises(StatisticsError, match="a target unit"):
        matched_random_neurons([], SIZES, seed=0)
    with pytest.raises(StatisticsError, match="finite and not negative"):
        matched_random_neurons([NeuronId(0, 0)], np.where(SIZES > 1, np.nan, SIZES), seed=0)


# -- the paper's baseline --------------------------------------------------------------------------


def test_uniform_draws_cover_all_layers_and_sites_evenly():
    n_units = {Site.GATE_PRE: 5, Site.UP: 5, Site.MLP_OUT: 2}
    drawn = uniform_random_neurons(9, 3, n_units, draws=4000, seed=0)
    counts: Counter[NeuronId] = Counter()
    for controls in drawn.draws:
        assert len(set(controls)) == 9
        counts.update(controls)
    everything = {
        NeuronId(layer, m, site)
        for layer in range(3)
        for site, n in n_units.items()
        for m in range(n)
    }
    assert set(counts) == everything
    assert all(n / 4000 == pytest.approx(9 / 36, abs=0.035) for n in counts.values())
    assert "not matched" in drawn.note
    assert drawn == uniform_random_neurons(9, 3, n_units, draws=4000, seed=0)


def test_more_units_than_there_are_cannot_be_drawn():
    assert len(set(uniform_random_neurons(15, 3, {Site.NEURON: 5}, seed=0).draws[0])) == 15
    with pytest.raises(StatisticsError, match="16 of 15 units"):
        uniform_random_neurons(16, 3, {Site.NEURON: 5}, seed=0)
