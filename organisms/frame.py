"""A bare transformer with named, mutually orthogonal subspaces, on which heads are set by hand.

Every head is two linear associative memories, sums of outer products of stored pairs
(the construction of JuICE, arXiv 2503.10996, theory part):

    score(q, k) = sum_r <x_q, match.read[r]> <x_k, match.write[r]>      which token it attends to
    output      = sum_r <x_k, move.read[r]> move.write[r]               what that token adds

so a head is written down as data (`HeadPlan`) and `plant` turns it into query, key, value and
output weights: pair r of `match` becomes one query and one key coordinate, pair r of `move` one
value coordinate and one row of the output projection. A head holds at most as many pairs of each
as it has dimensions.

The residual stream is cut into blocks, one a named subspace (`lay_out`). In its block each item
owns a code, one row of a cosine basis: codes have length 1, mean 0 and are orthogonal. `CONSTANT`
is one more direction, in which every token carries the same large value. Mean 0 and that large
constant make each LayerNorm the identity, up to a factor within half a per cent of 1: its weight
undoes the scale. So what one head writes hardly touches what the next one reads elsewhere.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor, nn
from transformers import GPT2Config, GPT2LMHeadModel

from ..models.errors import MnemoscopeError
from ..models.types import HeadId

N_LAYERS, N_HEADS, D_HEAD = 2, 8, 64
D_MODEL = N_HEADS * D_HEAD
N_POSITIONS = 2 * D_HEAD
"""Longest text in tokens; twice the number of position codes, see `position_codes`."""

SHARPNESS = 12.0
"""Attention score of one matched pair: of two tokens that differ by half a match the better one
gets 400 times the attention."""

NOISE_LENGTH = 0.015
"""Length of what a noise head moves from one token; codes have length 1."""

_CONSTANT_LENGTH = 30.0
_TYPICAL_LENGTH = (_CONSTANT_LENGTH**2 + 4.0) ** 0.5  # the constant and about four codes
_CONSTANT_DIRECTION = torch.zeros(1, D_MODEL, dtype=torch.float64)
_CONSTANT_DIRECTION[0, :2] = torch.tensor([0.5**0.5, -(0.5**0.5)])

CONSTANT = _CONSTANT_DIRECTION / _CONSTANT_LENGTH
"""Reads 1 at every token, `[1, d_model]`; use it as a `read` or `write` where a bias is meant."""


@dataclass(frozen=True, eq=False)
class Association:
    """The linear associative memory `sum_r outer(read[r], write[r])`."""

    read: Float[Tensor, "pair d_model"]
    write: Float[Tensor, "pair d_model"]

    def __post_init__(self) -> None:
        if self.read.shape != self.write.shape:
            raise MnemoscopeError(
                f"an association pairs rows one to one, got {len(self.read)} and {len(self.write)}."
            )


@dataclass(frozen=True)
class HeadPlan:
    """What a head attends to (`match`: query code, key code) and moves (`move`: found, written)."""

    match: tuple[Association, ...]
    move: tuple[Association, ...]


def lay_out(sizes: Mapping[str, int]) -> dict[str, Float[Tensor, "item d_model"]]:
    """Codes of each named subspace: `sizes[name]` rows of length 1 and mean 0, all orthogonal.

    Raises `MnemoscopeError` when the subspaces together are wider than the residual stream.
    """
    needed = 2 + sum(size + 1 for size in sizes.values())
    if needed > D_MODEL:
        raise MnemoscopeError(
            f"these subspaces need {needed} dimensions and the residual stream has {D_MODEL}: "
            "use fewer words."
        )
    codes, start = {}, 2
    for name, size in sizes.items():
        codes[name] = torch.zeros(size, D_MODEL, dtype=torch.float64)
        codes[name][:, start : start + size + 1] = _cosine_codes(size)
        start += size + 1
    return codes


def _cosine_codes(size: int) -> Float[Tensor, "item dim"]:
    """Rows 1 to `size` of the orthonormal cosine basis of `size + 1` points; row 0 is the mean."""
    n = size + 1
    row, point = torch.arange(1, n).double()[:, None], torch.arange(n).double()
    return (2 / n) ** 0.5 * torch.cos(torch.pi / n * row * (point + 0.5))


def position_codes(basis: Float[Tensor, "half d_model"]) -> Float[Tensor, "position d_model"]:
    """Codes of all positions from half as many directions: the second half is the negative of the
    first, so that a shift by one is a single orthogonal map (see `offset_match`)."""
    return torch.cat([basis, -basis])


def offset_match(basis: Float[Tensor, "half d_model"], offset: int) -> Association:
    """Query position p matches key position p - `offset` (0 < offset < number of directions).

    The first `offset` positions have no such key and spread their attention evenly.
    """
    earlier = torch.cat([-basis[-offset:], basis[:-offset]])
    return Association(basis * SHARPNESS, earlier)


def wave_codes(
    basis: Float[Tensor, "twice d_model"], positions: int
) -> Float[Tensor, "position d_model"]:
    """Codes of any number of positions: a cosine and a sine a pair of directions, length 1.

    Unlike those of `position_codes` they are only nearly orthogonal: with 60 pairs or more, any two
    codes of a thousand positions have a product below 0.3.
    """
    angles = torch.arange(positions).double()[:, None] * _frequencies(len(basis) // 2)
    waves = torch.stack([angles.cos(), angles.sin()], dim=-1).flatten(1)
    return waves @ basis / (len(basis) // 2) ** 0.5


def wave_match(basis: Float[Tensor, "twice d_model"], offset: int, score: float) -> Association:
    """Query position p matches key position p - `offset` with this score; codes: `wave_codes`."""
    turn = offset * _frequencies(len(basis) // 2)[:, None]
    cosine, sine = basis[::2], basis[1::2]
    ahead = torch.stack(
        [turn.cos() * cosine - turn.sin() * sine, turn.sin() * cosine + turn.cos() * sine], dim=1
    )
    return Association(basis * score, ahead.flatten(0, 1))


def _frequencies(n: int) -> Float[Tensor, " n"]:
    """Spread over 0 to pi without a pattern that a lag could meet: cubes times the golden ratio."""
    return torch.pi * torch.remainder(torch.arange(1, n + 1).double() ** 3 * (5**0.5 - 1) / 2, 1.0)


def bare_module(
    token_codes: Float[Tensor, "word d_model"],
    positions: Float[Tensor, "position d_model"],
    unembedding: Float[Tensor, "word d_model"],
    pad_id: int,
    seed: int,
    *,
    n_layers: int = N_LAYERS,
    n_heads: int = N_HEADS,
) -> GPT2LMHeadModel:
    """A float64 GPT-2 in eval mode with these embeddings whose heads are all noise.

    `n_heads` must divide `D_MODEL`; the heads are `D_MODEL / n_heads` wide. The MLPs have random
    input weights and zero output weights: neurons fire and write nothing. Input and output
    embeddings are not tied. The global random state is left as it was.
    """
    config = _config(len(token_codes), len(positions), pad_id, n_layers, n_heads)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        module = GPT2LMHeadModel(config).double().eval()
    lm = module.transformer
    with torch.no_grad():
        lm.wte.weight.copy_(token_codes + _CONSTANT_DIRECTION * _CONSTANT_LENGTH)
        lm.wpe.weight.copy_(positions)
        module.lm_head.weight.copy_(unembedding)
        for norm in [m for m in module.modules() if isinstance(m, nn.LayerNorm)]:
            norm.weight.fill_(_TYPICAL_LENGTH / D_MODEL**0.5)
        for layer, block in enumerate(lm.h):
            block.mlp.c_proj.weight.zero_()
            for head in range(n_heads):
                drawn = torch.Generator().manual_seed((seed * n_layers + layer) * n_heads + head)
                plant(module, HeadId(layer, head), _noise_plan(drawn, D_MODEL // n_heads))
    return module


def _config(n_words: int, positions: int, pad_id: int, n_layers: int, n_heads: int) -> GPT2Config:
    return GPT2Config(
        vocab_size=n_words,
        n_positions=positions,
        n_embd=D_MODEL,
        n_layer=n_layers,
        n_head=n_heads,
        n_inner=D_HEAD,
        resid_pdrop=0.0,
        embd_pdrop=0.0,
        attn_pdrop=0.0,
        bos_token_id=None,
        eos_token_id=None,
        pad_token_id=pad_id,
        tie_word_embeddings=False,
        attn_implementation="sdpa",
    )


def _noise_plan(generator: torch.Generator, d_head: int) -> HeadPlan:
    """Random associations that neither read nor write the constant direction."""

    def rows() -> Float[Tensor, "pair d_model"]:
        drawn = torch.randn(d_head, D_MODEL, generator=generator, dtype=torch.float64)
        drawn[:, :2] = 0
        drawn[:, 2:] -= drawn[:, 2:].mean(dim=1, keepdim=True)
        return drawn / D_MODEL**0.5

    gain = (D_MODEL / 2) ** 0.5  # a token's two codes then give a query coordinate of about 1
    match = Association(rows() * gain, rows() * gain / d_head**0.5)
    move = Association(rows() * gain, rows() * NOISE_LENGTH / d_head**0.5)
    return HeadPlan((match,), (move,))


def plant(module: GPT2LMHeadModel, head: HeadId, plan: HeadPlan) -> None:
    """Overwrite the weights of one head with a plan; its unused coordinates become zero.

    Raises `MnemoscopeError` when the plan stores more pairs than the head has dimensions.
    """
    attn = module.transformer.h[head.layer].attn
    columns = slice(head.head * attn.head_dim, (head.head + 1) * attn.head_dim)
    query, key = _stack(plan.match, attn.head_dim)
    value, output = _stack(plan.move, attn.head_dim)
    with torch.no_grad():
        w_q, w_k, w_v = attn.c_attn.weight.split(D_MODEL, dim=1)  # Conv1D: [in, out]
        w_q[:, columns] = query.T / attn.scaling
        w_k[:, columns] = key.T
        w_v[:, columns] = value.T
        attn.c_proj.weight[columns] = output


def _stack(memory: Sequence[Association], d_head: int) -> tuple[Tensor, Tensor]:
    """All pairs of several associations as `[d_head, d_model]`, filled up with zero rows."""
    read = torch.cat([association.read for association in memory])
    write = torch.cat([association.write for association in memory])
    if len(read) > d_head:
        raise MnemoscopeError(
            f"the plan stores {len(read)} pairs and a head has {d_head} dimensions: use fewer "
            "facts, or two heads."
        )
    blank = torch.zeros(d_head - len(read), D_MODEL, dtype=torch.float64)
    return torch.cat([read, blank]), torch.cat([write, blank])
