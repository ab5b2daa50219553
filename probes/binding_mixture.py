"""Three ways to find an answer that a context bound: by place, by name, by the answer itself.

The state of the last token is taken from a counterfactual prompt with the same names and the same
attributes in another order, so that the three routes point to different slots of the context that
is read (Gur-Arieh, Geva and Geiger 2025, 2510.06182; reversal_binding, section 3.3):

- *positional*, p: where the name asked about stood in the counterfactual;
- *lexical*, k: where that name stands here;
- *reflexive*, i: where the answer that it had there stands here.

The question asked here is about a fourth slot, so that "no effect" is a slot of its own.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from random import Random

import numpy as np
import polars
import torch
from jaxtyping import Float, Int
from torch import Tensor

from ..data.facts.binding_contexts import BindingContext
from ..models.batching import adaptive
from ..models.errors import MnemoscopeError
from ..models.hooked import HookedModel
from ..results.kept_units import kept_arrays
from ..results.run import Run
from ..results.statistics import bootstrap_mean
from .binding_prompts import BindingPrompts, prompts_of
from .binding_states import ROWS, end_states, hold, read_with_end
from .elicitation import Progress, silent

LAYERS = 11
ROUTES = ("positional", "lexical", "reflexive", "asked")


@dataclass(frozen=True, eq=False)
class MixturePrompts:
    """Base contexts, their counterfactuals, and the slots of each example: `slots[:, j]` is that of
    `ROUTES[j]`, counted in the base context."""

    base: BindingPrompts
    counterfactual: BindingPrompts
    slots: Int[np.ndarray, "example route"]


@dataclass(frozen=True, eq=False)
class MixtureSwaps:
    """Answers to the base question with the counterfactual's last state at one layer each.

    `probability` is among the told answers and sums to 1; `mass` is what they have together.
    `layers` count inputs of blocks; `n_layers` is the output of the last. `clean` is the base run.
    """

    layers: tuple[int, ...]
    slots: Int[np.ndarray, "example route"]
    probability: Float[np.ndarray, "layer example slot"]
    mass: Float[np.ndarray, "layer example"]
    clean: Float[np.ndarray, "example slot"]

    @property
    def behaviour(self) -> Float[np.ndarray, " example"]:
        """1 where the model answers the base question right (the best of the told answers)."""
        return (self.clean.argmax(-1) == self.slots[:, 3]).astype(float)

    def table(self, seed: int = 0) -> polars.DataFrame:
        """One row a layer and route: share of examples whose best answer is that slot's, with its
        interval over examples, the mean probability, the behaviour and chance. "other" is the rest.
        """
        examples = range(len(self.slots))
        best = self.probability.argmax(-1)[..., None] == self.slots
        hits = np.concatenate([best, ~best.any(-1, keepdims=True)], -1).astype(float)
        index = np.broadcast_to(self.slots, best.shape)
        given = np.take_along_axis(self.probability, index, -1).mean(1)
        n_slots = self.probability.shape[-1]
        rows = []
        for layer, values, means in zip(self.layers, hits, given, strict=True):
            share = bootstrap_mean(values, examples, seed=seed)
            for j, route in enumerate((*ROUTES, "other")):
                rows.append(
                    {
                        "layer": layer,
                        "route": route,
                        "share": float(share.mean[j]),
                        "low": float(share.low[j]),
                        "high": float(share.high[j]),
                        "probability": float(means[j] if j < 4 else 1 - means.sum()),
                        "behaviour": float(self.behaviour.mean()),
                        "chance": (1 if j < 4 else n_slots - 4) / n_slots,
                    }
                )
        return polars.DataFrame(rows)


def mixture_prompts(
    model: HookedModel, prompts: BindingPrompts, *, seed: int = 0
) -> MixturePrompts:
    """Counterfactuals of given contexts. Raises `MnemoscopeError` for fewer than four slots."""
    n_slots = prompts.columns.slots
    if n_slots < 4:
        raise MnemoscopeError(
            f"contexts of {n_slots} slots cannot tell three routes and the question apart: use "
            "four slots or more."
        )
    random = Random(f"binding mixture {seed}")
    slots = np.array([random.sample(range(n_slots), 4) for _ in range(len(prompts))])
    turned = [
        _counterfactual(context, int(chosen[0]), int(chosen[1]), int(chosen[2]), random)
        for context, chosen in zip(prompts.contexts, slots, strict=True)
    ]
    other = prompts_of(model, prompts.task, turned, prompts.wording)
    return MixturePrompts(prompts, other, slots)


def mixture_swaps(
    model: HookedModel,
    prompts: MixturePrompts,
    *,
    layers: Sequence[int] | None = None,
    rows: int = ROWS,
    run: Run | None = None,
    progress: Progress = silent,
) -> MixtureSwaps:
    """Swap the last token's state at each layer (default: `LAYERS` of them, evenly spread).

    Each batch of examples is a unit of the run. Raises `MnemoscopeError` for layers outside
    0 to `n_layers`.
    """
    n_layers, n = model.anatomy.n_layers, len(prompts.base)
    if layers is None:
        layers = sorted({round(x) for x in np.linspace(0, n_layers, LAYERS)})
    if not layers or not all(0 <= layer <= n_layers for layer in layers):
        raise MnemoscopeError(f"layers {list(layers)} are not all among 0 to {n_layers}.")
    found = []
    for start in range(0, n, rows):
        batch = list(range(start, min(start + rows, n)))

        def compute(batch: list[int] = batch) -> Mapping[str, np.ndarray]:
            pieces = [
                p for _, p in adaptive([batch], lambda b: _swapped(model, prompts, b, layers))
            ]
            return {"log_prob": torch.cat(pieces, dim=1).numpy()}

        key = f"mixture {list(layers)}: examples {start} to {batch[-1]}"
        found.append(kept_arrays(run, key, compute)["log_prob"])
        progress(batch[-1] + 1, n)
    given = np.exp(np.concatenate(found, axis=1))
    mass = given.sum(-1)
    shares = given / mass[..., None]
    return MixtureSwaps(tuple(layers), prompts.slots, shares[1:], mass[1:], shares[0])


def _counterfactual(
    context: BindingContext, positional: int, lexical: int, reflexive: int, random: Random
) -> BindingContext:
    """The same words in another order: at `positional` stands the name that is at `lexical` here,
    with the attribute that is at `reflexive` here."""

    def order(here: int) -> list[int]:
        others = [slot for slot in range(len(context.entities)) if slot != here]
        random.shuffle(others)
        return [*others[:positional], here, *others[positional:]]

    return BindingContext(
        tuple(context.entities[slot] for slot in order(lexical)),
        tuple(context.attributes[slot] for slot in order(reflexive)),
    )


def _swapped(
    model: HookedModel, prompts: MixturePrompts, batch: Sequence[int], layers: Sequence[int]
) -> Float[Tensor, "run example slot"]:
    """Log-probabilities of the told answers: clean, then with the swap at each layer."""
    base, other = prompts.base.part(batch), prompts.counterfactual.part(batch)
    slots = torch.tensor(prompts.slots[list(batch)])
    row = torch.arange(len(batch))
    here, there = hold(model, base.ids, ()), hold(model, other.ids, ())
    question = base.questions[row, slots[:, 3]]
    states = end_states(model, there, other.questions[row, slots[:, 0]])
    own = end_states(model, here, question)[-1]
    n_layers = model.anatomy.n_layers
    logits = [read_with_end(model, here, question, n_layers, own)]
    logits += [read_with_end(model, here, question, layer, states[layer]) for layer in layers]
    return torch.stack([x.double().cpu().log_softmax(-1).gather(1, base.answers) for x in logits])
