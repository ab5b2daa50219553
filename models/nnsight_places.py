"""`Places` of a model that runs as nnsight traces: each pass visits the callbacks noted here."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from .anatomy import Anatomy
from .attention import See
from .backends import Into
from .errors import UnsupportedModelError
from .hooks import Change, RunningBatch, place_of
from .query_projections import query_place, query_width
from .types import Site

if TYPE_CHECKING:
    from .nnsight_pass import Visit

_IN_BLOCK = (
    *(Site.RESID_PRE, "queries", "attention", Site.Z, Site.ATTN_OUT, Site.RESID_MID),
    *(Site.GATE_PRE, Site.UP, Site.NEURON, Site.MLP_OUT, Site.RESID_POST),
)
"""The order in which every family of the table passes the places of a block."""


@dataclass(frozen=True, eq=False)
class Noted:
    """A callback that is in force, where it belongs, and what it writes to."""

    order: int
    layer: int
    path: str
    side: str
    callback: Any
    into: Into


@dataclass(frozen=True, eq=False)
class TracePlaces:
    """The callbacks in force; `structure` is the module, with or without its weights.

    `blind` is why queries and keys cannot be seen; empty where they can.
    """

    structure: Any
    anatomy: Anatomy
    blind: str = ""
    noted: list[Noted] = field(default_factory=list)
    running: list[RunningBatch] = field(default_factory=list)

    @contextmanager
    def batch(self) -> Iterator[RunningBatch]:
        """See `Places`."""
        running = RunningBatch()
        self.running.append(running)
        try:
            yield running
        finally:
            self.running[:] = [one for one in self.running if one is not running]

    @contextmanager
    def site(self, site: Site, layer: int, change: Change, into: Into = ()) -> Iterator[None]:
        """See `Places`."""
        place = place_of(self.anatomy, site)
        with self._noted(site, [layer], place.path, place.side, place.adapted(change), into):
            yield

    @contextmanager
    def queries(
        self, layer: int, heads: Sequence[int], change: Change, into: Into = ()
    ) -> Iterator[None]:
        """See `Places`."""
        path, hook = query_place(self.anatomy, heads, change)
        with self._noted("queries", [layer], path, "call", hook, into):
            yield

    @contextmanager
    def attention(
        self, around: Callable[..., Any], layers: Sequence[int], into: Into = ()
    ) -> Iterator[None]:
        """See `Places`; `own()` in `around` answers the call that came in, and no other."""
        with self._in_attention(("answer", around), layers, into):
            yield

    @contextmanager
    def scores(self, see: See, layers: Sequence[int], into: Into = ()) -> Iterator[None]:
        """See `Places`."""
        with self._in_attention(("see", see), layers, into):
            yield

    def query_width(self) -> int:
        """See `Places`."""
        return query_width(self.structure, self.anatomy)

    def visits(self) -> list[Visit]:
        """The stops of a pass in order of execution, callbacks of one place together."""
        from .nnsight_pass import Visit

        stops: dict[tuple[int, str, str], Visit] = {}
        for one in sorted(self.noted, key=lambda one: (one.layer, one.order)):
            at = (one.layer, one.path, one.side)
            stops.setdefault(at, Visit(*at, self.anatomy.n_heads)).changes.append(one.callback)
        return list(stops.values())

    def written(self) -> list[Any]:
        """What the callbacks in force write to, each once."""
        return list({id(target): target for one in self.noted for target in one.into}.values())

    @contextmanager
    def _in_attention(self, callback: Any, layers: Sequence[int], into: Into) -> Iterator[None]:
        if self.blind:
            raise UnsupportedModelError(
                f"{self.blind}, so a trace cannot see queries and keys of whole heads: load the "
                "model with backend='local'."
            )
        path = self.anatomy.spec.attn
        with self._noted("attention", layers, path, "attention", callback, into):
            yield

    @contextmanager
    def _noted(
        self,
        place: str,
        layers: Sequence[int],
        path: str,
        side: str,
        callback: Any,
        into: Into,
    ) -> Iterator[None]:
        order, blocks = _IN_BLOCK.index(place), self.anatomy.spec.blocks
        new = []
        for layer in layers:
            whole = ".".join(filter(None, (blocks, str(layer), path)))
            new.append(Noted(order, layer, whole, side, callback, into))
        self.noted.extend(new)
        try:
            yield
        finally:
            gone = {id(one) for one in new}
            self.noted[:] = [one for one in self.noted if id(one) not in gone]
