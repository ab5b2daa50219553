"""Which KV heads keep the whole context, and how much the others keep of it."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Bool
from torch import Tensor

from ..models.anatomy import Anatomy
from ..models.errors import MnemoscopeError


@dataclass(frozen=True, eq=False)
class StreamingPattern:
    """Full and streaming KV heads of a model (DuoAttention, arXiv 2410.10819, section 2.1).

    A query of a streaming head sees the first `sink` keys of the sequence and the last `recent`,
    its own key among them. Raises `MnemoscopeError` for another shape, sink < 0 or recent < 1.
    """

    full: Bool[Tensor, "layer kv_head"]
    """True: every key is seen and kept."""
    sink: int
    recent: int

    def __post_init__(self) -> None:
        if self.full.ndim != 2 or self.full.dtype != torch.bool:
            raise MnemoscopeError(
                "a streaming pattern is a Boolean tensor [layer, kv_head], got "
                f"{self.full.dtype} {tuple(self.full.shape)}: binarise gates first."
            )
        if self.sink < 0 or self.recent < 1:
            raise MnemoscopeError(
                f"streaming heads need sink >= 0 and recent >= 1 (their own key), got sink="
                f"{self.sink} and recent={self.recent}."
            )

    def check(self, anatomy: Anatomy) -> None:
        """Raises `MnemoscopeError` unless the model has these layers and KV heads."""
        wanted = (anatomy.n_layers, anatomy.n_kv_heads)
        if tuple(self.full.shape) != wanted:
            raise MnemoscopeError(
                f"the pattern is for {tuple(self.full.shape)} layers and KV heads but the model "
                f"has {wanted}: take the pattern of this model."
            )

    def keys_held(self, length: int) -> int:
        """Keys that all heads together hold behind `length` tokens, where no layer has a window.

        A full head holds `length`; a streaming head `min(length, sink + recent - 1)`, since the
        next query brings its own key. The bytes of a cache are this times rows, key and value
        width and bytes a number.
        """
        full = int(self.full.sum())
        streaming = self.full.numel() - full
        return full * length + streaming * min(length, self.sink + self.recent - 1)
