"""The small types that keep the usual mistakes out: which head, which neuron, which place.

`HeadId` is always a *query* head. Under grouped-query attention several query heads share one
`KVHeadId`; the two are different types so that one cannot be passed for the other.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from enum import StrEnum

from .errors import MnemoscopeError


class Site(StrEnum):
    """A place in the computation, defined by an equation (docs/sites.md) and tested against it.

    The names are TransformerLens's; `models.transformer_lens.hook_name` gives the exact hook.
    """

    RESID_PRE = "resid_pre"
    """Input of block i, `[batch, pos, d_model]`."""
    RESID_MID = "resid_mid"
    """Residual stream between attention and MLP, `[batch, pos, d_model]`; absent in parallel
    blocks."""
    RESID_POST = "resid_post"
    """Output of block i, `[batch, pos, d_model]`."""
    Z = "z"
    """Head outputs before the output projection, `[batch, pos, head, d_v]`."""
    ATTN_OUT = "attn_out"
    """Output of the attention output projection, before any post-norm or residual scale."""
    MLP_OUT = "mlp_out"
    """Output of the MLP (or expert layer), before any post-norm or residual scale."""
    NEURON = "neuron"
    """MLP hidden units after the gate: the input of the down projection, `[batch, pos, neuron]`."""
    GATE_PRE = "gate_pre"
    """Output of the gate projection, before its nonlinearity, `[batch, pos, neuron]`; gated MLPs
    only."""
    UP = "up"
    """Output of the up projection, which the gate multiplies, `[batch, pos, neuron]`; gated MLPs
    only."""
    ROT_Q = "rot_q"
    """Queries as scored: after bias, q-norm and rotary, `[batch, pos, head, d_head]`."""
    ROT_K = "rot_k"
    """Keys as scored, `[batch, pos, kv_head, d_head]`."""
    V = "v"
    """Values, `[batch, pos, kv_head, d_v]`."""


_HEAD_TEXT = re.compile(r"L?(\d+)[.:]H?(\d+)", re.IGNORECASE)


@dataclass(frozen=True, order=True, slots=True)
class HeadId:
    """A query head, zero-based. Written `L12.H5`; `12:5` and `12.5` are read too."""

    layer: int
    head: int

    def __str__(self) -> str:
        return f"L{self.layer}.H{self.head}"

    @classmethod
    def parse(cls, text: str) -> HeadId:
        """Read one head, for example `L12.H5` or `12:5`. Raises `MnemoscopeError` otherwise."""
        match = _HEAD_TEXT.fullmatch(text.strip())
        if match is None:
            raise MnemoscopeError(
                f"cannot read {text!r} as a head: write layer:head, for example 12:5 or L12.H5."
            )
        return cls(int(match[1]), int(match[2]))


def parse_heads(text: str) -> tuple[HeadId, ...]:
    """Read a comma-separated list such as `12:5,14:3`; refuses an empty list and duplicates."""
    heads = tuple(HeadId.parse(part) for part in text.split(",") if part.strip())
    if not heads:
        raise MnemoscopeError("no heads given: write for example --heads 12:5,14:3.")
    return unique_heads(heads)


def unique_heads(heads: Iterable[HeadId]) -> tuple[HeadId, ...]:
    """The heads in order; raises `MnemoscopeError` when one is named twice."""
    heads = tuple(heads)
    twice = sorted({head for head in heads if heads.count(head) > 1})
    if twice:
        raise MnemoscopeError(f"heads named twice: {', '.join(map(str, twice))}. Name each once.")
    return heads


@dataclass(frozen=True, order=True, slots=True)
class KVHeadId:
    """A key/value head, shared by `n_heads // n_kv_heads` query heads. Written `L12.KV1`."""

    layer: int
    kv_head: int

    def __str__(self) -> str:
        return f"L{self.layer}.KV{self.kv_head}"


@dataclass(frozen=True, order=True, slots=True)
class NeuronId:
    """One coordinate of an MLP at a named site: a hidden unit (`Site.NEURON` unless said
    otherwise), its gate or up projection, or a dimension of `Site.MLP_OUT`."""

    layer: int
    index: int
    site: Site = Site.NEURON

    def __str__(self) -> str:
        return f"L{self.layer}.N{self.index}"


@dataclass(frozen=True, order=True, slots=True)
class TokenSpan:
    """Tokens `start <= i < stop` of a text, counted from its first real (not padding) token."""

    start: int
    stop: int

    def __post_init__(self) -> None:
        if not 0 <= self.start < self.stop:
            raise MnemoscopeError(f"a span needs 0 <= start < stop, got {self.start}:{self.stop}.")
