"""Let the unembedding see only the positions whose logits are asked for.

A vocabulary is often a hundred times wider than the residual stream, so logits nobody reads would
cost more memory than the pass itself.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor


@contextmanager
def unembed_only(module: Any, columns: Int[Tensor, "batch k"] | None) -> Iterator[None]:
    """Inside the block the model's logits are those of `columns`, in their order; None: all."""
    if columns is None:
        yield
        return

    pick = picking(columns)
    handle = module.get_output_embeddings().register_forward_pre_hook(
        lambda _, args: (pick(args[0]),)
    )
    try:
        yield
    finally:
        handle.remove()


def picking(columns: Int[Tensor, "batch k"]) -> Callable[[Tensor], Tensor]:
    """From `[batch, pos, width]` to the given columns of each row."""

    def pick(x: Tensor) -> Tensor:
        rows = torch.arange(x.shape[0], device=x.device)[:, None]
        return x[rows, columns.to(x.device)]

    return pick
