"""How much a step for one entity moves another: overlap of their hidden activations in the MLPs.

For the last linear map `y = W h` of an MLP, with hidden activations alpha and beta of entities a
and b and output gradients g_a and g_b, one step of SGD on both changes a's output by

    -rate * (|alpha|^2 g_a + (alpha . beta) g_b)

so `kappa(a, b) = alpha . beta / |alpha|^2` is the contamination in units of the own lesson: how
much of b's a gets for as much of its own, and how much of a step for a reaches b (Wang & Sun 2025,
arXiv 2504.01928; method page reversal_binding.md, 1.6 and 3.6). Read at the last token of each
name, after the gate where there is one. kappa of a single pair says little: names that share tokens
are many, and what they add up to is `summed`.

The control is the same call on `models.random_weights.random_initialised`: what overlaps there is
the tokens' doing. The gradients themselves, over all tokens, are in `gradient_crosstalk`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import polars as pl
import torch
from jaxtyping import Bool, Float

from ..data.facts.pairs import Way
from ..models.batching import adaptive, length_buckets
from ..models.errors import MnemoscopeError
from ..models.hooked import HookedModel
from ..models.types import Site
from ..results.gram_matrices import gram, relative
from ..results.pair_statistics import pair_gap_p, pair_mean
from ..results.statistics import Interval, benjamini_hochberg, bootstrap_mean
from .elicitation import Progress, silent
from .name_overlap import name_overlap
from .role_prompts import RolePrompts, RoleRow

EVERYONE = "all"


@dataclass(frozen=True, eq=False)
class PairClass:
    """The pairs of one class of names (those that share a token, say); arrays `[layer]`.

    `mean` and `p95` are of the pairs' values without their signs; `summed` adds up an entity's
    values over all entities of its class, averaged over entities. `p` says whether the class
    differs from all other pairs, when entities are renamed; NaN where there are no others. `q`
    corrects it over layers (Benjamini and Hochberg).
    """

    n_pairs: int
    mean: Interval
    p95: Float[np.ndarray, " layer"]
    summed: Interval
    p: Float[np.ndarray, " layer"]
    q: Float[np.ndarray, " layer"]


@dataclass(frozen=True, eq=False)
class Entanglement:
    """Overlap of every pair of entities: `kappa[l, i, j]` of row i in layer `layers[l]`, averaged
    over wordings; its diagonal is 1. `way` is the direction of the prompts that name them."""

    model: str
    way: Way
    names: tuple[str, ...]
    layers: tuple[int, ...]
    kappa: Float[np.ndarray, "layer entity entity"]
    classes: Mapping[str, PairClass]

    def table(self) -> pl.DataFrame:
        """One row a layer and class of names."""
        return class_table(self.model, self.layers, {"kappa": self.classes})


def entanglement(
    model: HookedModel,
    prompts: RolePrompts,
    *,
    way: Way = "reverse",
    layers: Sequence[int] | None = None,
    masks: Mapping[str, Bool[np.ndarray, "entity entity"]] | None = None,
    rows: int = 32,
    draws: int = 1000,
    seed: int = 0,
    progress: Progress = silent,
) -> Entanglement:
    """kappa between the entities that the prompts of a direction name, in every layer.

    `masks` are classes of pairs; those of `name_overlap` by default. Classes without a pair are
    left out. Cost: one forward pass over the prompts up to the names. Memory: float32 activations
    of one wording, `4 * layers * entities * neurons` bytes, and three float64 tables of pairs for
    every layer. Raises `UnsupportedSiteError` where experts are fused, `UnitOutOfRangeError` for a
    layer that is not there, `MnemoscopeError` for masks of another size.
    """
    chosen = model.anatomy.chosen_layers(layers)
    wordings = prompts.rows(way)
    names = named(prompts, way)
    total = np.zeros((len(chosen), len(names), len(names)))
    for done, wording in enumerate(wordings):
        neurons = name_neurons(model, wording, layers=chosen, rows=rows)
        for layer, alpha in enumerate(neurons):
            total[layer] += relative(gram(alpha))
        progress(done + 1, len(wordings))
    kappa = total / len(wordings)
    masks = name_overlap(model, names).masks() if masks is None else masks
    classes = pair_classes(kappa, masks, draws=draws, seed=seed)
    return Entanglement(model.name, way, names, tuple(chosen), kappa, classes)


def name_neurons(
    model: HookedModel, wording: Sequence[RoleRow], *, layers: Sequence[int], rows: int = 32
) -> Float[np.ndarray, "layer entity neuron"]:
    """Hidden activations of the MLPs at the last token of each row's name, float32.

    Nothing behind the name is run. Raises `UnsupportedSiteError` where experts are fused.
    """
    shape = (len(layers), len(wording), model.anatomy.n_units(Site.NEURON))
    found = np.empty(shape, dtype=np.float32)
    read = [row.ids[: row.named[1]] for row in wording]

    def run(batch: Sequence[int]) -> torch.Tensor:
        tokens = model.batch([read[i] for i in batch], side="right")
        captured = model.capture(tokens, [Site.NEURON], layers=layers, at="end")
        return torch.stack([captured[Site.NEURON, layer][:, 0].float().cpu() for layer in layers])

    for batch, values in adaptive(length_buckets([len(ids) for ids in read], rows), run):
        found[:, list(batch)] = values.numpy()
    return found


def named(prompts: RolePrompts, way: Way) -> tuple[str, ...]:
    """The entities that the prompts of a direction name, pair by pair."""
    return tuple(pair.named(way) for pair in prompts.relation.pairs)


def pair_classes(
    values: Float[np.ndarray, "layer entity entity"],
    masks: Mapping[str, Bool[np.ndarray, "entity entity"]],
    *,
    draws: int = 1000,
    seed: int = 0,
) -> dict[str, PairClass]:
    """Each class of pairs, and `EVERYONE` first, by the size of their values.

    Raises `MnemoscopeError` for fewer than two entities or masks of another size.
    """
    n = values.shape[-1]
    others = ~np.eye(n, dtype=bool)
    if n < 2 or any(np.shape(mask) != (n, n) for mask in masks.values()):
        raise MnemoscopeError(
            f"classes of pairs are masks of {n} x {n} entities, two at least: build them from the "
            "same names in the same order."
        )
    size = np.abs(values)
    everyone = {EVERYONE: others, **{name: mask & others for name, mask in masks.items()}}
    return {
        name: _pair_class(size, mask, others & ~mask, draws, seed)
        for name, mask in everyone.items()
        if mask.any()
    }


def class_table(
    model: str, layers: Sequence[int], measures: Mapping[str, Mapping[str, PairClass]]
) -> pl.DataFrame:
    """One row a measure, class and layer; intervals are named `low` and `high`."""
    return pl.DataFrame(
        [
            {
                "model": model,
                "measure": measure,
                "class": name,
                "layer": layer,
                "n_pairs": one.n_pairs,
                "mean": float(one.mean.mean[i]),
                "low": float(one.mean.low[i]),
                "high": float(one.mean.high[i]),
                "p95": float(one.p95[i]),
                "summed": float(one.summed.mean[i]),
                "summed_low": float(one.summed.low[i]),
                "summed_high": float(one.summed.high[i]),
                "p": float(one.p[i]),
                "q": float(one.q[i]),
            }
            for measure, classes in measures.items()
            for name, one in classes.items()
            for i, layer in enumerate(layers)
        ]
    )


def _pair_class(
    size: Float[np.ndarray, "layer entity entity"],
    mask: Bool[np.ndarray, "entity entity"],
    others: Bool[np.ndarray, "entity entity"],
    draws: int,
    seed: int,
) -> PairClass:
    mean = pair_mean(size, mask, draws=draws, seed=seed)
    per_entity = np.where(mask, size, 0).sum(-1).T
    summed = bootstrap_mean(per_entity, range(len(mask)), draws=draws, seed=seed)
    p = q = np.full(len(size), np.nan)
    if others.any():
        p = pair_gap_p(size, mask, others, draws=draws, seed=seed)
        q = benjamini_hochberg(p)
    p95 = np.quantile(size[:, mask], 0.95, axis=1)
    return PairClass(int(mask.sum()), mean, p95, summed, p, q)
