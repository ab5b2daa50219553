"""Interference by doing it: teach the model one fact, one small step, and ask it all the others.

A step of gradient descent on fact a, of the size that should raise a's own log-probability by
`gain` nats to first order (`rate = gain / |gradient|^2`), then the change of the log-probability of
every other fact. A fact that is almost certain has no such gain left and bends away from its
gradient at once: its step is to take a tenth of its loss at most. Regressions then say how much of
what happened the overlap of activations (`entanglement`) or of gradients (`gradient_crosstalk`)
accounts for: their kappa is in the same unit, shares of a's own lesson (reversal_binding.md, 3.6).

The weights themselves are never written to: inside a step the module's parameters point at stepped
copies, so that afterwards, and after an error, they are the same to the last bit.

`linearity` is to be looked at first. A freshly initialised model may have embeddings of exactly
zero (its padding token, which is often the first one too); normed, they bend at once, and such a
control is better stepped at the down projections only.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Literal, get_args

import numpy as np
import polars as pl
import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from ..data.facts.pairs import Way
from ..models.anatomy import part
from ..models.backends import require
from ..models.batching import adaptive, length_buckets
from ..models.errors import MnemoscopeError
from ..models.hooked import HookedModel
from ..models.types import Site
from ..results.kept_units import kept_arrays
from ..results.pair_statistics import PairCorrelation, pair_correlation
from ..results.run import Run
from .elicitation import Progress, silent
from .entanglement import named
from .gradient_crosstalk import asked_log_probs
from .role_prompts import RolePrompts, RoleRow

Stepped = Literal["all", "down"]
"""Which weights learn: all of them, or the MLPs' down projections only."""

_OF_LOSS = 10


@dataclass(frozen=True, eq=False)
class Interference:
    """What one step on each of the `sources` did to each of the `targets`.

    Both are numbers of facts among those of the prompts; sources are targets too. `change` is the
    change of the target's log-probability (nats, whole asked name) and `before` where it was; the
    step's own fact stands in `change` where a source meets itself. `expected` is what each step
    should do to its own fact to first order, `rate` its learning rate.
    """

    model: str
    way: Way
    names: tuple[str, ...]
    stepped: Stepped
    sources: tuple[int, ...]
    targets: tuple[int, ...]
    before: Float[np.ndarray, " target"]
    change: Float[np.ndarray, "source target"]
    expected: Float[np.ndarray, " source"]
    rate: Float[np.ndarray, " source"]

    @property
    def places(self) -> Int[np.ndarray, " source"]:
        """Where each source stands among the targets."""
        return np.array([self.targets.index(source) for source in self.sources])

    @property
    def own(self) -> Float[np.ndarray, " source"]:
        """What each step did to its own fact, in nats."""
        return self.change[np.arange(len(self.sources)), self.places]

    @property
    def linearity(self) -> Float[np.ndarray, " source"]:
        """`own` over `expected`: 1 where the step is small enough to be read as a gradient."""
        return self.own / self.expected

    @property
    def share(self) -> Float[np.ndarray, "source target"]:
        """The changes as shares of what the step should do to its own fact, the unit of kappa."""
        return self.change / self.expected[:, None]

    def table(self) -> pl.DataFrame:
        """One row a step and fact that it was not made for."""
        return pl.DataFrame(
            [
                {
                    "model": self.model,
                    "learned": self.names[source],
                    "asked": self.names[target],
                    "change": float(self.change[i, j]),
                    "share": float(self.share[i, j]),
                }
                for i, source in enumerate(self.sources)
                for j, target in enumerate(self.targets)
                if source != target
            ]
        )


@dataclass(frozen=True, eq=False)
class InterferenceExplained:
    """How far each predictor, layer by layer, goes with the interference over pairs of facts."""

    model: str
    stepped: Stepped
    predictors: Mapping[str, PairCorrelation]

    def table(self) -> pl.DataFrame:
        """One row a predictor and layer (a place among the predictor's layers)."""
        return pl.DataFrame(
            [
                {
                    "model": self.model,
                    "stepped": self.stepped,
                    "predictor": name,
                    "layer": layer,
                    "n_pairs": one.n_pairs,
                    "r": float(one.r[layer]),
                    "low": float(one.low[layer]),
                    "high": float(one.high[layer]),
                    "r2": float(one.r2[layer]),
                    "r2_null": float(one.null[layer]),
                    "p": float(one.p[layer]),
                    "p_any_layer": one.p_any,
                }
                for name, one in self.predictors.items()
                for layer in range(len(one.r))
            ]
        )


def interference(
    model: HookedModel,
    prompts: RolePrompts,
    *,
    way: Way = "forward",
    wording: int = 0,
    sources: int = 16,
    targets: int = 64,
    gain: float = 0.05,
    stepped: Stepped = "all",
    rows: int = 32,
    seed: int = 0,
    run: Run | None = None,
    progress: Progress = silent,
) -> Interference:
    """Step on each of `sources` facts, drawn with `seed`, and ask `targets` facts after each step.

    Fewer facts than asked for are all taken. Cost: a backward pass and a pass over all targets for
    every source; with a `run`, finished sources are read back. Memory: twice the weights that are
    stepped, and a forward pass with its graph. Raises `MnemoscopeError` for weights in half
    precision, where a small step is lost in rounding, for `gain` not above 0 and fewer than two
    facts; `UnsupportedSiteError` for `stepped="down"` where experts are fused.
    """
    require(model, "gradients", "interference by gradient steps")
    facts = prompts.rows(way)[wording]
    _check(model, len(facts), sources, targets, gain, stepped)
    drawn = np.random.default_rng(seed).permutation(len(facts))[:targets].tolist()
    asked, learned = tuple(sorted(drawn)), tuple(sorted(drawn[:sources]))
    told = [facts[i] for i in asked]
    weights = _weights(model, stepped)
    before = _log_probs(model, told, rows)
    own = before[[asked.index(source) for source in learned]]
    expected = np.minimum(gain, -own / _OF_LOSS)
    rate, change = np.empty(len(learned)), np.empty((len(learned), len(asked)))
    for i, source in enumerate(learned):
        step = partial(_step, model, weights, facts[source], told, float(expected[i]), rows)
        kept = kept_arrays(run, f"interference-{way}-{wording}-{stepped}-{source}", step)
        rate[i], change[i] = kept["rate"], kept["after"] - before
        progress(i + 1, len(learned))
    of_whom = (model.name, way, named(prompts, way), stepped, learned, asked)
    return Interference(*of_whom, before, change, expected, rate)


def explain_interference(
    measured: Interference,
    predictors: Mapping[str, Float[np.ndarray, "layer fact fact"]],
    *,
    draws: int = 1000,
    seed: int = 0,
) -> InterferenceExplained:
    """Regress the interference on tables of pairs over the same facts, such as the kappas.

    A predictor holds at `[l, i, j]` how much of a step for fact i should reach fact j. Intervals
    and the null draw and rename facts. Raises `MnemoscopeError` for a predictor of other facts,
    `StatisticsError` where too few pairs are left or no step changed anything.
    """
    n = len(measured.names)
    for name, given in predictors.items():
        if given.ndim != 3 or given.shape[1:] != (n, n):
            raise MnemoscopeError(
                f"the predictor {name!r} is {given.shape}, but there are {n} facts: give "
                "[layer, fact, fact] of the same prompts."
            )
    taken = np.ix_(measured.targets, measured.targets)
    found = {
        name: pair_correlation(
            given[:, taken[0], taken[1]],
            measured.share,
            rows=measured.places,
            draws=draws,
            seed=seed,
        )
        for name, given in predictors.items()
    }
    return InterferenceExplained(measured.model, measured.stepped, found)


@contextmanager
def stepped_weights(
    weights: Sequence[nn.Parameter], gradients: Sequence[Tensor], rate: float
) -> Iterator[None]:
    """Inside the block each weight is `weight - rate * gradient`; afterwards it is as it was."""
    kept = [weight.data for weight in weights]
    try:
        for weight, gradient in zip(weights, gradients, strict=True):
            weight.data = torch.sub(weight.data, gradient, alpha=rate)
        yield
    finally:
        for weight, data in zip(weights, kept, strict=True):
            weight.data = data


def _step(
    model: HookedModel,
    weights: Sequence[nn.Parameter],
    fact: RoleRow,
    told: Sequence[RoleRow],
    gain: float,
    rows: int,
) -> dict[str, np.ndarray]:
    """The learning rate of the step, and the facts' log-probabilities after it."""
    with model.lock:
        with _learning(weights), torch.enable_grad():
            loss = -asked_log_probs(model, [fact])[1].sum()
            found = torch.autograd.grad(loss, weights, allow_unused=True)
        pairs = [(w, g) for w, g in zip(weights, found, strict=True) if g is not None]
        steep = sum(float((g.double() ** 2).sum()) for _, g in pairs)
        rate = gain / steep if steep else 0.0
        with stepped_weights([w for w, _ in pairs], [g for _, g in pairs], rate):
            after = _log_probs(model, told, rows)
    return {"rate": np.array(rate), "after": after}


@contextmanager
def _learning(weights: Sequence[nn.Parameter]) -> Iterator[None]:
    """Let gradients flow into weights that may be frozen."""
    kept = [weight.requires_grad for weight in weights]
    try:
        for weight in weights:
            weight.requires_grad_(True)
        yield
    finally:
        for weight, wanted in zip(weights, kept, strict=True):
            weight.requires_grad_(wanted)


@torch.no_grad()
def _log_probs(
    model: HookedModel, facts: Sequence[RoleRow], rows: int
) -> Float[np.ndarray, " fact"]:
    found = np.empty(len(facts))

    def run(batch: Sequence[int]) -> Tensor:
        return asked_log_probs(model, [facts[i] for i in batch])[1]

    with model.lock:
        for batch, values in adaptive(length_buckets([len(f.ids) for f in facts], rows), run):
            found[list(batch)] = values.double().cpu().numpy()
    return found


def _weights(model: HookedModel, stepped: Stepped) -> list[nn.Parameter]:
    if stepped == "all":
        return list(model.module.parameters())
    blocks = part(model.module, model.anatomy.spec.blocks)
    return [part(block, str(model.anatomy.spec.down)).weight for block in blocks]


def _check(
    model: HookedModel, n_facts: int, sources: int, targets: int, gain: float, stepped: Stepped
) -> None:
    if stepped not in get_args(Stepped):
        known = ", ".join(get_args(Stepped))
        raise MnemoscopeError(f"stepped={stepped!r} is unknown: use {known}.")
    if stepped == "down":
        model.anatomy.n_units(Site.NEURON)  # raises where experts are fused
    if model.dtype.itemsize < 4:
        raise MnemoscopeError(
            f"{model.name} holds its weights in {model.dtype}, where a small step is lost in "
            "rounding: load it with dtype='float32'."
        )
    if not gain > 0 or sources < 1 or min(n_facts, targets) < 2:
        raise MnemoscopeError(
            "interference needs a gain above 0, one source at least and two facts to ask: got "
            f"gain={gain}, {sources} sources and {min(n_facts, targets)} facts."
        )
