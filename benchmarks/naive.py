"""The naive way: one full forward pass a head, with plain hooks and nothing of the library's.

Written as fast as its definition allows: the frozen `z` are handed over without a copy, and only
END is multiplied with the unembedding.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager

import torch
from jaxtyping import Float
from mnemoscope.models import HeadId, HookedModel
from mnemoscope.models.anatomy import part
from mnemoscope.models.tokens import TokenBatch
from torch import Tensor

Change = Callable[[Tensor], Tensor | None]


@torch.no_grad()
def plain_pass(model: HookedModel, batch: TokenBatch) -> Float[Tensor, "batch d_vocab"]:
    """The Hugging Face forward pass itself; logits at END of prompts padded on the left."""
    return model.module(
        input_ids=batch.ids,
        attention_mask=batch.mask.long(),
        position_ids=batch.position_ids,
        use_cache=False,
        logits_to_keep=1,
    ).logits[:, -1]


def keep_z(model: HookedModel, batch: TokenBatch) -> dict[int, Tensor]:
    """Inputs of all output projections at all positions, `[batch, pos, head * d_v]` a layer."""
    kept: dict[int, Tensor] = {}

    def keep(layer: int) -> Change:
        def store(z: Tensor) -> None:
            kept[layer] = z

        return store

    with _changed(model, {layer: keep(layer) for layer in range(model.anatomy.n_layers)}):
        plain_pass(model, batch)
    return kept


def frozen_pass(
    model: HookedModel,
    batch: TokenBatch,
    clean: Mapping[int, Tensor],
    replacement: Float[Tensor, "layer batch head d_v"],
    head: HeadId,
) -> Float[Tensor, "batch d_vocab"]:
    """Direct effect of one head: every `z` frozen to `clean`, the head's own replaced at END."""
    patched = {**clean, head.layer: _with_head(model, clean[head.layer], replacement, head)}
    with _changed(model, {layer: lambda _, z=z: z for layer, z in patched.items()}):
        return plain_pass(model, batch)


def patched_pass(
    model: HookedModel,
    batch: TokenBatch,
    replacement: Float[Tensor, "layer batch head d_v"],
    head: HeadId,
) -> Float[Tensor, "batch d_vocab"]:
    """END total effect of one head: its `z` replaced at END, everything after it recomputed."""
    with _changed(model, {head.layer: lambda z: _with_head(model, z, replacement, head)}):
        return plain_pass(model, batch)


def _with_head(model: HookedModel, z: Tensor, replacement: Tensor, head: HeadId) -> Tensor:
    width = model.anatomy.d_v
    new = z.clone()
    new[:, -1, head.head * width : (head.head + 1) * width] = replacement[head.layer, :, head.head]
    return new


@contextmanager
def _changed(model: HookedModel, changes: Mapping[int, Change]) -> Iterator[None]:
    """Give each layer's output projection what its change returns (None leaves it alone)."""

    def hook(change: Change) -> Callable[..., tuple[Tensor] | None]:
        def before(_: object, args: tuple[Tensor]) -> tuple[Tensor] | None:
            new = change(args[0])
            return None if new is None else (new,)

        return before

    blocks = part(model.module, model.anatomy.spec.blocks)
    handles = [
        part(blocks[layer], model.anatomy.spec.o_proj).register_forward_pre_hook(hook(change))
        for layer, change in changes.items()
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
