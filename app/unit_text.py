"""What one MLP unit does over a text, token by token."""

from __future__ import annotations

import numpy as np
import polars
import torch
from jaxtyping import Float
from torch import Tensor

from ..models.hooked import HookedModel
from ..models.hooks import site_hook
from ..models.types import NeuronId
from .answers import token_label


@torch.no_grad()
def unit_over_text(
    model: HookedModel, text: str, unit: NeuronId
) -> tuple[list[str], Float[np.ndarray, " token"]]:
    """The tokens as they are shown, and the unit's value at each, float32.

    Memory: one forward pass, and one number a token. Raises `UnitOutOfRangeError` for a unit that
    the model lacks, `PromptError` for an empty or too long text.
    """
    model.anatomy.check_neuron(unit)
    batch = model.tokens(text)
    kept: list[Tensor] = []

    def keep(x: Tensor) -> None:
        kept.append(x.reshape(-1, x.shape[-1])[:, unit.index].float().cpu())

    with model.lock, site_hook(model.module, model.anatomy, unit.site, unit.layer, keep):
        model.forward(batch, batch.ends[:, None])
    pieces = model.pieces(batch.ids[0].tolist())
    return [token_label(piece) for piece in pieces], kept[0].numpy()


def token_table(tokens: list[str], values: Float[np.ndarray, " token"]) -> polars.DataFrame:
    """`position`, `token`, `activation`, the largest size first."""
    order = np.argsort(-np.abs(values), kind="stable")
    return polars.DataFrame(
        {
            "position": order,
            "token": [tokens[i] for i in order],
            "activation": values[order].astype(np.float64),
        }
    )
