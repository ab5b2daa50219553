"""Is an entity's object role its subject role in a turned code? A linear map between the roles.

Raw retrieval that fails may fail because the object role holds the same content in other
directions, which a map fitted on other entities brings to light, or because the content is not
there, which no map mends (reversal_binding 3.5, item 3). So the map is fitted on half of the
entities, in the leading principal components of each role, and asked on the other half; pairs that
are shuffled before fitting say what such a map finds in nothing.

Held-out retrieval with and without the map then reads as one of three: *consistent*, where the
object state finds its subject as it stands; *rotated*, mostly through the map; *absent*, neither
beats pairs drawn at random at their best layer. *Absent* is the absence of a finding: its interval
says how much there might be.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import numpy as np
from jaxtyping import Float, Int

from ..results.statistics import Interval, bootstrap_mean, bootstrap_weights, chance_mrr
from .principal_coordinates import (
    Coordinates,
    Method,
    centred_gram,
    coordinate_maps,
    principal_coordinates,
)
from .role_similarity import (
    centred,
    check_paired,
    cosines,
    reciprocal_ranks,
    reciprocal_table,
    to_length_one,
)

Word = Literal["consistent", "rotated", "absent"]

MOST_DIMS = 64
"""Principal components that a map works in at most."""
ALPHA = 0.05
"""Of a binding that is there at all."""
SMALLEST = 0.1
"""Of the way from chance to 1: what is found less well is absent, however significant. Untied toys
beat shuffled pairs at a mean reciprocal rank of 0.04 to 0.08."""
_CUT = 0.01  # smaller singular values, relative to the largest, are not inverted
# Quarters that are fitted on together; the other two are asked.
_HALVES = ((0, 1), (2, 3), (0, 2), (1, 3), (0, 3), (1, 2))


@dataclass(frozen=True, eq=False)
class RoleMap:
    """An affine map between the states of two roles of the same entities, at one layer.

    `apply(x) = mean_p + (x - mean_s) basis_s^T matrix basis_p`. Bases have orthonormal rows (the
    leading principal components of each role); what of a state lies outside them is left out.
    """

    mean_s: Float[np.ndarray, " d"]
    mean_p: Float[np.ndarray, " d"]
    basis_s: Float[np.ndarray, "k d"]
    basis_p: Float[np.ndarray, "m d"]
    matrix: Float[np.ndarray, "k m"]
    spread: Float[np.ndarray, " k"]
    """Standard deviation of the fitted entities along each row of `basis_s`."""

    def apply(self, x: Float[np.ndarray, "*n d"]) -> Float[np.ndarray, "*n d"]:
        """Subject states as the object states that the map expects."""
        return self.mean_p + (x - self.mean_s) @ self.basis_s.T @ self.matrix @ self.basis_p

    def invert(self, y: Float[np.ndarray, "*n d"]) -> Float[np.ndarray, "*n d"]:
        """Object states as subject states, by the pseudo-inverse.

        Singular values below 1 % of the largest are cut. A ridge map shrinks what it is unsure of
        and its inverse blows it up again: `fit_role_map(p, s)` is the better conditioned way back.
        """
        back = np.linalg.pinv(self.matrix, rcond=_CUT)
        return self.mean_s + (y - self.mean_p) @ self.basis_p.T @ back @ self.basis_s

    def rank_k(self, k: int) -> RoleMap:
        """The map through the `k` directions that carry most of the mapped entities' variance.

        `basis_s` and `basis_p` are then those directions of either role, so that
        `h + subject_part(v - h)` replaces the rank-k component of `h` by that of `v`. For a
        rotation these are the leading principal components of the mapped entities.
        """
        _, _, lead = np.linalg.svd(self.spread[:, None] * self.matrix, full_matrices=False)
        lead = lead[:k].T
        frame, matrix = np.linalg.qr(self.matrix @ lead)
        return RoleMap(
            self.mean_s,
            self.mean_p,
            frame.T @ self.basis_s,
            lead.T @ self.basis_p,
            matrix,
            np.linalg.norm(self.spread[:, None] * frame, axis=0),
        )

    def subject_part(self, x: Float[np.ndarray, "*n d"]) -> Float[np.ndarray, "*n d"]:
        """The component of `x` along `basis_s`; nothing is centred."""
        return x @ self.basis_s.T @ self.basis_s

    def object_part(self, x: Float[np.ndarray, "*n d"]) -> Float[np.ndarray, "*n d"]:
        """The component of `x` along `basis_p`; nothing is centred."""
        return x @ self.basis_p.T @ self.basis_p


@dataclass(frozen=True, eq=False)
class MappedRetrieval:
    """How well an object state finds its own subject state among held-out entities.

    Both with the subjects mapped and as they are, among the same candidates. Every entity is held
    out in three of six fits (random quarters, every two of which are fitted on once); an interval
    resamples entities and leaves the fits as they are, `[layer]`.
    """

    mapped: Interval
    """MRR through the map."""
    raw: Interval
    """MRR without."""
    gap: Interval
    """`mapped - raw`."""
    chance: float
    """H_n/n for the n entities of a held-out half."""
    mapped_null: Float[np.ndarray, "shuffle layer"]
    """The same when entities are paired at random before fitting and asking."""
    raw_null: Float[np.ndarray, "shuffle layer"]
    involution: Float[np.ndarray, " layer"]
    """`||M_SP M_PS - I||_F / sqrt(k)`, both ways fitted apart: 0 where the way back undoes the way
    there, about 1 where nothing is mapped. Always 0 for Procrustes, which is its own way back."""
    involution_null: Float[np.ndarray, "shuffle layer"]
    mapped_by_entity: Float[np.ndarray, "entity layer"]
    """Mean reciprocal rank of each entity over the fits that held it out."""
    raw_by_entity: Float[np.ndarray, "entity layer"]


@dataclass(frozen=True)
class BindingGap:
    """`max_l mapped MRR - raw MRR at the same l`, with its 95 % interval over entities.

    The best of many layers is too high by chance: `p` compares the mapped MRR with the best layer
    of every shuffle.
    """

    layer: int
    gap: float
    low: float
    high: float
    p: float


@dataclass(frozen=True)
class Reading:
    """What one layer's retrieval says, with 95 % intervals over entities."""

    layer: int
    word: Word
    mrr: float
    """The larger of raw and mapped MRR."""
    mrr_low: float
    mrr_high: float
    share: float
    """Of what `mrr` has above chance, the part that the raw states have: 0 to 1, more than one
    half reads *consistent*. NaN where the binding is absent."""
    share_low: float
    share_high: float
    p: float
    """Of `mrr` against the best of all layers, raw and mapped, in every shuffle (family-wise)."""


def fit_role_map(
    s: Float[np.ndarray, "entity d"],
    p: Float[np.ndarray, "entity d"],
    *,
    method: Method = "ridge",
    dims: int | None = None,
) -> RoleMap:
    """The map from `s` to `p` of one layer; swap the arguments for the way back.

    Ridge takes its strength by generalised cross-validation (Golub, Heath and Wahba 1979),
    Procrustes is the nearest rotation. `dims` components of each role (by default half as many as
    entities, at most 64; fewer where the entities span fewer). Raises `StatisticsError` as
    `role_similarity` does.
    """
    return fit_role_maps(np.asarray(s)[None], np.asarray(p)[None], method=method, dims=dims)[0]


def fit_role_maps(
    s: Float[np.ndarray, "layer entity d"],
    p: Float[np.ndarray, "layer entity d"],
    *,
    method: Method = "ridge",
    dims: int | None = None,
) -> tuple[RoleMap, ...]:
    """`fit_role_map` for every layer."""
    check_paired(s, p)
    everyone = np.arange(s.shape[1])
    dims = min(MOST_DIMS, s.shape[1] // 2) if dims is None else min(dims, s.shape[1] - 2)
    x = principal_coordinates(centred_gram(s), everyone, everyone[:0], dims)
    y = principal_coordinates(centred_gram(p), everyone, everyone[:0], dims)
    matrices = coordinate_maps(x, y, x.fit.transpose(0, 2, 1) @ y.fit, method)
    bases_s, bases_p = x.axes(centred(s)), y.axes(centred(p))
    maps = []
    for i, matrix in enumerate(matrices):
        k, m = x.scale[i] > 0, y.scale[i] > 0
        spread = x.scale[i, k] / np.sqrt(s.shape[1])
        maps.append(
            RoleMap(
                np.asarray(s[i], np.float64).mean(axis=0),
                np.asarray(p[i], np.float64).mean(axis=0),
                bases_s[i, k],
                bases_p[i, m],
                matrix[np.ix_(k, m)],
                spread,
            )
        )
    return tuple(maps)


def mapped_retrieval(
    s: Float[np.ndarray, "layer entity d"],
    p: Float[np.ndarray, "layer entity d"],
    *,
    method: Method = "ridge",
    shuffles: int = 200,
    draws: int = 1000,
    seed: int = 0,
) -> MappedRetrieval:
    """Retrieval of subjects by object states on entities that the map was not fitted on.

    Maps work in min(64, N/4) components of each role. A shuffle pairs entities anew inside the
    four quarters, the same way for all fits and layers, so that the halves stay what they were and
    the largest value of a shuffle is the null of the best layer. Raises `StatisticsError` as
    `role_similarity` does, and below 16 entities.
    """
    check_paired(s, p, at_least=16)
    n = s.shape[1]
    rng = np.random.default_rng(seed)
    quarters = np.array_split(rng.permutation(n), 4)
    pairings = [np.arange(n)] + [_shuffled(quarters, rng) for _ in range(shuffles)]
    mapped, raw = np.zeros((2, len(pairings), n, len(s)))
    involution = np.zeros((len(pairings), len(s)))
    for fold in _folds(s, p, quarters):
        for i, pairing in enumerate(pairings):
            measured = _measured(fold, pairing, method)
            mapped[i, fold.held] += measured.mapped.T / 3
            raw[i, fold.held] += measured.raw.T / 3
            involution[i] += measured.involution / 6
    sizes = [len(quarters[a]) + len(quarters[b]) for a, b in _HALVES]

    def interval(values: Float[np.ndarray, "entity layer"]) -> Interval:
        return bootstrap_mean(values, range(n), draws=draws, seed=seed)

    return MappedRetrieval(
        interval(mapped[0]),
        interval(raw[0]),
        interval(mapped[0] - raw[0]),
        float(np.mean([chance_mrr(size) for size in sizes])),
        mapped[1:].mean(axis=1),
        raw[1:].mean(axis=1),
        involution[0],
        involution[1:],
        mapped[0],
        raw[0],
    )


def binding_gap(measured: MappedRetrieval) -> BindingGap:
    """The gap at the layer with the largest mapped MRR (the first of equals)."""
    layer = int(measured.mapped.mean.argmax())
    top = measured.mapped_null.max(axis=1)
    return BindingGap(
        layer,
        float(measured.gap.mean[layer]),
        float(measured.gap.low[layer]),
        float(measured.gap.high[layer]),
        float(_p(measured.mapped.mean[layer], top)),
    )


def binding_reading(measured: MappedRetrieval, *, draws: int = 1000, seed: int = 0) -> Reading:
    """The reading at the layer where most can be retrieved, raw or mapped."""
    layer = int(np.maximum(measured.raw.mean, measured.mapped.mean).argmax())
    return binding_readings(measured, draws=draws, seed=seed)[layer]


def binding_readings(
    measured: MappedRetrieval, *, draws: int = 1000, seed: int = 0
) -> tuple[Reading, ...]:
    """Every layer's reading. For one verdict take `binding_reading`: layers are not independent."""
    n = len(measured.raw_by_entity)
    weights = bootstrap_weights(range(n), draws=draws, seed=seed) / n
    drawn_raw = weights @ measured.raw_by_entity
    drawn_best = np.maximum(drawn_raw, weights @ measured.mapped_by_entity)
    best = np.maximum(measured.raw.mean, measured.mapped.mean)
    mrr = np.stack([best, *np.quantile(drawn_best, [0.025, 0.975], axis=0)], axis=1)
    drawn_share = _share(drawn_raw, drawn_best, measured.chance)
    share = _share(measured.raw.mean, best, measured.chance)
    shares = np.stack([share, *np.quantile(drawn_share, [0.025, 0.975], axis=0)], axis=1)
    p = _p(best, np.maximum(measured.raw_null, measured.mapped_null).max(axis=1))
    chance = measured.chance
    return tuple(_reading(i, mrr[i], shares[i], chance, float(p[i])) for i in range(len(p)))


def _reading(
    layer: int,
    mrr: Float[np.ndarray, " ends"],
    share: Float[np.ndarray, " ends"],
    chance: float,
    p: float,
) -> Reading:
    """`mrr` and `share` are value, low and high."""
    found = p <= ALPHA and mrr[0] - chance >= SMALLEST * (1 - chance)
    word: Word = "absent" if not found else "consistent" if share[0] > 0.5 else "rotated"
    m, s = mrr.tolist(), [np.nan] * 3 if word == "absent" else share.tolist()
    return Reading(layer, word, m[0], m[1], m[2], s[0], s[1], s[2], p)


@dataclass(frozen=True, eq=False)
class _Fold:
    """A half to fit on and the other to ask, with both roles' coordinates."""

    fit: Int[np.ndarray, " n"]
    held: Int[np.ndarray, " m"]
    place: Int[np.ndarray, " entity"]
    """Of each entity in its own half."""
    x: Coordinates
    y: Coordinates
    objects: Float[np.ndarray, "layer m k"]
    """Held-out object coordinates, of length 1."""
    raw: Float[np.ndarray, "layer m m"]
    """Reciprocal rank of every held-out subject for every held-out object, without a map."""


@dataclass(frozen=True, eq=False)
class _Measured:
    mapped: Float[np.ndarray, "layer m"]
    raw: Float[np.ndarray, "layer m"]
    involution: Float[np.ndarray, " layer"]


def _folds(
    s: Float[np.ndarray, "layer entity d"],
    p: Float[np.ndarray, "layer entity d"],
    quarters: list[Int[np.ndarray, " q"]],
) -> Iterator[_Fold]:
    n = s.shape[1]
    dims = min(MOST_DIMS, n // 4)
    gram_s, gram_p = centred_gram(s), centred_gram(p)
    cos = cosines(p, s)
    for a, b in _HALVES:
        fit = np.concatenate([quarters[a], quarters[b]])
        held = np.concatenate([quarters[c] for c in range(4) if c not in (a, b)])
        place = np.empty(n, dtype=np.int64)
        place[fit], place[held] = np.arange(len(fit)), np.arange(len(held))
        x = principal_coordinates(gram_s, fit, held, dims)
        y = principal_coordinates(gram_p, fit, held, dims)
        raw = reciprocal_table(cos[:, held[:, None], held])
        yield _Fold(fit, held, place, x, y, to_length_one(y.held), raw)


def _measured(fold: _Fold, pairing: Int[np.ndarray, " entity"], method: Method) -> _Measured:
    """One fold when the object states of `pairing` stand for the entities in their order."""
    fitted, asked = fold.place[pairing[fold.fit]], fold.place[pairing[fold.held]]
    cross = fold.x.fit.transpose(0, 2, 1) @ fold.y.fit[:, fitted]
    there = coordinate_maps(fold.x, fold.y, cross, method)
    turned = there.transpose(0, 2, 1)
    if method == "ridge":
        turned = coordinate_maps(fold.y, fold.x, cross.transpose(0, 2, 1), method)
    subjects = to_length_one(fold.x.held @ there)
    scores = fold.objects[:, asked] @ subjects.transpose(0, 2, 1)
    own = np.arange(len(asked))
    error = there @ turned - np.eye(there.shape[1])
    return _Measured(
        reciprocal_ranks(scores, own),
        fold.raw[:, asked, own],
        np.linalg.norm(error, axis=(1, 2)) / np.sqrt(error.shape[1]),
    )


def _shuffled(
    quarters: list[Int[np.ndarray, " q"]], rng: np.random.Generator
) -> Int[np.ndarray, " entity"]:
    pairing = np.empty(sum(map(len, quarters)), dtype=np.int64)
    for quarter in quarters:
        pairing[quarter] = rng.permutation(quarter)
    return pairing


def _share(
    raw: Float[np.ndarray, "*n layer"], best: Float[np.ndarray, "*n layer"], chance: float
) -> Float[np.ndarray, "*n layer"]:
    """The raw part of what lies above chance; 0 where nothing does."""
    above = best - chance
    share = np.divide(raw - chance, above, out=np.zeros_like(above), where=above > 0)
    return np.clip(share, 0.0, 1.0)


def _p(
    value: Float[np.ndarray, "*layer"], top: Float[np.ndarray, " shuffle"]
) -> Float[np.ndarray, "*layer"]:
    """Share of shuffles that do as well; without shuffles 1."""
    as_good = (top >= np.asarray(value)[..., None] - 1e-12).sum(axis=-1)
    return np.asarray((as_good + 1) / (len(top) + 1))
