"""Copy suppression: who looks at a token that is about to be said, and speaks against it?

A head that attends to the needle may lower its logit; scores of attention count it as retrieval.
After McDougall et al. (2023, arXiv 2310.04625), for row t and an earlier token v that is among the
`top` tokens predicted by the residual stream right before the layer (read by the model's own final
norm and unembedding):

    score = - sum_j p_tj u_v W_O v_j     over the earlier places j of such tokens, in logits

with `u_v` the direction that raises v's logit at row t, all norms at the run's own scale
(`interventions.logit_directions`). Positive suppresses; a head that copies what is predicted
already is negative. The row's own token is left out: a tied unembedding predicts it in the first
layers, whatever comes next.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from ..data.neutral import neutral_passages
from ..interventions.end_chain import EndChain, after_blocks
from ..interventions.logit_directions import logit_directions
from ..models.errors import MnemoscopeError
from ..models.hooked import Captured, HookedModel
from ..models.hooks import site_hook
from ..models.tokens import TokenBatch, encode
from ..models.types import Site
from .elicitation import Progress, silent
from .retrieval_statistics import HeadStatistics, summarise_scores

_NUMBERS = 2**24  # of one tensor at a time: 64 MiB in float32


@dataclass(frozen=True, eq=False)
class CopySuppression:
    """Means over a text's rows that have a predicted earlier token, `[text, layer, head]`, float32.

    NaN where a text has no such row in a layer; `rows` `[text, layer]` says how many it has.
    """

    score: Float[np.ndarray, "text layer head"]
    """What the head takes off the logits of predicted earlier tokens."""
    attention: Float[np.ndarray, "text layer head"]
    """Its attention to them."""
    rows: Int[np.ndarray, "text layer"]
    top: int

    def statistics(self, *, draws: int = 2000, seed: int = 0) -> HeadStatistics:
        """Mean scores with intervals over texts, and p and q that a head suppresses at all."""
        return summarise_scores(self.score, range(len(self.score)), draws=draws, seed=seed)


def measure_copy_suppression(
    chain: EndChain,
    texts: Sequence[Sequence[int]],
    *,
    positions: Sequence[Sequence[int]] | None = None,
    top: int = 10,
    progress: Progress = silent,
) -> CopySuppression:
    """Score all heads on texts given as token ids (`neutral_rows` has some).

    `positions` names the rows of each text that count, by default all; a text is the unit that
    errors are clustered by. Cost a text: two or more forward passes (as many as keep the attention
    rows of some layers under 64 MiB), the unembedding of every layer's stream, and a direction for
    each pair of a row and a predicted earlier token.

    Raises `MnemoscopeError` without texts, or positions that do not fit, or a `top` out of range,
    and `UnsupportedModelError` for post-LN models.
    """
    asked = [range(len(text)) for text in texts] if positions is None else list(positions)
    _check(chain.model, texts, asked, top)
    anatomy = chain.model.anatomy
    shape = (len(texts), anatomy.n_layers, anatomy.n_heads)
    score, attention = (np.full(shape, np.nan, dtype=np.float32) for _ in range(2))
    rows = np.zeros(shape[:2], dtype=np.int64)
    for i, (text, places) in enumerate(zip(texts, asked, strict=True)):
        sums, counts = _read(chain, text, torch.tensor(list(places)), top)
        rows[i] = counts.numpy()
        with np.errstate(invalid="ignore", divide="ignore"):
            score[i], attention[i] = sums.cpu().numpy() / rows[i][:, None]
        progress(i + 1, len(texts))
    return CopySuppression(score, attention, rows, top)


def neutral_rows(model: HookedModel, longest: int = 256) -> list[list[int]]:
    """The package's neutral passages as token ids, each cut after `longest` tokens."""
    return [encode(model.text_tokenizer, text)[:longest] for text in neutral_passages()]


# -- one text -------------------------------------------------------------------------------------


@torch.no_grad()
def _read(
    chain: EndChain, text: Sequence[int], asked: Int[Tensor, " row"], top: int
) -> tuple[Float[Tensor, "two layer head"], Int[Tensor, " layer"]]:
    """Sums over rows of suppression and attention, and how many rows each layer has."""
    model = chain.model
    batch = model.batch([list(text)])
    captured, final = _run(model, batch)
    predicted = _predicted(chain, captured, batch.ids[0], asked, top)  # [layer, row, key]
    row, key = (predicted.any(0).cpu()).nonzero(as_tuple=True)  # a source: who reads which key
    sums = torch.zeros(2, model.anatomy.n_layers, model.anatomy.n_heads)
    step = max(1, _NUMBERS // (model.anatomy.n_layers * model.anatomy.n_heads * model.anatomy.d_v))
    weights = _weights(model, batch, row, key)
    for first in range(0, len(row), step):
        some = slice(first, first + step)
        write = _writes(chain, captured, final, batch.ids[0], row[some], key[some])
        counts = predicted[:, row[some], key[some]].cpu()[..., None]
        weight = weights[:, some] * counts
        sums += torch.stack([-(weight * write).sum(1), weight.sum(1)])
    return sums, predicted.any(-1).sum(-1).cpu()


def _run(model: HookedModel, batch: TokenBatch) -> tuple[Captured, Float[Tensor, "row d_model"]]:
    """Streams, head outputs and values of every layer, and the last residual stream."""
    kept: list[Tensor] = []
    last = model.anatomy.n_layers - 1
    with (
        model.lock,
        site_hook(model.module, model.anatomy, Site.RESID_POST, last, lambda x: kept.append(x[0])),
    ):
        captured = model.capture(batch, (Site.RESID_PRE, Site.Z, Site.V), at="all")
    return captured, kept[0]


def _predicted(
    chain: EndChain,
    captured: Captured,
    ids: Int[Tensor, " pos"],
    asked: Int[Tensor, " row"],
    top: int,
) -> Bool[Tensor, "layer row key"]:
    """Which earlier tokens each layer's stream predicts at each asked row, itself left out."""
    device = ids.device
    here = torch.zeros(len(ids), len(ids), dtype=torch.bool, device=device)
    here[asked.to(device)] = True
    here = here.tril(-1) & (ids[:, None] != ids)
    layers = []
    step = max(1, _NUMBERS // chain.model.anatomy.d_vocab)
    for layer in range(chain.model.anatomy.n_layers):
        stream = captured[Site.RESID_PRE, layer][0]
        found = [
            after_blocks(chain, piece[:, None], None).topk(top).indices
            for piece in stream.split(step)
        ]
        highest = torch.cat(found).to(device)  # [row, top]
        layers.append((highest[:, :, None] == ids).any(1) & here)
    return torch.stack(layers)


def _weights(
    model: HookedModel, batch: TokenBatch, row: Int[Tensor, " source"], key: Int[Tensor, " source"]
) -> Float[Tensor, "layer source head"]:
    """Attention weights of the sources, some layers at a time."""
    if len(row) == 0:
        return torch.zeros(model.anatomy.n_layers, 0, model.anatomy.n_heads)
    queries, at = row.unique(return_inverse=True)
    n_layers, width = model.anatomy.n_layers, batch.ids.shape[1]
    step = max(1, _NUMBERS // (model.anatomy.n_heads * len(queries) * width))
    parts = [
        model.rows(batch, queries[None], layers=range(first, min(first + step, n_layers)))
        for first in range(0, n_layers, step)
    ]
    return torch.cat([part[:, 0, :, at, key].transpose(1, 2).cpu() for part in parts])


def _writes(
    chain: EndChain,
    captured: Captured,
    final: Float[Tensor, "row d_model"],
    ids: Int[Tensor, " pos"],
    row: Int[Tensor, " source"],
    key: Int[Tensor, " source"],
) -> Float[Tensor, "layer source head"]:
    """`u_v W_O v_j` of every source: what its key's value at weight 1 adds to its token's logit."""
    model = chain.model
    z = captured.stack(Site.Z)[:, 0, row]
    directions = logit_directions(chain, final[row], z, ids[key]).of_heads(model)
    values = captured.stack(Site.V)[:, 0, key].repeat_interleave(model.anatomy.heads_per_kv, dim=2)
    return (directions * values.to(directions)).sum(-1).float().cpu()


def _check(
    model: HookedModel,
    texts: Sequence[Sequence[int]],
    positions: Sequence[Sequence[int]],
    top: int,
) -> None:
    if not texts or len(positions) != len(texts):
        raise MnemoscopeError(
            f"{len(texts)} texts and positions for {len(positions)}: give at least one text, and "
            "one list of positions a text."
        )
    for text, places in zip(texts, positions, strict=True):
        if not len(places) or not set(places) <= set(range(len(text))):
            raise MnemoscopeError(
                f"positions {list(places)[:5]} do not fit a text of {len(text)} tokens: name some, "
                f"from 0 to {len(text) - 1}."
            )
    if not 1 <= top <= model.anatomy.d_vocab:
        raise MnemoscopeError(
            f"top={top} predicted tokens: use 1 to {model.anatomy.d_vocab}, the vocabulary."
        )
