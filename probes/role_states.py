"""Residual streams of entities in their roles, at every layer, for all pairs at once."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from ..data.facts.pairs import WAYS, Way, pairs_sha256
from ..models.batching import adaptive, length_buckets
from ..models.hooked import Captured, HookedModel
from ..models.types import Site
from ..results.kept_units import kept_arrays
from ..results.run import Run
from .elicitation import Progress, silent
from .role_prompts import ENTITIES, ROLES, Entity, Role, RolePrompts, RoleRow, way_of

_BYTES = 4  # float32


@dataclass(frozen=True, eq=False)
class RoleStates:
    """`states[entity, role]`: one float32 array `[n_layers + 1, wording, pair, d_model]`.

    Index 0 of the first axis is the input of block 0 (the embeddings), index `l` the input of
    block `l`, the last one the output of the last block. The wordings are those of
    `way_of(entity, role)`. END of the reverse prompts is `states["a", "P"]`.
    """

    prompts: RolePrompts
    states: Mapping[tuple[Entity, Role], Float[np.ndarray, "layer wording pair d_model"]]
    log_probs: Mapping[Way, Float[np.ndarray, "wording pair"]]
    """Log-probability (nats) of the whole asked name behind each prompt."""

    def __getitem__(
        self, key: tuple[Entity, Role]
    ) -> Float[np.ndarray, "layer wording pair d_model"]:
        return self.states[key]


def states_bytes(model: HookedModel, prompts: RolePrompts) -> int:
    """Bytes of the arrays of `role_states`; its peak adds one wording's, and a forward pass.

    128 pairs with four wordings each way on a model of 30 layers, 576 wide: 0.29 GB.
    """
    rows = len(prompts.kept) * (len(prompts.forward) + len(prompts.reverse))
    return (model.anatomy.n_layers + 1) * rows * len(ROLES) * model.anatomy.d_model * _BYTES


def role_states(
    model: HookedModel,
    prompts: RolePrompts,
    *,
    rows: int = 32,
    run: Run | None = None,
    progress: Progress = silent,
) -> RoleStates:
    """The states of both entities in all four roles, and how likely each asked name was.

    One forward pass a row of `prompts` in batches of at most `rows`; only the roles' positions are
    kept. Each wording is a unit of `run` under the model's name, so that an interrupted run goes
    on after the last whole one. `progress` counts prompts.
    """
    total = len(prompts.kept) * (len(prompts.forward) + len(prompts.reverse))
    states, log_probs = _empty(model, prompts)
    told, done = pairs_sha256(prompts.relation)[:12], 0
    for way in WAYS:
        for wording, chosen in enumerate(prompts.rows(way)):

            def tell(finished: int, before: int = done) -> None:
                progress(before + finished, total)

            arm = "in context" if prompts.in_context else "alone"
            key = f"role states {model.name} {told} {arm} {way} {wording}"
            kept = kept_arrays(run, key, partial(_wording_states, model, chosen, rows, tell))
            for entity, role in states:
                if way_of(entity, role) == way:
                    states[entity, role][:, wording] = kept[role]
            log_probs[way][wording] = kept["log_prob"]
            done += len(chosen)
            progress(done, total)
    return RoleStates(prompts, states, log_probs)


def _empty(
    model: HookedModel, prompts: RolePrompts
) -> tuple[dict[tuple[Entity, Role], np.ndarray], dict[Way, np.ndarray]]:
    """The result's arrays, to be filled wording by wording."""
    shapes = {way: (len(prompts.rows(way)), len(prompts.kept)) for way in WAYS}
    layers, width = model.anatomy.n_layers + 1, model.anatomy.d_model
    states = {
        (entity, role): np.empty((layers, *shapes[way_of(entity, role)], width), np.float32)
        for entity in ENTITIES
        for role in ROLES
    }
    return states, {way: np.empty(shapes[way], np.float32) for way in WAYS}


def _wording_states(
    model: HookedModel, rows: Sequence[RoleRow], at_once: int, tell: Callable[[int], None]
) -> dict[str, np.ndarray]:
    """Every role's states `[layer + 1, pair, d_model]` of one wording, and `log_prob` `[pair]`."""
    shape = (len(ROLES), model.anatomy.n_layers + 1, len(rows), model.anatomy.d_model)
    states, log_prob = np.empty(shape, np.float32), np.empty(len(rows), np.float32)
    buckets = length_buckets([len(row.ids) for row in rows], at_once)
    done = 0
    for chosen, found in adaptive(buckets, lambda some: _run(model, [rows[i] for i in some])):
        places = list(chosen)
        states[:, :, places], log_prob[places] = found
        done += len(places)
        tell(done)
    return {**dict(zip(ROLES, states, strict=True)), "log_prob": log_prob}


def _run(
    model: HookedModel, rows: Sequence[RoleRow]
) -> tuple[Float[np.ndarray, "role layer batch d_model"], Float[np.ndarray, " batch"]]:
    """One forward pass over a batch of rows, kept at the roles' positions."""
    # Padded on the right, offsets are columns and no real token can see padding.
    batch = model.batch([row.ids for row in rows], side="right")
    device, width = batch.ids.device, max(len(row.answer) for row in rows)
    # Of each row: S, then END and the name's tokens, the last one repeated in shorter names.
    columns = torch.tensor(
        [
            [*row.offsets("S"), *(min(row.end + i, len(row.ids) - 1) for i in range(width + 1))]
            for row in rows
        ],
        device=device,
    )
    captured = model.capture(batch, (Site.RESID_PRE, Site.RESID_POST), at=columns)
    lengths = torch.tensor([len(row.answer) for row in rows], device=device)
    predicting = torch.arange(width, device=device) < lengths[:, None]
    answers = batch.ids.gather(1, columns[:, 2:])
    log_prob = _log_probs(captured.logits[:, 1:-1], answers, predicting)
    states = _roles(_all_layers(model, captured), predicting)
    return states.cpu().numpy(), log_prob.cpu().numpy()


def _all_layers(model: HookedModel, captured: Captured) -> Float[Tensor, "layer batch k d_model"]:
    """Inputs of all blocks and the output of the last one, float32."""
    layers = range(model.anatomy.n_layers)
    streams = [captured[Site.RESID_PRE, layer] for layer in layers]
    streams.append(captured[Site.RESID_POST, layers[-1]])
    return torch.stack([stream.to(streams[0].device).float() for stream in streams])


def _roles(
    streams: Float[Tensor, "layer batch k d_model"], predicting: Bool[Tensor, "batch m"]
) -> Float[Tensor, "role layer batch d_model"]:
    """S, O, P and P_mean from the columns S, END, name tokens."""
    cells = predicting.to(streams.device)[..., None]
    mean = (streams[:, :, 1:-1] * cells).sum(2) / cells.sum(1)
    return torch.stack([streams[:, :, 0], streams[:, :, -1], streams[:, :, 1], mean])


def _log_probs(
    logits: Float[Tensor, "batch m d_vocab"],
    ids: Int[Tensor, "batch m"],
    predicting: Bool[Tensor, "batch m"],
) -> Float[Tensor, " batch"]:
    logits = logits.float()
    ids, predicting = ids.to(logits.device), predicting.to(logits.device)
    one = logits.gather(2, ids[..., None]).squeeze(2) - logits.logsumexp(2)
    return (one * predicting).sum(1)
