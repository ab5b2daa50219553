"""What the model says when units are set to their mean, to zero or scaled, beside random units."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Literal

import numpy as np
import polars
import torch
from jaxtyping import Float
from torch import Tensor

from ..interventions.neuron_ablation import (
    blacklist,
    neuron_edits,
    neutral_means,
    values_at,
    write_size,
)
from ..models.edits import Edit
from ..models.hooked import HookedModel
from ..models.types import NeuronId, Site
from ..results.neuron_controls import matched_random_neurons
from .answers import top_tokens

NEW_TOKENS = 12
DRAWS, FEWER_DRAWS = 20, 5

Change = Literal["mean", "zero", "scale"]
CHANGES: tuple[Change, ...] = ("mean", "zero", "scale")


@dataclass(frozen=True, eq=False)
class Neutral:
    """What units do on neutral text: their means, the size of their writes, and the units with
    massive activations, which neither a set nor its controls should touch."""

    means: Float[Tensor, "layer unit"]
    writes: Float[np.ndarray, "layer unit"]
    massive: tuple[NeuronId, ...]


@dataclass(frozen=True, eq=False)
class UnitReading:
    """One prompt under one change: what is said greedily, log probabilities of the next token."""

    said: str
    log_p: Float[np.ndarray, " d_vocab"]
    table: polars.DataFrame
    """The ten most probable next tokens: `rank`, `token`, `id`, `probability`."""

    @property
    def first(self) -> int:
        """The most probable next token."""
        return int(self.table["id"][0])


class OfDraws:
    """What every control of random draws says, whatever it read in them."""

    different: int

    @property
    def chance_outside(self) -> float:
        """How often one more such set would fall outside the range of these: 2 / (n + 1)."""
        return 2 / (self.different + 1)


@dataclass(frozen=True, eq=False)
class UnitControl(OfDraws):
    """The same change of matched random units: the first draw in full, and log P of one token in
    every draw; `different` counts different draws, `note` says where matching fell short."""

    reading: UnitReading
    log_p: tuple[float, ...]
    different: int
    note: str

    def holds(self, log_p: float) -> bool:
        """Whether a value lies in the range of the draws, its ends included."""
        return min(self.log_p) <= log_p <= max(self.log_p)


def neutral(model: HookedModel, site: Site, texts: Sequence[str]) -> Neutral:
    """Read neutral texts. Raises what `neutral_means` raises."""
    return Neutral(
        neutral_means(model, texts, site),
        write_size(model, texts, site).double().numpy(),
        blacklist(model, texts, site),
    )


def unit_edits(
    units: Sequence[NeuronId], change: Change, factor: float, means: Float[Tensor, "layer unit"]
) -> tuple[Edit, ...]:
    """The change as edits: prompt and answer alike, a prompt's first token spared."""
    values = values_at(means, units) if change == "mean" else None
    return neuron_edits(units, change, factor=factor, values=values)


def unit_reading(model: HookedModel, prompt: str, edits: Sequence[Edit] = ()) -> UnitReading:
    """Ask once, with the edits in force. Raises `PromptError` for an empty or too long prompt."""
    text = prompt.rstrip()
    with model.intervene(edits) if edits else nullcontext():
        (said,) = model.continuations([text], NEW_TOKENS)
        log_p = _next_log_probs(model, text)
    return UnitReading(said, log_p.numpy(), top_tokens(model, log_p.exp()))


def unit_control(
    model: HookedModel,
    prompt: str,
    units: Sequence[NeuronId],
    change: Change,
    factor: float,
    known: Neutral,
    token: int,
    *,
    spared: Sequence[NeuronId] = (),
    draws: int = DRAWS,
    seed: int = 0,
) -> UnitControl:
    """The same change of random units of the same layers that write as much on neutral text.

    Units with massive activations and those `spared` (the rest of the relation's set) are not
    drawn. Raises `StatisticsError` when too few units are left to draw from.
    """
    barred = dict.fromkeys((*known.massive, *spared))
    kind = Site.MLP_OUT if units[0].site is Site.MLP_OUT else Site.NEURON
    writes = {kind: known.writes}  # gate and up units write through the hidden unit
    drawn = matched_random_neurons(units, writes, draws=draws, seed=seed, exclude=barred)
    values = []
    for chosen in drawn.draws:
        with model.intervene(unit_edits(chosen, change, factor, known.means)):
            values.append(float(_next_log_probs(model, prompt.rstrip())[token]))
    shown = unit_reading(model, prompt, unit_edits(drawn.draws[0], change, factor, known.means))
    different = len({frozenset(chosen) for chosen in drawn.draws})
    return UnitControl(shown, tuple(values), different, drawn.note)


def _next_log_probs(model: HookedModel, text: str) -> Float[torch.Tensor, " d_vocab"]:
    return model.logits(model.tokens(text), at="end")[0, 0].float().log_softmax(-1).cpu()
