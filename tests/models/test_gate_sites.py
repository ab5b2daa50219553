"""The gate and up projections as sites: their equation, fused halves, edits, and who lacks them."""

from __future__ import annotations

import plain
import pytest
import torch
from families import FAMILIES, GATED, ids
from mnemoscope.models import Edit, MnemoscopeError, NeuronId, Site, TokenBatch, zero
from mnemoscope.models.errors import PromptError, UnitOutOfRangeError, UnsupportedSiteError
from plain import close

IDS = ids()
FULL = TokenBatch(IDS, torch.ones_like(IDS, dtype=torch.bool))
UNGATED = [family for family in FAMILIES if family not in GATED]


@pytest.mark.parametrize("family", GATED)
def test_gate_and_up_make_the_hidden_units(family: str) -> None:
    model = plain.model_of(family)
    seen = model.capture(FULL, [Site.GATE_PRE, Site.UP, Site.NEURON])
    for layer in range(plain.LAYERS):
        mlp = plain.mlp(model.module, family, layer)
        act = getattr(mlp, "act_fn", None) or mlp.activation_fn
        made = act(seen[Site.GATE_PRE, layer]) * seen[Site.UP, layer]
        close(made, seen[Site.NEURON, layer])


@pytest.mark.parametrize("family", GATED)
def test_zero_at_gate_up_or_hidden_is_one_intervention(family: str) -> None:
    model = plain.model_of(family)
    logits = []
    for site in (Site.NEURON, Site.UP, Site.GATE_PRE):
        units = [NeuronId(0, 3, site), NeuronId(1, 0, site)]
        with model.intervene([zero(units)]):
            logits.append(model.logits(FULL))
    close(logits[1], logits[0])
    close(logits[2], logits[0])  # every family here has an activation with act(0) = 0
    assert (logits[0] - model.logits(FULL)).abs().max() > 1e-6


@pytest.mark.parametrize("family", ["llama", "phi3"])
def test_a_set_gate_and_up_are_what_the_hidden_unit_sees(family: str) -> None:
    model = plain.model_of(family)
    gate = Edit("set", (NeuronId(1, 5, Site.GATE_PRE),), 0.7)
    up = Edit("set", (NeuronId(1, 5, Site.UP),), -2.0)
    with model.intervene([gate, up]):
        seen = model.capture(FULL, [Site.NEURON])[Site.NEURON, 1]
    act = plain.mlp(model.module, family, 1)
    act = getattr(act, "act_fn", None) or act.activation_fn
    wanted = act(torch.tensor(0.7, dtype=seen.dtype)) * -2.0
    close(seen[..., 5], wanted.expand_as(seen[..., 5]))


def test_a_dimension_of_the_mlp_output_can_be_edited() -> None:
    model = plain.model_of("llama")
    d_model = model.anatomy.d_model
    with model.intervene([zero([NeuronId(0, d_model - 1, Site.MLP_OUT)])]):
        out = model.capture(FULL, [Site.RESID_MID, Site.RESID_POST])
    written = out[Site.RESID_POST, 0] - out[Site.RESID_MID, 0]
    assert float(written[..., -1].abs().max()) < 1e-12 < float(written[..., 0].abs().min())
    with pytest.raises(UnitOutOfRangeError, match=f"units 0 to {d_model - 1}"):
        model.intervene([zero([NeuronId(0, d_model, Site.MLP_OUT)])]).__enter__()


@pytest.mark.parametrize("family", UNGATED)
def test_models_without_a_gate_say_so(family: str) -> None:
    model = plain.model_of(family)
    why = "experts fused" if family == "mixtral" else "without a gate"
    for site in (Site.GATE_PRE, Site.UP):
        with pytest.raises(UnsupportedSiteError, match=why):
            model.capture(FULL, [site])
        with pytest.raises(UnsupportedSiteError, match=why):
            model.intervene([zero([NeuronId(0, 0, site)])]).__enter__()


# -- the first token spared, and cells chosen for a reduction --------------------------------------


@pytest.mark.parametrize("side", ["left", "right"])
def test_all_but_first_spares_the_first_real_token(side: str) -> None:
    model = plain.model_of("llama")
    batch = model.batch([[5, 6, 7, 8, 9], [4, 3, 2]], side=side)
    edit = Edit("set", (NeuronId(0, 2),), 3.0, "all_but_first")
    plainly = model.capture(batch, [Site.NEURON])[Site.NEURON, 0][..., 2]
    with model.intervene([edit]) as installed:
        seen = model.capture(batch, [Site.NEURON])[Site.NEURON, 0][..., 2]
    first = torch.zeros_like(batch.mask)
    first[torch.arange(2), batch.starts] = True
    assert torch.equal(seen == 3.0, batch.mask & ~first)
    assert torch.equal(seen[first], plainly[first])
    assert installed[0].fired == 4 + 2


def test_all_but_first_goes_on_while_generating() -> None:
    model = plain.model_of("llama")
    batch = model.batch([[5, 6, 7, 8]])
    with model.intervene([Edit("set", (NeuronId(0, 2),), 3.0, "all_but_first")]) as installed:
        new = model.generate(batch, 4)
    assert installed[0].fired == 3 + len(new[0]) - 1
    with model.intervene([Edit("set", (NeuronId(0, 2),), 3.0, "all_but_first", "prefill")]) as one:
        model.generate(batch, 4)
    assert one[0].fired == 3


def test_a_reduction_folds_the_chosen_cells_only() -> None:
    model = plain.model_of("llama")
    batch = model.batch([[5, 6, 7, 8, 9], [4, 3, 2]])
    among = batch.mask.clone()
    among[torch.arange(2), batch.starts] = False
    whole = model.capture(batch, [Site.NEURON])[Site.NEURON, 1]
    mean = model.capture(batch, [Site.NEURON], reduce="mean", among=among)[Site.NEURON, 1]
    most = model.capture(batch, [Site.NEURON], reduce="max", among=among)[Site.NEURON, 1]
    for row, cells in enumerate(among):
        close(mean[row], whole[row][cells].mean(0))
        close(most[row], whole[row][cells].amax(0))


def test_cells_to_reduce_are_checked() -> None:
    model = plain.model_of("llama")
    batch = model.batch([[5, 6, 7], [4, 3, 2]])
    with pytest.raises(MnemoscopeError, match="reduce=None"):
        model.capture(batch, [Site.NEURON], among=batch.mask)
    with pytest.raises(PromptError, match="no token among"):
        model.capture(batch, [Site.NEURON], reduce="mean", among=torch.zeros_like(batch.mask))
