"""One table for all methods: do scores of the same heads agree, and where do their tops overlap?

Methods named alike measure different things: published sets of Wu et al. and of the query-side
methods share one or two heads of sixteen (retrieval_heads.md 3.2). All functions take grids
`[layer, head]` of query heads, higher meaning more of what the method looks for; NaN is no score.
Which method finds the heads that the answer hangs on is another question: `answer_curves`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np
import polars
from jaxtyping import Bool, Float
from scipy import stats

from ..models.types import HeadId
from ..results.errors import StatisticsError
from ..results.stability import top_k_jaccard

Grid = Float[np.ndarray, "layer head"]


@dataclass(frozen=True, eq=False)
class MethodComparison:
    """Agreement of every pair of methods `[method, method]`, over the heads that all have a score.

    `spearman` with its bootstrap interval `low` to `high` over heads (what other heads of such a
    model would give). `jaccard` is the overlap of the tops of `k`, `jaccard_null` what unrelated
    rankings overlap by on average and `p` the exact chance to overlap as much. `auc[i, j]`: chance
    that method j puts a head of method i's top above another head; 0.5 is none.
    """

    methods: tuple[str, ...]
    k: int
    n_heads: int
    spearman: Float[np.ndarray, "method method"]
    low: Float[np.ndarray, "method method"]
    high: Float[np.ndarray, "method method"]
    jaccard: Float[np.ndarray, "method method"]
    jaccard_null: float
    p: Float[np.ndarray, "method method"]
    auc: Float[np.ndarray, "method method"]

    def table(self) -> polars.DataFrame:
        """One row a pair of methods, the best agreement first."""
        rows = [
            {
                "method": self.methods[i],
                "other": self.methods[j],
                "spearman": float(self.spearman[i, j]),
                "low": float(self.low[i, j]),
                "high": float(self.high[i, j]),
                "jaccard": float(self.jaccard[i, j]),
                "jaccard_null": self.jaccard_null,
                "p": float(self.p[i, j]),
                "auc": float(self.auc[i, j]),
                "auc_reverse": float(self.auc[j, i]),
                "k": self.k,
                "heads": self.n_heads,
            }
            for i, j in combinations(range(len(self.methods)), 2)
        ]
        return polars.DataFrame(rows).fill_nan(None).sort("spearman", descending=True)


@dataclass(frozen=True)
class GateAgreement:
    """Gates of key/value heads beside a score of query heads (retrieval_heads.md 2.4).

    A key/value head is *on* where one of its query heads scores the threshold at least. `auc`:
    chance that the gate of an on head lies above that of an off head; NaN where all are on or off.
    """

    on: int
    total: int
    gate_on: float
    gate_off: float
    auc: float
    spearman: float


def compare_methods(
    scores: Mapping[str, Grid], k: int, *, draws: int = 300, level: float = 0.95, seed: int = 0
) -> MethodComparison:
    """Compare every pair of methods on the heads of one model.

    Heads without a score in one of the methods are left out of all pairs. Raises
    `StatisticsError` for fewer than two methods, grids of different models, and unless
    `1 <= k < heads` with a score in all methods.
    """
    names = tuple(scores)
    flat = _common(scores)
    n_heads = flat.shape[1]
    if not 1 <= k < n_heads:
        raise StatisticsError(
            f"no top {k} of the {n_heads} heads that all {len(names)} methods score: choose k from "
            f"1 to {n_heads - 1}."
        )
    low, high = _spearman_interval(flat, draws, level, seed)
    overlaps = {
        (i, j): top_k_jaccard(flat[i], flat[j], k, seed=seed)
        for i, j in combinations(range(len(names)), 2)
    }
    jaccard, p = np.eye(len(names)), np.zeros((len(names), len(names)))
    for (i, j), one in overlaps.items():
        jaccard[i, j] = jaccard[j, i] = one.value
        p[i, j] = p[j, i] = one.p
    return MethodComparison(
        methods=names,
        k=k,
        n_heads=n_heads,
        spearman=_spearman(flat),
        low=low,
        high=high,
        jaccard=jaccard,
        jaccard_null=next(iter(overlaps.values())).null_mean,
        p=p,
        auc=np.array([auc_of(flat, top_mask(row, k)) for row in flat]),
    )


def auc_of(
    scores: Float[np.ndarray, "... head"], positive: Bool[np.ndarray, " head"]
) -> Float[np.ndarray, "*rest"]:
    """Chance that a positive head scores above another one, ties half (Mann and Whitney 1947).

    NaN where no head, or every head, is positive.
    """
    n = int(positive.sum())
    rest = len(positive) - n
    ranks = stats.rankdata(scores, axis=-1)
    if n == 0 or rest == 0:
        return np.full(ranks.shape[:-1], np.nan)
    return (ranks[..., positive].sum(axis=-1) - n * (n + 1) / 2) / (n * rest)


def top_mask(scores: Float[np.ndarray, " head"], k: int) -> Bool[np.ndarray, " head"]:
    """The `k` highest; of equal scores the earlier head."""
    mask = np.zeros(len(scores), dtype=bool)
    mask[np.argsort(-scores, kind="stable")[:k]] = True
    return mask


def ranking_of(scores: Grid, k: int) -> tuple[HeadId, ...]:
    """The `k` highest heads, highest first, equal ones in the order of layer and head.

    Raises `StatisticsError` unless so many heads have a score.
    """
    flat = np.where(np.isfinite(scores), scores, -np.inf).ravel()
    if not 1 <= k <= np.isfinite(scores).sum():
        raise StatisticsError(
            f"no top {k}: {int(np.isfinite(scores).sum())} heads have a score. Choose fewer."
        )
    order = np.argsort(-flat, kind="stable")[:k]
    layers, heads = np.unravel_index(order, scores.shape)
    return tuple(
        HeadId(layer, head) for layer, head in zip(layers.tolist(), heads.tolist(), strict=True)
    )


def on_query_heads(scores: Float[np.ndarray, "layer kv_head"], n_heads: int) -> Grid:
    """Every query head has its key/value head's score. Raises `StatisticsError` where the numbers
    of heads do not divide."""
    return np.repeat(scores, _group(scores.shape[1], n_heads), axis=1)


def on_kv_heads(scores: Grid, n_kv_heads: int) -> Float[np.ndarray, "layer kv_head"]:
    """The highest score among the query heads of each key/value head; NaN where none has one.
    Raises `StatisticsError` where the numbers of heads do not divide."""
    group = _group(n_kv_heads, scores.shape[1])
    groups = scores.reshape(len(scores), n_kv_heads, group)
    highest = np.where(np.isfinite(groups), groups, -np.inf).max(axis=2)
    return np.where(np.isfinite(highest), highest, np.nan)


def gate_agreement(
    gates: Float[np.ndarray, "layer kv_head"], scores: Grid, *, threshold: float = 0.1
) -> GateAgreement:
    """Do heads that score have open gates? The threshold of 0.1 is that of Wu et al. 2024.

    Raises `StatisticsError` when the grids are of different models or no head has a score.
    """
    best = on_kv_heads(scores, gates.shape[1])
    if len(best) != len(gates):
        raise StatisticsError(f"gates of {len(gates)} layers do not fit {len(best)} layers.")
    known = np.isfinite(best) & np.isfinite(gates)
    if not known.any():
        raise StatisticsError("no head has both a gate and a score.")
    gate, score = gates[known], best[known]
    on = score >= threshold
    return GateAgreement(
        on=int(on.sum()),
        total=int(known.sum()),
        gate_on=float(gate[on].mean()) if on.any() else float("nan"),
        gate_off=float(gate[~on].mean()) if (~on).any() else float("nan"),
        auc=float(auc_of(gate, on)),
        spearman=float(_spearman(np.stack([gate, score]))[0, 1]),
    )


def listed_scores(heads: Sequence[HeadId], n_layers: int, n_heads: int) -> Grid:
    """A grid of a bare ranking: `n` for the first of `n` heads down to 1, and 0 for all others.

    For imported lists, whose own scores are not told. Raises `StatisticsError` for no heads, one
    named twice, or one that the model does not have.
    """
    grid = np.zeros((n_layers, n_heads))
    inside = [h for h in heads if 0 <= h.layer < n_layers and 0 <= h.head < n_heads]
    if not heads or len(set(inside)) < len(heads):
        raise StatisticsError(
            f"a list must name heads of {n_layers} layers by {n_heads}, each once: got "
            f"{', '.join(map(str, heads)) or 'none'}."
        )
    for place, head in enumerate(heads):
        grid[head.layer, head.head] = len(heads) - place
    return grid


def _common(scores: Mapping[str, Grid]) -> Float[np.ndarray, "method head"]:
    """All methods on the heads that each of them scores."""
    grids = {name: np.asarray(grid, dtype=np.float64) for name, grid in scores.items()}
    if len(grids) < 2 or len({grid.shape for grid in grids.values()}) != 1:
        shapes = {name: grid.shape for name, grid in grids.items()}
        raise StatisticsError(f"two methods or more on the heads of one model, please: {shapes}.")
    flat = np.stack([grid.ravel() for grid in grids.values()])
    return flat[:, np.isfinite(flat).all(axis=0)]


def _spearman(flat: Float[np.ndarray, "... method head"]) -> Float[np.ndarray, "... method method"]:
    """Rank correlation of every two rows; NaN for a row of equal scores."""
    ranks = stats.rankdata(flat, axis=-1)
    ranks = ranks - ranks.mean(axis=-1, keepdims=True)
    length = np.sqrt((ranks**2).sum(axis=-1))
    with np.errstate(invalid="ignore", divide="ignore"):
        scaled = np.where(length[..., None] > 0, ranks / length[..., None], np.nan)
    return scaled @ np.swapaxes(scaled, -1, -2)


def _spearman_interval(
    flat: Float[np.ndarray, "method head"], draws: int, level: float, seed: int
) -> tuple[np.ndarray, np.ndarray]:
    """Percentile interval over heads drawn with replacement, ranked anew in each draw."""
    rng = np.random.default_rng(seed)
    n = flat.shape[1]
    drawn = np.stack([_spearman(flat[:, rng.integers(n, size=n)]) for _ in range(draws)])
    tail = (1 - level) / 2
    with np.errstate(invalid="ignore"):
        low, high = np.quantile(drawn, [tail, 1 - tail], axis=0)
    return low, high


def _group(n_kv_heads: int, n_heads: int) -> int:
    if n_kv_heads < 1 or n_heads % n_kv_heads:
        raise StatisticsError(f"{n_kv_heads} key/value heads do not divide {n_heads} query heads.")
    return n_heads // n_kv_heads
