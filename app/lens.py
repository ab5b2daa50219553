"""The logit lens: what each layer's stream would say if the model stopped there.

A residual state goes straight through what the model does after its blocks (final norm,
unembedding, soft caps), by the model's own code (nostalgebraist 2020). The last row is the model's
own prediction. A lens reads early layers badly in every model: what it does not show may be there.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import polars
import torch
from jaxtyping import Float, Int
from torch import Tensor

from ..interventions.end_chain import EndChain, after_blocks
from ..models.errors import MnemoscopeError
from ..models.hooked import HookedModel
from ..models.tokens import TokenBatch
from ..models.types import Site
from .answers import token_label

_MEMORY_MB = 128


@dataclass(frozen=True, eq=False)
class Lens:
    """The last positions of a text. Rows of the arrays: the input of every block, then the last
    output; `named` holds the probability of single tokens, by name."""

    positions: tuple[int, ...]
    labels: tuple[str, ...]
    top: Int[np.ndarray, "layer pos"]
    top_text: tuple[tuple[str, ...], ...]
    probability: Float[np.ndarray, "layer pos"]
    named: Mapping[str, Float[np.ndarray, "layer pos"]]


@torch.no_grad()
def logit_lens(chain: EndChain, text: str, last: int, ids: Mapping[str, int]) -> Lens:
    """Read the `last` positions of the text; `ids` names tokens to follow through the layers.

    Work: `2 d_model d_vocab` operations a layer and position; logits are held for some states at a
    time (128 MiB). Raises `MnemoscopeError` for no positions.
    """
    if last < 1:
        raise MnemoscopeError("a lens needs at least one position to read.")
    model = chain.model
    batch = model.tokens(text)
    tokens = batch.ids.shape[1]
    positions = tuple(range(max(0, tokens - last), tokens))
    with model.lock:
        states = lens_states(model, batch, positions)
        flat = states.flatten(0, 1)
        found = [read_states(chain, piece, ids) for piece in flat.split(_at_once(model))]
    shape = (len(states), len(positions))
    best, probability = (torch.cat([one[i] for one in found]).view(shape) for i in (0, 1))
    named = torch.cat([one[2] for one in found]).view(*shape, len(ids))
    pieces = model.pieces(batch.ids[0].tolist())
    return Lens(
        positions,
        tuple(f"{i} {token_label(pieces[i])}" for i in positions),
        best.numpy(),
        tuple(tuple(map(token_label, model.pieces(row))) for row in best.tolist()),
        probability.numpy(),
        {name: named[..., i].numpy() for i, name in enumerate(ids)},
    )


def lens_table(found: Lens) -> polars.DataFrame:
    """One row a cell: `layer` (0: the embedding), `position`, `label`, `token`, `probability`."""
    layers, places = np.indices(found.probability.shape)
    return polars.DataFrame(
        {
            "layer": layers.ravel(),
            "position": np.asarray(found.positions)[places.ravel()],
            "label": [found.labels[i] for i in places.ravel()],
            "token": [token for row in found.top_text for token in row],
            "probability": found.probability.ravel().astype(np.float64),
        }
    )


def answer_table(found: Lens) -> polars.DataFrame:
    """`layer`, `answer`, `probability` of the named tokens at the last position."""
    rows = [
        {"layer": layer, "answer": f"{name} answer", "probability": float(value)}
        for name, values in found.named.items()
        for layer, value in enumerate(values[:, -1])
    ]
    schema = {"layer": polars.Int64, "answer": polars.String, "probability": polars.Float64}
    return polars.DataFrame(rows, schema=schema)


def lens_states(
    model: HookedModel, batch: TokenBatch, positions: tuple[int, ...]
) -> Float[Tensor, "layer pos d_model"]:
    """The input of every block, then the output of the last, of a batch of one."""
    at = torch.tensor([positions])
    kept = model.capture(batch, (Site.RESID_PRE, Site.RESID_POST), at=at)
    device = kept[Site.RESID_PRE, 0].device
    layers = range(model.anatomy.n_layers)
    states = [kept[Site.RESID_PRE, layer][0].to(device) for layer in layers]
    return torch.stack([*states, kept[Site.RESID_POST, layers[-1]][0].to(device)])


def _at_once(model: HookedModel) -> int:
    return max(1, _MEMORY_MB * 2**20 // (8 * model.anatomy.d_vocab))


@torch.no_grad()
def read_states(
    chain: EndChain, states: Float[Tensor, "state d_model"], ids: Mapping[str, int]
) -> tuple[Tensor, Tensor, Tensor]:
    """The best token of each state, its probability, and the probabilities of the named tokens."""
    p = after_blocks(chain, states[:, None], None).float().softmax(-1)
    best = p.max(-1)
    return best.indices.cpu(), best.values.cpu(), p[:, list(ids.values())].cpu()
