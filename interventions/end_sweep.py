"""The sweep itself: the residual streams of many chains and sender rows, layer by layer to END.

Chains and rows are cut into pieces that fit the memory asked for. In memory each piece goes up all
the layers by itself; on an offloaded model all pieces go up together, so that a sweep reads each
layer once.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import product
from typing import Any

import torch
from einops import einsum
from jaxtyping import Bool, Float, Int
from torch import Tensor

from ..models.anatomy import head_output_weights, part
from ..models.hooked import HookedModel
from ..models.placement import is_offloaded
from .end_chain import (
    EndChain,
    advance,
    after_blocks,
    layer_weights,
    mlp_stubbed,
    tail_weights,
    unembed_ids,
    wide_type,
)

Senders = Bool[Tensor, "row layer head"]


@dataclass(frozen=True, eq=False)
class EndStates:
    """What the sweep needs of a run: one chain a position, END unless said otherwise.

    `resid_pre` `[layer, chain, d_model]`, `z` `[layer, chain, head, d_v]`.
    """

    resid_pre: Float[Tensor, "layer chain d_model"]
    z: Float[Tensor, "layer chain head d_v"]


@dataclass(frozen=True, eq=False)
class Effects:
    """Logits (or log-probabilities) of the asked tokens, unpatched and per sender row.

    `clean` `[chain, k]`; `patched` `[chain, row, k]`. The effect of a row is `patched - clean`:
    negative where the sender's own signal spoke for the token.
    """

    clean: Float[Tensor, "chain k"]
    patched: Float[Tensor, "chain row k"]

    @property
    def change(self) -> Float[Tensor, "chain row k"]:
        """`patched - clean`."""
        return self.patched - self.clean[:, None]


def sweep(
    kind: type[Piece],
    chain: EndChain,
    original: EndStates,
    replacement: Float[Tensor, "layer chain head d_v"],
    senders: Senders,
    token_ids: Int[Tensor, "chain k"],
    log_probs: bool,
    memory_mb: int,
) -> Effects:
    """Take all pieces up the layers, each alone or all together, and read the asked tokens."""
    pieces = _pieces(kind, chain, original, replacement, senders, memory_mb)
    offloaded = is_offloaded(chain.model.module)
    groups: Iterable[list[Piece]] = [list(pieces)] if offloaded else ([one] for one in pieces)
    clean, patched = [], []
    for together in groups:
        with torch.no_grad():
            for layer in range(chain.model.anatomy.n_layers):
                with layer_weights(chain.model, layer):
                    for piece in together:
                        piece.climb(layer)
                        piece.x = piece.x.cpu() if offloaded else piece.x
            with tail_weights(chain.model):
                for piece in together:
                    ids = token_ids[piece.chains]
                    read = _readout(chain, piece.final(), ids, log_probs, memory_mb)
                    clean.append((piece.chains, read[:, 0]))
                    patched.append((piece.chains, piece.rows, read[:, 1:]))
    return _assembled(len(token_ids), len(senders), clean, patched)


@dataclass(eq=False)
class Piece:
    """Some chains and sender rows on their way up the layers."""

    chain: EndChain
    chains: slice
    rows: slice
    states: EndStates
    replacement: Float[Tensor, "layer chain head d_v"]
    senders: Senders
    memory_mb: int
    x: Float[Tensor, "chain row_plus_1 d_model"]
    """Residual streams, that of the unpatched run first."""

    def climb(self, layer: int) -> None:
        """Take the streams through one layer."""
        raise NotImplementedError

    def final(self) -> Float[Tensor, "chain row_plus_1 d_model"]:
        """The streams above all layers: row 0 unpatched, then the sender rows in their order."""
        raise NotImplementedError

    def attention(self, layer: int, rows: Senders) -> Float[Tensor, "chain row_plus_1 d_model"]:
        """`a` of the unpatched row and of the sender rows given."""
        z, new_z = self.states.z[layer], self.replacement[layer]
        return _attention_outputs(self.chain.model, layer, z, new_z, rows[:, layer])


class Recomputed(Piece):
    """MLPs and norms above a sender work on what it changed; a row begins at its first sender."""

    def climb(self, layer: int) -> None:
        first = self._first()
        begun = int((first <= layer).sum())
        fresh = self.x[:, :1].expand(-1, begun + 1 - self.x.shape[1], -1)
        self.x = torch.cat([self.x, fresh], dim=1)
        order = torch.argsort(first, stable=True)
        a = self.attention(layer, self.senders[order[:begun]])
        self.x = advance(self.chain, layer, self.x, a, self.memory_mb)

    def final(self) -> Tensor:
        order = torch.argsort(self._first(), stable=True)
        back = torch.empty_like(order).scatter_(0, order, torch.arange(len(order)))
        return torch.cat([self.x[:, :1], self.x[:, 1:][:, back.to(self.x.device)]], dim=1)

    def _first(self) -> Int[Tensor, " row"]:
        return self.senders.any(dim=2).int().argmax(dim=1)


class Frozen(Piece):
    """MLPs say what they said: a row is the unpatched stream and what its head's change adds."""

    def climb(self, layer: int) -> None:
        if layer == 0:
            empty = self.x.new_zeros((len(self.x), len(self.senders), self.x.shape[2]))
            self.x = torch.cat([self.x, empty], dim=1)
        rows = self.senders[:, layer].any(dim=1)
        a = self.attention(layer, self.senders[rows])
        clean = advance(self.chain, layer, self.x[:, :1], a[:, :1], self.memory_mb)
        x = self.states.resid_pre[layer][:, None].expand(-1, a.shape[1], -1)
        with mlp_stubbed(self.chain.model, layer):
            out = advance(self.chain, layer, x, a, self.memory_mb)
        self.x[:, :1] = clean.to(self.x.device)
        self.x[:, 1:][:, rows] = (out[:, 1:] - out[:, :1]).to(self.x.device)

    def final(self) -> Tensor:
        return torch.cat([self.x[:, :1], self.x[:, :1] + self.x[:, 1:]], dim=1)


def _attention_outputs(
    model: HookedModel, layer: int, z: Tensor, new_z: Tensor, active: Bool[Tensor, "row head"]
) -> Float[Tensor, "chain row_plus_1 d_model"]:
    """`a` of the unpatched row and of each sender row: `a + sum of its heads' (new_z - z) W_O`.

    The unpatched `a` comes from the real module; deltas are summed in float32 or wider.
    """
    o_proj = part(part(model.module, model.anatomy.spec.blocks)[layer], model.anatomy.spec.o_proj)
    device = o_proj.weight.device
    z, new_z = z.to(device), new_z.to(device)
    a = o_proj(z.flatten(1))[:, None]  # [chain, 1, d_model]
    if not len(active):
        return a
    wide = wide_type(z.dtype)
    slices = head_output_weights(o_proj, model.anatomy.n_heads).to(wide)
    delta = einsum(new_z.to(wide) - z.to(wide), slices, "c head d_v, head d_v d -> c head d")
    rows = einsum(active.to(device=device, dtype=wide), delta, "row head, c head d -> c row d")
    return torch.cat([a, (a.to(wide) + rows).to(a.dtype)], dim=1)


def _readout(
    chain: EndChain, x: Tensor, token_ids: Tensor, log_probs: bool, memory_mb: int
) -> Float[Tensor, "chain row k"]:
    """Final norm, projections, unembedding, caps and scales of the model's own forward."""
    n_rows = x.shape[1]
    flat = x.flatten(0, 1)[:, None]
    ids = token_ids.repeat_interleave(n_rows, dim=0).to(flat.device)  # [chain * row, k]
    width = chain.model.anatomy.d_vocab if log_probs else ids.shape[1] * x.shape[2]
    step = max(1, memory_mb * 2**20 // (4 * width * flat.element_size()))
    read = torch.empty(ids.shape, dtype=wide_type(flat.dtype), device=flat.device)
    for i in range(0, len(flat), step):  # into one block: a list of pieces would scatter the heap
        read[i : i + step] = _tail(chain, flat[i : i + step], ids[i : i + step], log_probs)
    return read.unflatten(0, (-1, n_rows))


def _tail(chain: EndChain, x: Tensor, ids: Tensor, log_probs: bool) -> Float[Tensor, "row k"]:
    """Logits or log-probabilities of each row's own token ids."""
    head = chain.model.module.get_output_embeddings()
    logits = after_blocks(chain, x, None if log_probs else unembed_ids(head, ids))
    logits = logits.to(wide_type(logits.dtype))
    if not log_probs:
        return logits
    return logits.log_softmax(-1).gather(1, ids.to(logits.device))


def _pieces(
    kind: type[Piece],
    chain: EndChain,
    original: EndStates,
    replacement: Tensor,
    senders: Senders,
    memory_mb: int,
) -> Iterator[Piece]:
    """Chains and rows cut such that five copies of each row's stream fit half the budget."""
    for chains, rows in _cuts(chain.model, original, senders, memory_mb):
        states = EndStates(original.resid_pre[:, chains], original.z[:, chains])
        new, x = replacement[:, chains], states.resid_pre[0][:, None]
        yield kind(chain, chains, rows, states, new, senders[rows], memory_mb, x)


def _cuts(
    model: HookedModel, states: EndStates, senders: Senders, memory_mb: int
) -> Iterator[tuple[slice, slice]]:
    row_bytes = 5 * model.anatomy.d_model * max(4, states.z.element_size())
    rows_at_once = max(2, memory_mb * 2**19 // row_bytes)
    n_chains, n_rows = states.z.shape[1], len(senders)
    row_step = min(n_rows, rows_at_once - 1)
    chain_step = max(1, rows_at_once // (row_step + 1))
    for chain, row in product(range(0, n_chains, chain_step), range(0, n_rows, row_step)):
        yield (
            slice(chain, min(n_chains, chain + chain_step)),
            slice(row, min(n_rows, row + row_step)),
        )


def _assembled(n_chains: int, n_rows: int, clean: list[Any], patched: list[Any]) -> Effects:
    first = clean[0][1]
    all_clean = first.new_empty((n_chains, first.shape[-1]))
    all_patched = first.new_empty((n_chains, n_rows, first.shape[-1]))
    for chains, values in clean:
        all_clean[chains] = values
    for chains, rows, values in patched:
        all_patched[chains, rows] = values
    return Effects(all_clean, all_patched)
