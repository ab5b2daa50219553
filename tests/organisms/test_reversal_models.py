"""The toy models compute what their descriptions say, against plain re-computations."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from mnemoscope.organisms.reversal_arms import ARMS, PRESETS, Arm, build_model
from mnemoscope.organisms.reversal_data import ReversalWorld, WorldSettings, make_world
from mnemoscope.organisms.reversal_models import (
    Block,
    ConceptPredictor,
    MemoryReader,
    NamePredictor,
    ToyModel,
    memory_slots,
)
from torch import Tensor
from torch.nn.functional import log_softmax

TINY = replace(PRESETS["miniature"], width=8, heads=2)
WORLD = make_world(WorldSettings(n_a=20, n_b=16, relation_pairs=2, multiplicity=3, seed=0))
FACTS = torch.from_numpy(WORLD.told)
SMALL_TABLE = {
    "surface": 91_392,
    "tied": 255_232,
    "untied": 460_352,
    "jepa": 141_248,
    "jepa-memory": 255_232,
    "two-tables": 460_352,
}


def _model(arm: str | Arm, world: ReversalWorld = WORLD) -> ToyModel:
    arm = ARMS[arm] if isinstance(arm, str) else arm
    return build_model(arm, TINY, world, seed=0).double()


@pytest.mark.parametrize("name", SMALL_TABLE)
def test_sizes_of_the_small_preset(name: str) -> None:
    """91K, 255K, 460K, 141K parameters, as published with the toy configuration."""
    small = PRESETS["small"]
    world = make_world(WorldSettings(small.n_a, small.n_b, 2, 10))
    model = build_model(ARMS[name], small, world, seed=0)
    assert sum(p.numel() for p in model.parameters()) == SMALL_TABLE[name]


@pytest.mark.parametrize("name", ARMS)
def test_every_arm_learns_from_one_batch_and_ranks_all_entities(name: str) -> None:
    model = _model(name)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    before = model.loss(FACTS)
    before.backward()
    optimizer.step()
    assert model.loss(FACTS) < before
    assert model.entity_scores(FACTS[:5, :2]).shape == (5, WORLD.n_entities)
    assert model.perceived().shape == (WORLD.n_entities, 8)


@pytest.mark.parametrize("name", ["surface", "lm-memory"])
def test_a_name_is_scored_by_the_log_probability_of_its_two_tokens(name: str) -> None:
    """`entity_scores` over all first names at once equals one teacher-forced row a name."""
    model = _model(name)
    assert isinstance(model, NamePredictor)
    query = FACTS[3, :2]
    every = torch.arange(WORLD.n_entities)
    rows = torch.cat([query.expand(len(every), 2), every[:, None]], dim=1)
    logs = log_softmax(model.token_logits(rows), -1)
    names = torch.from_numpy(WORLD.names)
    wanted = logs[:, 0].gather(1, names[:, :1]) + logs[:, 1].gather(1, names[:, 1:])
    assert torch.allclose(model.entity_scores(query[None])[0], wanted[:, 0], atol=1e-12)


def test_the_language_models_do_not_see_the_name_they_predict() -> None:
    model = _model("surface")
    assert isinstance(model, NamePredictor)
    other = FACTS[:4].clone()
    other[:, 2] = (other[:, 2] + 7) % WORLD.n_entities
    first, second = model.token_logits(FACTS[:4]), model.token_logits(other)
    assert torch.equal(first[:, 0], second[:, 0])


def test_the_concept_loss_is_infonce_over_subjects_objects_and_each_special_once() -> None:
    model = _model("jepa")
    assert isinstance(model, ConceptPredictor)
    facts = FACTS[:6]
    states = model.predicted(facts[:, :2])
    read = model.reader
    keys = [*read.entities(facts[:, 2]), *read.entities(facts[:, 0]), *read.specials()]
    scores = states @ torch.stack(keys).T
    wanted = -log_softmax(scores, -1).diagonal().mean()
    assert torch.allclose(model.loss(facts), wanted, atol=1e-12)
    lengths = states.square().mean(-1)
    assert torch.allclose(lengths, torch.ones_like(lengths), atol=1e-2)


def test_entity_loss_is_the_softmax_over_everything_and_tied_means_one_table() -> None:
    model = _model("tied")
    assert isinstance(model, ConceptPredictor)
    assert model.keys is model.reader
    facts = FACTS[:6]
    rows = torch.cat([model.reader.table, model.reader.special])
    logs = log_softmax(model.predicted(facts[:, :2]) @ rows.T, -1)
    wanted = -logs.gather(1, facts[:, 2:]).mean()
    assert torch.allclose(model.loss(facts), wanted, atol=1e-12)
    untied = _model("untied")
    assert isinstance(untied, ConceptPredictor)
    assert untied.keys is not untied.reader


def _table_gradient(gamma: float) -> Tensor:
    """The gradient on the rows of objects that are no subject of the batch."""
    model = _model(replace(ARMS["jepa-memory"], key_gradient=gamma))
    assert isinstance(model, ConceptPredictor)
    assert isinstance(model.reader, MemoryReader)
    facts = FACTS[:1]
    model.loss(facts).backward()
    gradient = model.reader.table.grad
    assert gradient is not None
    return gradient[model.reader.slots[facts[0, 2]]]


def test_the_key_gradient_scales_what_an_object_learns_as_object() -> None:
    full = _table_gradient(1.0)
    assert full.abs().max() > 0
    assert torch.equal(_table_gradient(0.0), torch.zeros_like(full))
    assert torch.allclose(_table_gradient(0.5), full / 2)


def test_blocks_are_causal_and_know_no_order_of_what_came_before() -> None:
    torch.manual_seed(0)
    block = Block(8, 2, 0.0).double()
    x = torch.randn(2, 4, 8, dtype=torch.float64)
    changed = x.clone()
    changed[:, 3] = 0
    assert torch.equal(block(x)[:, :3], block(changed)[:, :3])
    swapped = x[:, [1, 0, 2, 3]]
    assert torch.allclose(block(x)[:, 2:], block(swapped)[:, 2:], atol=1e-12)


def test_neurons_are_what_the_down_projection_reads() -> None:
    block, x = Block(8, 2, 0.0).double(), torch.randn(2, 4, 8, dtype=torch.float64)
    seen = []
    block.down.register_forward_pre_hook(lambda module, given: seen.append(given[0]))
    block(x)
    assert torch.equal(block.neurons(x), seen[0])
    assert seen[0].shape == (2, 4, 32)


def test_recognition_stays_inside_a_name() -> None:
    """Namesakes differ, and an entity's vector does not depend on what stands beside it."""
    model = _model("jepa")
    alone = model.perceived()[5]
    assert isinstance(model, ConceptPredictor)
    together = model.reader.entities(torch.tensor([[1, 5], [5, 9]]))
    assert torch.allclose(together[0, 1], alone, atol=1e-12)
    assert torch.allclose(together[1, 0], alone, atol=1e-12)


def test_each_name_reaches_its_own_row_of_the_memory_at_the_small_width() -> None:
    torch.manual_seed(0)
    world = make_world(WorldSettings(2000, 1200, 2, 10))
    slots = memory_slots(torch.randn(640, 64), world)
    assert (slots.numpy() == np.arange(3200)).mean() > 0.999


def test_memory_rows_are_looked_up_by_the_largest_dot_product() -> None:
    torch.manual_seed(1)
    tokens = torch.randn(2 * WORLD.n_firsts, 4)
    keys = np.array([tokens[pair].mean(0).numpy() for pair in torch.from_numpy(WORLD.names)])
    best = [int(np.argmax(keys @ query)) for query in keys]
    assert memory_slots(tokens, WORLD).tolist() == best


@pytest.mark.parametrize("name", ARMS)
def test_every_arm_trains_in_half_precision(name: str) -> None:
    """As on a GPU; the scores of concepts stay in full, since they grow as large as the width."""
    model = build_model(ARMS[name], TINY, WORLD, seed=0)
    wanted = model.loss(FACTS)
    with torch.autocast("cpu", torch.bfloat16):
        found = model.loss(FACTS)
    assert found.dtype == torch.float32
    assert float(found.detach()) == pytest.approx(float(wanted.detach()), rel=0.02)
    found.backward()


def test_building_is_seeded_and_leaves_the_random_state_alone() -> None:
    torch.manual_seed(5)
    wanted = torch.rand(3)
    torch.manual_seed(5)
    one, again = (build_model(ARMS["jepa"], TINY, WORLD, seed=3) for _ in range(2))
    assert torch.equal(torch.rand(3), wanted)
    pairs = zip(one.parameters(), again.parameters(), strict=True)
    assert all(torch.equal(a, b) for a, b in pairs)
    other = build_model(ARMS["jepa"], TINY, WORLD, seed=4)
    assert not torch.equal(next(one.parameters()), next(other.parameters()))
