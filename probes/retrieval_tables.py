"""Scores of retrieval heads as one table a model, and the head sets that others go on with."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import polars
from jaxtyping import Bool, Float

from ..models.anatomy import Anatomy
from ..models.errors import MnemoscopeError
from ..models.hooked import HookedModel
from ..results.head_set import HeadScore, HeadSet
from .retrieval_statistics import HeadStatistics

RETRIEVAL_SCORE = 0.1
"""Mean copy score from which a head is called a retrieval head (Wu et al. 2024)."""
MAX_Q = 0.05


def table(
    anatomy: Anatomy,
    scores: Mapping[str, HeadStatistics],
    grids: Mapping[str, Float[np.ndarray, "layer head"]] | None = None,
    words: Mapping[str, np.ndarray] | None = None,
) -> polars.DataFrame:
    """One row a head: each score with its interval, q and shrunk mean, then plain grids and words.

    Columns of a score `copy` are `copy`, `copy_low`, `copy_high`, `copy_q` and `copy_shrunk`; a
    number that does not exist (a window that hides the needle) is null. `words` are roles.
    """
    group = anatomy.n_heads // anatomy.n_kv_heads
    layer, head = np.indices((anatomy.n_layers, anatomy.n_heads)).reshape(2, -1)
    columns: dict[str, Any] = {"layer": layer, "head": head, "kv_head": head // group}
    for name, one in scores.items():
        columns[name] = one.mean.ravel()
        columns[f"{name}_low"] = one.interval.low.ravel()
        columns[f"{name}_high"] = one.interval.high.ravel()
        columns[f"{name}_q"] = one.q.ravel()
        columns[f"{name}_shrunk"] = one.shrunk.ravel()
    for name, grid in (grids or {}).items():
        columns[name] = np.asarray(grid, dtype=np.float64).ravel()
    for name, grid in (words or {}).items():
        columns[name] = [str(word) for word in np.asarray(grid).ravel()]
    return polars.DataFrame(columns).fill_nan(None)


def column_grid(
    rows: polars.DataFrame, column: str, n_layers: int, n_heads: int
) -> Float[np.ndarray, "layer head"]:
    """A column of `table` as a grid, NaN where it is null.

    Raises `MnemoscopeError` for a column that is not there and a table of another model.
    """
    if column not in rows.columns:
        raise MnemoscopeError(f"the table has no column {column!r}: it has {rows.columns}.")
    if len(rows) != n_layers * n_heads:
        raise MnemoscopeError(f"{len(rows)} rows are not {n_layers} layers of {n_heads} heads.")
    ordered = rows.sort("layer", "head")[column].cast(polars.Float64).fill_null(float("nan"))
    return ordered.to_numpy().reshape(n_layers, n_heads)


def retrieval_head_set(
    model: HookedModel,
    scores: HeadStatistics,
    role: str,
    *,
    method: str,
    least: float = 0.0,
    max_q: float = MAX_Q,
    k: int | None = None,
    run_id: str | None = None,
    among: Bool[np.ndarray, "layer head"] | None = None,
) -> HeadSet:
    """Heads whose mean score is positive and at least `least` with `q <= max_q`, highest first.

    `k` keeps the best; `among` bars all other heads (those of another role). A count, not a share:
    from 7 to 70 billion weights the number of retrieval heads hardly changes. Raises
    `MnemoscopeError` with the counts when no head is left.
    """
    mean, interval = scores.mean, scores.interval
    with np.errstate(invalid="ignore"):
        high = (mean > 0) & (mean >= least)
        kept = high & (scores.q <= max_q) & (True if among is None else among)
    cells = sorted(np.argwhere(kept).tolist(), key=lambda at: (-mean[tuple(at)], at))[:k]
    if not cells:
        raise MnemoscopeError(
            f"no {role} heads: {int(high.sum())} of {int(np.isfinite(mean).sum())} heads score "
            f"{least:g} or more, none of them with q <= {max_q:g} against {scores.null_name}."
        )
    anatomy = model.anatomy
    return HeadSet(
        name=f"{role} heads of {model.name}",
        model_id=model.name,
        n_layers=anatomy.n_layers,
        n_heads=anatomy.n_heads,
        n_kv_heads=anatomy.n_kv_heads,
        method=method,
        run_id=run_id,
        heads=tuple(
            HeadScore(
                head,
                float(mean[at]),
                role,
                float(scores.q[at]),
                (float(interval.low[at]), float(interval.high[at])),
            )
            for head in anatomy.all_heads()
            if [*(at := (head.layer, head.head))] in cells
        ),
    ).top(len(cells))
