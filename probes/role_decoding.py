"""Can a linear probe tell in which role an entity stands, and how many directions stop it?

That roles can be told apart is expected of any model that knows where it is in a sentence, and is
no evidence that they hold different content. What says more is how many directions carry the role,
by nulling the probe's direction and training it again until it is at chance (INLP, Ravfogel et al.
2020, 2004.07667, section 3), and whether an entity's two states agree once these are gone
(reversal_binding 3.5, item 5). Probes are trained on half of the entities and asked on the other
half, both ways round, in the leading principal components of both roles together.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float, Int
from scipy.special import expit

from ..results.statistics import Interval, bootstrap_mean
from .principal_coordinates import Coordinates, centred_gram, principal_coordinates
from .role_maps import MOST_DIMS
from .role_similarity import centred, check_paired, cosines

_NEWTON_STEPS = 25
_RIDGE = 1.0
_ONE_SIDED = 1.6448536269514722  # 95 % of the normal distribution


@dataclass(frozen=True, eq=False)
class RoleDecoding:
    """A linear probe of the role on held-out entities, `[layer]` unless said."""

    accuracy: Interval
    """Before anything is nulled, over entities; chance is 0.5."""
    rank: Float[np.ndarray, " layer"]
    """Directions nulled until accuracy is no longer above chance (one-sided 95 %), mean of both
    halves; at most the number of components, which is reached when nothing is left."""
    curve: Float[np.ndarray, "layer step"]
    """Accuracy after so many directions are nulled; a layer at chance is left there."""
    cos_same: Float[np.ndarray, " layer"]
    """Mean centred cosine of an entity's two states, held-out entities."""
    cos_diff: Float[np.ndarray, " layer"]
    """Of different entities."""
    cos_same_nulled: Float[np.ndarray, " layer"]
    """The same without the directions that were nulled."""
    cos_diff_nulled: Float[np.ndarray, " layer"]


def role_decoding(
    s: Float[np.ndarray, "layer entity d"],
    p: Float[np.ndarray, "layer entity d"],
    *,
    draws: int = 1000,
    seed: int = 0,
) -> RoleDecoding:
    """Train a logistic probe to tell `s` from `p`, null what it uses, and train it again.

    Components: min(64, N/4), scaled together to unit mean variance, ridge 1. Raises
    `StatisticsError` for states that do not fit each other, are not finite, or fewer than 16
    entities.
    """
    check_paired(s, p, at_least=16)
    n = s.shape[1]
    order = np.random.default_rng(seed).permutation(n)
    halves = order[: n // 2], order[n // 2 :]
    nulled = [_nulled(s, p, *halves), _nulled(s, p, *halves[::-1])]
    right = np.empty((n, len(s)))
    for half, entities in zip(nulled, halves[::-1], strict=True):
        right[entities] = half.right.T
    steps = max(half.curve.shape[1] for half in nulled)
    curves = [np.pad(h.curve, ((0, 0), (0, steps - h.curve.shape[1])), "edge") for h in nulled]
    return RoleDecoding(
        bootstrap_mean(right, range(n), draws=draws, seed=seed),
        np.mean([half.rank for half in nulled], axis=0),
        np.mean(curves, axis=0),
        *np.mean([half.cosines for half in nulled], axis=0),
    )


def fit_probes(
    x: Float[np.ndarray, "layer n k"], labels: Bool[np.ndarray, " n"]
) -> Float[np.ndarray, "layer k1"]:
    """`results.logistic.fit_logistic` of every layer at once, by damped Newton steps (Hastie,
    Tibshirani and Friedman 2009, section 4.4.1): weights and, last, the intercept."""
    design = np.concatenate([x, np.ones((*x.shape[:2], 1))], axis=2)
    y = np.asarray(labels, np.float64)
    ridge = np.full(design.shape[2], _RIDGE)
    ridge[-1] = 0.0
    weights = np.zeros((len(x), design.shape[2]))
    loss = _loss(design, y, weights, ridge)
    for _ in range(_NEWTON_STEPS):
        chance = expit(design @ weights[:, :, None])[:, :, 0]
        slope = ((chance - y)[:, None] @ design)[:, 0] + ridge * weights
        if np.abs(slope).max() < 1e-8:
            break
        curved = design.transpose(0, 2, 1) @ (design * (chance * (1 - chance))[:, :, None])
        step = np.linalg.solve(curved + np.diag(ridge), slope[:, :, None])[:, :, 0]
        weights, loss = _damped(design, y, weights, step, loss, ridge)
    return weights


def _damped(
    design: Float[np.ndarray, "layer n k1"],
    y: Float[np.ndarray, " n"],
    weights: Float[np.ndarray, "layer k1"],
    step: Float[np.ndarray, "layer k1"],
    loss: Float[np.ndarray, " layer"],
    ridge: Float[np.ndarray, " k1"],
) -> tuple[Float[np.ndarray, "layer k1"], Float[np.ndarray, " layer"]]:
    """The Newton step, halved for layers whose loss it would raise."""
    size = np.ones(len(weights))
    for _ in range(20):
        moved = weights - size[:, None] * step
        reached = _loss(design, y, moved, ridge)
        worse = reached > loss + 1e-12 * np.abs(loss)
        if not worse.any():
            return moved, reached
        size[worse] /= 2
    keep = worse[:, None]
    return np.where(keep, weights, moved), np.where(worse, loss, reached)


def _loss(
    design: Float[np.ndarray, "layer n k1"],
    y: Float[np.ndarray, " n"],
    weights: Float[np.ndarray, "layer k1"],
    ridge: Float[np.ndarray, " k1"],
) -> Float[np.ndarray, " layer"]:
    logits = (design @ weights[:, :, None])[:, :, 0]
    return (np.logaddexp(0.0, logits) - y * logits).sum(axis=1) + weights**2 @ ridge / 2


@dataclass(frozen=True, eq=False)
class _Nulled:
    """One half's probes, asked on the other half."""

    right: Float[np.ndarray, "layer m"]
    rank: Int[np.ndarray, " layer"]
    curve: Float[np.ndarray, "layer step"]
    cosines: tuple[np.ndarray, ...]
    """Same and different, before and after nulling, `[layer]` each."""


def _nulled(
    s: Float[np.ndarray, "layer entity d"],
    p: Float[np.ndarray, "layer entity d"],
    fit: Int[np.ndarray, " n"],
    held: Int[np.ndarray, " m"],
) -> _Nulled:
    n = s.shape[1]
    both = np.concatenate([s, p], axis=1)
    rows, asked = np.concatenate([fit, fit + n]), np.concatenate([held, held + n])
    found = principal_coordinates(centred_gram(both), rows, asked, min(MOST_DIMS, n // 4))
    right, curve, gone = _inlp(found)
    rest = centred(both)
    axes = gone.transpose(0, 2, 1) @ found.axes(rest[:, rows])
    left = rest - rest @ axes.transpose(0, 2, 1) @ axes
    return _Nulled(
        right,
        (np.abs(gone).sum(axis=1) > 0).sum(axis=1),
        curve,
        (*_same_and_different(rest, held, n), *_same_and_different(left, held, n)),
    )


def _inlp(
    found: Coordinates,
) -> tuple[
    Float[np.ndarray, "layer m"], Float[np.ndarray, "layer step"], Float[np.ndarray, "layer k r"]
]:
    """First answers, accuracies, and the nulled directions, orthonormal, zero once at chance."""
    x = found.fit * found.scale[:, None]
    size = np.sqrt((x**2).mean(axis=(1, 2), keepdims=True))
    size = np.where(size > 0, size, 1.0)
    x, asked = x / size, found.held / size
    labels, wanted = _labels(x.shape[1]), _labels(asked.shape[1])
    bar = 0.5 + _ONE_SIDED * 0.5 / np.sqrt(len(wanted))
    gone = np.zeros((len(x), x.shape[2], 0))
    weights = fit_probes(x, labels)
    correct = _correct(weights, asked, wanted)
    first = correct.reshape(len(x), 2, -1).mean(axis=1)
    curve = [correct.mean(axis=1)]
    while gone.shape[2] < x.shape[2] and (open_ := curve[-1] > bar).any():
        new = _direction(weights[open_, :-1], gone[open_])
        added = np.zeros((len(x), x.shape[2], 1))
        added[open_, :, 0] = new
        gone = np.concatenate([gone, added], axis=2)
        weights[open_] = fit_probes(_without(x[open_], gone[open_]), labels)
        level = curve[-1].copy()
        rest = _without(asked[open_], gone[open_])
        level[open_] = _correct(weights[open_], rest, wanted).mean(axis=1)
        curve.append(level)
    return first, np.stack(curve, axis=1), gone


def _direction(
    weights: Float[np.ndarray, "layer k"], gone: Float[np.ndarray, "layer k r"]
) -> Float[np.ndarray, "layer k"]:
    """The probe's direction, orthogonal to those that are gone, of length 1."""
    rest = _without(weights[:, None], gone)[:, 0]
    return rest / np.linalg.norm(rest, axis=1, keepdims=True)


def _without(
    x: Float[np.ndarray, "layer n k"], gone: Float[np.ndarray, "layer k r"]
) -> Float[np.ndarray, "layer n k"]:
    return x - x @ gone @ gone.transpose(0, 2, 1)


def _correct(
    weights: Float[np.ndarray, "layer k1"],
    x: Float[np.ndarray, "layer n k"],
    labels: Bool[np.ndarray, " n"],
) -> Float[np.ndarray, "layer n"]:
    """1 for a right answer, one half on the border."""
    logits = (x @ weights[:, :-1, None])[:, :, 0] + weights[:, -1:]
    logits = np.where(np.abs(logits) < 1e-9, 0.0, logits)
    return (np.sign(logits) * np.where(labels, 1.0, -1.0) + 1) / 2


def _labels(n: int) -> Bool[np.ndarray, " n"]:
    """Subjects first, objects behind them."""
    return np.arange(n) >= n // 2


def _same_and_different(
    rest: Float[np.ndarray, "layer row d"], held: Int[np.ndarray, " m"], n: int
) -> tuple[Float[np.ndarray, " layer"], Float[np.ndarray, " layer"]]:
    cos = cosines(rest[:, held], rest[:, held + n])
    m = len(held)
    same = np.einsum("lii->l", cos)
    return same / m, (cos.sum(axis=(1, 2)) - same) / (m * (m - 1))
