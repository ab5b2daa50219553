"""One prompt's keys and values, kept so that many suffixes can be read behind it.

A haystack is prefilled once; each question, each answer and each intervention on them continues
from it. What continues never changes the cache it came from: layers of the cache grow by making
new tensors, so a fork shares the old ones and costs no copy until it runs.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from .backends import Inputs
from .errors import MnemoscopeError, PromptError

if TYPE_CHECKING:
    from .hooked import HookedModel


@dataclass(frozen=True, eq=False)
class PromptCache:
    """The state of a model behind `ids`: one row, no padding."""

    ids: tuple[int, ...]
    cache: Any
    """A cache of transformers, one entry a layer; read it, do not run a model on it."""

    def __len__(self) -> int:
        return len(self.ids)


@torch.no_grad()
def prefill(
    model: HookedModel, ids: Sequence[int], before: PromptCache | None, chunk: int
) -> PromptCache:
    """Run `ids` (behind `before`) in chunks and keep keys and values."""
    check_room(model, ids, before)
    if chunk < 1:
        raise MnemoscopeError(f"chunk={chunk} tokens at once are too few: use 1 or more.")
    done = before
    for first in range(0, len(ids), chunk):
        piece = tuple(int(i) for i in ids[first : first + chunk])
        last = torch.tensor([[len(piece) - 1]])
        _, cache = run_behind(model, done, torch.tensor([piece]), last)
        done = PromptCache((*(done.ids if done else ()), *piece), cache)
    assert done is not None
    return done


@torch.no_grad()
def suffix_logits(
    model: HookedModel,
    prompt: PromptCache,
    suffix: Sequence[int],
    queries: Sequence[int] | None,
    rows: int,
) -> Float[Tensor, "row query d_vocab"]:
    """Logits at the suffix's offsets `queries` (None: all), in `rows` equal rows."""
    check_room(model, suffix, prompt)
    ids = torch.tensor([list(suffix)]).expand(rows, -1)
    return run_behind(model, prompt, ids, suffix_columns(suffix, queries, rows))[0]


@torch.no_grad()
def greedy_from(
    model: HookedModel, prompt: PromptCache, suffix: Sequence[int], max_new_tokens: int
) -> list[int]:
    """New token ids behind prompt and suffix, cut before the first stop token."""
    if max_new_tokens < 1:
        raise MnemoscopeError("generation needs max_new_tokens of at least 1.")
    check_room(model, suffix, prompt, max_new_tokens)
    state, step, new = prompt, list(suffix), []
    for _ in range(max_new_tokens):
        last = torch.tensor([[len(step) - 1]])
        logits, cache = run_behind(model, state, torch.tensor([step]), last)
        state = PromptCache((*state.ids, *step), cache)
        token = int(logits[0, -1].argmax())
        if token in model.stop_ids:
            break
        new.append(token)
        step = [token]
    return new


def run_behind(
    model: HookedModel,
    prompt: PromptCache | None,
    ids: Int[Tensor, "row pos"],
    columns: Int[Tensor, "row query"] | None,
) -> tuple[Float[Tensor, "row query d_vocab"], Any]:
    """One forward pass of `ids` behind the prompt; logits at `columns`, and the longer cache."""
    rows, past = ids.shape[0], 0 if prompt is None else len(prompt)
    positions = torch.arange(past, past + ids.shape[1]).expand(rows, -1)
    mask = torch.ones(rows, past + ids.shape[1], dtype=torch.long)
    inputs = Inputs(
        ids.to(model.device),
        mask.to(model.device),
        positions.to(model.device),
        None if prompt is None else model.forked(prompt.cache, rows),
        use_cache=True,
    )
    with model.lock:
        return model.run_pass(inputs, columns)


def suffix_columns(
    suffix: Sequence[int], queries: Sequence[int] | None, rows: int = 1
) -> Int[Tensor, "row query"]:
    """Offsets into the suffix as columns; raises `PromptError` for one that is not there."""
    offsets = list(range(len(suffix))) if queries is None else [int(q) for q in queries]
    wrong = [q for q in offsets if not 0 <= q < len(suffix)]
    if wrong or not offsets:
        raise PromptError(
            f"queries {wrong or offsets} are no offsets into a suffix of {len(suffix)} tokens: "
            f"use 0 to {len(suffix) - 1}."
        )
    return torch.tensor([offsets]).expand(rows, -1)


def forked(cache: Any, rows: int) -> Any:
    """The same cache for `rows` rows; running on it leaves the old one as it is."""
    fork = copy.copy(cache)
    fork.layers = [copy.copy(layer) for layer in cache.layers]
    if rows > 1:
        for layer in fork.layers:
            if layer.keys is not None:  # streaming layers widen what they hold themselves
                layer.keys = layer.keys.expand(rows, -1, -1, -1)
                layer.values = layer.values.expand(rows, -1, -1, -1)
    return fork


def check_room(
    model: HookedModel, ids: Sequence[int], before: PromptCache | None, new: int = 0
) -> None:
    """Raises `PromptError` for no tokens, or more than the model reads with what is around."""
    if not ids:
        raise PromptError("no tokens to run: give at least one token.")
    limit, past = model.anatomy.max_context, 0 if before is None else len(before)
    if limit is not None and past + len(ids) + new > limit:
        raise PromptError(
            f"{past + len(ids) + new} tokens are more than the {limit} that {model.name} reads: "
            "shorten the prompt."
        )
