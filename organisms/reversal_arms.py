"""The arms of the reversal study, the sizes they come in, and how a model of an arm is built.

Three presets: `miniature` takes seconds and shows the signature with concepts, `small` about a
minute an arm on one core, and `paper` is the configuration of Wang and Sun (2025), for a GPU. The
rates of the first two were found at their sizes.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import nn

from ..models.errors import MnemoscopeError
from .reversal_data import ReversalWorld, WorldSettings, make_world
from .reversal_models import (
    Block,
    ConceptPredictor,
    MemoryNamePredictor,
    MemoryReader,
    NameReader,
    Reader,
    RMSNorm,
    SurfacePredictor,
    TableReader,
    ToyModel,
)

Reads = Literal["rows", "names", "memory"]


@dataclass(frozen=True)
class Arm:
    """One model of the ladder from the plain language model to shared concepts.

    `predicts`: "tokens" (a language model), "entities" (softmax over all entities) or "concepts"
    (InfoNCE in the batch, the JEPA of the paper). `shared`: the table that reads subjects is the
    one that objects are predicted in. `key_gradient`: the part of the gradient that flows through
    the objects' side, 0 for a stop-gradient. `steps` are those of the preset `small`.
    """

    name: str
    reads: Reads
    predicts: Literal["tokens", "entities", "concepts"]
    steps: int
    shared: bool = True
    key_gradient: float = 1.0
    recognition_layers: int = 0
    semantic_layers: int = 1
    multiplicity: int = 10
    of_paper: bool = True
    """Whether the paper has it too; else it is a control or an ablation of ours."""


_JEPA = Arm("jepa", "names", "concepts", 1500, recognition_layers=1)
_MEMORY = Arm("jepa-memory", "memory", "concepts", 2400)

ARMS: dict[str, Arm] = {
    arm.name: arm
    for arm in (
        Arm("surface", "names", "tokens", 1200),
        Arm("tied", "rows", "entities", 1200),
        Arm("untied", "rows", "entities", 600, shared=False, of_paper=False),
        _JEPA,
        replace(_JEPA, name="jepa-m2", multiplicity=2),
        replace(_JEPA, name="jepa-m20", multiplicity=20),
        _MEMORY,
        Arm("lm-memory", "memory", "tokens", 1200, of_paper=False),
        replace(_MEMORY, name="two-tables", steps=1200, shared=False, of_paper=False),
        replace(_MEMORY, name="stop-gradient", steps=1200, key_gradient=0.0, of_paper=False),
        replace(_MEMORY, name="half-gradient", steps=1200, key_gradient=0.5, of_paper=False),
        replace(_JEPA, name="jepa-deep", semantic_layers=4),
    )
}
"""Every arm by name. `jepa-m2` and `jepa-m20` share names less and more than `jepa` (m = 10)."""


@dataclass(frozen=True)
class Preset:
    """A size and how it is trained. `rates` and `decays` are (InfoNCE over names, all others).

    Evaluated every `eval_every` steps on `probes` random facts of each split, on `name_probes` for
    the language models, whose answers are whole names (every first name is tried).
    """

    name: str
    n_a: int
    n_b: int
    relation_pairs: int
    width: int
    heads: int
    dropout: float
    batch: int
    warmup: int
    rates: tuple[float, float]
    decays: tuple[float, float]
    eval_every: int
    probes: int
    name_probes: int
    steps: int | None = None
    """None where each arm has its own."""
    symmetric: bool = False
    """Whether one relation token serves both directions."""


PRESETS: dict[str, Preset] = {
    "miniature": Preset(
        name="miniature",
        n_a=1000,
        n_b=600,
        relation_pairs=2,
        width=32,
        heads=2,
        dropout=0.0,
        batch=256,
        warmup=50,
        rates=(3e-3, 6e-3),
        decays=(0.1, 1.0),
        eval_every=100,
        probes=200,
        name_probes=30,
        steps=300,
    ),
    "small": Preset(
        name="small",
        n_a=2000,
        n_b=1200,
        relation_pairs=2,
        width=64,
        heads=4,
        dropout=0.0,
        batch=512,
        warmup=200,
        rates=(1e-3, 3e-3),
        decays=(0.1, 1.0),
        eval_every=100,
        probes=600,
        name_probes=60,
    ),
    "paper": Preset(
        name="paper",
        n_a=50_000,
        n_b=30_000,
        relation_pairs=6,
        width=768,
        heads=12,
        dropout=0.1,
        batch=1024,
        warmup=2000,
        rates=(1e-4, 1e-4),
        decays=(0.1, 0.1),
        eval_every=50_000,
        probes=3000,
        name_probes=64,
        steps=3_000_000,
    ),
}
"""Sizes by name."""


def arm_named(name: str) -> Arm:
    """The arm. Raises `MnemoscopeError` for a name that is none."""
    if name not in ARMS:
        raise MnemoscopeError(f"there is no arm {name!r}: choose one of {', '.join(ARMS)}.")
    return ARMS[name]


def preset_named(name: str) -> Preset:
    """The preset. Raises `MnemoscopeError` for a name that is none."""
    if name not in PRESETS:
        raise MnemoscopeError(f"there is no preset {name!r}: choose one of {', '.join(PRESETS)}.")
    return PRESETS[name]


def world_of(arm: Arm, preset: Preset, seed: int) -> ReversalWorld:
    """The world that this arm is trained on: the same facts for all arms of a seed."""
    sizes = preset.n_a, preset.n_b, preset.relation_pairs
    return make_world(WorldSettings(*sizes, arm.multiplicity, preset.symmetric, seed))


def build_model(arm: Arm, preset: Preset, world: ReversalWorld, seed: int) -> ToyModel:
    """A freshly initialised model, the same for the same seed. PyTorch's own seed stays as it is.

    Weights are normal with standard deviation 0.02, those that write into the residual stream
    smaller by the root of twice the depth, as in GPT-2.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = _assembled(arm, preset, world)
        for name, parameter in model.named_parameters():
            _initialise(name, parameter, arm.recognition_layers + arm.semantic_layers)
    return model


def _assembled(arm: Arm, preset: Preset, world: ReversalWorld) -> ToyModel:
    width = preset.width
    blocks = (Block(width, preset.heads, preset.dropout) for _ in range(arm.semantic_layers))
    trunk = nn.Sequential(*blocks)
    if arm.predicts == "tokens" and arm.reads == "names":
        return SurfacePredictor(world, width, trunk)
    reader = _reader(arm, preset, world)
    if arm.predicts == "tokens":
        if not isinstance(reader, MemoryReader):
            raise MnemoscopeError("a model that predicts tokens reads names or a memory.")
        return MemoryNamePredictor(world, width, reader, trunk)
    query_norm, key_norm = _norms(arm, width)
    return ConceptPredictor(
        reader,
        reader if arm.shared else _reader(arm, preset, world),
        trunk,
        query_norm,
        key_norm,
        n_entities=world.n_entities,
        in_batch=arm.predicts == "concepts",
        key_gradient=arm.key_gradient,
    )


def _reader(arm: Arm, preset: Preset, world: ReversalWorld) -> Reader:
    if arm.reads == "rows":
        return TableReader(world, preset.width)
    if arm.reads == "memory":
        return MemoryReader(world, preset.width)
    layers = arm.recognition_layers
    return NameReader(world, preset.width, preset.heads, layers, preset.dropout)


def _norms(arm: Arm, width: int) -> tuple[nn.Module, nn.Module]:
    """Of the prediction and of the keys.

    GPT-2's final norm and raw rows with the full softmax; the root mean square and raw concepts
    for recognised names; one layer norm on both sides for the memory.
    """
    if arm.predicts == "entities":
        return nn.LayerNorm(width), nn.Identity()
    if arm.reads == "names":
        return RMSNorm(), nn.Identity()
    shared = nn.LayerNorm(width)
    return shared, shared


def _initialise(name: str, parameter: nn.Parameter, depth: int) -> None:
    if parameter.ndim == 1:
        nn.init.constant_(parameter, 1.0 if "norm" in name and name.endswith("weight") else 0.0)
        return
    writes = name.endswith(("out.weight", "down.weight"))
    nn.init.normal_(parameter, std=0.02 / math.sqrt(2 * depth) if writes else 0.02)
