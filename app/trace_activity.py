"""Inside the model while it says a span: which heads and neurons write more than they usually do.

The positions are those that *predict* the span's tokens. What a head or an MLP unit writes there is
held against what it writes on neutral text; beside it stands how well the model predicts the span
by itself. Activity is correlation: nothing here says that a unit causes the span.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import polars
import torch
from jaxtyping import Float
from torch import Tensor

from ..data.neutral import neutral_passages
from ..interventions.head_means import head_write_norms
from ..interventions.neuron_ablation import write_norms, write_size
from ..models.anatomy import head_output_weights, part
from ..models.errors import MnemoscopeError
from ..models.hooked import HookedModel
from ..models.placement import materialised
from ..models.types import HeadId, NeuronId, Site, TokenSpan
from ..probes.index_spelling import SpelledText

SINK = 4
"""First tokens of the context, where much attention rests whatever is said."""


@dataclass(frozen=True, eq=False)
class Usual:
    """What heads and MLP units write on neutral text; no units where the model names none."""

    heads: Float[np.ndarray, "layer head"]
    units: Float[np.ndarray, "layer unit"] | None


class Said(NamedTuple):
    """Token ids that the model reads, and which of them are the span."""

    ids: tuple[int, ...]
    span: TokenSpan


@dataclass(frozen=True, eq=False)
class Activity:
    """`heads` and `units` by how much more they write on the span than usual, most first.

    Columns `layer`, `head` or `unit`, `write` and `usual` (mean length of what is written into the
    residual stream), `times` (their ratio), of heads also `span`: the mean attention on the span's
    own tokens so far, and `before`, where there is any: on the text before the span, without its
    first four tokens.
    `certainty` is the mean probability of the span's tokens, `greedy` the share of them that the
    model would choose, of `tokens` tokens.
    """

    heads: polars.DataFrame
    units: polars.DataFrame
    certainty: float
    greedy: float
    tokens: int


def usual_writes(model: HookedModel) -> Usual:
    """Of twelve paragraphs of neutral text."""
    texts = neutral_passages()
    units = write_size(model, texts).numpy() if _has_units(model) else None
    return Usual(head_write_norms(model, texts), units)


def said_span(
    model: HookedModel, before: Sequence[int], spelled: SpelledText, start: int, stop: int
) -> Said:
    """The ids `before`, then the text up to the end of characters `start` to `stop` of it.

    What does not fit the context is cut at the front. Raises `MnemoscopeError` where no token of
    the span has one before it, or the span alone does not fit.
    """
    inside = np.flatnonzero((spelled.starts < stop) & (spelled.stops > start))
    if not len(inside):
        raise MnemoscopeError("no token of the model lies in this span: choose another one.")
    first, last = len(before) + int(inside[0]), len(before) + int(inside[-1]) + 1
    ids = [*before, *spelled.ids[: inside[-1] + 1].tolist()]
    cut = max(0, last - (model.anatomy.max_context or last))
    first = max(first - cut, 1)
    if last - cut <= first:
        raise MnemoscopeError("nothing stands before this span, so that no token predicts it.")
    return Said(tuple(ids[cut:]), TokenSpan(first, last - cut))


@torch.no_grad()
def activity(model: HookedModel, said: Said, usual: Usual, most: int = 50) -> Activity:
    """Read the text once and rank heads, and the first `most` units, by their excess writing.

    Memory: the span's head outputs and units of all layers.
    """
    batch = model.batch([said.ids])
    at = torch.arange(said.span.start - 1, said.span.stop - 1)[None]
    sites = (Site.Z, Site.NEURON) if usual.units is not None else (Site.Z,)
    found = model.capture(batch, sites, at=at)
    masks = [TokenSpan(said.span.start, said.span.stop)]
    earlier = said.span.start > SINK
    if earlier:
        masks.append(TokenSpan(SINK, said.span.start))
    rows = model.row_summaries(batch, at, [masks])
    mass = rows.mass[:, 0].nan_to_num(0.0).mean(2).cpu().numpy()
    logs = found.logits[0].float().log_softmax(-1).cpu()
    right = torch.tensor(said.ids[said.span.start : said.span.stop])
    heads = _ranked(_head_writes(model, found.stack(Site.Z)[:, 0]), usual.heads, "head")
    places = heads.select("layer", "head").to_numpy()
    looked = {"span": mass[places[:, 0], places[:, 1], 0]}
    if earlier:
        looked["before"] = mass[places[:, 0], places[:, 1], 1]
    return Activity(
        heads.with_columns(**{name: polars.Series(values) for name, values in looked.items()}),
        polars.DataFrame()
        if usual.units is None
        else _units(model, found.stack(Site.NEURON)[:, 0], usual.units, most),
        float(logs[range(len(right)), right].exp().mean()),
        float((logs.argmax(-1) == right).double().mean()),
        len(right),
    )


def head_ids(frame: polars.DataFrame) -> tuple[HeadId, ...]:
    """The heads of a frame, in its order."""
    return tuple(HeadId(layer, head) for layer, head in frame.select("layer", "head").iter_rows())


def unit_ids(frame: polars.DataFrame) -> tuple[NeuronId, ...]:
    """The units of a frame, in its order."""
    return tuple(NeuronId(layer, unit) for layer, unit in frame.select("layer", "unit").iter_rows())


def _has_units(model: HookedModel) -> bool:
    return bool(model.anatomy.spec.down) and model.anatomy.d_mlp is not None


def _head_writes(
    model: HookedModel, z: Float[Tensor, "layer pos head d_v"]
) -> Float[np.ndarray, "layer head"]:
    """Mean over positions of |z W_O|."""
    blocks = part(model.module, model.anatomy.spec.blocks)
    means = []
    for layer, own in enumerate(z):
        o_proj = part(blocks[layer], model.anatomy.spec.o_proj)
        with materialised([o_proj]):
            weights = head_output_weights(o_proj, model.anatomy.n_heads).to(own.device).float()
        written = torch.einsum("phv,hvd->phd", own.float(), weights)
        means.append(written.norm(dim=-1).mean(0).cpu().numpy())
    return np.stack(means)


def _units(
    model: HookedModel,
    a: Float[Tensor, "layer pos unit"],
    usual: Float[np.ndarray, "layer unit"],
    most: int,
) -> polars.DataFrame:
    sizes = a.abs().float().mean(1).cpu() * write_norms(model)
    return _ranked(sizes.numpy(), usual, "unit").head(most)


def _ranked(
    writes: Float[np.ndarray, "layer unit"], usual: Float[np.ndarray, "layer unit"], name: str
) -> polars.DataFrame:
    layers, units = np.indices(writes.shape)
    frame = polars.DataFrame(
        {
            "layer": layers.ravel(),
            name: units.ravel(),
            "write": writes.ravel().astype(np.float64),
            "usual": np.asarray(usual).ravel().astype(np.float64),
        }
    ).with_columns(times=polars.col("write") / polars.col("usual"))
    excess = polars.col("write") - polars.col("usual")
    return frame.sort(excess, descending=True, maintain_order=True)
