"""Load a checkpoint, name its parts, run it hooked (the ground floor)."""

from .anatomy import Anatomy
from .edits import Edit, StreamId, mean, resample, scale, zero
from .errors import MnemoscopeError
from .hooked import Captured, HookedModel, wrap
from .load import load_model
from .tokens import TokenBatch
from .types import HeadId, KVHeadId, NeuronId, Site, TokenSpan

__all__ = [
    "Anatomy",
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
    "load_model",
    "mean",
    "resample",
    "scale",
    "wrap",
    "zero",
]
