"""Ablating and amplifying sets of MLP units, and what is neutral for a unit.

Edits spare each row's first token unless told otherwise: attention sinks live on the large values
there, and a unit set that touches them damages everything at once (Sun et al. 2024). The neutral
mean is the primary replacement; zero is off-distribution for a unit that rests elsewhere.

Zeroing a unit at `gate_pre`, `up` or `neuron` is one and the same intervention wherever the gate's
nonlinearity maps 0 to 0. A dimension of `mlp_out` is another kind of object.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any, Literal, get_args

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from transformers.pytorch_utils import Conv1D

from ..models.anatomy import part
from ..models.batching import adaptive, length_buckets
from ..models.edits import Edit, Phase, Positions
from ..models.errors import MnemoscopeError, PromptError
from ..models.hooked import HookedModel
from ..models.hooks import Change, in_batch_shape, site_hook, watch_batch
from ..models.placement import materialised
from ..models.tokens import TokenBatch, encode
from ..models.types import NeuronId, Site
from .end_chain import wide_type

Mode = Literal["zero", "mean", "scale", "resample", "set"]

MASSIVE_TIMES = 50.0
"""How many times the median largest write of its layer makes a unit's own a massive one."""

_ROWS = 8


def neuron_edits(
    neurons: Sequence[NeuronId],
    mode: Mode = "mean",
    *,
    factor: float = 0.0,
    values: Tensor | None = None,
    positions: Positions = "all_but_first",
    phase: Phase = "both",
) -> tuple[Edit, ...]:
    """One edit for each site that the units sit at, in the order in which sites first occur.

    "zero" needs nothing more; "scale" multiplies by `factor` (0.5 halves, 2 amplifies); "mean",
    "resample" and "set" write `values`, whose last axis is one number for each of `neurons` in
    their order: `[unit]`, `[batch, unit]` or `[batch, pos, unit]`. `values_at` takes `[unit]` from
    a table such as `neutral_means`. Further masks of relation_neurons.md 5.4: `positions="end"`
    with `phase="prefill"` (last token) and `phase="decode"` (generated tokens only).

    Raises `MnemoscopeError` for no units, an unknown mode, and values that are missing, not needed
    or of another width; what the model lacks is refused when the edits are applied.
    """
    _check(neurons, mode, values)
    if mode in ("zero", "scale"):
        value = None if mode == "zero" else float(factor)
        return tuple(
            Edit(mode, _units(neurons, here), value, positions, phase)
            for here in _by_site(neurons).values()
        )
    assert values is not None
    return tuple(
        Edit(mode, _units(neurons, here), values[..., here], positions, phase)
        for here in _by_site(neurons).values()
    )


def nested_edits(
    ranking: Sequence[NeuronId],
    sizes: Sequence[int],
    rows_per_size: int,
    mode: Mode = "mean",
    *,
    factor: float = 0.0,
    values: Tensor | None = None,
    positions: Positions = "all_but_first",
    phase: Phase = "both",
) -> tuple[Edit, ...]:
    """A whole grid of set sizes in one batch: row block i edits the first `sizes[i]` units.

    For a batch of `len(sizes) * rows_per_size` rows, the prompts repeated block by block; a size
    of 0 leaves its block as it is. `values` are one number for each unit of `ranking`: `[unit]`,
    or `[row, unit]` or `[row, pos, unit]` for the rows of one block. A row keeps a unit of rank
    `r` where `r >= size`: it is multiplied by 1, and 0 is added to it, while the others are
    multiplied by 0 or `factor` and given their value. Every row computes what it would with
    `neuron_edits(ranking[:size])` (relation_neurons.md 5.4).

    Raises `MnemoscopeError` as `neuron_edits` does, and for sizes below 0 or above the ranking.
    """
    _check(ranking, mode, values)
    _check_grid(ranking, sizes, rows_per_size, values)
    reach = max(sizes)
    if reach == 0:
        return ()
    rows = torch.tensor(list(sizes)).repeat_interleave(rows_per_size)
    keeps = (torch.arange(reach) >= rows[:, None]).float()
    left = keeps + (1 - keeps) * (factor if mode == "scale" else 0.0)
    added = None if values is None else _in_blocks(values[..., :reach], keeps, len(sizes))
    edits = []
    for here in _by_site(ranking[:reach]).values():
        units = _units(ranking, here)
        edits.append(Edit("scale", units, left[:, here], positions, phase))
        if added is not None:
            edits.append(Edit("add", units, added[..., here], positions, phase))
    return tuple(edits)


def places_by_site(neurons: Sequence[NeuronId]) -> dict[Site, list[int]]:
    """Places in `neurons` of the units of each site, sites in the order of first occurrence."""
    sites: dict[Site, list[int]] = {}
    for i, one in enumerate(neurons):
        sites.setdefault(one.site, []).append(i)
    return sites


def values_at(
    table: Float[Tensor, "layer unit"], neurons: Sequence[NeuronId]
) -> Float[Tensor, " unit"]:
    """The entries of a table of all layers at the units, in their order, for `neuron_edits`."""
    index = torch.tensor([(one.layer, one.index) for one in neurons]).reshape(-1, 2).T
    return table[index[0].to(table.device), index[1].to(table.device)]


def neutral_means(
    model: HookedModel,
    texts: Sequence[str],
    site: Site = Site.NEURON,
    *,
    layers: Sequence[int] | None = None,
) -> Float[Tensor, "layer unit"]:
    """Mean of each unit over neutral text; float32 (float64 models: float64), on the CPU.

    Every token but a text's first counts once. Row i is `layers[i]` (all layers by default).
    Memory: one forward pass of up to eight texts and one layer's activations.

    Raises `PromptError` when no text has a second token, `UnsupportedSiteError` where the
    architecture has no such units.
    """
    return _moments(model, texts, site, layers).mean


def mean_abs(
    model: HookedModel,
    texts: Sequence[str],
    site: Site = Site.NEURON,
    *,
    layers: Sequence[int] | None = None,
) -> Float[Tensor, "layer unit"]:
    """Mean absolute value E|a| of each unit over neutral text; otherwise as `neutral_means`."""
    return _moments(model, texts, site, layers).mean_abs


def write_norms(
    model: HookedModel, site: Site = Site.NEURON, *, layers: Sequence[int] | None = None
) -> Float[Tensor, "layer unit"]:
    """Length of what one unit writes per activation: ||W_down[:, m]||, 1 for a dimension of
    `mlp_out`; before any post-norm or residual scale. A gate or up unit writes through the hidden
    unit of its index. Raises `UnsupportedSiteError` where the architecture has no such units.
    """
    width = model.anatomy.n_units(site)
    layers = range(model.anatomy.n_layers) if layers is None else layers
    if site is Site.MLP_OUT:
        return torch.ones(len(layers), width)
    blocks = part(model.module, model.anatomy.spec.blocks)
    downs = [part(blocks[layer], str(model.anatomy.spec.down)) for layer in layers]
    return torch.stack([_column_norms(down).cpu() for down in downs])


def write_size(
    model: HookedModel, texts: Sequence[str], site: Site = Site.NEURON
) -> Float[Tensor, "layer unit"]:
    """Size of each unit's usual write, E|a_m| * ||W_down[:, m]|| over neutral text.

    The scale on which control sets are matched (relation_neurons.md 6.5). For `gate_pre` and `up`
    it is that of the hidden unit, for `mlp_out` E|a|. Raises as `neutral_means` does.
    """
    return mean_abs(model, texts, _writer(model, site)) * write_norms(model, site)


def blacklist(
    model: HookedModel, texts: Sequence[str], site: Site = Site.NEURON
) -> tuple[NeuronId, ...]:
    """Units that make massive activations, to be left out of target and control sets alike.

    The rule: on neutral text, first tokens included, the unit's largest write
    max|a_m| * ||W_down[:, m]|| exceeds `MASSIVE_TIMES` times the median largest write of its
    layer. A handful: 10 of 46,080 hidden units of SmolLM2-135M. Such units hold up the attention
    sinks (Sun et al. 2024), so that ablating one damages every relation. In order of layer and
    index. Raises as `neutral_means` does.
    """
    peak = _moments(model, texts, _writer(model, site), None).peak * write_norms(model, site)
    massive = peak > MASSIVE_TIMES * peak.median(dim=1, keepdim=True).values
    return tuple(NeuronId(layer, index, site) for layer, index in massive.nonzero().tolist())


@dataclass(frozen=True, eq=False)
class _Moments:
    mean: Float[Tensor, "layer unit"]
    mean_abs: Float[Tensor, "layer unit"]
    peak: Float[Tensor, "layer unit"]
    """Largest absolute value, first tokens included."""


def _moments(
    model: HookedModel, texts: Sequence[str], site: Site, layers: Sequence[int] | None
) -> _Moments:
    width = model.anatomy.n_units(site)
    layers = range(model.anatomy.n_layers) if layers is None else list(layers)
    for layer in layers:
        model.anatomy.check_layer(layer)
    rows = [encode(model.text_tokenizer, text) for text in texts]
    rows = [row for row in rows if len(row) > 1]
    if not rows:
        raise PromptError("no text has a second token: give sentences of neutral text.")
    sums = torch.zeros(2, len(layers), width, dtype=torch.float64)
    peak = torch.zeros(len(layers), width, dtype=torch.float64)
    batches = length_buckets([len(row) for row in rows], _ROWS)
    for _, (more, high) in adaptive(
        batches, lambda batch: _fold(model, model.batch([rows[i] for i in batch]), site, layers)
    ):
        sums += more
        peak = torch.maximum(peak, high)
    means = sums / sum(len(row) - 1 for row in rows)
    kept = wide_type(model.dtype)
    return _Moments(means[0].to(kept), means[1].to(kept), peak.to(kept))


@torch.no_grad()
def _fold(
    model: HookedModel, batch: TokenBatch, site: Site, layers: Sequence[int]
) -> tuple[Float[Tensor, "2 layer unit"], Float[Tensor, "layer unit"]]:
    """Sums of a and |a| without first tokens, and max |a| with them, folded inside the hooks."""
    later = batch.mask.clone()
    later[torch.arange(len(batch), device=later.device), batch.starts] = False
    found: dict[int, tuple[Tensor, Tensor]] = {}
    with model.lock, ExitStack() as stack:
        running = stack.enter_context(watch_batch(model.module))

        def fold_into(layer: int) -> Change:
            def fold(x: Tensor) -> None:
                x = in_batch_shape(x, running).to(wide_type(x.dtype))
                counted = x[later.to(x.device)]
                sums = torch.stack([counted.sum(0), counted.abs().sum(0)])
                found[layer] = sums.cpu(), x[batch.mask.to(x.device)].abs().amax(0).cpu()

            return fold

        for layer in sorted(set(layers)):
            hook = site_hook(model.module, model.anatomy, site, layer, fold_into(layer))
            stack.enter_context(hook)
        model.forward(batch, batch.ends[:, None])
    sums = torch.stack([found[layer][0] for layer in layers], dim=1).double()
    return sums, torch.stack([found[layer][1] for layer in layers]).double()


def _writer(model: HookedModel, site: Site) -> Site:
    """Where the value that a unit writes with is read."""
    model.anatomy.n_units(site)  # refuses what the architecture lacks
    return Site.MLP_OUT if site is Site.MLP_OUT else Site.NEURON


def _column_norms(down: Any) -> Float[Tensor, " unit"]:
    with materialised([down]):
        weight = down.weight.detach().to(wide_type(down.weight.dtype))
    return weight.norm(dim=1 if isinstance(down, Conv1D) else 0)


def _by_site(neurons: Sequence[NeuronId]) -> dict[Site, Int[Tensor, " unit"]]:
    return {site: torch.tensor(here) for site, here in places_by_site(neurons).items()}


def _units(neurons: Sequence[NeuronId], here: Int[Tensor, " unit"]) -> tuple[NeuronId, ...]:
    return tuple(neurons[i] for i in here.tolist())


def _in_blocks(
    values: Tensor, keeps: Bool[Tensor, "batch unit"], n_blocks: int
) -> Float[Tensor, "batch ... unit"]:
    """The values of one block repeated for every block, 0 where a row keeps its own."""
    keeps = keeps.to(values.device)
    if values.ndim > 1:
        values = torch.cat([values] * n_blocks)
    if values.ndim == 3:
        keeps = keeps[:, None]
    return values.masked_fill(keeps.bool(), 0)


def _check(neurons: Sequence[NeuronId], mode: str, values: Tensor | None) -> None:
    if mode not in get_args(Mode):
        raise MnemoscopeError(f"mode {mode!r} is unknown: use {', '.join(get_args(Mode))}.")
    if not neurons:
        raise MnemoscopeError("no units to edit: name at least one.")
    written = mode in ("mean", "resample", "set")
    if written != (values is not None):
        raise MnemoscopeError(
            f"mode {mode!r} needs values: for example values_at(neutral_means(...), neurons)."
            if written
            else f"mode {mode!r} takes no values: leave them out, or use mean, resample or set."
        )
    if values is not None and (not 1 <= values.ndim <= 3 or values.shape[-1] != len(neurons)):
        raise MnemoscopeError(
            f"values of shape {tuple(values.shape)} do not fit {len(neurons)} units: give [unit], "
            "[batch, unit] or [batch, pos, unit]."
        )


def _check_grid(
    ranking: Sequence[NeuronId], sizes: Sequence[int], rows: int, values: Tensor | None
) -> None:
    if not sizes or rows < 1 or min(sizes) < 0 or max(sizes) > len(ranking):
        raise MnemoscopeError(
            f"sizes {list(sizes)} with {rows} rows each do not fit a ranking of {len(ranking)} "
            "units: give sizes from 0 up to that, and at least one row."
        )
    if values is not None and values.ndim > 1 and values.shape[0] != rows:
        raise MnemoscopeError(
            f"values for {values.shape[0]} rows do not fit blocks of {rows}: give one a row."
        )
