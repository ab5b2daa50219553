"""How much of each route: the mixture that explains answers after a swap of the last state.

    logit(a) = w exp(-(a - p)^2 / (2 sigma(p)^2)) + g_k [a = k] + r_i [a = i]

over the slots a of a context (Gur-Arieh, Geva and Geiger 2025; reversal_binding, section 3.3), with
sigma(p) the softplus of a quadratic in p / slots and free tables g and r. Fitted by Adam on the
Jensen-Shannon divergence (base 2); the score is 1 less that divergence on examples that were
neither fitted nor used to stop.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from ..models.errors import MnemoscopeError
from ..results.statistics import Interval, PairedDifference, bootstrap_mean, paired_difference

TERMS = ("positional", "lexical", "reflexive")
FEWEST = 20
_RATE, _STEPS, _PATIENCE = 0.05, 5000, 500
_LOOK, _GAIN = 10, 1e-4  # how often a fit may be told to stop, and what counts as better, bits
_NARROWEST = 0.05
_SHARES = (0.7, 0.15)


@dataclass(frozen=True, eq=False)
class MixtureFit:
    """The fitted terms, and their scores on held-out examples (`n_test`).

    `uniform` is the score of giving all slots the same, `shuffled` that of a fit to slots dealt out
    to the wrong examples; `without[term]` is the score that is lost when the mixture is fitted
    without the term.
    """

    weight: float
    sigma: Float[np.ndarray, " slot"]
    lexical: Float[np.ndarray, " slot"]
    reflexive: Float[np.ndarray, " slot"]
    score: Interval
    uniform: Interval
    shuffled: Interval
    without: Mapping[str, PairedDifference]
    n_test: int

    def summary(self) -> dict[str, float]:
        """The numbers of a line of a table."""
        found = {
            "weight": self.weight,
            "score": float(self.score.mean),
            "low": float(self.score.low),
            "high": float(self.score.high),
            "uniform": float(self.uniform.mean),
            "shuffled": float(self.shuffled.mean),
        }
        for term, lost in self.without.items():
            found |= {f"without {term}": float(lost.interval.mean), f"p {term}": float(lost.p)}
        return found


def fit_mixture(
    probability: Float[np.ndarray, "example slot"],
    slots: Int[np.ndarray, "example route"],
    *,
    seed: int = 0,
    steps: int = _STEPS,
) -> MixtureFit:
    """Fit the mixture to probabilities over slots; the first three columns of `slots` are p, k, i.

    Examples are split 70 / 15 / 15 to fit, to stop, and to score. Raises `MnemoscopeError` for
    fewer than `FEWEST` examples.
    """
    if len(probability) < FEWEST or slots.shape[0] != len(probability):
        raise MnemoscopeError(
            f"a mixture needs {FEWEST} examples with their slots, got {len(probability)}: swap "
            "more."
        )
    given, index = torch.tensor(probability).double(), torch.tensor(slots[:, :3])
    draw = np.random.default_rng(seed)
    cuts = np.cumsum([round(share * len(given)) for share in _SHARES])
    parts = [torch.tensor(part) for part in np.split(draw.permutation(len(given)), cuts)]
    shuffled = index[torch.tensor(draw.permutation(len(given)))]
    indices = torch.stack([index, shuffled, index, index, index])
    tables = _fitted(given, indices, parts, _used(given.shape[1]), steps)
    test = parts[2]
    scores = 1 - _divergence(given[test], tables(indices[:, test])).numpy()
    even = 1 - _divergence(given[test], torch.zeros_like(given[test]).softmax(-1)).numpy()
    units = range(len(test))
    return MixtureFit(
        float(tables.weight[0]),
        tables.sigma()[0].numpy(),
        tables.lexical[0].numpy(),
        tables.reflexive[0].numpy(),
        bootstrap_mean(scores[0], units, seed=seed),
        bootstrap_mean(even, units, seed=seed),
        bootstrap_mean(scores[1], units, seed=seed),
        {
            term: paired_difference(scores[0], fewer, units, seed=seed)
            for term, fewer in zip(TERMS, scores[2:], strict=True)
        },
        len(test),
    )


@dataclass(frozen=True, eq=False)
class _Tables:
    """The parameters of several fits; called with slots p, k, i it gives probabilities."""

    weight: Float[Tensor, " fit"]
    width: Float[Tensor, "fit three"]
    lexical: Float[Tensor, "fit slot"]
    reflexive: Float[Tensor, "fit slot"]

    def sigma(self) -> Float[Tensor, "fit slot"]:
        n = self.lexical.shape[1]
        x = torch.arange(n, dtype=torch.float64) / n
        powers = torch.stack([torch.ones_like(x), x, x**2])
        return torch.nn.functional.softplus(self.width @ powers) + _NARROWEST

    def __call__(
        self, index: Int[Tensor, "fit example three"]
    ) -> Float[Tensor, "fit example slot"]:
        p, k, i = index.unbind(-1)
        slot = torch.arange(self.lexical.shape[1])
        away = (slot - p[..., None]) / self.sigma().gather(1, p)[..., None]
        logits = self.weight[:, None, None] * torch.exp(-(away**2) / 2)
        for table, place in ((self.lexical, k), (self.reflexive, i)):
            logits = logits + table.gather(1, place)[..., None] * (slot == place[..., None])
        return logits.softmax(-1)


def _used(n: int) -> _Tables:
    """1 where a fit has the parameter: whole, shuffled, then without each term; n slots."""
    left_out = ("", "", *TERMS)
    has = torch.tensor([[term != out for term in TERMS] for out in left_out]).double()
    return _Tables(
        has[:, 0],
        has[:, :1].expand(-1, 3),
        has[:, 1:2].expand(-1, n),
        has[:, 2:].expand(-1, n),
    )


def _fitted(
    given: Float[Tensor, "example slot"],
    index: Int[Tensor, "fit example three"],
    parts: Sequence[Tensor],
    used: _Tables,
    steps: int,
) -> _Tables:
    """Every fit at the step where it did best on the second part; an unused term stays 0."""
    masks = (used.weight, used.width, used.lexical, used.reflexive)
    values = [torch.zeros_like(mask) for mask in masks]
    values[0] += masks[0]  # the positional term starts at a height of 1
    for value in values:
        value.requires_grad_()
    optimiser = torch.optim.Adam(values, lr=_RATE)
    best, since = torch.full((len(index),), torch.inf, dtype=torch.float64), 0
    kept = [value.detach().clone() for value in values]
    for step in range(steps):
        tables = _Tables(*(value * mask for value, mask in zip(values, masks, strict=True)))
        loss = _divergence(given, tables(index))
        if step % _LOOK == 0:
            stop = loss[:, parts[1]].detach().mean(1)
            better = stop < best - _GAIN
            best = torch.where(better, stop, best)
            for old, value in zip(kept, values, strict=True):
                old[better] = value.detach()[better]
            since = 0 if bool(better.any()) else since + _LOOK
            if since >= _PATIENCE:
                break
        optimiser.zero_grad()
        loss[:, parts[0]].mean(1).sum().backward()
        optimiser.step()
    return _Tables(*(value * mask for value, mask in zip(kept, masks, strict=True)))


def _divergence(
    a: Float[Tensor, "*batch slot"], b: Float[Tensor, "*batch slot"]
) -> Float[Tensor, "*batch"]:
    """Jensen-Shannon divergence in bits."""
    middle = (a + b) / 2

    def relative(x: Tensor) -> Tensor:
        return (torch.xlogy(x, x) - torch.xlogy(x, middle)).sum(-1)

    return (relative(a) + relative(b)) / (2 * math.log(2))
