"""A bilinear binding form: which name goes with which attribute, read off the states alone.

The cheap form of the propositional probe (Feng, Russell and Steinhardt 2024, 2406.19501;
reversal_binding, section 3.4): in place of second derivatives, the outer products of the slots'
mean states of names and attributes, H = sum_k (E_k - E)(A_k - A)^T, of a rank below the number of
slots. The affinity of two tokens is h_s^T H h_t with states of length 1, and the matching of names
and attributes with the largest sum of affinities is what the model is said to believe.

Where names and attributes are told in the same order, a form that reads nothing but that order is
right too: so judge it in another wording, beside the model's own answers and random forms of the
same singular values.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import factorial

import numpy as np
import polars
import torch
from jaxtyping import Bool, Float
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from ..models.batching import adaptive, length_buckets
from ..models.errors import MnemoscopeError
from ..models.hooked import HookedModel
from ..results.statistics import bootstrap_mean
from .binding_prompts import BindingPrompts
from .binding_states import ROWS, answer_log_probs, hold, kept_states
from .elicitation import Progress, silent

RANDOM_FORMS = 20


@dataclass(frozen=True, eq=False)
class BindingForms:
    """H of every layer (input of the block) as `left diag(singular) right^T`; `n` contexts."""

    left: Float[np.ndarray, "layer d_model rank"]
    singular: Float[np.ndarray, "layer rank"]
    right: Float[np.ndarray, "layer d_model rank"]
    n: int

    def affinity(
        self,
        entities: Float[np.ndarray, "layer context slot d_model"],
        attributes: Float[np.ndarray, "layer context slot d_model"],
    ) -> Float[np.ndarray, "layer context entity attribute"]:
        """h_s^T H h_t of every name with every attribute of its context, states of length 1."""
        left, right = (
            np.einsum("lcsd,ldr->lcsr", x / np.linalg.norm(x, axis=-1, keepdims=True), side)
            for x, side in ((entities, self.left), (attributes, self.right))
        )
        return np.asarray(np.einsum("lcsr,lr,lctr->lcst", left, self.singular, right))

    def random(self, seed: int) -> BindingForms:
        """A form of the same singular values between random directions."""
        draw = np.random.default_rng(seed)
        left, right = (
            np.linalg.qr(draw.standard_normal(x.shape))[0] for x in (self.left, self.right)
        )
        return BindingForms(left, self.singular, right, self.n)


@dataclass(frozen=True, eq=False)
class FormMatches:
    """Which names were matched to their own attributes, by layer; the same of random forms, and
    which questions the model itself answers right (the best of the told answers)."""

    right: Bool[np.ndarray, "layer context slot"]
    random: Bool[np.ndarray, "draw layer context slot"]
    answered: Bool[np.ndarray, "context slot"]

    def table(self, seed: int = 0) -> polars.DataFrame:
        """One row a layer: share of names and of whole contexts that are matched right, intervals
        over contexts, the best and mean random form, the model's own answers, and chance."""
        _, contexts, slots = self.right.shape
        whole, names = np.asarray(self.right.all(-1)), np.asarray(self.right.mean(-1))
        other = np.asarray(np.asarray(self.random.all(-1)).mean(-1))
        exact, each = (
            bootstrap_mean(x.T.astype(float), range(contexts), seed=seed) for x in (whole, names)
        )
        return polars.DataFrame(
            {
                "layer": np.arange(len(whole)),
                "names": each.mean,
                "names_low": each.low,
                "names_high": each.high,
                "exact": exact.mean,
                "low": exact.low,
                "high": exact.high,
                "random": other.mean(0),
                "random_best": other.max(0),
                "behaviour": np.full(len(whole), self.answered.mean()),
                "chance": np.full(len(whole), 1 / factorial(slots)),
            }
        )


def binding_forms(
    model: HookedModel, prompts: BindingPrompts, *, rows: int = ROWS, progress: Progress = silent
) -> BindingForms:
    """Forms from mean states at the last tokens of names and attributes (100 contexts or more).

    Take contexts of random words, so that means hold the slot and not the word. Raises
    `MnemoscopeError` for fewer than 16.
    """
    if len(prompts) < 16:
        raise MnemoscopeError(f"{len(prompts)} contexts are too few for mean states: use 16.")
    entities, attributes = (
        torch.tensor(x.mean(1) - x.mean((1, 2))[:, None])
        for x in _words(model, prompts, rows, progress)
    )
    left, singular, right = torch.linalg.svd(entities.mT @ attributes, full_matrices=False)
    rank = prompts.columns.slots - 1
    return BindingForms(
        left[..., :rank].numpy(),
        singular[:, :rank].numpy(),
        right.mT[..., :rank].numpy(),
        len(prompts),
    )


def match_by_form(
    model: HookedModel,
    prompts: BindingPrompts,
    forms: BindingForms,
    *,
    draws: int = RANDOM_FORMS,
    seed: int = 0,
    rows: int = ROWS,
    progress: Progress = silent,
) -> FormMatches:
    """Match names and attributes of each context by their affinities at every layer.

    Take other contexts than the forms come from, in another wording too.
    """
    entities, attributes = _words(model, prompts, rows, progress)
    found = [
        matched_slots(form.affinity(entities, attributes))
        for form in (forms, *(forms.random(seed + draw) for draw in range(draws)))
    ]
    random = np.array(found[1:], dtype=bool).reshape(-1, *found[0].shape)
    return FormMatches(found[0], random, _answered(model, prompts, rows))


def _answered(model: HookedModel, prompts: BindingPrompts, rows: int) -> Bool[np.ndarray, "c slot"]:
    right = []
    for _, log_prob in adaptive(
        length_buckets([prompts.columns.length] * len(prompts), rows),
        lambda some: _log_probs(model, prompts.part(some)),
    ):
        right.append(log_prob.argmax(-1).numpy() == np.arange(prompts.columns.slots))
    return np.concatenate(right)


def _log_probs(model: HookedModel, part: BindingPrompts) -> Tensor:
    return answer_log_probs(model, hold(model, part.ids, ()), part.questions, part.answers)


def _words(
    model: HookedModel, prompts: BindingPrompts, rows: int, progress: Progress
) -> tuple[Float[np.ndarray, "layer context slot d"], Float[np.ndarray, "layer context slot d"]]:
    """States of the last tokens of all names, and of all attributes."""
    columns = [s[-1] for s in (*prompts.columns.entities, *prompts.columns.attributes)]
    states: Tensor = kept_states(model, prompts, columns, rows=rows, progress=progress).double()
    entities, attributes = states.chunk(2, dim=2)
    return entities.numpy(), attributes.numpy()


def matched_slots(
    affinity: Float[np.ndarray, "layer context entity attribute"],
) -> Bool[np.ndarray, "layer context slot"]:
    """Whether the matching with the largest sum gives each name its own attribute."""
    *shape, slots, _ = affinity.shape
    chosen = [
        linear_sum_assignment(one, maximize=True)[1] for one in affinity.reshape(-1, slots, slots)
    ]
    return np.asarray(np.array(chosen) == np.arange(slots)).reshape(*shape, slots)
