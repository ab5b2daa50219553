"""Direct and END total effects by whole passes, for engines whose single blocks cannot be run.

The definitions themselves, one batch row a sender. Each pass holds the prompt as it is (row 0), its
corrupted twin (row 1) and the prompt once more for every sender; at END of every layer the sender
rows take their head outputs from row 0, and the sender's own from row 1. So nothing has to be kept
between passes or sent to a server but token ids, and what comes back are the asked logits.

The same estimands as `path_patching.direct_effects` and `end_total_effect`, and the same numbers up
to rounding, at the price of `senders` whole prompts a prompt instead of single tokens.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from ..models.backends import Inputs
from ..models.errors import MnemoscopeError
from ..models.hooked import HookedModel
from ..models.tokens import TokenBatch, pad
from ..models.types import Site
from .end_chain import EndChain, wide_type
from .end_sweep import Effects, Senders
from .path_patching import build_chain, single_heads

_OWN, _OTHER, _SENDERS = 0, 1, 2
"""Rows of a pass: the prompt, its corrupted twin, and where the sender rows begin."""


@dataclass(frozen=True, eq=False)
class PassChain:
    """A model whose effects are measured by whole passes."""

    model: HookedModel


def chain_for(model: HookedModel, *, seed: int = 0) -> EndChain | PassChain:
    """The fast way where the engine has the weights, whole passes where it has not.

    Raises as `build_chain`.
    """
    return build_chain(model, seed=seed) if model.capabilities.weights else PassChain(model)


@torch.no_grad()
def effects_by_passes(
    model: HookedModel,
    batch: TokenBatch,
    corrupted: TokenBatch,
    token_ids: Int[Tensor, "chain k"],
    *,
    at: Int[Tensor, "batch step"] | None = None,
    corrupted_at: Int[Tensor, "batch step"] | None = None,
    senders: Senders | None = None,
    frozen: bool = True,
    log_probs: bool = False,
    memory_mb: int = 512,
) -> Effects:
    """Logits (or log-probabilities) of `token_ids`, unpatched and per sender row.

    Chains are the rows of `batch`, or with `at` its columns row by row; `corrupted_at` are those of
    the corrupted prompts. `frozen` holds all other heads to their own outputs there (the direct
    effect); without it later layers answer (the END total effect, for one column a prompt). A pass
    stays near `memory_mb`, one sender at least. Raises `MnemoscopeError` for shapes that differ.
    """
    senders = single_heads(model) if senders is None else senders
    at = batch.ends[:, None] if at is None else at
    corrupted_at = corrupted.ends[:, None] if corrupted_at is None else corrupted_at
    if at.shape != corrupted_at.shape or len(token_ids) != at.numel():
        raise MnemoscopeError(
            f"token ids for {len(token_ids)} chains, columns {tuple(at.shape)} and corrupted "
            f"columns {tuple(corrupted_at.shape)}: give one chain for each column of each prompt."
        )
    clean, patched = [], []
    for i, ids in enumerate(token_ids.unflatten(0, at.shape)):
        pair = _Pair.of(batch, corrupted, i, at[i], corrupted_at[i])
        parts = [
            _pass(model, pair, piece, ids, frozen, log_probs)
            for piece in senders.split(_rows_at_once(model, pair, memory_mb))
        ]
        clean.append(parts[0][_OWN])
        patched.append(torch.cat([part[_SENDERS:] for part in parts]).transpose(0, 1))
    return Effects(torch.cat(clean), torch.cat(patched))


@dataclass(frozen=True, eq=False)
class _Pair:
    """A prompt and its corrupted twin, padded on the left to one width, with their columns."""

    both: TokenBatch
    columns: Int[Tensor, " step"]
    other_columns: Int[Tensor, " step"]

    @classmethod
    def of(
        cls, batch: TokenBatch, corrupted: TokenBatch, i: int, at: Tensor, other_at: Tensor
    ) -> _Pair:
        rows = [batch.row(i).tolist(), corrupted.row(i).tolist()]
        both = pad(rows)
        last = both.ids.shape[1] - 1
        return cls(
            both,
            (last - (batch.ends[i] - at)).cpu(),
            (last - (corrupted.ends[i] - other_at)).cpu(),
        )

    def rows(self, senders: int) -> TokenBatch:
        """The batch of a pass."""
        of = torch.tensor([_OWN, _OTHER, *[_OWN] * senders])
        return TokenBatch(self.both.ids[of], self.both.mask[of])


def _pass(
    model: HookedModel,
    pair: _Pair,
    senders: Bool[Tensor, "row layer head"],
    token_ids: Int[Tensor, "step k"],
    frozen: bool,
    log_probs: bool,
) -> Float[Tensor, "row_and_two step k"]:
    batch = pair.rows(len(senders)).to(model.device)
    with model.lock, ExitStack() as stack:
        for layer in range(model.anatomy.n_layers):
            here = senders[:, layer]
            if frozen or bool(here.any()):
                change = _patching(here, pair.columns, pair.other_columns, frozen)
                stack.enter_context(model.places.site(Site.Z, layer, change))
        columns = pair.columns.expand(len(batch), -1)
        inputs = Inputs(batch.ids, batch.mask.long(), batch.position_ids)
        return model.run_pass(inputs, columns, _reading(token_ids, log_probs))[0].cpu()


def _patching(
    senders: Bool[Tensor, "row head"], columns: Tensor, other_columns: Tensor, frozen: bool
) -> Callable[[Tensor], Tensor]:
    """Head outputs of the sender rows at `columns`: row 0's own (or theirs), and the sender's from
    row 1."""

    def change(z: Tensor) -> Tensor:
        own, other = z[0, columns.to(z.device)], z[1, other_columns.to(z.device)]
        here = own[None] if frozen else z[2:, columns.to(z.device)]
        new = z.clone()
        new[2:, columns.to(z.device)] = torch.where(
            senders.to(z.device)[:, None, :, None], other[None], here
        )
        return new

    return change


def _reading(token_ids: Tensor, log_probs: bool) -> Callable[[Tensor], Tensor]:
    """Of logits `[row, step, vocab]` the asked ids', in float32 or wider."""

    def read(logits: Tensor) -> Tensor:
        wide = logits.to(wide_type(logits.dtype))
        wide = wide.log_softmax(-1) if log_probs else wide
        return wide.gather(2, token_ids.to(wide.device).expand(len(wide), -1, -1))

    return read


def _rows_at_once(model: HookedModel, pair: _Pair, memory_mb: int) -> int:
    """Senders a pass: a few streams and the MLP's hidden units at every position, and logits."""
    anatomy = model.anatomy
    width = 8 * anatomy.d_model + 4 * (anatomy.d_mlp or 4 * anatomy.d_model)
    numbers = pair.both.ids.shape[1] * width + 2 * len(pair.columns) * anatomy.d_vocab
    return max(1, memory_mb * 2**20 // (4 * numbers) - _SENDERS)
