"""The same probe code gives the same numbers whether a model runs by hooks or as nnsight traces."""

from __future__ import annotations

from dataclasses import fields, replace
from typing import Any

import numpy as np
import pytest
import torch
from mnemoscope.data.facts.designs import build_design
from mnemoscope.data.facts.items import load_relation, split_subjects
from mnemoscope.interventions.end_chain import EndChain
from mnemoscope.interventions.end_total_effect import end_total_effects
from mnemoscope.interventions.patched_passes import PassChain, chain_for, effects_by_passes
from mnemoscope.interventions.path_patching import (
    build_chain,
    direct_effects,
    end_states,
    head_sets,
)
from mnemoscope.models import HeadId, HookedModel, load_model, wrap
from mnemoscope.models.errors import MnemoscopeError
from mnemoscope.organisms.planted_units import planted_units_model
from mnemoscope.probes.conflict_heads import measure_effects
from mnemoscope.probes.elicitation import conflict_items
from mnemoscope.probes.induction_heads import measure_induction
from mnemoscope.probes.relation_neurons import find_relation_neurons
from mnemoscope.probes.retrieval_designs import design_for
from mnemoscope.probes.retrieval_trials import RetrievalTrials, measure_trials

pytest.importorskip("nnsight")

from families import tiny
from mnemoscope.models.nnsight_model import traced

ROUNDING = 1e-9


def same_arrays(got: Any, want: Any) -> None:
    """Every array of two results, to the last bit."""
    for one in fields(want):
        a, b = getattr(got, one.name), getattr(want, one.name)
        if isinstance(b, np.ndarray):
            np.testing.assert_array_equal(a, b, err_msg=one.name)


# -- path patching by whole passes ----------------------------------------------------------------


@pytest.mark.parametrize("family", ["gpt2", "llama", "neox", "gemma2", "opt"])
def test_whole_passes_give_the_sweeps_direct_effects(family: str) -> None:
    # In float64 Gemma-2's eager attention gives NaN to padding, since it takes softmax in float32.
    single = family == "gemma2"
    model = wrap(tiny(family, dtype=torch.float32 if single else torch.float64))
    rows = torch.randint(3, 61, (3, 9), generator=torch.Generator().manual_seed(2)).tolist()
    batch = model.batch([rows[0], rows[1][:6]])
    corrupted = model.batch([rows[2][:7], rows[1][1:7]])
    ids = torch.tensor([[5, 9], [4, 30]])
    want = direct_effects(
        build_chain(model), end_states(model, batch), end_states(model, corrupted).z, ids
    )
    got = effects_by_passes(model, batch, corrupted, ids, memory_mb=1)
    tolerance = 1e-4 if single else ROUNDING
    assert torch.allclose(got.clean, want.clean, rtol=0, atol=tolerance)
    assert torch.allclose(got.patched, want.patched, rtol=0, atol=tolerance)
    assert want.change.abs().max() > 1e-3


def test_sets_of_heads_answer_positions_and_log_probabilities() -> None:
    model = wrap(tiny("llama"))
    rows = torch.randint(3, 61, (2, 9), generator=torch.Generator().manual_seed(2)).tolist()
    batch, corrupted = model.batch([rows[0]]), model.batch([rows[1][:8]])
    at, other_at = torch.tensor([[6, 8, 8]]), torch.tensor([[5, 7, 7]])
    ids, senders = torch.tensor([[5], [9], [7]]), head_sets(model, [[HeadId(0, 1), HeadId(2, 3)]])
    runs = end_states(model, batch, at=at), end_states(model, corrupted, at=other_at).z
    kwargs: dict[str, Any] = {"senders": senders, "log_probs": True}
    want = direct_effects(build_chain(model), *runs, ids, **kwargs)
    got = effects_by_passes(model, batch, corrupted, ids, at=at, corrupted_at=other_at, **kwargs)
    assert torch.allclose(got.patched, want.patched, rtol=0, atol=ROUNDING)
    assert torch.allclose(got.clean, want.clean, rtol=0, atol=ROUNDING)
    with pytest.raises(MnemoscopeError, match="one chain for each column"):
        effects_by_passes(model, batch, corrupted, ids)


def test_whole_passes_give_the_cached_end_total_effects() -> None:
    model = wrap(tiny("llama"))
    rows = torch.randint(3, 61, (2, 9), generator=torch.Generator().manual_seed(2)).tolist()
    batch, corrupted = model.batch([rows[0]]), model.batch([rows[1]])
    ids = torch.tensor([[5, 9]])
    want = end_total_effects(model, batch, end_states(model, corrupted).z, ids)
    got = effects_by_passes(model, batch, corrupted, ids, frozen=False)
    assert torch.allclose(got.patched, want.patched, rtol=0, atol=ROUNDING)


# -- probes ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("estimand", ["direct", "total_end"])
@pytest.mark.parametrize("answers", ["first", "whole"])
def test_conflict_heads(planted: Any, estimand: Any, answers: Any) -> None:
    if (estimand, answers) == ("total_end", "whole"):
        pytest.skip("whole answers have direct effects only")
    items, how = planted.items[:6], {"estimand": estimand, "answers": answers}
    want = measure_effects(planted.chain, items, **how)
    traces = traced(planted.model)
    chain = chain_for(traces)
    assert isinstance(chain, EndChain), "the weights are here, so single blocks are run"
    same_arrays(measure_effects(chain, items, **how), want)
    passes = measure_effects(PassChain(traces), items, **how)
    np.testing.assert_allclose(passes.change, want.change, rtol=0, atol=1e-7)
    np.testing.assert_allclose(passes.clean, want.clean, rtol=0, atol=1e-7)


def test_items_that_a_model_knows_are_the_same(planted: Any) -> None:
    both = [
        conflict_items(model, planted.relation, planted.relation.facts, templates=(0,), seed=0)
        for model in (planted.model, traced(planted.model))
    ]
    assert both[0] == both[1]


@pytest.mark.parametrize("rehearse", [False, True])
def test_relation_neurons(rehearse: bool) -> None:
    units = planted_units_model(dtype=torch.float32)
    model = wrap(units.module, units.tokenizer, name="planted units")
    design = build_design(units.relations, subjects=None, resamples=2, seed=0)
    want = find_relation_neurons(model, design)
    there = find_relation_neurons(traced(model, rehearse=rehearse), design)
    if rehearse:  # a server keeps its weights to itself
        assert np.isnan(there.write_norm).all()
        there = replace(there, write_norm=want.write_norm)
    same_arrays(there, want)


@pytest.mark.parametrize("rehearse", [False, True])
def test_retrieval_trials_and_induction(rehearse: bool) -> None:
    model = load_model("engram")
    there = traced(load_model("engram"), rehearse=rehearse)
    design = design_for(model, lengths=(64,), needles=2, needles_per_haystack=1, depths=1, seed=1)
    want, got = measure_trials(model, design), measure_trials(there, design)
    assert isinstance(want, RetrievalTrials)
    same_trials(got, want)
    here = measure_induction(model, sequences=2, length=12)
    assert np.array_equal(
        measure_induction(there, sequences=2, length=12).induction, here.induction
    )


def same_trials(got: RetrievalTrials, want: RetrievalTrials) -> None:
    """Every reading, to the last bit."""
    assert got.continuations == want.continuations
    for name, values in want.arrays.items():
        np.testing.assert_array_equal(got.arrays[name], values, err_msg=name)


# -- a real model ---------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def smollm2() -> HookedModel:
    return load_model("smollm2")


def test_smollm2_conflict_heads(smollm2: HookedModel) -> None:
    relation = load_relation("capital")
    facts = split_subjects(relation, 0)["find"][:12]
    items = conflict_items(smollm2, relation, facts, templates=(0,), seed=0).items[:2]
    want = measure_effects(build_chain(smollm2), items)
    got = measure_effects(chain_for(traced(smollm2)), items)
    np.testing.assert_array_equal(got.change, want.change)
    assert len(items) == 2


def test_smollm2_direct_effects_by_whole_passes(smollm2: HookedModel) -> None:
    batch, other = (smollm2.tokens(f"The capital of {it} is") for it in ("France", "Japan"))
    ids = torch.tensor([[smollm2.answer_ids("The capital of France is", "Paris")[0]]])
    senders = head_sets(smollm2, [[HeadId(layer, 4)] for layer in (3, 12, 23, 29)])
    runs = end_states(smollm2, batch), end_states(smollm2, other).z
    want = direct_effects(build_chain(smollm2), *runs, ids, senders=senders)
    got = effects_by_passes(traced(smollm2), batch, other, ids, senders=senders)
    assert float(want.change.abs().max()) > 1
    assert float((got.change - want.change).abs().max()) < 1e-3


@pytest.mark.slow
def test_smollm2_relation_neurons(smollm2: HookedModel) -> None:
    relations = [load_relation(name) for name in ("capital", "currency", "continent")]
    design = build_design(relations, subjects=4, pseudo=1, resamples=1, seed=0)
    want = find_relation_neurons(smollm2, design)
    same_arrays(find_relation_neurons(traced(smollm2), design), want)


@pytest.mark.slow
def test_smollm2_retrieval_trials(smollm2: HookedModel) -> None:
    design = design_for(smollm2, lengths=(96,), needles=1, depths=2, seed=1)
    same_trials(
        measure_trials(traced(smollm2), design),
        measure_trials(smollm2, design),
    )
