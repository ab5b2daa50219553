"""The ordering subspace: a direction of entity states along which the slot's number is written.

Dai, Heinzerling and Inui 2024 (2409.05448; reversal_binding, section 3.2): among the principal
components of the entities' states at a middle layer one rises with the order of telling, and moving
an entity along it moves the attribute that is answered by as many slots. Besides the principal
components there is one supervised direction, the first of partial least squares. Components are
found on one half of the contexts and judged on the other.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import polars
import torch
from jaxtyping import Float, Int
from scipy.stats import rankdata
from torch import Tensor

from ..models.edits import Edit, StreamId
from ..models.errors import MnemoscopeError
from ..models.hooked import HookedModel
from ..models.types import Site
from ..results.statistics import bootstrap_mean
from .binding_prompts import BindingPrompts
from .binding_states import ROWS, kept_states
from .elicitation import Progress, silent

Direction = Literal["component", "pls"]
CONTROLS = ("random", "shuffled")
COMPONENTS = 10


@dataclass(frozen=True, eq=False)
class OrderingSubspaces:
    """One row a layer (input of the block).

    `explained` are the shares of variance of the principal components; `spearman` their rank
    correlations with the slot on contexts that they were not found on (below 0 where they turn
    round), `shuffled` those of the
    component that does best when slots are dealt out at random. `component` is the one chosen, on
    the finding half; `directions` are of length 1 and rise with the slot, `steps` the mean rise of
    the score from one slot to the next. The same for partial least squares.
    """

    explained: Float[np.ndarray, "layer component"]
    spearman: Float[np.ndarray, "layer component"]
    component: Int[np.ndarray, " layer"]
    directions: Float[np.ndarray, "layer d_model"]
    steps: Float[np.ndarray, " layer"]
    pls_spearman: Float[np.ndarray, " layer"]
    pls_directions: Float[np.ndarray, "layer d_model"]
    pls_steps: Float[np.ndarray, " layer"]
    shuffled: Float[np.ndarray, " layer"]
    shuffled_directions: Float[np.ndarray, "layer d_model"]

    def table(self) -> polars.DataFrame:
        """One row a layer: variance of the first three components, and who rises with the slot."""
        layers = np.arange(len(self.component))
        return polars.DataFrame(
            {
                "layer": layers,
                **{f"explained_pc{j + 1}": self.explained[:, j] for j in range(3)},
                "component": self.component + 1,
                "spearman": self.spearman[layers, self.component],
                "spearman_pls": self.pls_spearman,
                "spearman_shuffled": self.shuffled,
                "step": self.steps,
            }
        )


@dataclass(frozen=True, eq=False)
class OrderingShift:
    """Answers after moving one entity along a direction at one layer, in steps of a slot.

    `probability` is among the told answers. Runs are the direction, then `CONTROLS`: a random
    direction (drawn anew for each context) and the one that fits shuffled slots, both as long.
    """

    layer: int
    slot: int
    betas: tuple[float, ...]
    probability: Float[np.ndarray, "run beta context slot"]

    def table(self, seed: int = 0) -> polars.DataFrame:
        """One row a run and step: mean probability of each slot, and the mean slot answered with
        interval over contexts, beside the slot that a full shift would give."""
        n_slots = self.probability.shape[-1]
        rows = []
        for run, name in enumerate(("ordering", *CONTROLS)):
            for j, beta in enumerate(self.betas):
                given = self.probability[run, j]
                mean = bootstrap_mean(given @ np.arange(n_slots), range(len(given)), seed=seed)
                rows.append(
                    {
                        "direction": name,
                        "beta": beta,
                        "expected": float(np.clip(self.slot + beta, 0, n_slots - 1)),
                        "slot": float(mean.mean),
                        "low": float(mean.low),
                        "high": float(mean.high),
                        **{f"p{a}": float(given[:, a].mean()) for a in range(n_slots)},
                    }
                )
        return polars.DataFrame(rows)


def ordering_subspaces(
    model: HookedModel,
    prompts: BindingPrompts,
    *,
    seed: int = 0,
    rows: int = ROWS,
    progress: Progress = silent,
) -> OrderingSubspaces:
    """Components of the states at the last token of every entity, at every layer.

    Raises `MnemoscopeError` for fewer than 16 contexts or three slots.
    """
    slots = prompts.columns.slots
    if len(prompts) < 16 or slots < 3:
        raise MnemoscopeError(
            f"{len(prompts)} contexts of {slots} slots show no order: use 16 and three at least."
        )
    columns = [span[-1] for span in prompts.columns.entities]
    states = kept_states(model, prompts, columns, rows=rows, progress=progress).double()
    half = len(prompts) // 2
    centre = states[:, :half].mean((1, 2), keepdim=True)
    found, judged = (
        x.flatten(1, 2) for x in (states - centre).split([half, len(prompts) - half], 1)
    )
    slot = torch.arange(slots).double()
    index, order = slot.repeat(half), slot.repeat(len(prompts) - half)
    mixed = index[torch.tensor(np.random.default_rng(seed).permutation(len(index)))]
    _, singular, components = torch.linalg.svd(found, full_matrices=False)
    top = components[:, :COMPONENTS]
    held, here = _spearman(judged @ top.mT, order), _spearman(found @ top.mT, index)
    component, directions = _best(top, here)
    wrong, shuffled = _best(top, _spearman(found @ top.mT, mixed))
    pls = torch.einsum("lnd,n->ld", found, index - index.mean())
    pls = pls / pls.norm(dim=-1, keepdim=True)
    return OrderingSubspaces(
        (singular**2 / (singular**2).sum(1, keepdim=True))[:, :COMPONENTS].numpy(),
        (held * here.sign()).numpy(),
        component.numpy(),
        directions.numpy(),
        _steps(found, directions, slots),
        _spearman(judged @ pls[..., None], order)[:, 0].numpy(),
        pls.numpy(),
        _steps(found, pls, slots),
        held.gather(1, wrong[:, None])[:, 0].abs().numpy(),
        shuffled.numpy(),
    )


@torch.no_grad()
def shift_ordering(
    model: HookedModel,
    prompts: BindingPrompts,
    ordering: OrderingSubspaces,
    layer: int,
    *,
    direction: Direction = "component",
    slot: int = 0,
    betas: Sequence[float] | None = None,
    seed: int = 0,
    rows: int = ROWS,
    progress: Progress = silent,
) -> OrderingShift:
    """Add `beta` steps of the direction to one slot's entity (its last token, input of `layer`) and
    ask about it; everything behind runs freely.

    `betas` are by default all that end on a slot. Raises `UnitOutOfRangeError` for a layer, and
    `MnemoscopeError` for a slot that is not there.
    """
    model.anatomy.check_layer(layer)
    n_slots, n = prompts.columns.slots, len(prompts)
    if not 0 <= slot < n_slots:
        raise MnemoscopeError(f"there is no slot {slot}: use 0 to {n_slots - 1}.")
    betas = tuple(range(-slot, n_slots - slot)) if betas is None else tuple(betas)
    component = direction == "component"
    own = (ordering.directions if component else ordering.pls_directions)[layer]
    step = float((ordering.steps if component else ordering.pls_steps)[layer])
    noise = np.random.default_rng(seed).standard_normal((n, len(own)))
    noise /= np.linalg.norm(noise, axis=1, keepdims=True)
    moves = [np.tile(own, (n, 1)), noise, np.tile(ordering.shuffled_directions[layer], (n, 1))]
    found = np.zeros((len(moves), len(betas), n, n_slots))
    for start in range(0, n, rows):
        batch = range(start, min(start + rows, n))
        part = prompts.part(batch)
        ids = torch.cat([part.ids, part.questions[:, slot]], 1)
        for run, move in enumerate(moves):
            for j, beta in enumerate(betas):
                value = torch.tensor(beta * step * move[start : batch.stop], dtype=model.dtype)
                found[run, j, start : batch.stop] = _answers(
                    model, ids, part.answers, layer, prompts.columns.entities[slot][-1], value
                )
        progress(batch.stop, n)
    return OrderingShift(layer, slot, betas, found)


def _answers(
    model: HookedModel,
    ids: Int[Tensor, "context pos"],
    answers: Int[Tensor, "context slot"],
    layer: int,
    column: int,
    value: Float[Tensor, "context d_model"],
) -> Float[np.ndarray, "context slot"]:
    """Probabilities among the told answers with `value` added at one column."""
    units = (StreamId(layer, Site.RESID_PRE),)
    edit = Edit("add", units, value[:, None].to(model.device), (column,), "prefill")
    with model.intervene([edit]):
        logits = model.logits(model.batch(ids.tolist()), at="end")[:, 0].double().cpu()
    return logits.gather(1, answers).softmax(-1).numpy()


def _best(
    top: Float[Tensor, "layer component d_model"], spearman: Float[Tensor, "layer component"]
) -> tuple[Int[Tensor, " layer"], Float[Tensor, "layer d_model"]]:
    """The component that goes most with the slots, turned so that it rises with them."""
    component = spearman.abs().argmax(1)
    layer = torch.arange(len(top))
    return component, top[layer, component] * spearman[layer, component].sign()[:, None]


def _steps(
    states: Float[Tensor, "layer row d_model"], directions: Float[Tensor, "layer d_model"], n: int
) -> Float[np.ndarray, " layer"]:
    """Mean rise of the score from the first slot to the last, for each slot passed."""
    means = (states @ directions[..., None])[..., 0].unflatten(1, (-1, n)).mean(1)
    return ((means[:, -1] - means[:, 0]) / (n - 1)).numpy()


def _spearman(
    scores: Float[Tensor, "layer row component"], index: Float[Tensor, " row"]
) -> Float[Tensor, "layer component"]:
    ranks = torch.tensor(rankdata(scores.numpy(), axis=1))
    order = torch.tensor(rankdata(index.numpy()))
    ranks, order = ranks - ranks.mean(1, keepdim=True), order - order.mean()
    length = ranks.norm(dim=1) * order.norm()
    return torch.einsum("lrc,r->lc", ranks, order) / length.clamp_min(1e-12)
