"""`Places` of a module in this process: PyTorch hooks, and the table of attention functions."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

from .anatomy import Anatomy
from .attention import See, around_attention, seeing_scores
from .backends import Into
from .hooks import Change, RunningBatch, site_hook, watch_batch
from .query_projections import query_hook, query_width
from .types import Site


@dataclass(frozen=True, eq=False)
class ModulePlaces:
    """Callbacks run where they are, so `into` has nothing to do here."""

    module: Any
    anatomy: Anatomy

    def batch(self) -> AbstractContextManager[RunningBatch]:
        """See `Places`."""
        return watch_batch(self.module)

    def site(
        self, site: Site, layer: int, change: Change, into: Into = ()
    ) -> AbstractContextManager[None]:
        """See `Places`."""
        return site_hook(self.module, self.anatomy, site, layer, change)

    def queries(
        self, layer: int, heads: Sequence[int], change: Change, into: Into = ()
    ) -> AbstractContextManager[None]:
        """See `Places`."""
        return query_hook(self.module, self.anatomy, layer, heads, change)

    def attention(
        self, around: Callable[..., Any], layers: Sequence[int], into: Into = ()
    ) -> AbstractContextManager[None]:
        """See `Places`; `around` is called for all layers."""
        return around_attention(self.module, around)

    def scores(
        self, see: See, layers: Sequence[int], into: Into = ()
    ) -> AbstractContextManager[None]:
        """See `Places`; `see` is called for all layers."""
        return seeing_scores(self.module, self.anatomy, see)

    def query_width(self) -> int:
        """See `Places`."""
        return query_width(self.module, self.anatomy)
