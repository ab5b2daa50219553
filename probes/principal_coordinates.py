"""Principal coordinates of entities from their inner products, and maps between two sets of them.

With a few hundred entities and a thousand dimensions everything that principal components are asked
for lies in the Gram matrix: fitting on other halves, or pairing entities anew, then costs what
entities cost. Batched over layers.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
from jaxtyping import Float, Int

from .role_similarity import centred

Method = Literal["ridge", "procrustes"]

_RIDGES = 10.0 ** np.arange(-4, 4)  # in units of the mean squared singular value
_FLAT = 1e-12  # a component with a smaller share of the variance is rounding


@dataclass(frozen=True, eq=False)
class Coordinates:
    """Principal coordinates of centred rows, from their inner products."""

    fit: Float[np.ndarray, "layer n k"]
    """Left singular vectors of the fitted rows."""
    scale: Float[np.ndarray, "layer k"]
    """Their singular values, 0 for a component that holds nothing."""
    held: Float[np.ndarray, "layer m k"]
    """The other rows' coordinates."""

    def axes(self, rows: Float[np.ndarray, "layer n d"]) -> Float[np.ndarray, "layer k d"]:
        """The components as directions, from the fitted rows; zero where they hold nothing."""
        return divided(self.fit, self.scale[:, None]).transpose(0, 2, 1) @ rows


def principal_coordinates(
    gram: Float[np.ndarray, "layer row row"],
    fit: Int[np.ndarray, " n"],
    held: Int[np.ndarray, " m"],
    dims: int,
) -> Coordinates:
    """The `dims` leading components of the rows `fit`, and where the rows `held` lie on them.

    `gram` holds inner products of all rows; centring is on the mean of the fitted ones.
    """
    inner, cross = gram[:, fit[:, None], fit], gram[:, held[:, None], fit]
    mean = inner.mean(axis=1, keepdims=True)
    grand = mean.mean(axis=2, keepdims=True)
    values, vectors = np.linalg.eigh(inner - mean - mean.transpose(0, 2, 1) + grand)
    values, vectors = values[:, : -dims - 1 : -1], vectors[:, :, : -dims - 1 : -1]
    total = np.abs(np.einsum("lii->l", inner))[:, None]
    scale = np.sqrt(np.where(values > _FLAT * total, values, 0.0))
    rest = cross - cross.mean(axis=2, keepdims=True) - mean + grand
    return Coordinates(vectors, scale, rest @ divided(vectors, scale[:, None]))


def centred_gram(
    states: Float[np.ndarray, "layer entity d"],
) -> Float[np.ndarray, "layer entity entity"]:
    """Inner products of the states less their mean."""
    rest = centred(states)
    return rest @ rest.transpose(0, 2, 1)


def coordinate_maps(
    x: Coordinates, y: Coordinates, cross: Float[np.ndarray, "layer k m"], method: Method
) -> Float[np.ndarray, "layer k m"]:
    """Matrices that take `x` coordinates to `y` coordinates of the fitted rows.

    `cross` is `x.fit^T y.fit` with the rows paired as they are to be fitted. Ridge takes the
    strength, of eight around the mean squared singular value, with the least error by generalised
    cross-validation (Golub, Heath and Wahba 1979); Procrustes is the nearest rotation.
    """
    onto = cross * y.scale[:, None, :]
    if method == "procrustes":
        left, _, right = np.linalg.svd(x.scale[:, :, None] * onto, full_matrices=False)
        return left @ right
    squares = x.scale**2
    ridges = _RIDGES[:, None] * squares.mean(axis=1)
    ridge = np.take_along_axis(ridges, _best_ridge(x, y, onto, ridges)[None], axis=0)[0]
    return divided(x.scale, squares + ridge[:, None])[:, :, None] * onto


def _best_ridge(
    x: Coordinates,
    y: Coordinates,
    onto: Float[np.ndarray, "layer k m"],
    ridges: Float[np.ndarray, "ridge layer"],
) -> Int[np.ndarray, " layer"]:
    """Which ridge has the least error by generalised cross-validation."""
    squares = x.scale**2
    kept = divided(squares, squares + ridges[:, :, None])
    explained = ((2 * kept - kept**2) * (onto**2).sum(axis=2)).sum(axis=2)
    left = (y.scale**2).sum(axis=1) - explained
    freedom = x.fit.shape[1] - 1 - kept.sum(axis=2)
    return np.asarray((left / freedom**2).argmin(axis=0))


def divided(top: np.ndarray, bottom: np.ndarray) -> np.ndarray:
    """`top / bottom`, 0 where the divisor is."""
    full = np.broadcast_shapes(top.shape, bottom.shape)
    return np.divide(top, bottom, out=np.zeros(full), where=bottom > 0)
