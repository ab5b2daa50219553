"""What a search for relation neurons found: rankings, sets, tables and verdicts, without a model.

Ties (relation_neurons.md 5.5): equal scores go by the AP on new subjects in new wordings, then by
the standardised gap, then by layer and unit. How many units tie at the cut is told in `stability`.
"""

from __future__ import annotations

from itertools import combinations

import numpy as np
import polars
from jaxtyping import Bool, Float, Int

from ..models.hooked import HookedModel
from ..models.types import NeuronId
from ..results.neuron_set import NeuronScore, NeuronSet
from .neuron_nulls import CORE_SHARE, Verdict, split_half, verdict
from .relation_neurons import RelationNeurons

HIGH, LOW = "high", "low"
"""Roles of the units that go up, or down, for a relation."""


def ranking(found: RelationNeurons, relation: str, n: int | None = None) -> tuple[NeuronId, ...]:
    """All units of the site from best to worst for a relation, or the best `n`.

    Raises `MnemoscopeError` for an unknown relation.
    """
    return _names(found, _order(found, relation)[:n])


def neuron_set(
    found: RelationNeurons,
    relation: str,
    model: HookedModel,
    *,
    k: int | None = None,
    run_id: str | None = None,
) -> NeuronSet:
    """The best `k` units (default: `found.k`) with score, p and role "high" or "low" by sign.

    In the order of the ranking. Raises `MnemoscopeError` for an unknown relation.
    """
    row, ids = found.row(relation), _order(found, relation)[: found.k if k is None else k]
    score, sign, p = (_flat(grid, row)[ids] for grid in (found.score, found.sign, found.p))
    return NeuronSet(
        name=f"{relation} neurons of {found.model_id}",
        model_id=model.name,
        n_layers=model.anatomy.n_layers,
        d_mlp=int(model.anatomy.d_mlp or found.n_units),
        method=f"relation neurons, worst of {len(found.wordings)} wordings, {found.pooling}",
        run_id=run_id,
        neurons=tuple(
            NeuronScore(unit, float(s), HIGH if up > 0 else LOW, float(chance))
            for unit, s, up, chance in zip(_names(found, ids), score, sign, p, strict=True)
        ),
    )


def stable_core(found: RelationNeurons, relation: str) -> tuple[NeuronId, ...]:
    """Units in the top k of at least 80 % of the resamples, best first; none without resamples."""
    enough = max(1, int(np.ceil(CORE_SHARE * found.resamples)))
    order = _order(found, relation)
    return _names(found, order[_flat(found.selected, found.row(relation))[order] >= enough])


def table(found: RelationNeurons, *, sample: int = 1000, seed: int = 0) -> polars.DataFrame:
    """Per relation the top k and a uniform sample of the other units, best first.

    `rank` counts from 1. AP columns, `mean_in` and `dprime` are those of `RelationNeurons`, in
    its signs; `score` is also the AP at the minimum over wordings, `p_pseudo` the share of
    pseudo-relations (and of this one) whose unit of the same rank scores as high (null beyond k),
    `selected` the share of resamples with the unit in the top k. No model is needed to read it.
    """
    random = np.random.default_rng(seed)
    return polars.concat([_rows(found, name, sample, random) for name in found.relations])


def verdicts(found: RelationNeurons) -> tuple[Verdict, ...]:
    """For each relation: does its score at rank k beat that of 95 % of the pseudo-relations?

    A relation that does not has the text "no relation-specific set found". The bar separates
    relations from arbitrary groups of prompts; whether a model *uses* the units it does not say.
    """
    at_k = found.pseudo_scores[:, found.k - 1]
    tops = (_order(found, name)[: found.k] for name in found.relations)
    return tuple(
        verdict(
            found.relations[i],
            float(_flat(found.score, i)[top[-1]]),
            at_k,
            float(_flat(found.ap_new, i)[top].mean()),
        )
        for i, top in enumerate(tops)
    )


def overlaps(found: RelationNeurons) -> polars.DataFrame:
    """Units that the top-k sets of each pair of relations share.

    `chance` is k^2 over all units, `ceiling` the geometric mean of what each set shares with itself
    from the other half of the subjects, `limited` the overlap as a share of that ceiling (null
    where it is 0 or the design has no halves; relation_neurons.md 6.2).
    """
    tops = [_top(found, name) for name in found.relations]
    own = [split_half(found.half[:, i], found.k).shared for i in range(len(tops))]
    chance = found.k**2 / found.n_total
    rows = []
    for a, b in combinations(range(len(tops)), 2):
        shared, ceiling = int((tops[a] & tops[b]).sum()), float(np.sqrt(own[a] * own[b]))
        rows.append(
            {
                "relation": found.relations[a],
                "other": found.relations[b],
                "shared": shared,
                "share": shared / found.k,
                "chance": chance,
                "enrichment": shared / chance,
                "ceiling": None if np.isnan(ceiling) else ceiling,
                "limited": shared / ceiling if ceiling > 0 else None,
            }
        )
    return polars.DataFrame(rows, schema=_OVERLAPS)


def wording_tax(found: RelationNeurons) -> polars.DataFrame:
    """Per relation what the top k lose on new subjects, and on top of that in new wordings.

    Mean signed APs of the top k: `ap_find` where they were found, `ap_same` on new subjects in the
    same wordings, `ap_new` in new wordings; `tax = ap_same - ap_new`. `shared_same` and
    `shared_new` are how many of the top k are again in the top k there; `chance` is k^2 over all.
    """
    rows = []
    for i, name in enumerate(found.relations):
        top = _top(found, name)
        mean_find = np.nanmean(found.ap[i], axis=0).ravel()[top].mean()
        same, new = (float(_flat(grid, i)[top].mean()) for grid in (found.ap_same, found.ap_new))
        rows.append(
            {
                "relation": name,
                "score_at_k": float(_flat(found.score, i)[top].min()),
                "ap_find": float(mean_find),
                "ap_same": same,
                "ap_new": new,
                "tax": same - new,
                "shared_same": _again(top, found.top_same[i]),
                "shared_new": _again(top, found.top_new[i]),
                "chance": found.k**2 / found.n_total,
            }
        )
    return polars.DataFrame(rows)


def stability(found: RelationNeurons) -> polars.DataFrame:
    """Per relation how well its set repeats itself, and how sharp its cut is.

    `shared_halves` of the top k and `spearman` of all scores between the halves of the subjects;
    `core` units selected in 80 % of the resamples; `significant` units with q < 0.01 against
    exchangeable labels (expect many); `tied_at_cut` units with the score at rank k, if the cut
    goes through them (else 0); `low` units of the top k that go down for the relation.
    """
    rows = []
    for i, name in enumerate(found.relations):
        halves, top = split_half(found.half[:, i], found.k), _top(found, name)
        rows.append(
            {
                "relation": name,
                "k": found.k,
                "shared_halves": halves.shared,
                "spearman": halves.spearman,
                "chance": found.k**2 / found.n_total,
                "core": len(stable_core(found, name)),
                "significant": int((found.q[i] < 0.01).sum()),
                "tied_at_cut": _tied(_flat(found.score, i), found.k),
                "low": int((_flat(found.sign, i)[top] < 0).sum()),
            }
        )
    return polars.DataFrame(rows)


def layer_counts(found: RelationNeurons) -> Int[np.ndarray, "relation layer"]:
    """How many of each relation's top k lie in each layer."""
    tops = np.stack([_top(found, name) for name in found.relations])
    return tops.reshape(len(tops), -1, found.n_units).sum(axis=2)


_OVERLAPS = {
    "relation": polars.String,
    "other": polars.String,
    "shared": polars.Int64,
    "share": polars.Float64,
    "chance": polars.Float64,
    "enrichment": polars.Float64,
    "ceiling": polars.Float64,
    "limited": polars.Float64,
}

_COLUMNS = (
    "sign",
    "score",
    "p",
    "q",
    "ap_same",
    "ap_new",
    "wording_ap",
    "length_ap",
    "dprime",
    "mean_in",
    "mean_out",
)


def _rows(
    found: RelationNeurons, relation: str, sample: int, random: np.random.Generator
) -> polars.DataFrame:
    i, order = found.row(relation), _order(found, relation)
    others = random.permutation(found.n_total - found.k)[:sample]
    rank = np.concatenate([np.arange(found.k), found.k + np.sort(others)])
    ids = order[rank]
    columns: dict[str, object] = {
        "relation": [relation] * len(ids),
        "site": [str(found.site)] * len(ids),
        "layer": ids // found.n_units,
        "unit": ids % found.n_units,
        "rank": rank + 1,
        "in_set": rank < found.k,
    }
    columns |= {name: _flat(getattr(found, name), i)[ids] for name in _COLUMNS}
    columns |= {
        f"ap_{wording}".replace(" ", "_"): found.ap[i, j].ravel()[ids]
        for j, wording in enumerate(found.wordings)
    }
    columns |= {f"half_{j + 1}": found.half[j, i].ravel()[ids] for j in (0, 1)}
    columns["selected"] = _flat(found.selected, i)[ids] / max(1, found.resamples)
    columns["write_norm"] = found.write_norm.ravel()[ids]
    columns["p_pseudo"] = _p_pseudo(found, _flat(found.score, i)[ids], rank)
    return polars.DataFrame(columns).with_columns(polars.selectors.float().fill_nan(None))


def _p_pseudo(
    found: RelationNeurons, score: Float[np.ndarray, " n"], rank: Int[np.ndarray, " n"]
) -> Float[np.ndarray, " n"]:
    """Share of pseudo-relations, and of this one, that score as high at the same rank; NaN beyond
    rank k and without pseudo-relations."""
    p = np.full(len(score), np.nan)
    if len(found.pseudo):
        kept = rank < found.k
        reached = found.pseudo_scores[:, rank[kept]] >= score[kept]
        p[kept] = (1 + reached.sum(axis=0)) / (1 + len(found.pseudo))
    return p


def _order(found: RelationNeurons, relation: str) -> Int[np.ndarray, " n_total"]:
    """Unit ids from best to worst by the tie policy."""
    i = found.row(relation)
    score, new = _flat(found.score, i), np.nan_to_num(_flat(found.ap_new, i))
    gap = _flat(found.dprime, i) * _flat(found.sign, i)
    return np.lexsort((np.arange(found.n_total), -gap, -new, -score))


def _top(found: RelationNeurons, relation: str) -> Bool[np.ndarray, " n_total"]:
    chosen = np.zeros(found.n_total, dtype=bool)
    chosen[_order(found, relation)[: found.k]] = True
    return chosen


def _again(top: Bool[np.ndarray, " n_total"], ids: Int[np.ndarray, " k"]) -> int | None:
    """How many of the ids are in the top; None where the design does not test them."""
    return int(top[ids].sum()) if (ids >= 0).all() else None


def _tied(score: Float[np.ndarray, " n_total"], k: int) -> int:
    cut = np.partition(score, len(score) - k)[len(score) - k]
    ties = int((score == cut).sum())
    return ties if int((score >= cut).sum()) > k else 0


def _flat(grid: np.ndarray, row: int) -> np.ndarray:
    return grid[row].ravel()


def _names(found: RelationNeurons, ids: Int[np.ndarray, " n"]) -> tuple[NeuronId, ...]:
    layers, units = np.divmod(ids, found.n_units)
    return tuple(
        NeuronId(layer, unit, found.site)
        for layer, unit in zip(layers.tolist(), units.tolist(), strict=True)
    )
