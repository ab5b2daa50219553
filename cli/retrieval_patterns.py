"""Pattern folders as the commands write and read them: gates, and how to make heads of them."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Bool, Float
from scipy import stats

from ..interventions.streaming_pattern import StreamingPattern
from ..models.errors import MnemoscopeError
from ..models.hooked import HookedModel
from ..results.attention_patterns import (
    TABLE,
    AttentionPattern,
    full_above,
    full_at_sparsity,
    load_pattern_folder,
    load_prulong_table,
)
from ..results.provenance import JSON

FOLDER = "pattern"
"""Where a run of `retrieval gates` keeps its pattern."""
HALF = 0.5


def cost_ranks(costs: Float[np.ndarray, "layer kv_head"]) -> Float[np.ndarray, "layer kv_head"]:
    """Costs as gates: the share of other heads that cost less, ties in the middle, 0 to 1.

    A pattern file holds gates only; their order, which decides what streams, is that of the costs.
    """
    ranks = stats.rankdata(costs).reshape(costs.shape)
    return (ranks - 1) / max(costs.size - 1, 1)


def rule_of(sparsity: float, threshold: float | None) -> dict[str, JSON]:
    """How a pattern is to be made into heads, as settings of its folder."""
    return {"streaming": sparsity} if threshold is None else {"threshold": threshold}


def full_heads(
    gates: Float[np.ndarray, "layer kv_head"], rule: Mapping[str, JSON]
) -> Bool[np.ndarray, "layer kv_head"]:
    """The heads that keep the whole context, by a rule of `rule_of`; without one, half of them
    stream. Raises `MnemoscopeError` for a share or a threshold outside 0 to 1."""
    threshold, sparsity = rule.get("threshold"), rule.get("streaming", HALF)
    if isinstance(threshold, (int, float)):
        return full_above(gates, float(threshold))
    if not isinstance(sparsity, (int, float)):
        raise MnemoscopeError(f"the pattern's share of streaming heads is {sparsity!r}, no number.")
    return full_at_sparsity(gates, float(sparsity))


def load_pattern(path: Path) -> AttentionPattern:
    """A pattern folder, a run of `retrieval gates`, or a PruLong table.

    Raises `MnemoscopeError` for what is none of these, and for damaged files.
    """
    if path.suffix == ".tsv":
        return load_prulong_table(path)
    inside = path / FOLDER
    return load_pattern_folder(inside if inside.is_dir() else path)


def holds_pattern(path: Path) -> bool:
    """Whether `load_pattern` would find one here."""
    return path.suffix == ".tsv" or (path / TABLE).is_file() or (path / FOLDER / TABLE).is_file()


def streaming_pattern(
    pattern: AttentionPattern,
    model: HookedModel,
    *,
    sparsity: float | None = None,
    sink: int | None = None,
    recent: int | None = None,
) -> StreamingPattern:
    """The pattern for a model; what is given replaces what its folder says.

    Raises `MnemoscopeError` for a pattern of a model of another size.
    """
    pattern.check(model.anatomy.n_layers, model.anatomy.n_kv_heads)
    rule = pattern.settings if sparsity is None else rule_of(sparsity, None)
    return StreamingPattern(
        full=torch.from_numpy(full_heads(pattern.gates, rule)),
        sink=pattern.sink if sink is None else sink,
        recent=pattern.recent if recent is None else recent,
    )
