"""Toy models of the reversal curse: readers of entities, and predictors of the other entity.

Sections 1.3 to 1.5 of Wang and Sun's set-up, at any size: GPT-2 blocks (pre-norm, GELU) without
position codes read `[subject] [relation] [mask]`, and the state at the mask predicts the object.
What differs between the arms is

- how an entity is *read*: from a table with a row each (concept level), from two name tokens by
  recognition blocks, or from a memory table with a row each that is reached by the name;
- what it is *predicted* as: its row or concept (`ConceptPredictor`), or the tokens of its name one
  after the other (`NamePredictor`).
"""

from __future__ import annotations

from abc import ABC, abstractmethod

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, dropout, gelu, log_softmax
from torch.nn.functional import scaled_dot_product_attention as attend

from .reversal_data import ReversalWorld

# Names read or tried at once, and queries of the memory compared with all keys: bounds on memory.
_ROWS, _KEYS = 8192, 512


class Block(nn.Module):
    """One GPT-2 block without positions: causal attention, then an MLP of four times the width."""

    def __init__(self, width: int, heads: int, rate: float) -> None:
        super().__init__()
        self.heads, self.rate = heads, rate
        self.attention_norm, self.mlp_norm = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.up, self.down = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, x: Float[Tensor, "row pos d"]) -> Float[Tensor, "row pos d"]:
        middle = self._attended(x)
        return middle + self._dropped(self.down(self._hidden(middle)))

    def neurons(self, x: Float[Tensor, "row pos d"]) -> Float[Tensor, "row pos neuron"]:
        """What the down projection of the MLP reads."""
        return self._hidden(self._attended(x))

    def _hidden(self, x: Float[Tensor, "row pos d"]) -> Float[Tensor, "row pos neuron"]:
        return gelu(self.up(self.mlp_norm(x)), approximate="tanh")

    def _attended(self, x: Float[Tensor, "row pos d"]) -> Float[Tensor, "row pos d"]:
        rows, positions, width = x.shape
        parts = self.qkv(self.attention_norm(x)).view(rows, positions, 3, self.heads, -1)
        q, k, v = parts.permute(2, 0, 3, 1, 4)
        mixed = attend(q, k, v, is_causal=True, dropout_p=self.rate if self.training else 0.0)
        return x + self._dropped(self.out(mixed.transpose(1, 2).reshape(rows, positions, width)))

    def _dropped(self, x: Float[Tensor, "row pos d"]) -> Float[Tensor, "row pos d"]:
        return dropout(x, self.rate, self.training) if self.rate else x


class Reader(nn.Module, ABC):
    """Turns an entity, or one of the special tokens (relations, mask), into one vector."""

    special: nn.Parameter

    @abstractmethod
    def entities(self, ids: Int[Tensor, "*ids"]) -> Float[Tensor, "*ids d"]:
        """The vectors of these entities, before any normalisation."""

    def specials(self) -> Float[Tensor, "special d"]:
        """The vectors of all relations and, last, of the mask."""
        return self.special

    def neurons(self, ids: Int[Tensor, " n"]) -> Float[Tensor, "n neuron"] | None:
        """Hidden activations of the recognition MLP; None where nothing is shared by entities."""
        return None


class TableReader(Reader):
    """A row an entity. With a memory layer in front this is exactly what its values are."""

    def __init__(self, world: ReversalWorld, width: int) -> None:
        super().__init__()
        self.table = nn.Parameter(torch.empty(world.n_entities, width))
        self.special = nn.Parameter(torch.empty(world.n_relations + 1, width))

    def entities(self, ids: Int[Tensor, "*ids"]) -> Float[Tensor, "*ids d"]:
        return self.table[ids]


class NameReader(Reader):
    """Recognition: blocks over the two tokens of a name; the state at the last one is the entity.

    They act within a name only, as do those over a special token, which is a name of one token.
    """

    names: Tensor

    def __init__(
        self, world: ReversalWorld, width: int, heads: int, layers: int, rate: float
    ) -> None:
        super().__init__()
        self.register_buffer("names", torch.from_numpy(world.names), persistent=False)
        self.table = nn.Parameter(torch.empty(2 * world.n_firsts, width))
        self.special = nn.Parameter(torch.empty(world.n_relations + 1, width))
        self.blocks = nn.ModuleList(Block(width, heads, rate) for _ in range(layers))

    def entities(self, ids: Int[Tensor, "*ids"]) -> Float[Tensor, "*ids d"]:
        return self._recognised(self._tokens(ids.flatten())).unflatten(0, ids.shape)

    def specials(self) -> Float[Tensor, "special d"]:
        return self._recognised(self.special[:, None])

    def neurons(self, ids: Int[Tensor, " n"]) -> Float[Tensor, "n neuron"]:
        states = self._tokens(ids)
        for block in self.blocks[:-1]:
            states = block(states)
        last = self.blocks[-1]
        assert isinstance(last, Block)
        return last.neurons(states)[:, -1]

    def _tokens(self, ids: Int[Tensor, " n"]) -> Float[Tensor, "n 2 d"]:
        return self.table[self.names[ids]]

    def _recognised(self, states: Float[Tensor, "n pos d"]) -> Float[Tensor, "n d"]:
        for block in self.blocks:
            states = block(states)
        return states[:, -1]


class MemoryReader(TableReader):
    """A flat key-value table in place of the first block, reached by the name (section 1.5).

    The query is the mean of the name's frozen token embeddings, a key the mean of an entity's; the
    best key's value is read. Embeddings and keys never change, so which row a name reads is an
    integer that is found once. The keys are made from the list of all entities: the layer is told
    which names denote one thing.
    """

    slots: Tensor

    def __init__(self, world: ReversalWorld, width: int) -> None:
        super().__init__(world, width)
        tokens = torch.randn(2 * world.n_firsts, width)
        self.register_buffer("slots", memory_slots(tokens, world), persistent=False)

    def entities(self, ids: Int[Tensor, "*ids"]) -> Float[Tensor, "*ids d"]:
        return self.table[self.slots[ids]]


def memory_slots(tokens: Float[Tensor, "token d"], world: ReversalWorld) -> Int[Tensor, " entity"]:
    """The row that each entity's name reads: the largest dot product of mean embeddings.

    It is the entity's own where the width suffices (all of 3,200 at 64).
    """
    keys = tokens[torch.from_numpy(world.names)].mean(1)
    return torch.cat([(part @ keys.T).argmax(1) for part in keys.split(_KEYS)])


class ToyModel(nn.Module, ABC):
    """What training and every measure ask of an arm."""

    @abstractmethod
    def loss(self, facts: Int[Tensor, "fact 3"]) -> Float[Tensor, ""]:
        """Mean loss in nats of the objects of these facts."""

    @abstractmethod
    def predicted(self, queries: Int[Tensor, "query 2"]) -> Float[Tensor, "query d"]:
        """The state that predicts the object of (subject, relation)."""

    @abstractmethod
    def entity_scores(self, queries: Int[Tensor, "query 2"]) -> Float[Tensor, "query entity"]:
        """A score of every entity as the answer: the larger, the likelier."""

    @abstractmethod
    def perceived(self) -> Float[Tensor, "entity d"]:
        """Every entity as it is read in the role of the subject."""

    @abstractmethod
    def neurons(self, ids: Int[Tensor, " n"]) -> Float[Tensor, "n neuron"] | None:
        """Hidden activations of the recognition MLP; None where nothing is shared by entities."""


class RMSNorm(nn.Module):
    """Divide by the root mean square; no gain."""

    def forward(self, x: Float[Tensor, "*n d"]) -> Float[Tensor, "*n d"]:
        return x * torch.rsqrt(x.square().mean(-1, keepdim=True) + 1e-6)


class ConceptPredictor(ToyModel):
    """Predicts the object as a vector that is compared with the vectors of entities.

    `keys` reads those vectors. It may be the `reader` itself (one table for both roles) or another.
    `in_batch` compares with the entities of the batch (InfoNCE over both roles, and each special
    once), else with all. `key_gradient` scales the gradient through the keys.
    """

    def __init__(
        self,
        reader: Reader,
        keys: Reader,
        trunk: nn.Sequential,
        query_norm: nn.Module,
        key_norm: nn.Module,
        *,
        n_entities: int,
        in_batch: bool,
        key_gradient: float,
    ) -> None:
        super().__init__()
        self.n_entities = n_entities
        self.reader, self.keys, self.trunk = reader, keys, trunk
        self.query_norm, self.key_norm = query_norm, key_norm
        self.in_batch, self.key_gradient = in_batch, key_gradient

    def loss(self, facts: Int[Tensor, "fact 3"]) -> Float[Tensor, ""]:
        subjects, relations, objects = facts.unbind(1)
        read = self.reader.entities(subjects)
        states = self._states(read, relations)
        if not self.in_batch:
            every = torch.arange(self.n_entities, device=facts.device)
            keys = self._with_specials(self.keys.entities(every))
            return cross_entropy(_scores(states, keys), objects)
        other = read if self.keys is self.reader else self.keys.entities(subjects)
        keys = self._with_specials(torch.cat([self.keys.entities(objects), other]))
        own = torch.arange(len(facts), device=facts.device)
        return cross_entropy(_scores(states, keys), own)

    def predicted(self, queries: Int[Tensor, "query 2"]) -> Float[Tensor, "query d"]:
        return self._states(self.reader.entities(queries[:, 0]), queries[:, 1])

    def entity_scores(self, queries: Int[Tensor, "query 2"]) -> Float[Tensor, "query entity"]:
        return self.predicted(queries) @ self._all(self.keys).T

    def perceived(self) -> Float[Tensor, "entity d"]:
        return self._all(self.reader)

    def neurons(self, ids: Int[Tensor, " n"]) -> Float[Tensor, "n neuron"] | None:
        return self.reader.neurons(ids)

    def _all(self, reader: Reader) -> Float[Tensor, "entity d"]:
        every = torch.arange(self.n_entities, device=reader.special.device)
        return self.key_norm(torch.cat([reader.entities(ids) for ids in every.split(_ROWS)]))

    def _states(
        self, read: Float[Tensor, "n d"], relations: Int[Tensor, " n"]
    ) -> Float[Tensor, "n d"]:
        specials = self.reader.specials()
        mask = specials[-1].expand_as(read)
        rows = torch.stack([read, specials[relations], mask], dim=1)
        return self.query_norm(self.trunk(rows)[:, -1])

    def _with_specials(self, vectors: Float[Tensor, "n d"]) -> Float[Tensor, "key d"]:
        keys = self.key_norm(torch.cat([vectors, self.keys.specials()]))
        if self.key_gradient == 1:
            return keys
        return self.key_gradient * keys + (1 - self.key_gradient) * keys.detach()


def _scores(
    states: Float[Tensor, "query d"], keys: Float[Tensor, "key d"]
) -> Float[Tensor, "query key"]:
    """Inner products, never in half precision: normalised ones grow as large as the width."""
    with torch.autocast(states.device.type, enabled=False):
        return states @ keys.T


class NamePredictor(ToyModel):
    """Predicts the object's name token by token: a language model. See the two kinds below.

    The vocabulary is the world's name tokens, then the relations, then the mask.
    """

    names: Tensor
    trunk: nn.Sequential
    norm: nn.LayerNorm
    n_firsts: int

    @abstractmethod
    def _prefix(self, queries: Int[Tensor, "query 2"]) -> Float[Tensor, "query pos d"]:
        """What stands before the object; the mask is last."""

    @abstractmethod
    def _first(self, ids: Int[Tensor, "*ids"]) -> Float[Tensor, "*ids d"]:
        """The first names of objects as input."""

    @abstractmethod
    def _head(self) -> Float[Tensor, "token d"]:
        """The unembedding."""

    def token_logits(self, facts: Int[Tensor, "fact 3"]) -> Float[Tensor, "fact 2 token"]:
        """Logits of the object's first and last name, the right first name being given."""
        first = self._first(self.names[facts[:, 2], 0])
        rows = torch.cat([self._prefix(facts[:, :2]), first[:, None]], dim=1)
        return self.norm(self.trunk(rows)[:, -2:]) @ self._head().T

    def loss(self, facts: Int[Tensor, "fact 3"]) -> Float[Tensor, ""]:
        return cross_entropy(self.token_logits(facts).flatten(0, 1), self.name_tokens(facts))

    def name_tokens(self, facts: Int[Tensor, "fact 3"]) -> Int[Tensor, " token"]:
        """First and last name of every object, one after the other."""
        return self.names[facts[:, 2]].flatten()

    def predicted(self, queries: Int[Tensor, "query 2"]) -> Float[Tensor, "query d"]:
        return self.norm(self.trunk(self._prefix(queries))[:, -1])

    def entity_scores(self, queries: Int[Tensor, "query 2"]) -> Float[Tensor, "query entity"]:
        """The log-probability of every entity's whole name, exactly: every first name is tried."""
        rows = max(1, _ROWS // self.n_firsts)
        return torch.cat([self._name_scores(part) for part in queries.split(rows)])

    def _name_scores(self, queries: Int[Tensor, "query 2"]) -> Float[Tensor, "query entity"]:
        k = self.n_firsts
        prefix, head = self._prefix(queries), self._head()
        first = log_softmax(self.norm(self.trunk(prefix)[:, -1]) @ head.T, -1)
        tried = self._first(torch.arange(k, device=queries.device))
        rows = torch.cat(
            [prefix.repeat_interleave(k, 0), tried.repeat(len(queries), 1)[:, None]], dim=1
        )
        last = log_softmax(self.norm(self.trunk(rows)[:, -1]) @ head.T, -1)
        firsts, lasts = self.names.unbind(1)
        return first[:, firsts] + last.view(len(queries), k, -1)[:, firsts, lasts]


class SurfacePredictor(NamePredictor):
    """The standard language model: names are read as tokens too; embeddings are tied."""

    def __init__(self, world: ReversalWorld, width: int, trunk: nn.Sequential) -> None:
        super().__init__()
        self.register_buffer("names", torch.from_numpy(world.names), persistent=False)
        self.n_firsts, self.trunk, self.norm = world.n_firsts, trunk, nn.LayerNorm(width)
        self.table = nn.Parameter(torch.empty(2 * world.n_firsts + world.n_relations + 1, width))

    def perceived(self) -> Float[Tensor, "entity d"]:
        return self.trunk(self.table[self.names])[:, -1]

    def neurons(self, ids: Int[Tensor, " n"]) -> Float[Tensor, "n neuron"]:
        first = self.trunk[0]
        assert isinstance(first, Block)
        return first.neurons(self.table[self.names[ids]])[:, -1]

    def _prefix(self, queries: Int[Tensor, "query 2"]) -> Float[Tensor, "query 4 d"]:
        subjects, relations = queries.unbind(1)
        mask = torch.full_like(relations, len(self.table) - 1)
        tokens = [*self.names[subjects].unbind(1), 2 * self.n_firsts + relations, mask]
        return self.table[torch.stack(tokens, dim=1)]

    def _first(self, ids: Int[Tensor, "*ids"]) -> Float[Tensor, "*ids d"]:
        return self.table[ids]

    def _head(self) -> Float[Tensor, "token d"]:
        return self.table


class MemoryNamePredictor(NamePredictor):
    """The control that the paper lacks: the memory layer, but trained to predict tokens.

    Subjects are read through `MemoryReader`, first names of objects through rows of their own. The
    head is a table of its own, since the token embeddings behind the memory's keys never change.
    """

    def __init__(
        self, world: ReversalWorld, width: int, reader: MemoryReader, trunk: nn.Sequential
    ) -> None:
        super().__init__()
        self.register_buffer("names", torch.from_numpy(world.names), persistent=False)
        self.n_firsts, self.trunk, self.norm = world.n_firsts, trunk, nn.LayerNorm(width)
        self.reader = reader
        self.firsts = nn.Parameter(torch.empty(world.n_firsts, width))
        self.head = nn.Parameter(torch.empty(2 * world.n_firsts + world.n_relations + 1, width))

    def perceived(self) -> Float[Tensor, "entity d"]:
        return self.reader.entities(torch.arange(len(self.names), device=self.names.device))

    def neurons(self, ids: Int[Tensor, " n"]) -> None:
        return None

    def _prefix(self, queries: Int[Tensor, "query 2"]) -> Float[Tensor, "query 3 d"]:
        specials = self.reader.specials()
        read = self.reader.entities(queries[:, 0])
        rows = [read, specials[queries[:, 1]], specials[-1].expand_as(read)]
        return torch.stack(rows, dim=1)

    def _first(self, ids: Int[Tensor, "*ids"]) -> Float[Tensor, "*ids d"]:
        return self.firsts[ids]

    def _head(self) -> Float[Tensor, "token d"]:
        return self.head
