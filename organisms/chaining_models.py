"""Toy models that are told the facts of the forward-chaining task: `[e1] [e2] [mask] -> [e3]`.

An attribute is told as `[entity] [=] [mask] -> [number]`, so entities, numbers and the sign of
equality are items alike, with two name tokens each. The arms are those of the reversal study, built
of its parts: what differs is that two entities are read instead of an entity and a relation.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from ..models.errors import MnemoscopeError
from .forward_chaining import ChainingWorld
from .reversal_arms import ARMS, Arm
from .reversal_data import shared_names
from .reversal_models import (
    Block,
    ConceptPredictor,
    NamePredictor,
    NameReader,
    Reader,
    RMSNorm,
    ToyModel,
)

CHAINING_ARMS = ("surface", "lm-memory", "tied", "jepa", "jepa-memory")
"""The arms of `reversal_arms` that this task is trained with."""


@dataclass(frozen=True, eq=False)
class Items:
    """Everything that is read or predicted: entities, then numbers, then the sign of equality.

    `names` are two tokens an item, first names `0 .. n_firsts - 1` before last names. Numbers and
    the sign have a first name each and share one last name.
    """

    n_entities: int
    modulus: int
    names: Int[np.ndarray, "item 2"]
    n_firsts: int

    @property
    def equals(self) -> int:
        """The sign of equality."""
        return self.n_entities + self.modulus

    @property
    def n_tokens(self) -> int:
        """Name tokens and, last, the mask."""
        return int(self.names.max()) + 2

    def attributes(
        self, entities: Int[np.ndarray, " n"], values: Int[np.ndarray, " entity"]
    ) -> Int[np.ndarray, "n 3"]:
        """The facts that say these entities' numbers."""
        sign = np.full(len(entities), self.equals)
        return np.stack([entities, sign, self.n_entities + values[entities]], axis=1)


def chaining_items(world: ChainingWorld, multiplicity: int) -> Items:
    """Name the items: every first and last name is borne by about `multiplicity` entities."""
    settings = world.settings
    n, m = settings.n_entities, multiplicity
    random = np.random.default_rng([settings.seed, 13])
    names = shared_names(-(-n // m) * m, m, random)[:n]
    lasts, k = int(names[:, 1].max()) + 1, -(-n // m)
    alone = settings.modulus + 1
    firsts = k + np.arange(alone)
    # The last names move up behind the first names of numbers and of the sign.
    names = names + np.array([0, alone])
    others = np.stack([firsts, np.full(alone, lasts + alone)], axis=1)
    return Items(n, settings.modulus, np.concatenate([names, others]), k + alone)


def chaining_arm(name: str) -> Arm:
    """The arm of this task. Raises `MnemoscopeError` for a name that is none of its arms."""
    if name not in CHAINING_ARMS:
        raise MnemoscopeError(
            f"there is no arm {name!r} of this task: choose one of {', '.join(CHAINING_ARMS)}."
        )
    return ARMS[name]


def build_chaining_model(
    arm: Arm, items: Items, seed: int, *, width: int = 64, heads: int = 4, layers: int = 1
) -> ToyModel:
    """A freshly initialised model, the same for the same seed; PyTorch's own seed stays.

    Language models that read names get a block more: it does the work of recognition.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        if arm.predicts == "tokens":
            memory = arm.reads == "memory"
            trunk = _trunk(width, heads, layers + (not memory))
            model: ToyModel = PairNames(items, width, trunk, memory=memory)
        else:
            model = _concepts(arm, items, _trunk(width, heads, layers), heads)
        for name, parameter in model.named_parameters():
            if parameter.ndim > 1:
                nn.init.normal_(parameter, std=0.02)
            elif name.endswith("bias"):
                nn.init.zeros_(parameter)
    return model


class ItemRows(Reader):
    """A row an item: an entity that is one token, or what a memory layer's values are.

    The layer's keys are the mean embeddings of all names, and the width suffices for every name to
    find its own (section 1.5 of the paper's memory; `reversal_models.memory_slots`).
    """

    def __init__(self, items: Items, width: int) -> None:
        super().__init__()
        self.table = nn.Parameter(torch.empty(len(items.names), width))
        self.special = nn.Parameter(torch.empty(1, width))

    def entities(self, ids: Int[Tensor, "*ids"]) -> Float[Tensor, "*ids d"]:
        return self.table[ids]


class ItemNames(NameReader):
    """Recognition of an item from its two name tokens."""

    def __init__(self, items: Items, width: int, heads: int, layers: int) -> None:
        Reader.__init__(self)
        self.register_buffer("names", torch.from_numpy(items.names), persistent=False)
        self.table = nn.Parameter(torch.empty(items.n_tokens - 1, width))
        self.special = nn.Parameter(torch.empty(1, width))
        self.blocks = nn.ModuleList(Block(width, heads, 0.0) for _ in range(layers))


class PairConcepts(ConceptPredictor):
    """Reads two items and predicts the third one's vector."""

    def _states(
        self, read: Float[Tensor, "n d"], others: Int[Tensor, " n"]
    ) -> Float[Tensor, "n d"]:
        mask = self.reader.specials()[-1].expand_as(read)
        rows = torch.stack([read, self.reader.entities(others), mask], dim=1)
        return self.query_norm(self.trunk(rows)[:, -1])


class PairNames(NamePredictor):
    """Reads two items and predicts the third one's name, token by token.

    Items are read as their name tokens or, with `memory`, as a row each. Tokens are predicted in
    the table that they are read from.
    """

    def __init__(self, items: Items, width: int, trunk: nn.Sequential, *, memory: bool) -> None:
        super().__init__()
        self.register_buffer("names", torch.from_numpy(items.names), persistent=False)
        self.n_firsts, self.trunk, self.norm = items.n_firsts, trunk, nn.LayerNorm(width)
        self.table = nn.Parameter(torch.empty(items.n_tokens, width))
        self.rows = nn.Parameter(torch.empty(len(items.names), width)) if memory else None

    def perceived(self) -> Float[Tensor, "item d"]:
        return self.trunk(self.table[self.names])[:, -1] if self.rows is None else self.rows

    def neurons(self, ids: Int[Tensor, " n"]) -> Float[Tensor, "n neuron"] | None:
        if self.rows is not None:
            return None
        first = self.trunk[0]
        assert isinstance(first, Block)
        return first.neurons(self.table[self.names[ids]])[:, -1]

    def _prefix(self, queries: Int[Tensor, "query 2"]) -> Float[Tensor, "query pos d"]:
        if self.rows is None:
            read = self.table[self.names[queries]].flatten(1, 2)
        else:
            read = self.rows[queries]
        mask = self.table[-1].expand(len(queries), 1, -1)
        return torch.cat([read, mask], dim=1)

    def _first(self, ids: Int[Tensor, "*ids"]) -> Float[Tensor, "*ids d"]:
        return self.table[ids]

    def _head(self) -> Float[Tensor, "token d"]:
        return self.table


def _trunk(width: int, heads: int, layers: int) -> nn.Sequential:
    return nn.Sequential(*(Block(width, heads, 0.0) for _ in range(layers)))


def _concepts(arm: Arm, items: Items, trunk: nn.Sequential, heads: int) -> PairConcepts:
    first = trunk[0]
    assert isinstance(first, Block)
    width = first.out.out_features
    reader: Reader = ItemRows(items, width)
    # As in the reversal study: see `reversal_arms`.
    query_norm: nn.Module = nn.LayerNorm(width)
    key_norm: nn.Module = nn.Identity() if arm.predicts == "entities" else query_norm
    if arm.reads == "names":
        reader = ItemNames(items, width, heads, arm.recognition_layers)
        query_norm, key_norm = RMSNorm(), nn.Identity()
    return PairConcepts(
        reader,
        reader,
        trunk,
        query_norm,
        key_norm,
        n_entities=len(items.names),
        in_batch=arm.predicts == "concepts",
        key_gradient=arm.key_gradient,
    )
