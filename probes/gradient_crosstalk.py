"""Do the gradients of two facts point the same way? Per-fact gradients of every down projection.

The gradient of a fact's loss in a down projection is a sum over tokens of outer products,
`G = sum_t g_t alpha_t^T`, with alpha the hidden activations that the projection reads and g the
gradient at what it writes. So the inner product of two facts' gradients is

    <G_a, G_b> = sum over tokens t of a, s of b of (alpha_t . alpha_s) (g_t . g_s)

and one backward pass over a batch gives alpha and g of all facts in all layers: no gradient of a
weight is ever formed (reversal_binding.md, 1.6 and 3.6, where facts have one token each). The loss
of a fact is minus the log-probability of the whole asked name behind its prompt.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import partial
from itertools import pairwise

import numpy as np
import polars as pl
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from ..data.facts.pairs import Way
from ..models.backends import require
from ..models.batching import adaptive, length_buckets
from ..models.errors import MnemoscopeError
from ..models.hooked import HookedModel
from ..models.hooks import RunningBatch, in_batch_shape, site_hook, watch_batch
from ..models.tokens import TokenBatch
from ..models.types import Site
from ..results.gram_matrices import cosines, relative
from .elicitation import Progress, silent
from .entanglement import PairClass, class_table, named, pair_classes
from .fact_batches import wide
from .name_overlap import name_overlap
from .role_prompts import RolePrompts, RoleRow

# Cells of one block of the kernel over tokens: 64 MB of float32.
_KERNEL = 1 << 24


@dataclass(frozen=True, eq=False)
class GradientCrosstalk:
    """Inner products of the facts' gradients, `inner[l, i, j]` for the down projection of layer
    `layers[l]`, float64; `log_prob` is that of each asked name, in nats."""

    model: str
    way: Way
    names: tuple[str, ...]
    layers: tuple[int, ...]
    inner: Float[np.ndarray, "layer fact fact"]
    log_prob: Float[np.ndarray, " fact"]
    classes: Mapping[str, PairClass]
    """By the size of the cosine."""

    @property
    def cosine(self) -> Float[np.ndarray, "layer fact fact"]:
        """Cosines of the facts' gradients."""
        return cosines(self.inner)

    @property
    def kappa(self) -> Float[np.ndarray, "layer fact fact"]:
        """kappa_NTK: what a step for fact j adds to fact i, as a share of a step for i itself."""
        return relative(self.inner)

    @property
    def together(self) -> Float[np.ndarray, "1 fact fact"]:
        """kappa_NTK of all these projections as one module, with a layer axis of one."""
        return relative(self.inner.sum(0, keepdims=True))

    def table(self) -> pl.DataFrame:
        """One row a layer and class of names, of the size of the cosine."""
        return class_table(self.model, self.layers, {"gradient cosine": self.classes})


def gradient_crosstalk(
    model: HookedModel,
    prompts: RolePrompts,
    *,
    way: Way = "forward",
    wording: int = 0,
    layers: Sequence[int] | None = None,
    masks: Mapping[str, Bool[np.ndarray, "fact fact"]] | None = None,
    rows: int = 32,
    memory_bytes: int = 1 << 30,
    draws: int = 1000,
    seed: int = 0,
    progress: Progress = silent,
) -> GradientCrosstalk:
    """Cross-talk between the facts asked in one wording of a direction.

    `masks` as for `entanglement`. Memory: activations and gradients of as many layers as
    `memory_bytes` holds, and one forward pass of `rows` rows with its graph; each further block of
    layers costs another pass. Raises `UnsupportedSiteError` where experts are fused,
    `UnitOutOfRangeError`, `MnemoscopeError` for masks of another size or where not one layer fits.
    """
    chosen = model.anatomy.chosen_layers(layers)
    facts = prompts.rows(way)[wording]
    inner, log_prob = gradient_inner(
        model, facts, layers=chosen, rows=rows, memory_bytes=memory_bytes, progress=progress
    )
    names = named(prompts, way)
    masks = name_overlap(model, names).masks() if masks is None else masks
    classes = pair_classes(cosines(inner), masks, draws=draws, seed=seed)
    return GradientCrosstalk(model.name, way, names, tuple(chosen), inner, log_prob, classes)


def gradient_inner(
    model: HookedModel,
    facts: Sequence[RoleRow],
    *,
    layers: Sequence[int],
    rows: int = 32,
    memory_bytes: int = 1 << 30,
    progress: Progress = silent,
) -> tuple[Float[np.ndarray, "layer fact fact"], Float[np.ndarray, " fact"]]:
    """Inner products of the facts' gradients in each layer, and the log-probabilities of their
    asked names; see `gradient_crosstalk` for memory and errors."""
    require(model, "gradients", "cross-talk of gradients")
    inner = np.empty((len(layers), len(facts), len(facts)))
    buckets = length_buckets([len(fact.ids) for fact in facts], rows)
    blocks = _blocks(model, facts, layers, memory_bytes)
    log_prob = np.empty(len(facts))
    done = 0
    for places in blocks:
        block = [layers[i] for i in places]
        seen: list[_Seen] = []
        run = partial(_seen, model, facts, layers=block)
        for batch, one in adaptive(buckets, run):
            seen.append(one)
            log_prob[list(batch)] = one.log_prob
            done += len(batch)
            progress(done, len(facts) * len(blocks))
        owner = torch.cat([one.owner for one in seen])
        for i, layer in zip(places, block, strict=True):
            alpha = torch.cat([one.alpha[layer] for one in seen])
            grad = torch.cat([one.grad[layer] for one in seen])
            inner[i] = _inner(alpha, grad, owner, len(facts))
    return inner, log_prob


def asked_log_probs(
    model: HookedModel, facts: Sequence[RoleRow]
) -> tuple[TokenBatch, Float[Tensor, " fact"]]:
    """Log-probability (nats) of each row's whole asked name, and the batch; gradients flow."""
    batch = model.batch([fact.ids for fact in facts], side="right")
    lengths = [len(fact.answer) for fact in facts]
    place = torch.arange(max(lengths), device=batch.ids.device)
    start, count = (
        torch.tensor(given, device=batch.ids.device)[:, None]
        for given in ([fact.end for fact in facts], lengths)
    )
    columns = start + place.minimum(count - 1)
    log_probs = wide(model.forward(batch, columns)).log_softmax(-1)
    told = batch.ids.gather(1, columns + 1).to(log_probs.device)
    of_token = log_probs.gather(2, told[:, :, None])[:, :, 0]
    return batch, torch.where((place < count).to(of_token.device), of_token, 0).sum(1)


@dataclass(frozen=True, eq=False)
class _Seen:
    """What one batch showed, for every token that a gradient reaches: by layer, what the down
    projection read and the gradient at what it wrote; `owner` is the fact of each token."""

    owner: Int[Tensor, " token"]
    log_prob: Float[np.ndarray, " fact"]
    alpha: dict[int, Float[Tensor, "token neuron"]]
    grad: dict[int, Float[Tensor, "token d_model"]]


def _seen(
    model: HookedModel, facts: Sequence[RoleRow], numbers: Sequence[int], *, layers: Sequence[int]
) -> _Seen:
    """One forward and one backward pass over the facts of these numbers. The graph starts at the
    first layer asked for."""
    watch = _Watch()
    with model.lock, torch.enable_grad(), ExitStack() as stack:
        watch.install(stack, model, layers)
        batch, log_prob = asked_log_probs(model, [facts[i] for i in numbers])
        torch.autograd.grad(-log_prob.sum(), watch.start)
    # The last token of the asked name predicts nothing: no gradient reaches it.
    cells = batch.mask.clone()
    cells[torch.arange(len(batch), device=cells.device), batch.ends] = False
    owner = torch.tensor(list(numbers)).repeat_interleave(cells.sum(1).cpu())
    alpha, grad = (
        {layer: x[cells.to(x.device)] for layer, x in kept.items()}
        for kept in (watch.alpha, watch.grad)
    )
    return _Seen(owner, log_prob.detach().double().cpu().numpy(), alpha, grad)


@dataclass(eq=False)
class _Watch:
    """The hooks of one batch."""

    alpha: dict[int, Tensor] = field(default_factory=dict)
    grad: dict[int, Tensor] = field(default_factory=dict)
    start: Tensor = field(default_factory=lambda: torch.empty(0))

    def install(self, stack: ExitStack, model: HookedModel, layers: Sequence[int]) -> None:
        """Put the hooks on the model until the stack is left."""
        running = stack.enter_context(watch_batch(model.module))

        def hook(site: Site, layer: int, change: Callable[[Tensor], Tensor | None]) -> None:
            stack.enter_context(site_hook(model.module, model.anatomy, site, layer, change))

        hook(Site.RESID_PRE, min(layers), self._begin)
        for layer in layers:
            hook(Site.NEURON, layer, partial(self._read, running, layer))
            hook(Site.MLP_OUT, layer, partial(self._written, running, layer))

    def _begin(self, x: Tensor) -> Tensor:
        self.start = x.detach().requires_grad_()
        return self.start

    def _read(self, running: RunningBatch, layer: int, x: Tensor) -> None:
        self.alpha[layer] = wide(in_batch_shape(x.detach(), running))

    def _written(self, running: RunningBatch, layer: int, x: Tensor) -> Tensor:
        def keep(gradient: Tensor) -> None:
            self.grad[layer] = wide(in_batch_shape(gradient, running))

        seen = x.view_as(x)
        seen.register_hook(keep)
        return seen


def _inner(
    alpha: Float[Tensor, "token neuron"],
    grad: Float[Tensor, "token d_model"],
    owner: Int[Tensor, " token"],
    n_facts: int,
) -> Float[np.ndarray, "fact fact"]:
    """The sums over tokens of the module docstring, in blocks of tokens."""
    owner, grad = owner.to(alpha.device), grad.to(alpha.device)
    rows = alpha.new_zeros(len(owner), n_facts, dtype=torch.float64)
    step = max(1, _KERNEL // len(owner))
    for first in range(0, len(owner), step):
        some = slice(first, first + step)
        kernel = (alpha[some] @ alpha.T) * (grad[some] @ grad.T)
        rows[some].index_add_(1, owner, kernel.double())
    inner = rows.new_zeros(n_facts, n_facts).index_add_(0, owner, rows)
    return np.asarray(inner.cpu().numpy())


def _blocks(
    model: HookedModel, facts: Sequence[RoleRow], layers: Sequence[int], memory_bytes: int
) -> list[range]:
    """Places among the layers in consecutive blocks, as many at once as fit."""
    n_tokens = sum(len(fact.ids) - 1 for fact in facts)
    width = model.anatomy.n_units(Site.NEURON) + model.anatomy.d_model
    one = n_tokens * width * max(4, model.dtype.itemsize)
    at_once = memory_bytes // one
    if not at_once:
        raise MnemoscopeError(
            f"activations and gradients of one layer of {model.name} take {one} bytes for these "
            f"facts, but memory_bytes is {memory_bytes}: allow that much or ask fewer facts."
        )
    edges = [*range(0, len(layers), at_once), len(layers)]
    return [range(start, stop) for start, stop in pairwise(edges)]
