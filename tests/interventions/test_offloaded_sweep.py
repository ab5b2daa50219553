"""Sweeps on a model half of which stays on disk: the same numbers, each layer read once a sweep."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest
import torch
from families import ids
from mnemoscope.interventions import end_sweep
from mnemoscope.interventions.end_total_effect import clean_run, end_total_effects
from mnemoscope.interventions.head_means import head_write_norms
from mnemoscope.interventions.logit_directions import logit_directions
from mnemoscope.interventions.neuron_ablation import mean_abs, neutral_means, write_norms
from mnemoscope.interventions.path_patching import (
    build_chain,
    direct_effects,
    end_states,
    frozen_mlp_effects,
)
from mnemoscope.models import Site
from placed import both, counted_reads, saved

FAMILIES = ("gpt2", "gptj", "neox", "opt", "llama", "gemma2")
IDS = torch.tensor([[4, 9], [8, 5], [3, 60]])
TEXTS = ("w5 w6 w7 w8 w9 w10 w11", "w20 w21", "w40 w3 w17 w31 w9")


@pytest.fixture(scope="module", params=FAMILIES)
def chains(request: Any, tmp_path_factory: Any) -> Any:
    pair = both(saved(tmp_path_factory.mktemp("sweep") / request.param, request.param))
    runs = []
    for model in pair:
        org = end_states(model, model.batch(ids(3, 9).tolist()))
        cf = end_states(model, model.batch(ids(3, 7, seed=5).tolist()))
        runs.append((build_chain(model), org, cf.z))
    return runs


@pytest.fixture
def in_pieces(monkeypatch: Any) -> None:
    """Several pieces a sweep, as for a model too large for the memory asked for."""
    cuts = [(slice(c, c + 1), slice(r, r + 5)) for c in range(3) for r in range(0, 12, 5)]
    monkeypatch.setattr(end_sweep, "_cuts", lambda *_: cuts)


def by_layer(reads: Counter[str]) -> dict[str, set[int]]:
    """Counts of reads of the weights inside blocks."""
    found: dict[str, set[int]] = {}
    for name, n in reads.items():
        places = [part for part in name.split(".") if part.isdecimal()]
        if places:
            found.setdefault(places[0], set()).add(n)
    return found


def test_direct_effects_are_the_same_and_read_each_layer_once(chains: Any, in_pieces: None) -> None:
    (resident, org, z), (spread, own_org, own_z) = chains
    assert torch.equal(own_z, z)
    want = direct_effects(resident, org, z, IDS)
    with counted_reads() as reads:
        got = direct_effects(spread, own_org, own_z, IDS)
    assert torch.equal(got.patched, want.patched)
    assert torch.equal(got.clean, want.clean)
    assert by_layer(reads)
    assert all(counts == {1} for counts in by_layer(reads).values())
    assert set(reads.values()) == {1}  # the unembedding too
    assert not any("q_proj" in name or "k_proj" in name for name in reads)


def test_log_probs_are_the_same(chains: Any) -> None:
    want, got = (direct_effects(*run, IDS, log_probs=True).patched for run in chains)
    assert torch.equal(got, want)


def test_frozen_mlps_are_the_same_and_read_each_layer_once(chains: Any, in_pieces: None) -> None:
    want = frozen_mlp_effects(*chains[0], IDS)
    with counted_reads() as reads:
        got = frozen_mlp_effects(*chains[1], IDS)
    assert torch.equal(got.patched, want.patched)
    assert set(reads.values()) == {1}


def test_end_total_effects_are_the_same_in_four_reads(chains: Any) -> None:
    told = []
    for chain, _, z in chains:
        batch = chain.model.batch(ids(3, 9).tolist())
        with counted_reads() as reads:
            told.append(end_total_effects(chain.model, batch, z, IDS, rows_per_call=5))
    assert torch.equal(told[1].patched, told[0].patched)
    assert torch.equal(told[1].clean, told[0].clean)
    assert by_layer(reads)
    assert all(
        counts <= {3, 4} for counts in by_layer(reads).values()
    )  # states, cache, rows, check


def test_a_clean_run_serves_any_number_of_end_total_effects(chains: Any) -> None:
    chain, _, z = chains[1]
    batch = chain.model.batch(ids(3, 9).tolist())
    want = [end_total_effects(chain.model, batch, some, IDS) for some in (z, 2 * z)]
    with counted_reads() as reads:
        clean = clean_run(chain.model, batch)
        got = [end_total_effects(chain.model, clean, some, IDS) for some in (z, 2 * z)]
    for one, other in zip(want, got, strict=True):
        assert torch.equal(one.patched, other.patched)
    assert not torch.equal(got[0].patched, got[1].patched)
    assert all(counts <= {4, 6} for counts in by_layer(reads).values())  # 2 + 2 * (rows, check)


def test_logit_directions_are_the_same(chains: Any) -> None:
    told = []
    for chain, org, _ in chains:
        model = chain.model
        last = model.anatomy.n_layers - 1
        batch = model.batch(ids(3, 9).tolist())
        final = model.capture(batch, (Site.RESID_POST,), layers=[last], at="end")
        directions = logit_directions(chain, final[Site.RESID_POST, last][:, 0], org.z, IDS[:, 0])
        told.append((directions.logit, directions.attention, directions.of_heads(model)))
    for want, got in zip(*told, strict=True):
        assert torch.equal(got, want)


def test_statistics_of_units_are_the_same(chains: Any) -> None:
    told = []
    for chain, _, _ in chains:
        model = chain.model
        told.append(
            (
                neutral_means(model, TEXTS),
                mean_abs(model, TEXTS),
                write_norms(model),
                torch.from_numpy(head_write_norms(model, TEXTS)),
            )
        )
    for want, got in zip(*told, strict=True):
        assert torch.equal(got, want)
