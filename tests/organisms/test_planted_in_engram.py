"""A unit planted in `engram`, a trained model: and ranked first by the search."""

from __future__ import annotations

import copy

import pytest
import torch
from mnemoscope.data.facts.designs import build_design
from mnemoscope.data.facts.items import Relation, load_relation, split_subjects
from mnemoscope.data.facts.wordings import DETECTION, wordings
from mnemoscope.models import HookedModel, NeuronId, load_model, wrap
from mnemoscope.organisms import plant_unit
from mnemoscope.probes.relation_neuron_tables import ranking, verdicts
from mnemoscope.probes.relation_neurons import RelationNeurons, find_relation_neurons
from torch import Tensor

OTHERS = ("capital", "currency", "continent", "official_language")
TOLD = "demonym"
LAYER, INDEX = 2, 11


@pytest.fixture(scope="module")
def engram() -> HookedModel:
    return load_model("engram", dtype="float32")


def mlp_inputs(model: HookedModel, relation: Relation) -> Tensor:
    """What the MLP of `LAYER` reads at every token but the first, all detection wordings, of the
    subjects that no test prompt asks about."""
    facts = split_subjects(relation, 0)["tune"][:12]
    asked = [wording for wording in wordings(relation) if wording.name in DETECTION]
    batch = model.tokens([wording.prompt(fact.subject) for wording in asked for fact in facts])
    batch.mask[torch.arange(len(batch)), batch.starts] = False
    seen: list[Tensor] = []
    mlp = model.module.model.layers[LAYER].mlp
    handle = mlp.register_forward_pre_hook(lambda _, args: seen.append(args[0][batch.mask]))
    model.logits(model.tokens([w.prompt(f.subject) for w in asked for f in facts]), at="end")
    handle.remove()
    return seen[0]


@pytest.fixture(scope="module")
def planted(engram: HookedModel) -> HookedModel:
    """The direction that tells one relation's tokens from the others' (Fisher's discriminant);
    writes nothing."""
    mine = mlp_inputs(engram, load_relation(TOLD))
    rest = torch.cat([mlp_inputs(engram, load_relation(name)) for name in OTHERS])
    spread = torch.cov(rest.T) + 0.05 * torch.eye(rest.shape[1])
    read = torch.linalg.solve(spread, mine.mean(0) - rest.mean(0))
    read = read / read.norm()
    module = copy.deepcopy(engram.module)
    plant_unit(module, engram.anatomy, LAYER, INDEX, read, torch.zeros_like(read), 4.0)
    return wrap(module, engram.tokenizer, name="engram with a planted unit")


def found(model: HookedModel, told: Relation) -> RelationNeurons:
    relations = [*map(load_relation, OTHERS), told]
    design = build_design(relations, subjects=12, pseudo=20, resamples=0, seed=0)
    return find_relation_neurons(model, design, k=1, memory_bytes=2**28)


def rank_of(result: RelationNeurons, unit: NeuronId) -> int:
    return ranking(result, TOLD).index(unit)


def test_the_planted_unit_ranks_first_and_others_stay(
    engram: HookedModel, planted: HookedModel
) -> None:
    unit = NeuronId(LAYER, INDEX)
    before, after = (found(model, load_relation(TOLD)) for model in (engram, planted))
    at = after.row(TOLD), LAYER, INDEX
    assert rank_of(after, unit) == 0 < rank_of(before, unit)
    assert after.score[at] > before.score[at] + 0.3
    assert after.score[at] == 1.0  # in every wording, on subjects that made no direction
    others = [one for one in verdicts(after) if one.relation != TOLD]
    assert [one.score for one in others] == pytest.approx(
        [one.score for one in verdicts(before) if one.relation != TOLD], abs=0.05
    )
