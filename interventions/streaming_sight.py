"""Which keys a query sees, as ranges of positions and as masks."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from jaxtyping import Bool, Int
from torch import Tensor

Ranges = tuple[range, ...]
"""Positions in ascending order, as ranges that do not touch."""


@dataclass(frozen=True)
class Sight:
    """A query sees the first `sink` keys of the sequence and the last `recent` (None: all), none of
    them `window` or more tokens back (None: no window). Its own key counts."""

    sink: int = 0
    recent: int | None = None
    window: int | None = None

    def past(self, query: int) -> Ranges:
        """Positions before `query` that it sees. What it does not see no later query will."""
        edge = 0 if self.window is None else max(0, query - self.window + 1)
        late = edge if self.recent is None else max(edge, query - self.recent + 1)
        first = range(edge, min(self.sink, late))
        if first and first.stop == late:
            return (range(edge, query),)
        return tuple(r for r in (first, range(late, query)) if r)

    def visible(
        self, queries: Int[Tensor, " query"], keys: Int[Tensor, " key"]
    ) -> Bool[Tensor, "query key"]:
        """The same as a mask; later keys are hidden."""
        own = queries[:, None]
        seen = keys > own - self.recent if self.recent is not None else keys <= own
        if self.recent is not None:
            seen |= keys < self.sink
            seen &= keys <= own
        if self.window is not None:
            seen &= keys > own - self.window
        return seen


@dataclass(frozen=True, eq=False)
class Masks:
    """The masks of one forward pass, each made once for all layers that need it."""

    additive: bool
    """For eager attention: 0 and the lowest number; for SDPA Boolean, where None means causal."""
    made: dict[tuple[object, ...], Tensor | None] = field(default_factory=dict)

    def of(self, held: Ranges, first: int, sees: Sight, query: Tensor) -> Tensor | None:
        """`[1, 1, query, key]` for the `query` tensor `[batch, head, pos, d]`, whose first position
        is `first`, and keys at the positions `held`."""
        key = (held, first, sees, query.shape[2], query.device, query.dtype)
        if key not in self.made:
            self.made[key] = self._make(held, first, sees, query)
        return self.made[key]

    def _make(self, held: Ranges, first: int, sees: Sight, query: Tensor) -> Tensor | None:
        stop = first + query.shape[2]
        if not self.additive and _needs_none(held, first, stop, sees):
            return None
        keys = torch.cat([torch.arange(r.start, r.stop, device=query.device) for r in held])
        visible = sees.visible(torch.arange(first, stop, device=query.device), keys)[None, None]
        if not self.additive:
            return visible
        lowest = torch.finfo(query.dtype).min
        return torch.zeros_like(visible, dtype=query.dtype).masked_fill_(~visible, lowest)


def appended(held: Ranges, new: range) -> Ranges:
    """`held` and then `new`, joined where they touch."""
    if held and held[-1].stop == new.start:
        return (*held[:-1], range(held[-1].start, new.stop))
    return (*held, new)


def cells_of(held: Ranges, wanted: Ranges) -> list[tuple[slice, range]]:
    """Where the wanted positions are among the held ones: cells, and the positions in them."""
    found: list[tuple[slice, range]] = []
    offset = 0
    for have in held:
        for want in wanted:
            both = range(max(have.start, want.start), min(have.stop, want.stop))
            if both:
                start = offset + both.start - have.start
                found.append((slice(start, start + len(both)), both))
        offset += len(have)
    return found


def _needs_none(held: Ranges, first: int, stop: int, sees: Sight) -> bool:
    """One query that sees all that is held, or the causal mask from the first token on."""
    if stop - first == 1:
        return held == appended(sees.past(first), range(first, stop))
    reach = min(stop if limit is None else limit for limit in (sees.recent, sees.window))
    return first == 0 and reach >= stop
