"""Is an entity the same vector in two roles? Centred cosines and retrieval of one from the other.

An entity read as the subject of a statement (S) and the same entity about to be emitted as an
object (P) are the states of two prompts. Raw cosines of residual streams are near 0.9 whatever
they hold, so every role is centred over its entities first, and what counts is whether an entity
is nearer to itself than to the others: the difference of cosines, and the rank at which it is
found among all (reversal_binding 3.5, items 1 and 2; CSLS: Conneau et al. 2018, 1710.04087,
section 2.3).

States are `[layer, entity, d]`; the layer axis may be any axis that is worked on row by row. All
arithmetic is float64. Intervals resample entities (`results.statistics`), with centring, and in
retrieval the candidates, left as they are: they say how much depends on which entities were asked.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float, Int

from ..results.errors import StatisticsError
from ..results.statistics import Interval, bootstrap_mean, bootstrap_weights

NEIGHBOURS = 10
"""Nearest neighbours that CSLS averages over."""
# Cosines nearer than this are a tie: the same vectors multiplied in other blocks differ by less.
_TIE = 1e-9
# A centred state shorter than this share of the states' length is rounding, not a direction.
_NOTHING = 1e-7


@dataclass(frozen=True, eq=False)
class RoleSimilarity:
    """Cosines between two roles, each interval `[layer]` over entities."""

    cos_same: Interval
    """Mean cosine of an entity's two states."""
    cos_diff: Interval
    """Mean cosine over pairs of different entities (those of the mask); about -1/(N-1) by centring
    alone where the roles share nothing."""
    score: Interval
    """`cos_same - cos_diff` in standard deviations of the cosines of different entities."""
    n_pairs: int
    """Ordered pairs of different entities behind `cos_diff`."""


@dataclass(frozen=True, eq=False)
class Retrieval:
    """Where each query's own entity stands among the candidates; rank 1 is first.

    Ties are broken at random in expectation, so that states which say nothing score exactly
    `chance`. Queries without a candidate beside their own are left out.
    """

    reciprocal: Float[np.ndarray, "layer query"]
    """Expected 1/rank."""
    rank: Float[np.ndarray, "layer query"]
    """Mean rank over the orders of ties."""
    first: Float[np.ndarray, "layer query"]
    """Chance that the entity comes first: 0 or 1 without ties."""
    asked: Int[np.ndarray, " query"]
    """Which rows of the queries these are."""
    mrr: Interval
    hits: Interval
    """hit@1."""
    chance: float
    """MRR of a random order: the mean of H_n/n over the queries' n candidates."""
    chance_hits: float


def role_similarity(
    a: Float[np.ndarray, "layer entity d"],
    b: Float[np.ndarray, "layer entity d"],
    *,
    mask: Bool[np.ndarray, "entity entity"] | None = None,
    draws: int = 1000,
    seed: int = 0,
) -> RoleSimilarity:
    """Centred cosines of every entity's two states, beside those of different entities.

    `mask[i, j]` keeps only these pairs of different entities for comparison (a stratum of name
    overlap, say); its diagonal does not matter. A draw weights the pair (i, j) by the product of
    the times that i and j were drawn. Raises `StatisticsError` for states that do not fit each
    other, are not finite, or a mask without pairs.
    """
    check_paired(a, b)
    cos = cosines(a, b)
    n = cos.shape[1]
    pairs = _different(mask, n)
    own = np.einsum("lii->il", cos)
    weights = bootstrap_weights(range(n), draws=draws, seed=seed).astype(np.float64)
    mean, spread = _pair_moments(cos, pairs, np.ones((1, n)))
    means, spreads = _pair_moments(cos, pairs, weights)
    same = own.mean(axis=0)
    sames = weights @ own / n
    return RoleSimilarity(
        bootstrap_mean(own, range(n), draws=draws, seed=seed),
        _interval(mean[0], means, n),
        _interval(_ratio(same - mean[0], spread[0]), _ratio(sames - means, spreads), n),
        int(pairs.sum()),
    )


def retrieval(
    queries: Float[np.ndarray, "layer query d"],
    keys: Float[np.ndarray, "layer key d"],
    *,
    targets: Int[np.ndarray, " query"] | None = None,
    candidates: Bool[np.ndarray, "query key"] | None = None,
    csls: bool = False,
    draws: int = 1000,
    seed: int = 0,
) -> Retrieval:
    """Rank of every query's own key among the keys, by centred cosine; call it twice for both ways.

    `targets` names each query's own key (by default the row of the same number). `candidates`
    limits whom it is ranked among, its own key always included: entities whose names share no
    token with it, or those of its frequency group. With `csls` hubs, keys that are near to
    everything, are marked down by the mean cosine to their 10 nearest queries. Raises
    `StatisticsError` for states that do not fit each other, are not finite, or where no query has
    a choice.
    """
    check_states(queries, keys)
    targets = _targets(targets, queries.shape[1], keys.shape[1])
    scores = cosines(queries, keys)
    if csls:
        scores = hub_corrected(scores)
    among = _candidates(candidates, targets, scores.shape[1:])
    asked = np.flatnonzero(among.sum(axis=1) > 1)
    if asked.size < 2:
        raise StatisticsError(
            "fewer than two queries have a candidate beside their own entity: widen the mask."
        )
    return _retrieved(scores[:, asked], targets[asked], among[asked], asked, draws, seed)


def permuted_mrr(
    queries: Float[np.ndarray, "layer entity d"],
    keys: Float[np.ndarray, "layer entity d"],
    *,
    csls: bool = False,
    draws: int = 200,
    seed: int = 0,
) -> Float[np.ndarray, "draw layer"]:
    """The MRR when entities are paired at random: the floor, the same pairing at every layer.

    So the largest value of each draw is the null of the best layer. Raises `StatisticsError` as
    `retrieval` does.
    """
    check_paired(queries, keys)
    scores = cosines(queries, keys)
    table = reciprocal_table(hub_corrected(scores) if csls else scores)
    n = table.shape[1]
    rng = np.random.default_rng(seed)
    return np.stack([table[:, np.arange(n), rng.permutation(n)].mean(axis=1) for _ in range(draws)])


def cosines(
    a: Float[np.ndarray, "layer query d"], b: Float[np.ndarray, "layer key d"]
) -> Float[np.ndarray, "layer query key"]:
    """Cosines of all pairs, each role centred over its own entities.

    A state that is its role's mean up to rounding has no direction: its cosines are 0.
    """
    return unit_rows(a) @ unit_rows(b).transpose(0, 2, 1)


def unit_rows(states: Float[np.ndarray, "*batch n d"]) -> Float[np.ndarray, "*batch n d"]:
    """Rows of `centred` scaled to length 1, or zero."""
    return to_length_one(centred(states))


def to_length_one(rows: Float[np.ndarray, "*batch n d"]) -> Float[np.ndarray, "*batch n d"]:
    """Rows scaled to length 1; rows of zeros stay so."""
    length = np.linalg.norm(rows, axis=-1, keepdims=True)
    return np.divide(rows, length, out=np.zeros_like(rows), where=length > 0)


def centred(states: Float[np.ndarray, "*batch n d"]) -> Float[np.ndarray, "*batch n d"]:
    """States less their mean over entities; exactly zero where only rounding is left."""
    states = np.asarray(states, np.float64)
    rest = states - states.mean(axis=-2, keepdims=True)
    floor = _NOTHING * np.linalg.norm(states, axis=-1, keepdims=True)
    return np.where(np.linalg.norm(rest, axis=-1, keepdims=True) > floor, rest, 0.0)


def hub_corrected(
    scores: Float[np.ndarray, "layer query key"],
) -> Float[np.ndarray, "layer query key"]:
    """CSLS: twice the cosine less the mean cosine of each side to its 10 nearest of the other."""
    return 2 * scores - _nearest(scores, 2) - _nearest(scores, 1)


def reciprocal_ranks(
    scores: Float[np.ndarray, "layer query key"],
    targets: Int[np.ndarray, " query"],
    among: Bool[np.ndarray, "query key"] | None = None,
) -> Float[np.ndarray, "layer query"]:
    """Expected 1/rank of each query's target among the keys, ties in random order."""
    above, ties = _above(scores, targets, among)
    harmonic = _harmonic(scores.shape[2] + 1)
    return (harmonic[above + ties] - harmonic[above]) / ties


def reciprocal_table(
    scores: Float[np.ndarray, "layer query key"],
) -> Float[np.ndarray, "layer query key"]:
    """Expected 1/rank of every key for every query, which makes random pairings a look-up."""
    order = np.argsort(-scores, axis=2, kind="stable")
    ranked = np.take_along_axis(scores, order, axis=2)
    n = scores.shape[2]
    fresh = np.diff(ranked, axis=2, prepend=np.inf) < -_TIE
    start = np.maximum.accumulate(np.where(fresh, np.arange(n), 0), axis=2)
    last = np.concatenate([fresh[:, :, 1:], np.ones_like(fresh[:, :, :1])], axis=2)
    ends = np.where(last, np.arange(1, n + 1), n)[:, :, ::-1]
    end = np.minimum.accumulate(ends, axis=2)[:, :, ::-1]
    harmonic = _harmonic(n)
    table = np.empty_like(scores)
    np.put_along_axis(table, order, (harmonic[end] - harmonic[start]) / (end - start), axis=2)
    return table


def check_states(a: Float[np.ndarray, "layer n d"], b: Float[np.ndarray, "layer m d"]) -> None:
    """Raise `StatisticsError` unless both are finite `[layer, entity, d]` with one layer and d."""
    fits = np.ndim(a) == np.ndim(b) == 3 and a.shape[0] == b.shape[0] and a.shape[2] == b.shape[2]
    if not fits:
        raise StatisticsError(
            f"states {np.shape(a)} and {np.shape(b)} do not fit: both must be "
            "[layer, entity, d] with the same layers and d."
        )
    if not (np.isfinite(a).all() and np.isfinite(b).all()):
        raise StatisticsError("some states are not finite: run the model in float32 or bfloat16.")


def check_paired(
    a: Float[np.ndarray, "layer entity d"],
    b: Float[np.ndarray, "layer entity d"],
    at_least: int = 3,
) -> None:
    """`check_states`, and the same `at_least` entities in both."""
    check_states(a, b)
    if a.shape[1] != b.shape[1] or a.shape[1] < at_least:
        raise StatisticsError(
            f"{a.shape[1]} and {b.shape[1]} entities cannot be compared one by one: give the same "
            f"entities in both roles, {at_least} at least."
        )


def _retrieved(
    scores: Float[np.ndarray, "layer query key"],
    targets: Int[np.ndarray, " query"],
    among: Bool[np.ndarray, "query key"],
    asked: Int[np.ndarray, " query"],
    draws: int,
    seed: int,
) -> Retrieval:
    above, ties = _above(scores, targets, among)
    sizes = among.sum(axis=1)
    harmonic = _harmonic(scores.shape[2])
    reciprocal = (harmonic[above + ties] - harmonic[above]) / ties
    first = np.where(above == 0, 1 / ties, 0.0)
    units = range(len(asked))
    return Retrieval(
        reciprocal,
        above + (ties + 1) / 2,
        first,
        asked,
        bootstrap_mean(reciprocal.T, units, draws=draws, seed=seed),
        bootstrap_mean(first.T, units, draws=draws, seed=seed),
        float((harmonic[sizes] / sizes).mean()),
        float((1 / sizes).mean()),
    )


def _above(
    scores: Float[np.ndarray, "layer query key"],
    targets: Int[np.ndarray, " query"],
    among: Bool[np.ndarray, "query key"] | None,
) -> tuple[Int[np.ndarray, "layer query"], Int[np.ndarray, "layer query"]]:
    """How many candidates score above each query's own, and how many as it does, itself too."""
    own = scores[:, np.arange(scores.shape[1]), targets][:, :, None]
    above, level = scores > own + _TIE, scores >= own - _TIE
    if among is not None:
        above, level = above & among, level & among
    higher = above.sum(axis=2)
    return higher, level.sum(axis=2) - higher


def _nearest(
    scores: Float[np.ndarray, "layer query key"], axis: int
) -> Float[np.ndarray, "layer query key"]:
    k = min(NEIGHBOURS, scores.shape[axis])
    return np.sort(scores, axis=axis).take(range(-k, 0), axis=axis).mean(axis=axis, keepdims=True)


def _pair_moments(
    cos: Float[np.ndarray, "layer entity entity"],
    pairs: Bool[np.ndarray, "entity entity"],
    weights: Float[np.ndarray, "draw entity"],
) -> tuple[Float[np.ndarray, "draw layer"], Float[np.ndarray, "draw layer"]]:
    """Mean and standard deviation of the cosines of the pairs, each weighted by both entities."""

    def total(table: np.ndarray) -> np.ndarray:
        return np.einsum("...di,di->...d", weights @ table.swapaxes(-1, -2), weights)

    count = total(pairs.astype(np.float64))
    count = np.where(count > 0, count, np.nan)[:, None]
    mean = total(cos * pairs).T / count
    return mean, np.sqrt(np.maximum(total(cos**2 * pairs).T / count - mean**2, 0.0))


def _different(mask: Bool[np.ndarray, "n n"] | None, n: int) -> Bool[np.ndarray, "n n"]:
    pairs = ~np.eye(n, dtype=bool)
    if mask is not None and np.shape(mask) != (n, n):
        raise StatisticsError(f"a mask of {n} entities must be [{n}, {n}], not {np.shape(mask)}.")
    pairs = pairs if mask is None else pairs & np.asarray(mask, dtype=bool)
    if not pairs.any():
        raise StatisticsError("the mask leaves no pair of different entities: widen the stratum.")
    return pairs


def _targets(targets: np.ndarray | None, n_queries: int, n_keys: int) -> Int[np.ndarray, " query"]:
    targets = np.arange(n_queries) if targets is None else np.asarray(targets)
    if targets.shape != (n_queries,) or targets.min() < 0 or targets.max() >= n_keys:
        raise StatisticsError(
            f"{n_queries} queries among {n_keys} keys need one row of the keys each as target."
        )
    return targets


def _candidates(
    candidates: np.ndarray | None, targets: Int[np.ndarray, " query"], shape: tuple[int, ...]
) -> Bool[np.ndarray, "query key"]:
    among = np.ones(shape, bool) if candidates is None else np.array(candidates, dtype=bool)
    if among.shape != shape:
        raise StatisticsError(f"candidates must be {shape} (query, key), not {among.shape}.")
    among[np.arange(shape[0]), targets] = True
    return among


def _interval(
    value: Float[np.ndarray, " layer"], drawn: Float[np.ndarray, "draw layer"], n: int
) -> Interval:
    low, high = np.nanquantile(drawn, [0.025, 0.975], axis=0)
    return Interval(value, low, high, 0.95, n)


def _ratio(top: np.ndarray, bottom: np.ndarray) -> np.ndarray:
    """0 where both are 0, NaN where only the divisor is."""
    empty = np.where(np.abs(top) < _TIE, 0.0, np.nan)
    return np.divide(top, bottom, out=empty, where=bottom > _NOTHING)


def _harmonic(n: int) -> Float[np.ndarray, " n1"]:
    """H_0 to H_n."""
    return np.concatenate([[0.0], np.cumsum(1 / np.arange(1, n + 1))])
