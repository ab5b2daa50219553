"""Does turning a name's state towards what predicts it help the reverse question?

If the subject and object codes of an entity differ by a linear map M, then what M makes of the
state of B's name should do what a prediction of B does. At the name's last token in "B's child is"
the state s becomes s + strength * (M(s) - M(mean s)): B's own content is added in the code of
predicted entities. M was fitted on the other half of the pairs and s has not seen A, so that
leakage cannot explain a gain. (The inverse readout of chiral transformers, Du 2026, on a model that
stays as it is.)
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Literal

import numpy as np
import polars as pl
import torch
from jaxtyping import Float
from torch import Tensor

from ..data.facts.pairs import Pair
from ..interventions.role_swap import matched_noise
from ..models.errors import MnemoscopeError
from ..models.hooked import HookedModel
from ..results.kept_units import kept_arrays
from ..results.run import Run
from ..results.statistics import bootstrap_mean, chance_mrr, sign_flip_p
from .elicitation import Progress, silent
from .role_maps import fit_role_map
from .role_states import RoleStates
from .role_swaps import edited_name_scores, name_ranks, strided_layers
from .swap_vectors import SwapVectors, swap_vectors

Direction = Literal["map", "shuffled", "shift", "noise"]
DIRECTIONS: tuple[Direction, ...] = ("map", "shuffled", "shift", "noise")
"""`map`: along M. Its controls: `shuffled`, along a map that was fitted on pairs in a wrong order;
`shift`, from the mean of the slot's role to that of the predicted role, the same for every name;
`noise`, as far as `map` in a random direction."""


@dataclass(frozen=True, eq=False)
class ReverseSteering:
    """Scores of the asked name A, `[direction, layer, strength, pair]`; ranks are those of the
    whole name among all pairs' A, ties counted half."""

    relation: str
    pairs: tuple[Pair, ...]
    layers: tuple[int, ...]
    strengths: tuple[float, ...]
    log_prob: Float[np.ndarray, "direction layer strength pair"]
    """Of the whole name, nats."""
    rank: Float[np.ndarray, "direction layer strength pair"]
    clean_log_prob: Float[np.ndarray, " pair"]
    clean_rank: Float[np.ndarray, " pair"]
    seed: int

    @property
    def chance(self) -> float:
        """Mean reciprocal rank of a guess among the N names, H_N / N."""
        return chance_mrr(len(self.pairs))

    def gain(self, direction: Direction) -> Float[np.ndarray, "layer strength pair"]:
        """Change of the whole name's log-probability, nats."""
        return self.log_prob[DIRECTIONS.index(direction)] - self.clean_log_prob

    def right(self, direction: Direction) -> Float[np.ndarray, "layer strength pair"]:
        """1 where A is the likeliest of all names, else 0."""
        return (self.rank[DIRECTIONS.index(direction)] <= 1).astype(np.float64)

    def table(self) -> pl.DataFrame:
        """One row a direction, layer and strength, means with 95 % intervals over pairs.

        `accuracy_gain` is the change of the share of pairs whose A comes first. `beyond` compares
        the gain in nats with that of the shuffled map; `p` flips signs of pairs, `p_grid` holds for
        the largest of all layers and strengths (family-wise).
        """
        return pl.concat([self._rows(direction) for direction in DIRECTIONS])

    def _rows(self, direction: Direction) -> pl.DataFrame:
        gain, right = self.gain(direction), self.right(direction)
        beyond = gain - self.gain("shuffled")
        over, units = np.moveaxis(beyond, -1, 0), range(len(self.pairs))
        rank = self.rank[DIRECTIONS.index(direction)]
        layer, strength = np.meshgrid(self.layers, self.strengths, indexing="ij")
        columns = {
            **self._interval("gain", gain),
            **self._interval("mrr", 1 / rank),
            **self._interval("accuracy", right),
            **self._interval("accuracy_gain", right - (self.clean_rank <= 1)),
            **self._interval("beyond", beyond),
            "p": sign_flip_p(over, units, seed=self.seed),
            "p_grid": sign_flip_p(over, units, seed=self.seed, family_wise=True),
        }
        return pl.DataFrame(
            {
                "direction": [direction] * layer.size,
                "layer": layer.ravel(),
                "strength": strength.ravel(),
                "pairs": len(self.pairs),
                **{name: values.ravel() for name, values in columns.items()},
            }
        )

    def _interval(self, name: str, values: np.ndarray) -> dict[str, np.ndarray]:
        found = bootstrap_mean(np.moveaxis(values, -1, 0), range(len(self.pairs)), seed=self.seed)
        return {name: found.mean, f"{name}_low": found.low, f"{name}_high": found.high}


def measure_reverse_steering(
    model: HookedModel,
    states: RoleStates,
    *,
    layers: Sequence[int] = (),
    strengths: Sequence[float] = (0.25, 0.5, 1.0),
    slot_wording: int = 0,
    source_wording: int = 0,
    seed: int = 0,
    run: Run | None = None,
    progress: Progress = silent,
) -> ReverseSteering:
    """Steer the names of every pair in its reverse prompt, in all directions and strengths.

    `layers` are six strided blocks by default, each with its own map from that layer's slot states
    to its predicted states. Cost: each prompt once a direction, layer and strength, and every name
    behind it. With a `run` a layer is a unit. Raises `MnemoscopeError` for no strength and as
    `swap_vectors`, `StatisticsError` for too few pairs to fit a map, `UnitOutOfRangeError` for a
    layer that the model does not have.
    """
    if not strengths:
        raise MnemoscopeError("no strength to steer with: give one at least, for example 0.5.")
    vectors = swap_vectors(
        states, slot_wording=slot_wording, source_wording=source_wording, seed=seed
    )
    chosen = tuple(layers) or strided_layers(model.anatomy.n_layers)
    for layer in chosen:
        model.anatomy.check_layer(layer)

    def steered(at: int) -> dict[str, np.ndarray]:
        steps = steering_steps(vectors, chosen[at])
        values = torch.cat([strength * steps for strength in strengths])
        none = torch.zeros_like(vectors.slot[:1, 0])[None].expand_as(values[:1])
        told = edited_name_scores(
            model,
            states,
            chosen[at],
            torch.cat([none, values]),
            op="add",
            wording=slot_wording,
            progress=partial(_part, progress, at, len(chosen)),
        )
        own = np.arange(told.shape[1])
        return {"scores": np.stack([told[:, own, own], name_ranks(told)])}

    units = [
        kept_arrays(run, f"steer-{layer:03d}", partial(steered, at))
        for at, layer in enumerate(chosen)
    ]
    scores = np.stack([unit["scores"] for unit in units])  # [layer, score, 1 + task, pair]
    grid = scores[:, :, 1:].reshape(len(chosen), 2, len(strengths), len(DIRECTIONS), -1)
    log_prob, rank = grid.transpose(1, 3, 0, 2, 4)
    return ReverseSteering(
        relation=states.prompts.relation.name,
        pairs=states.prompts.relation.pairs,
        layers=chosen,
        strengths=tuple(strengths),
        log_prob=log_prob,
        rank=rank,
        clean_log_prob=scores[0, 0, 0],
        clean_rank=scores[0, 1, 0],
        seed=seed,
    )


def steering_steps(vectors: SwapVectors, layer: int) -> Float[Tensor, "direction pair d_model"]:
    """What strength 1 adds to each pair's name in each direction, from maps of the other half."""
    slot, predicted = vectors.slot[layer].numpy(), vectors.predicted[layer].numpy()
    other, steps = vectors.other.numpy(), np.zeros((3, *slot.shape))
    for half in (0, 1):
        mine = (vectors.half == half).numpy()
        for i, aim in enumerate((predicted[~mine], predicted[other[~mine]])):
            role_map = fit_role_map(slot[~mine], aim)
            steps[i, mine] = role_map.apply(slot[mine]) - role_map.mean_p
        steps[2, mine] = predicted[~mine].mean(0) - slot[~mine].mean(0)
    carried, shuffled, shift = torch.from_numpy(steps).to(vectors.slot)
    noise = matched_noise(torch.zeros_like(carried), carried, vectors.seed + layer)
    return torch.stack([carried, shuffled, shift, noise])


def _part(progress: Progress, at: int, parts: int, done: int, total: int) -> None:
    """Of part `at` of as many measurements of one length."""
    progress(at * total + done, parts * total)
