"""What a toy model of the reversal curse knows: ranks of whole entities, and why reverse fails.

Ranks are among all entities: the mean over name tokens with the right tokens given (`token_mrr`)
hides a failure, since the first name leaves few last ones to choose from. It is reported beside.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from ..results.gram_matrices import effective_rank, gram, relative, variances
from ..results.statistics import bootstrap_mean, wilson
from .reversal_data import SPLITS, ReversalWorld, Split, shared_tokens
from .reversal_models import NamePredictor, ToyModel

# Queries scored at once, and entities among which overlap of activations is measured.
_CHUNK = 512
_OVERLAPPING = 800


@dataclass(frozen=True)
class Recall:
    """How one split is answered: mean reciprocal rank and share of first ranks, each with 95 %.

    MRR with a bootstrap over the subjects asked about, hit@1 with Wilson's interval. For a language
    model a hit is the most probable whole name, found by trying all: exact, no greedy search.
    """

    mrr: float
    mrr_low: float
    mrr_high: float
    hit: float
    hit_low: float
    hit_high: float
    asked: int


@dataclass(frozen=True)
class Consistency:
    """Mean centred cosine of the predicted vector with an entity's perceived one, by split.

    `permuted` is that with the entity of another query of the test.
    """

    train: float
    atomic: float
    test: float
    permuted: float


@dataclass(frozen=True)
class Entanglement:
    """How far entities share the hidden units that recognise them.

    `kappa(a, b)` is the inner product of their hidden activations over the square norm of a's: a
    step on b's loss moves what is written for a by that part of what a's own step would (Wang and
    Sun 2025, on entanglement). `sharing` is the mean of `|kappa|` of two entities with a name token
    in common, `others` of all other pairs, None where there are no such pairs. `summed` is
    `2 (m - 1) sharing`: what the namesakes of an entity do to it together. All are 0 where every
    entity has a row of its own. `effective_rank` is that of the perceived vectors.
    """

    sharing: float | None
    others: float | None
    summed: float
    effective_rank: float


@dataclass(frozen=True)
class RoleStates:
    """Every entity as perceived subject, and as predicted object in some facts.

    `perceived[entity[i]]` is to be compared with `predicted[i]`; the two roles of section 3.5 of
    any decoder, on a model where one knows what was told.
    """

    perceived: Float[np.ndarray, "entity d"]
    predicted: Float[np.ndarray, "fact d"]
    entity: Int[np.ndarray, " fact"]

    def by_entity(self) -> tuple[Float[np.ndarray, "some d"], Float[np.ndarray, "some d"]]:
        """Both roles of the entities that are predicted in any fact, means over their facts."""
        ids, row, facts = np.unique(self.entity, return_inverse=True, return_counts=True)
        sums = np.zeros((len(ids), self.predicted.shape[1]), dtype=self.predicted.dtype)
        np.add.at(sums, row, self.predicted)
        return self.perceived[ids], sums / facts[:, None]


def ranks(
    scores: Float[Tensor, "query entity"], right: Int[Tensor, " query"]
) -> Float[np.ndarray, " query"]:
    """Rank of the right entity, from 1; entities with the same score share the middle rank."""
    own = scores.gather(1, right[:, None])
    above, level = (scores > own).sum(1), (scores == own).sum(1)
    return (above + (level + 1) / 2).cpu().double().numpy()


@torch.no_grad()
def entity_ranks(model: ToyModel, facts: Int[np.ndarray, "fact 3"]) -> Float[np.ndarray, " fact"]:
    """The rank of each fact's object among all entities."""
    rows = torch.from_numpy(facts).to(_device(model)).split(_CHUNK)
    return np.concatenate([ranks(model.entity_scores(x[:, :2]), x[:, 2]) for x in rows])


def recall(
    ranked: Float[np.ndarray, " fact"], facts: Int[np.ndarray, "fact 3"], seed: int = 0
) -> Recall:
    """Means and intervals of these ranks."""
    mrr = bootstrap_mean(1 / ranked, facts[:, 0].tolist(), seed=seed)
    hits = wilson(int((ranked == 1).sum()), len(ranked))
    ends = float(mrr.mean), float(mrr.low), float(mrr.high)
    return Recall(*ends, hits.rate, hits.low, hits.high, len(ranked))


@torch.no_grad()
def token_mrr(model: NamePredictor, facts: Int[np.ndarray, "fact 3"]) -> float:
    """Mean reciprocal rank of the object's name tokens, each with the right tokens before it.

    What the released code reports. Far above chance where no whole name is ever right.
    """
    rows = torch.from_numpy(facts).to(_device(model))
    ranked = ranks(model.token_logits(rows).flatten(0, 1), model.name_tokens(rows))
    return float((1 / ranked).mean())


@torch.no_grad()
def role_states(model: ToyModel, facts: Int[np.ndarray, "fact 3"]) -> RoleStates:
    """The vectors of both roles: of all entities as subjects, and of these facts' objects."""
    rows = torch.from_numpy(facts[:, :2]).to(_device(model)).split(_CHUNK)
    predicted = torch.cat([model.predicted(x) for x in rows])
    perceived = model.perceived()
    return RoleStates(
        perceived.float().cpu().numpy(), predicted.float().cpu().numpy(), facts[:, 2].copy()
    )


def consistency(model: ToyModel, world: ReversalWorld, limit: int) -> Consistency:
    """The cosines of `Consistency`, on at most `limit` random facts of each split."""
    states = {split: role_states(model, probe_facts(world, split, limit)) for split in SPLITS}
    cosines = {split: float(_role_cosines(s).diagonal().mean()) for split, s in states.items()}
    test = states["test"]
    others = _role_cosines(test)[test.entity[:, None] != test.entity[None]]
    return Consistency(**cosines, permuted=float(others.mean()))


def entanglement(model: ToyModel, world: ReversalWorld) -> Entanglement:
    """Overlap of recognition and the effective rank; see `Entanglement`."""
    with torch.no_grad():
        rank = float(effective_rank(variances(model.perceived().cpu().numpy())))
        chosen = _namesakes(world)
        neurons = model.neurons(torch.from_numpy(chosen).to(_device(model)))
    if neurons is None:
        return Entanglement(0.0, 0.0, 0.0, rank)
    overlap = np.abs(relative(gram(neurons.cpu().numpy())))
    shared = shared_tokens(world.names[chosen])
    sharing = _mean(overlap, shared == 1)
    summed = 2 * (world.settings.multiplicity - 1) * (sharing or 0.0)
    return Entanglement(sharing, _mean(overlap, shared == 0), summed, rank)


def probe_facts(world: ReversalWorld, split: Split, limit: int) -> Int[np.ndarray, "fact 3"]:
    """At most `limit` random facts of a split, the same at every evaluation."""
    facts = world.split(split)
    random = np.random.default_rng([world.settings.seed, 2, SPLITS.index(split)])
    return facts[np.sort(random.permutation(len(facts))[:limit])]


def _role_cosines(states: RoleStates) -> Float[np.ndarray, "fact fact"]:
    """Cosine of every predicted with every fact's perceived vector, both roles centred."""
    perceived = states.perceived - states.perceived.mean(0)
    predicted = states.predicted - states.predicted.mean(0)
    return _unit(predicted) @ _unit(perceived[states.entity]).T


def _unit(vectors: Float[np.ndarray, "n d"]) -> Float[np.ndarray, "n d"]:
    lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
    return vectors / np.maximum(lengths, 1e-12)


def _namesakes(world: ReversalWorld) -> Int[np.ndarray, " some"]:
    """Entities with the smallest first names, so that whole groups of namesakes are among them."""
    return np.argsort(world.names[:, 0], kind="stable")[:_OVERLAPPING]


def _mean(values: Float[np.ndarray, "n n"], chosen: Bool[np.ndarray, "n n"]) -> float | None:
    return float(values[chosen].mean()) if chosen.any() else None


def _device(model: ToyModel) -> torch.device:
    return next(model.parameters()).device
