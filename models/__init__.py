"""Load a checkpoint, name its parts, run it hooked (the ground floor).

Names are imported when they are first used, so that code which only needs `HeadId` does not wait
for torch.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .anatomy import Anatomy
    from .attention_edits import (
        AttentionEdit,
        knock_out,
        mean_query,
        reweigh,
        streaming,
        uniform,
    )
    from .edits import Edit, StreamId, mean, resample, scale, zero
    from .errors import MnemoscopeError
    from .hooked import Captured, HookedModel, wrap
    from .load import load_model
    from .tokens import TokenBatch
    from .types import HeadId, KVHeadId, NeuronId, Site, TokenSpan

__all__ = [
    "Anatomy",
    "AttentionEdit",
    "Captured",
    "Edit",
    "HeadId",
    "HookedModel",
    "KVHeadId",
    "MnemoscopeError",
    "NeuronId",
    "Site",
    "StreamId",
    "TokenBatch",
    "TokenSpan",
    "knock_out",
    "load_model",
    "mean",
    "mean_query",
    "resample",
    "reweigh",
    "scale",
    "streaming",
    "uniform",
    "wrap",
    "zero",
]

_HOMES = {
    "anatomy": ("Anatomy",),
    "attention_edits": (
        "AttentionEdit",
        "knock_out",
        "mean_query",
        "reweigh",
        "streaming",
        "uniform",
    ),
    "edits": ("Edit", "StreamId", "mean", "resample", "scale", "zero"),
    "errors": ("MnemoscopeError",),
    "hooked": ("Captured", "HookedModel", "wrap"),
    "load": ("load_model",),
    "tokens": ("TokenBatch",),
    "types": ("HeadId", "KVHeadId", "NeuronId", "Site", "TokenSpan"),
}


def __getattr__(name: str) -> Any:
    for home, names in _HOMES.items():
        if name in names:
            return getattr(import_module(f".{home}", __name__), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
