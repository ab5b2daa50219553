"""Contexts held as data: what their tokens are at every layer, and what reads them.

A question reads a context only through its keys and values, and those of one token are a function
of that token's residual states and of its position. So a context in which some tokens are other
vectors, while every other token stays as the un-intervened run has it, needs no new run of the
context: only the changed tokens go through the model, with every block's input set, and their keys
and values take their places among the held ones. That is the freezing that the method asks for
(Feng and Steinhardt 2024; reversal_binding, section 3.1), exactly, at the cost of the tokens that
change. Changed tokens may also claim another position: rotary keys then turn with it.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from ..models.batching import adaptive, length_buckets
from ..models.edits import Edit, StreamId
from ..models.errors import UnsupportedModelError
from ..models.hooked import HookedModel
from ..models.hooks import site_hook
from ..models.prompt_cache import PromptCache, run_behind
from ..models.types import Site
from .binding_prompts import BindingPrompts
from .elicitation import Progress, silent

ROWS = 32
"""Contexts that are held at once."""


@dataclass(frozen=True, eq=False)
class HeldContexts:
    """Contexts that were run once. Memory: keys and values, and the states of `columns`."""

    ids: Int[Tensor, "context pos"]
    cache: Any
    columns: tuple[int, ...]
    states: Float[Tensor, "layer context column d_model"]
    """Input of every block at the columns."""

    def at(self, columns: Sequence[int]) -> Float[Tensor, "layer context k d_model"]:
        """The states of some of the held columns."""
        return self.states[:, :, [self.columns.index(c) for c in columns]]


@dataclass(frozen=True, eq=False)
class Change:
    """Other states for some columns, standing at `positions` (None: where they are)."""

    columns: tuple[int, ...]
    states: Float[Tensor, "layer context column d_model"]
    positions: tuple[int, ...] | None = None


@torch.no_grad()
def hold(
    model: HookedModel, ids: Int[Tensor, "context pos"], columns: Sequence[int]
) -> HeldContexts:
    """Run the contexts and keep keys, values and the block inputs at `columns`.

    Raises `UnsupportedModelError` when a layer does not keep all of the context.
    """
    layers = range(model.anatomy.n_layers)
    kept: dict[int, Tensor] = {}

    def keep(layer: int) -> Callable[[Tensor], None]:
        def store(x: Tensor) -> None:
            kept[layer] = x[:, list(columns)].detach().clone()

        return store

    with model.lock, ExitStack() as stack:
        for layer in layers:
            hook = site_hook(model.module, model.anatomy, Site.RESID_PRE, layer, keep(layer))
            stack.enter_context(hook)
        _, cache = run_behind(model, None, ids, _last(ids))
    if any(layer.keys.shape[2] != ids.shape[1] for layer in cache.layers):
        raise UnsupportedModelError(
            f"a layer of {model.name} forgets tokens of a context of {ids.shape[1]}: use a context "
            "that is shorter than its sliding window."
        )
    return HeldContexts(ids, cache, tuple(columns), torch.stack([kept[i] for i in layers]))


@torch.no_grad()
def changed(model: HookedModel, held: HeldContexts, change: Change) -> HeldContexts:
    """The contexts with other states at some columns; all other tokens stay as they were."""
    units = tuple(StreamId(layer, Site.RESID_PRE) for layer in range(model.anatomy.n_layers))
    value = change.states.permute(1, 2, 0, 3)
    stand = change.columns if change.positions is None else change.positions
    ids = held.ids[:, list(change.columns)].to(model.device)
    with model.intervene([Edit("set", units, value)]):
        output = model.module(
            input_ids=ids,
            attention_mask=torch.ones_like(ids),
            position_ids=torch.tensor([stand], device=ids.device).expand(len(ids), -1),
            use_cache=True,
            logits_to_keep=1,
        )
    cache = _spliced(held.cache, change.columns, output.past_key_values)
    return HeldContexts(held.ids, cache, held.columns, held.states)


@torch.no_grad()
def read_behind(
    model: HookedModel, held: HeldContexts, questions: Int[Tensor, "context query token"]
) -> Float[Tensor, "context query d_vocab"]:
    """Logits at the end of each question behind its context."""
    asked = questions.unbind(1)
    return torch.cat([run_behind(model, _prompt(held), ids, _last(ids))[0] for ids in asked], dim=1)


def answer_log_probs(
    model: HookedModel,
    held: HeldContexts,
    questions: Int[Tensor, "context query token"],
    answers: Int[Tensor, "context answer"],
) -> Float[Tensor, "context query answer"]:
    """Log-probability, nats, of each answer's first token after each question; float64, on CPU."""
    logits = read_behind(model, held, questions).double().cpu()
    index = answers[:, None].expand(-1, questions.shape[1], -1)
    return logits.log_softmax(-1).gather(2, index)


def kept_states(
    model: HookedModel,
    prompts: BindingPrompts,
    columns: Sequence[int],
    *,
    rows: int = ROWS,
    progress: Progress = silent,
) -> Float[Tensor, "layer context column d_model"]:
    """Input of every block at the columns of all contexts, float32, on CPU."""
    buckets = length_buckets([prompts.columns.length] * len(prompts), rows)
    found: list[Tensor] = []
    done = 0
    for batch, held in adaptive(buckets, lambda some: hold(model, prompts.part(some).ids, columns)):
        found.append(held.states.float().cpu())
        done += len(batch)
        progress(done, len(prompts))
    return torch.cat(found, dim=1)


@torch.no_grad()
def end_states(
    model: HookedModel, held: HeldContexts, question: Int[Tensor, "context token"]
) -> Float[Tensor, "layer context d_model"]:
    """Residual stream at the question's last token: input of every block, then the output of the
    last one (`n_layers + 1` layers)."""
    streams = end_streams(model)
    kept: dict[int, Tensor] = {}

    def keep(layer: int) -> Callable[[Tensor], None]:
        def store(x: Tensor) -> None:
            kept[layer] = x[:, -1].detach().clone()

        return store

    with model.lock, ExitStack() as stack:
        for i, stream in enumerate(streams):
            hook = site_hook(model.module, model.anatomy, stream.site, stream.layer, keep(i))
            stack.enter_context(hook)
        run_behind(model, _prompt(held), question, _last(question))
    return torch.stack([kept[i] for i in range(len(streams))])


@torch.no_grad()
def read_with_end(
    model: HookedModel,
    held: HeldContexts,
    question: Int[Tensor, "context token"],
    layer: int,
    state: Float[Tensor, "context d_model"],
) -> Float[Tensor, "context d_vocab"]:
    """Logits at the question's end with its state replaced at one layer (of `n_layers + 1`)."""
    edit = Edit("set", (end_streams(model)[layer],), state[:, None], "end", "prefill")
    with model.intervene([edit]):
        return run_behind(model, _prompt(held), question, _last(question))[0][:, 0]


def end_streams(model: HookedModel) -> tuple[StreamId, ...]:
    """The streams of the layer axis: inputs of all blocks, then the output of the last one."""
    n = model.anatomy.n_layers
    inputs = (StreamId(layer, Site.RESID_PRE) for layer in range(n))
    return (*inputs, StreamId(n - 1, Site.RESID_POST))


def _prompt(held: HeldContexts) -> PromptCache:
    return PromptCache((0,) * held.ids.shape[1], held.cache)


def _last(ids: Int[Tensor, "row pos"]) -> Int[Tensor, "row one"]:
    return torch.full((len(ids), 1), ids.shape[1] - 1)


def _spliced(cache: Any, columns: Sequence[int], other: Any) -> Any:
    """A copy of `cache` with the entries of `other` at `columns`."""
    fork = copy.copy(cache)
    fork.layers = [copy.copy(layer) for layer in cache.layers]
    for layer, new in zip(fork.layers, other.layers, strict=True):
        layer.keys, layer.values = layer.keys.clone(), layer.values.clone()
        layer.keys[:, :, list(columns)] = new.keys
        layer.values[:, :, list(columns)] = new.values
    return fork
