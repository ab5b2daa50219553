"""Rankings of units that join how well a unit tells a relation with what hangs on it.

Average precision finds units that know which relation is asked, attribution units that the right
answer hangs on; neither implies the other. The rankings below are to be compared at equal k by
their dose curves (relation_neurons.md, section 6.8).
"""

from __future__ import annotations

from typing import Literal

import numpy as np
from jaxtyping import Float, Int
from scipy import stats

from ..models.errors import MnemoscopeError
from ..models.types import NeuronId
from .neuron_attribution import Attribution

Ranking = Literal["ap", "attribution", "standardised", "geometric", "filtered", "direct"]


def rankings(
    attribution: Attribution,
    ap: Float[np.ndarray, "layer unit"],
    sign: Int[np.ndarray, "layer unit"],
    k: int,
) -> dict[Ranking, tuple[NeuronId, ...]]:
    """The top `k` units by each ranking, best first; equal scores in the order of layer and index.

    - `ap`: the score of a unit, for the better of both signs.
    - `attribution`: the mean effect on the margin.
    - `standardised`: mean effect over its sd. With few facts, units of tiny but steady effect lead
      it: on 16 facts of SmolLM2 its top 30 cost new facts a fifteenth of what the above cost.
    - `geometric`: the geometric mean of a unit's places by `ap` and by `attribution`.
    - `filtered`: by AP, among units that are high for the relation (`sign` is +1) and whose
      attribution is positive: active when asked, and for the answer. It can be shorter than `k`.
    - `direct`: the direct score; absent where the architecture has none.

    `ap` and `sign` are those of one relation at the layers of `attribution`. Raises
    `MnemoscopeError` for arrays of another shape, scores that are not finite, or `k` out of range.
    """
    shape = attribution.mean.shape
    if np.shape(ap) != shape or np.shape(sign) != shape:
        raise MnemoscopeError(
            f"scores {np.shape(ap)} and signs {np.shape(sign)} do not fit the attribution {shape}: "
            "give those of the same site and layers."
        )
    if not 1 <= k <= ap.size or not np.isfinite(ap).all():
        raise MnemoscopeError(f"a ranking needs finite scores and k from 1 to {ap.size}, got {k}.")
    effect = attribution.mean
    chosen = (sign > 0) & (effect > 0)
    scores: dict[Ranking, Float[np.ndarray, "layer unit"]] = {
        "ap": ap,
        "attribution": effect,
        "standardised": attribution.standardised,
        "geometric": -np.sqrt(_places(ap) * _places(effect)),
        "filtered": np.where(chosen, ap, -np.inf),
    }
    if attribution.direct is not None:
        scores["direct"] = attribution.direct
    return {name: _named(attribution, score, k) for name, score in scores.items()}


def _places(scores: Float[np.ndarray, "layer unit"]) -> Float[np.ndarray, "layer unit"]:
    """1 for the highest; units that tie share the mean of their places."""
    return np.asarray(stats.rankdata(-scores).reshape(scores.shape))


def _named(
    attribution: Attribution, scores: Float[np.ndarray, "layer unit"], k: int
) -> tuple[NeuronId, ...]:
    flat = scores.ravel()
    best = np.argsort(-flat, kind="stable")[:k]
    row, index = np.unravel_index(best[np.isfinite(flat[best])], scores.shape)
    return tuple(
        NeuronId(attribution.layers[i], j, attribution.site)
        for i, j in zip(row.tolist(), index.tolist(), strict=True)
    )
