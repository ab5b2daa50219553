"""Which units does the right answer hang on? Gradient attribution of the candidate margin.

For the margin of `neuron_margins`, a unit's activation a and its neutral mean mu (method page
relation_neurons.md, section 6.8; attribution patching, Kramar et al. 2024, "AtP*"):

    effect = sum over tokens t of (a_t - mu) * d margin / d a_t

is to first order what mean ablation takes from the margin, in nats. One forward and one backward
pass give it for all units of all layers: gradients are folded over tokens as they arrive and never
kept. Saturated attention and cancellation hide units from gradients, so the top of a ranking is to
be confirmed by `single_unit_effects`, which really ablates, one unit a batch row.

Rows hold whole answers; rows of one fact that share their start count once for each row, which is
exact for the margin, since it depends on every copy. A row's first token is left out, as edits at
"all_but_first" leave it out.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from ..models.anatomy import part
from ..models.backends import require
from ..models.batching import adaptive
from ..models.edits import Edit
from ..models.errors import MnemoscopeError
from ..models.hooked import HookedModel
from ..models.hooks import RunningBatch, in_batch_shape, site_hook, watch_batch
from ..models.placement import materialised
from ..models.types import NeuronId, Site
from .elicitation import Progress, silent
from .fact_batches import FactBatch, batch_of, fact_batches, margins_of, wide
from .neuron_margins import ROWS, Asked, MarginRows, margin_rows, measure_doses, measure_margins

SITES = (Site.NEURON, Site.GATE_PRE, Site.UP, Site.MLP_OUT)
_UNITS_AT_ONCE = 32


@dataclass(frozen=True, eq=False)
class Attribution:
    """Effects of every unit on the margin, over facts; arrays `[layer, unit]` in nats.

    Row i is layer `layers[i]`. A positive `mean` says that the unit's deviation from its neutral
    mean speaks for the right answers. `sd` is the spread over facts (n - 1). `halves` are the means
    of two random halves of the facts. `direct` is the part that the units write straight to the
    output (`direct` of `attribute`), None where the architecture has no such straight way.
    """

    site: Site
    layers: tuple[int, ...]
    mean: Float[np.ndarray, "layer unit"]
    sd: Float[np.ndarray, "layer unit"]
    halves: Float[np.ndarray, "2 layer unit"]
    direct: Float[np.ndarray, "layer unit"] | None
    margins: Float[np.ndarray, " fact"]

    @property
    def standardised(self) -> Float[np.ndarray, "layer unit"]:
        """Mean over sd: how steadily a unit helps; 0 where it never does anything."""
        return np.divide(self.mean, self.sd, out=np.zeros_like(self.mean), where=self.sd > 0)

    @property
    def half_correlation(self) -> float:
        """Pearson correlation over units of the two halves' means; NaN if a half is constant."""
        first, second = self.halves.reshape(2, -1)
        if np.ptp(first) == 0 or np.ptp(second) == 0:
            return float("nan")
        return float(np.corrcoef(first, second)[0, 1])

    def half_overlap(self, k: int) -> tuple[float, float]:
        """Share of the top k that both halves have in common, and its chance level k / units."""
        n_units = self.mean.size
        if not 1 <= k <= n_units:
            raise MnemoscopeError(f"no top {k} of {n_units} units: choose k from 1 to {n_units}.")
        first, second = (set(_top(half.ravel(), k).tolist()) for half in self.halves)
        return len(first & second) / k, k / n_units


def attribute(
    model: HookedModel,
    asked: Sequence[Asked] | MarginRows,
    means: Float[Tensor, "layer unit"],
    *,
    site: Site = Site.NEURON,
    layers: Sequence[int] | None = None,
    rows: int = 32,
    seed: int = 0,
    progress: Progress = silent,
) -> Attribution:
    """Attribution of the facts' margins to every unit of a site, at all tokens but a row's first.

    `means` are the units' neutral means, a row for each of `layers` (all by default); zeros
    measure against zero ablation. `seed` draws the two halves. All rows of a fact run together,
    so up to `rows` token rows are held, or one fact's if they are more. Memory: the activations of
    one forward pass.

    `direct` needs no ablation: it is a unit's whole write `a * W_down` carried by the gradient of
    the margin at the last residual stream, past all later blocks. Yu and Ananiadou 2024 score the
    same write by the log-probability that it adds; here it is the margin, to first order.

    Raises `UnsupportedSiteError` for a site without units, `MnemoscopeError` for fewer than two
    facts, means of another shape, and a site that is not one of `SITES`.
    """
    require(model, "gradients", "gradient attribution")
    plan = asked if isinstance(asked, MarginRows) else margin_rows(model, asked)
    task = _task(model, plan, means, site, layers)
    n_facts = len(plan.slots)
    in_first_half = np.zeros(n_facts, dtype=bool)
    in_first_half[np.random.default_rng(seed).permutation(n_facts)[: n_facts // 2]] = True
    sums = _Sums.of_shape(means.shape)
    margins = np.zeros(n_facts)
    done = 0
    for facts, found in adaptive(fact_batches(plan, rows), lambda facts: _run(task, facts)):
        margins[facts] = found.margins
        sums.add(found, in_first_half[facts])
        done += len(facts)
        progress(done, n_facts)
    return sums.attribution(task, margins)


def single_unit_effects(
    model: HookedModel,
    asked: Sequence[Asked] | MarginRows,
    units: Sequence[NeuronId],
    means: Float[Tensor, "layer unit"],
    *,
    rows: int = ROWS,
    progress: Progress = silent,
) -> Float[np.ndarray, "unit fact"]:
    """What each unit alone really does: margin of the model minus margin with the unit set to its
    neutral mean at all tokens but the first, in nats.

    Several units share a batch, one a row. Work: a forward pass over all facts for every unit, so
    take the top of a ranking and a few facts. `means` has a row for each layer of the model. Raises
    `MnemoscopeError` for no units or units of several sites, `UnitOutOfRangeError`.
    """
    if not units or len({unit.site for unit in units}) > 1:
        raise MnemoscopeError("single-unit effects need units, all of one site.")
    plan = asked if isinstance(asked, MarginRows) else margin_rows(model, asked)
    clean = measure_margins(model, plan, rows=rows).margin
    effects = np.zeros((len(units), len(clean)))
    for start in range(0, len(units), _UNITS_AT_ONCE):
        chosen = tuple(units[start : start + _UNITS_AT_ONCE])
        edits = _one_a_row(model, chosen, means)
        found = measure_doses(model, plan, len(chosen), edits, rows=rows)
        effects[start : start + len(chosen)] = [clean - one.margin for one in found]
        progress(start + len(chosen), len(units))
    return effects


# -- what runs --------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class _Task:
    """What all batches share: the facts as rows, the units, and what to subtract from them."""

    model: HookedModel
    plan: MarginRows
    site: Site
    layers: tuple[int, ...]
    means: Float[Tensor, "layer unit"]


@dataclass(frozen=True, eq=False)
class _Found:
    """One batch: effects `[layer, fact, unit]`, direct ones or None, margins."""

    effects: Float[np.ndarray, "layer fact unit"]
    direct: Float[np.ndarray, "layer fact unit"] | None
    margins: Float[np.ndarray, " fact"]


def _task(
    model: HookedModel,
    plan: MarginRows,
    means: Tensor,
    site: Site,
    layers: Sequence[int] | None,
) -> _Task:
    if site not in SITES:
        raise MnemoscopeError(f"{site} has no single units: use {', '.join(SITES)}.")
    layers = tuple(range(model.anatomy.n_layers) if layers is None else layers)
    for layer in layers:
        model.anatomy.check_layer(layer)
    wanted = (len(layers), model.anatomy.n_units(site))
    if not layers or tuple(means.shape) != wanted:
        raise MnemoscopeError(
            f"neutral means must be [layer, unit] = {list(wanted)} for {site}, got "
            f"{list(means.shape)}."
        )
    if len(plan.slots) < 2:
        raise MnemoscopeError("attribution needs two facts at least: its sd is taken over facts.")
    return _Task(model, plan, site, layers, means)


def _run(task: _Task, facts: Sequence[int]) -> _Found:
    """One forward and one backward pass; everything about units happens in `_Watch`."""
    model = task.model
    batch = batch_of(model, task.plan, facts)
    watch = _Watch(task, batch, len(facts))
    with model.lock, torch.enable_grad(), ExitStack() as stack:
        watch.install(stack)
        margins = margins_of(model.forward(batch.tokens, batch.columns), batch)
        assert watch.start is not None
        torch.autograd.grad(margins.sum(), watch.start)
    effects = np.stack([watch.effects[layer] for layer in task.layers])
    straight = [watch.direct[layer] for layer in task.layers if layer in watch.direct]
    direct = np.stack(straight) if len(straight) == len(task.layers) else None
    return _Found(effects, direct, margins.detach().double().cpu().numpy())


@dataclass(eq=False)
class _Watch:
    """The hooks of one batch: they fold gradients into effects `[fact, unit]`, layer by layer.

    Gradients arrive from the last layer backwards, so the one at the end of the residual stream is
    there before any unit of the site needs it.
    """

    task: _Task
    batch: FactBatch
    n_facts: int
    effects: dict[int, np.ndarray] = field(default_factory=dict)
    direct: dict[int, np.ndarray] = field(default_factory=dict)
    start: Tensor | None = None
    at_end: Tensor | None = None
    gain: float | None = None

    def install(self, stack: ExitStack) -> None:
        """Put the hooks on the model. The graph starts at the first layer that is watched."""
        module, anatomy = self.task.model.module, self.task.model.anatomy
        running = stack.enter_context(watch_batch(module))
        last = anatomy.n_layers - 1

        def hook(site: Site, layer: int, change: Callable[[Tensor], Tensor]) -> None:
            stack.enter_context(site_hook(module, anatomy, site, layer, change))

        hook(Site.RESID_PRE, min(self.task.layers), self._begin)
        if self.task.site in (Site.NEURON, Site.MLP_OUT):
            hook(Site.RESID_POST, last, self._on_grad(running, self._note_end))
            hook(Site.MLP_OUT, last, self._on_grad(running, self._note_gain))
        for i, layer in enumerate(self.task.layers):
            hook(self.task.site, layer, self._units(running, i, layer))

    def _begin(self, x: Tensor) -> Tensor:
        self.start = x.detach().requires_grad_()
        return self.start

    @staticmethod
    def _on_grad(
        running: RunningBatch, note: Callable[[Tensor], None]
    ) -> Callable[[Tensor], Tensor]:
        def change(x: Tensor) -> Tensor:
            seen = x.view_as(x)
            seen.register_hook(lambda grad: note(wide(in_batch_shape(grad, running))))
            return seen

        return change

    def _note_end(self, grad: Tensor) -> None:
        self.at_end = grad

    def _note_gain(self, grad: Tensor) -> None:
        """The factor between an MLP's output and what it adds to the stream; None with post-norms,
        where it is no single number."""
        assert self.at_end is not None
        end = self.at_end.to(grad.device)
        gain = (grad * end).sum() / (end * end).sum()
        misfit = (grad - gain * end).norm() / (gain * end).norm()
        rounding = 1e-3 if self.task.model.dtype.itemsize >= 4 else 1e-2
        self.gain = float(gain) if float(misfit) < rounding else None

    def _units(self, running: RunningBatch, i: int, layer: int) -> Callable[[Tensor], Tensor]:
        def change(x: Tensor) -> Tensor:
            value = in_batch_shape(x.detach(), running)
            return self._on_grad(running, lambda grad: self._fold(i, layer, value, grad))(x)

        return change

    def _fold(self, i: int, layer: int, value: Tensor, grad: Tensor) -> None:
        value = wide(value)
        away = value - self.task.means[i].to(value)
        self.effects[layer] = self._by_fact(away * grad)
        if self.at_end is not None and self.gain is not None:
            self.direct[layer] = self._by_fact(value * self._straight(layer, value))

    def _straight(self, layer: int, value: Tensor) -> Float[Tensor, "row pos unit"]:
        """Gradient of the margin at each unit's write, past all later blocks."""
        assert self.at_end is not None
        assert self.gain is not None
        anatomy = self.task.model.anatomy
        end = self.at_end.to(value.device) * self.gain
        if self.task.site is Site.MLP_OUT:
            return end
        block = part(self.task.model.module, anatomy.spec.blocks)[layer]
        down = part(block, str(anatomy.spec.down))
        with materialised([down]):
            weight = down.weight.detach().to(value)
        return end @ (weight.T if anatomy.spec.transposed else weight)

    def _by_fact(self, cells: Float[Tensor, "row pos unit"]) -> Float[np.ndarray, "fact unit"]:
        counted = self.batch.counted.to(cells.device)
        rows = torch.where(counted[..., None], cells, 0).sum(1)
        facts = rows.new_zeros(self.n_facts, rows.shape[1])
        facts.index_add_(0, self.batch.owner.to(rows.device), rows)
        return np.asarray(facts.double().cpu().numpy())


@dataclass(eq=False)
class _Sums:
    """Sums over facts, so that no effect of a single fact is kept."""

    total: Float[np.ndarray, "layer unit"]
    squares: Float[np.ndarray, "layer unit"]
    first_half: Float[np.ndarray, "layer unit"]
    direct: Float[np.ndarray, "layer unit"] | None
    n_first: int = 0

    @classmethod
    def of_shape(cls, shape: Sequence[int]) -> _Sums:
        total, squares, first_half, direct = np.zeros((4, *shape))
        return cls(total, squares, first_half, direct)

    def add(self, found: _Found, first: Bool[np.ndarray, " fact"]) -> None:
        self.total += found.effects.sum(1)
        self.squares += (found.effects**2).sum(1)
        self.first_half += found.effects[:, first].sum(1)
        self.n_first += int(first.sum())
        both = self.direct is not None and found.direct is not None
        self.direct = self.direct + found.direct.sum(1) if both else None  # type: ignore[union-attr,operator]

    def attribution(self, task: _Task, margins: Float[np.ndarray, " fact"]) -> Attribution:
        n = len(margins)
        mean = self.total / n
        variance = np.maximum(self.squares - n * mean**2, 0) / (n - 1)
        halves = (
            self.first_half / self.n_first,
            (self.total - self.first_half) / (n - self.n_first),
        )
        direct = None if self.direct is None else self.direct / n
        sd = np.sqrt(variance)
        return Attribution(task.site, task.layers, mean, sd, np.stack(halves), direct, margins)


def _one_a_row(
    model: HookedModel, units: tuple[NeuronId, ...], means: Float[Tensor, "layer unit"]
) -> Callable[[int], tuple[Edit, ...]]:
    """Edits that set unit i to its mean in the i-th share of a batch's rows, and nowhere else."""
    for unit in units:
        model.anatomy.check_neuron(unit)
    at = ([unit.layer for unit in units], [unit.index for unit in units])
    target = means[at].to(device=model.device, dtype=model.dtype)

    def edits(n: int) -> tuple[Edit, ...]:
        mine = torch.eye(len(units), device=model.device, dtype=model.dtype)
        mine = mine.repeat_interleave(n, dim=0)
        return (
            Edit("scale", units, 1 - mine, positions="all_but_first"),
            Edit("add", units, mine * target, positions="all_but_first"),
        )

    return edits


def _top(scores: Float[np.ndarray, " n"], k: int) -> Int[np.ndarray, " k"]:
    return np.argsort(-scores, kind="stable")[:k]
