"""In how many directions do entities differ, and how much of that is just the token they end on?

Over the states of entities at one place (perceived subject, say), layer by layer: the effective
rank `exp(H)` of the variances along principal axes, the participation ratio, and the share of the
variance between entities that the identity of a name's token explains (one-way analysis of
variance over all directions together; reversal_binding.md, 3.6). A rank is bounded by the number of
entities less one and grows with it, so it is to be read beside `isotropic`, and compared between
models over the same entities only.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import polars as pl
from jaxtyping import Bool, Float

from ..data.facts.pairs import Way
from ..models.errors import MnemoscopeError
from ..results.gram_matrices import (
    ROUNDING,
    effective_rank,
    gram,
    participation_ratio,
    variances,
)
from ..results.pair_statistics import renamed_sums
from .role_prompts import RolePrompts


@dataclass(frozen=True, eq=False)
class StateSpread:
    """How the states of `n_entities` spread, by layer, averaged over wordings.

    `explained` is the share of variance, 0 to 1, that token identity explains among the `n_shared`
    entities whose token another one has too; `null` is its mean and `null_high` its 95th percentile
    when tokens are dealt out anew, `p` the share of dealings that explain as much. All are NaN
    where there are not two tokens that are shared. `isotropic_*` are what as many random directions
    of the same width give: the most that one can expect.
    """

    model: str
    n_entities: int
    n_shared: int
    n_tokens: int
    effective_rank: Float[np.ndarray, " layer"]
    participation: Float[np.ndarray, " layer"]
    isotropic_rank: float
    isotropic_participation: float
    explained: Float[np.ndarray, " layer"]
    null: Float[np.ndarray, " layer"]
    null_high: Float[np.ndarray, " layer"]
    p: Float[np.ndarray, " layer"]

    def table(self) -> pl.DataFrame:
        """One row a layer, counted as the states' layers are."""
        n_layers = len(self.effective_rank)
        return pl.DataFrame(
            {
                "model": [self.model] * n_layers,
                "layer": list(range(n_layers)),
                "effective_rank": self.effective_rank,
                "isotropic_rank": [self.isotropic_rank] * n_layers,
                "participation": self.participation,
                "isotropic_participation": [self.isotropic_participation] * n_layers,
                "explained": self.explained,
                "null": self.null,
                "null_high": self.null_high,
                "p": self.p,
            }
        )


def state_spread(
    states: Float[np.ndarray, "layer wording entity d"],
    tokens: Sequence[Hashable],
    *,
    model: str = "",
    draws: int = 1000,
    seed: int = 0,
) -> StateSpread:
    """Spread of entities' states, and what the tokens (`name_tokens`) explain of it.

    `model` names the model in the table. Raises `MnemoscopeError` for states that are not
    `[layer, wording, entity, width]` of three entities at least with a token each, or not finite.
    """
    states = np.asarray(states, dtype=np.float64)
    if states.ndim != 4 or states.shape[2] < 3 or len(tokens) != states.shape[2]:
        raise MnemoscopeError(
            f"states {states.shape} and {len(tokens)} tokens do not fit: give [layer, wording, "
            "entity, width] with three entities at least, and each entity's token."
        )
    if not np.isfinite(states).all():
        raise MnemoscopeError("some states are not finite: run the model in float32 or bfloat16.")
    along = variances(states)
    noise = np.random.default_rng(seed).standard_normal(states.shape[2:])
    even = variances(noise)
    explained, null, shared = _explained(states, tokens, draws, seed)
    high = np.quantile(null, 0.95, axis=0)
    p = ((null >= explained - 1e-12).sum(0) + 1.0) / (draws + 1)
    return StateSpread(
        model,
        states.shape[2],
        int(shared.sum()),
        len({token for token, kept in zip(tokens, shared, strict=True) if kept}),
        effective_rank(along).mean(1),
        participation_ratio(along).mean(1),
        float(effective_rank(even)),
        float(participation_ratio(even)),
        explained,
        null.mean(0),
        high,
        np.where(np.isnan(explained), np.nan, p),
    )


def name_tokens(
    prompts: RolePrompts, way: Way, which: Literal["first", "last"] = "last"
) -> tuple[int, ...]:
    """The first or last token of the name in each pair's first prompt of a direction."""
    return tuple(
        row.ids[row.named[0] if which == "first" else row.named[1] - 1]
        for row in prompts.rows(way)[0]
    )


def _explained(
    states: Float[np.ndarray, "layer wording entity d"],
    tokens: Sequence[Hashable],
    draws: int,
    seed: int,
) -> tuple[
    Float[np.ndarray, " layer"], Float[np.ndarray, "draws layer"], Bool[np.ndarray, " entity"]
]:
    """The share, its values under dealt-out tokens, and the entities that share their token."""
    number = {token: i for i, token in enumerate(dict.fromkeys(tokens))}
    index = np.array([number[token] for token in tokens])
    shared = np.bincount(index)[index] > 1
    n_layers = len(states)
    if len({*index[shared].tolist()}) < 2:
        return np.full(n_layers, np.nan), np.full((draws, n_layers), np.nan), shared
    kept = states[:, :, shared]
    inner = gram(kept - kept.mean(2, keepdims=True))
    index = index[shared]
    # The sum of squares between groups is the sum over pairs of one group of their inner product,
    # over the group's size.
    between = np.equal.outer(index, index) / np.bincount(index)[index]
    total = np.trace(inner, axis1=-2, axis2=-1)
    varies = total > ROUNDING * (kept**2).sum((2, 3))
    scale = np.divide(1, total, out=np.zeros_like(total), where=varies)
    mean = (inner * scale[..., None, None]).mean(1)
    null = renamed_sums(mean, between[None], draws=draws, seed=seed)[:, 0]
    return np.asarray((mean * between).sum((1, 2))), null, shared
