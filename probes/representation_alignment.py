"""Linear CKA of two roles: do entities lie to each other in one role as they do in the other?

CKA compares the matrices of inner products between entities, so it does not see how the states are
turned. The plain estimator grows towards 1 with the width whatever the states hold; here it is made
of the unbiased HSIC_1 (Song et al. 2012, section 4; Kornblith et al. 2019, 1905.00414; Nguyen et
al. 2021, 2010.15327, section 3) in its U-centred form (Székely and Rizzo 2014), where a permutation
of the entities leaves all but one inner product alone. It is 0 on average for states that have
nothing to do with each other, and may fall below.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

from ..results.errors import StatisticsError
from .principal_coordinates import centred_gram, divided

_Z = 1.959963984540054  # 97.5 % of the normal distribution


@dataclass(frozen=True, eq=False)
class Alignment:
    """De-biased linear CKA of every layer, 1 for states that are each other turned and scaled."""

    cka: Float[np.ndarray, " layer"]
    low: Float[np.ndarray, " layer"]
    """`low` and `high` are a 95 % interval by the jackknife over entities: an entity that is drawn
    twice is its own neighbour, which would undo what the de-biasing does."""
    high: Float[np.ndarray, " layer"]
    null: Float[np.ndarray, "permutation layer"]
    """Entities permuted, the same way at every layer."""
    p: Float[np.ndarray, " layer"]
    """Share of permutations that reach `cka`, one-sided."""


def linear_cka(
    a: Float[np.ndarray, "layer entity d"],
    b: Float[np.ndarray, "layer entity e"],
    *,
    permutations: int = 500,
    seed: int = 0,
) -> Alignment:
    """CKA of the same entities' states in two roles, whose widths may differ.

    States that are all one have no CKA; 0 is reported. Raises `StatisticsError` for states that do
    not fit each other or are not finite, and below 5 entities.
    """
    _check(a, b)
    gram_a, gram_b = _hollow(centred_gram(a)), _hollow(centred_gram(b))
    u, v = _unit(_u_centred(gram_a)), _unit(_u_centred(gram_b))
    cka = np.einsum("lij,lij->l", u, v)
    error = _Z * _jackknife_error(gram_a, gram_b)
    null = _permuted(u, v, permutations, seed)
    p = ((null >= cka - 1e-12).sum(axis=0) + 1) / (permutations + 1)
    return Alignment(cka, cka - error, cka + error, null, p)


def _permuted(
    u: Float[np.ndarray, "layer n n"], v: Float[np.ndarray, "layer n n"], draws: int, seed: int
) -> Float[np.ndarray, "permutation layer"]:
    n = u.shape[1]
    rng = np.random.default_rng(seed)
    flat_u, flat_v = u.reshape(len(u), 1, -1), v.reshape(len(v), -1)
    null = np.empty((draws, len(u)))
    for i in range(draws):
        order = rng.permutation(n)
        moved = flat_v.take((order[:, None] * n + order).ravel(), axis=1)
        null[i] = (flat_u @ moved[:, :, None])[:, 0, 0]
    return null


def _jackknife_error(
    k: Float[np.ndarray, "layer n n"], m: Float[np.ndarray, "layer n n"]
) -> Float[np.ndarray, " layer"]:
    """Standard error of the CKA from its values without one entity each."""
    n = k.shape[1]
    cross, own_k, own_m = _left_out(k, m), _left_out(k, k), _left_out(m, m)
    values = divided(cross, np.sqrt(np.maximum(own_k * own_m, 0.0)))
    return np.sqrt((n - 1) * values.var(axis=1))


def _left_out(
    k: Float[np.ndarray, "layer n n"], m: Float[np.ndarray, "layer n n"]
) -> Float[np.ndarray, "layer n"]:
    """HSIC_1, up to a factor that all share, of hollow matrices without each row and column."""
    n = k.shape[1] - 1
    rows_k, rows_m = k.sum(axis=2), m.sum(axis=2)
    both = (k * m).sum(axis=2)
    trace = both.sum(axis=1, keepdims=True) - 2 * both
    total_k = rows_k.sum(axis=1, keepdims=True) - 2 * rows_k
    total_m = rows_m.sum(axis=1, keepdims=True) - 2 * rows_m
    through = (rows_k * rows_m).sum(axis=1, keepdims=True) - rows_k * rows_m + both
    through = through - (k @ rows_m[:, :, None] + m @ rows_k[:, :, None])[:, :, 0]
    return trace + total_k * total_m / ((n - 1) * (n - 2)) - 2 / (n - 2) * through


def _u_centred(gram: Float[np.ndarray, "layer n n"]) -> Float[np.ndarray, "layer n n"]:
    """Hollow matrices whose rows sum to 0; their inner product is n (n - 3) HSIC_1."""
    n = gram.shape[1]
    rows = gram.sum(axis=2, keepdims=True) / (n - 2)
    total = gram.sum(axis=(1, 2), keepdims=True) / ((n - 1) * (n - 2))
    return _hollow(gram - rows - rows.transpose(0, 2, 1) + total)


def _hollow(square: Float[np.ndarray, "layer n n"]) -> Float[np.ndarray, "layer n n"]:
    return np.asarray(np.where(np.eye(square.shape[1], dtype=bool), 0.0, square))


def _unit(square: Float[np.ndarray, "layer n n"]) -> Float[np.ndarray, "layer n n"]:
    return divided(square, np.linalg.norm(square, axis=(1, 2), keepdims=True))


def _check(a: np.ndarray, b: np.ndarray) -> None:
    if not (np.ndim(a) == np.ndim(b) == 3 and a.shape[:2] == b.shape[:2] and a.shape[1] >= 5):
        raise StatisticsError(
            f"states {np.shape(a)} and {np.shape(b)} do not fit: both must be [layer, entity, d] "
            "of the same layers and the same entities, 5 at least."
        )
    if not (np.isfinite(a).all() and np.isfinite(b).all()):
        raise StatisticsError("some states are not finite: run the model in float32 or bfloat16.")
