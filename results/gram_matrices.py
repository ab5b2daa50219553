"""What inner products between vectors say: overlap of one with another, and how many directions.

Pure functions of arrays; leading axes (layers, say) are batched over.
"""

from __future__ import annotations

import numpy as np
from jaxtyping import Float

ROUNDING = 1e-24
"""A spread below this share of the vectors' squared length is the rounding of equal vectors."""


def gram(x: Float[np.ndarray, "... n d"]) -> Float[np.ndarray, "... n n"]:
    """Inner products of all pairs of rows, float64."""
    x = np.asarray(x, dtype=np.float64)
    return x @ np.swapaxes(x, -1, -2)


def relative(inner: Float[np.ndarray, "... n n"]) -> Float[np.ndarray, "... n n"]:
    """Inner products in units of the first one's squared length: `x_i x_j / |x_i|^2`.

    With hidden activations this is the overlap kappa, with gradients kappa_NTK: how much of a step
    for i reaches j, as a share of what it does to i itself. Not symmetric; 0 where `x_i` is 0.
    """
    inner = np.asarray(inner, dtype=np.float64)
    own = _diagonal(inner)[..., :, None]
    return np.divide(inner, own, out=np.zeros_like(inner), where=own != 0)


def cosines(inner: Float[np.ndarray, "... n n"]) -> Float[np.ndarray, "... n n"]:
    """Cosines of all pairs, from their inner products; 0 where one of the two is 0."""
    inner = np.asarray(inner, dtype=np.float64)
    length = np.sqrt(_diagonal(inner))
    product = length[..., :, None] * length[..., None, :]
    return np.divide(inner, product, out=np.zeros_like(inner), where=product != 0)


def variances(x: Float[np.ndarray, "... n d"]) -> Float[np.ndarray, "... k"]:
    """Variances along the principal axes of the rows, largest first, `k = min(n, d)`.

    The mean over rows is taken off before; rows that are all the same have no variance.
    """
    x = np.asarray(x, dtype=np.float64)
    away = x - x.mean(axis=-2, keepdims=True)
    small = away if x.shape[-2] <= x.shape[-1] else np.swapaxes(away, -1, -2)
    found = np.maximum(np.linalg.eigvalsh(gram(small))[..., ::-1], 0) / x.shape[-2]
    length = (x**2).mean(axis=-2).sum(axis=-1)
    return np.where((found.sum(-1) > ROUNDING * length)[..., None], found, 0)


def effective_rank(variance: Float[np.ndarray, "*batch k"]) -> Float[np.ndarray, "*batch"]:
    """`exp(H)` with H the entropy of the shares of variance (Roy and Vetterli 2007, over squared
    singular values): 1 for a line, k for k equal axes, 0 without any variance."""
    total = variance.sum(-1, keepdims=True)
    share = np.divide(variance, total, out=np.zeros_like(variance), where=total > 0)
    logs = np.log(share, out=np.zeros_like(share), where=share > 0)
    return np.where(total[..., 0] > 0, np.exp(-(share * logs).sum(-1)), 0.0)


def participation_ratio(variance: Float[np.ndarray, "*batch k"]) -> Float[np.ndarray, "*batch"]:
    """Squared sum of the variances over the sum of their squares; never above `effective_rank`."""
    squares = np.asarray((variance**2).sum(-1))
    total = np.asarray(variance.sum(-1)) ** 2
    return np.divide(total, squares, out=np.zeros_like(total), where=squares > 0)


def _diagonal(inner: np.ndarray) -> np.ndarray:
    return np.diagonal(inner, axis1=-2, axis2=-1)
