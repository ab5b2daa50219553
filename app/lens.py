"""The logit lens: what each layer's stream would say if the model stopped there.

A residual state goes straight through what the model does after its blocks (final norm,
unembedding, soft caps), by the model's own code (nostalgebraist 2020). The last row is the model's
own prediction. A lens reads early layers badly in every model: what it does not show may be there.

The control of followed tokens are prompts of the same tokens in random order: what a token gets
there it owes to which tokens are in the text, not to what they say in their order.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
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

SHUFFLES = 8
"""Random orders of the prompt's tokens."""
_MEMORY_MB = 128


@dataclass(frozen=True, eq=False)
class Lens:
    """The last positions of a text. Rows of the arrays: the input of every block, then the last
    output; `named` holds the probability of single tokens, by name, and `shuffled` the same at END
    of prompts whose tokens stand in random order: of none where the text is too short for that.
    """

    positions: tuple[int, ...]
    labels: tuple[str, ...]
    top: Int[np.ndarray, "layer pos"]
    top_text: tuple[tuple[str, ...], ...]
    probability: Float[np.ndarray, "layer pos"]
    named: Mapping[str, Float[np.ndarray, "layer pos"]]
    shuffled: Mapping[str, Float[np.ndarray, "prompt layer"]]


@torch.no_grad()
def logit_lens(chain: EndChain, text: str, last: int, ids: Mapping[str, int]) -> Lens:
    """Read the `last` positions of the text; `ids` names tokens to follow through the layers.

    Work: `2 d_model d_vocab` operations a layer and position, and one pass over the text; for the
    control of followed tokens as many passes as `SHUFFLES`, with a position each. Logits are held
    for some states at a time (128 MiB). Raises `MnemoscopeError` for no positions.
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
        shuffled = read_shuffled(chain, batch.ids[0].tolist(), ids) if ids else {}
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
        shuffled,
    )


def read_shuffled(
    chain: EndChain, prompt: Sequence[int], ids: Mapping[str, int]
) -> dict[str, Float[np.ndarray, "prompt layer"]]:
    """The named tokens at END of the prompt's tokens in random order; the first token, where
    attention rests, and END stay. No row where there is no other order."""
    model, orders = chain.model, shuffled_prompts(prompt)
    rows = []
    for order in orders:
        states = lens_states(model, model.batch([order]), (len(order) - 1,))[:, 0]
        pieces = [read_states(chain, part, ids)[2] for part in states.split(_at_once(model))]
        rows.append(torch.cat(pieces).numpy())
    found = np.stack(rows) if rows else np.zeros((0, model.anatomy.n_layers + 1, len(ids)))
    return {name: found[..., i] for i, name in enumerate(ids)}


def shuffled_prompts(prompt: Sequence[int], draws: int = SHUFFLES) -> list[list[int]]:
    """The prompt's tokens in other orders, random of seed 0, the first and the last in their
    places; none where there is no other order."""
    inner = list(prompt[1:-1])
    if len(set(inner)) < 2:
        return []
    random = np.random.default_rng(0)
    orders: list[list[int]] = []
    while len(orders) < draws:
        order = random.permutation(inner).tolist()
        if order != inner:
            orders.append([prompt[0], *order, prompt[-1]])
    return orders


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


def shuffled_table(found: Lens) -> polars.DataFrame:
    """`layer`, `answer`, and over the shuffled prompts `mean`, `low` and `high` of the probability
    of the named tokens at END; no rows where there are no such prompts."""
    rows = [
        {"layer": layer, "answer": f"{name} answer"}
        | {"mean": float(p.mean()), "low": float(p.min()), "high": float(p.max())}
        for name, prompts in found.shuffled.items()
        if len(prompts)
        for layer, p in enumerate(prompts.T)
    ]
    ends = dict.fromkeys(("mean", "low", "high"), polars.Float64)
    return polars.DataFrame(rows, schema={"layer": polars.Int64, "answer": polars.String, **ends})


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
