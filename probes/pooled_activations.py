"""One number a unit and prompt: the unit's activation, pooled over chosen tokens of the prompt.

Liu et al. 2025 average over all tokens, the first one too, whose activations are huge in many
models and say nothing of the prompt; the default here leaves it out. Pooling happens in the hooks,
in float32 or wider, and prompts run beside others of the same number of tokens only, so that no
padding can enter a mean and the size of a batch changes results by rounding at most.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from itertools import pairwise
from typing import Literal, get_args

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from ..data.facts.designs import Prompt
from ..models.batching import adaptive
from ..models.errors import MnemoscopeError, PromptError
from ..models.hooked import HookedModel
from ..models.tokens import TokenBatch, encode, encode_with_offsets
from ..models.types import Site
from .elicitation import Progress, silent

Pooling = Literal[
    "mean_nobos", "mean_all", "last", "subject_last", "relation_span", "pre_object", "max"
]
"""Which tokens are pooled, and how:

- `mean_nobos`: the mean over all tokens but the first (a BOS, or a word that stands in its place);
- `mean_all`: the mean over all tokens (the paper's);
- `last`: the last token; `pre_object`: the token before the object, which is the last one too,
  because prompts end right before their object;
- `subject_last`: the last token that holds a letter of the subject;
- `relation_span`: the mean over the tokens of `mean_nobos` that hold none and are part of the text;
- `max`: the largest value among the tokens of `mean_nobos`.
"""

_BYTES = 4  # float32


def pooled_activations(
    model: HookedModel,
    prompts: Sequence[Prompt],
    *,
    site: Site = Site.NEURON,
    pooling: Pooling = "mean_nobos",
    layers: Sequence[int],
    rows: int = 32,
    progress: Progress = silent,
) -> Float[Tensor, "layer unit n"]:
    """The pooled activation of every unit of the layers on every prompt.

    Float32 on the model's device, the prompt axis contiguous, layers and prompts in the order
    given. Peak memory: the result, and one forward pass over at most `rows` prompts of one length.
    Raises `UnsupportedSiteError` where the model has no units at the site, `UnitOutOfRangeError`
    for a layer it does not have, `PromptError` for a prompt without the tokens that are pooled.
    """
    encoded = [encode(model.text_tokenizer, prompt.text) for prompt in prompts]
    shape = (len(layers), model.anatomy.n_units(site), len(prompts))
    pooled = torch.empty(shape, dtype=torch.float32, device=model.device)
    reduce: Literal["mean", "max"] = "max" if pooling == "max" else "mean"

    def run(chosen: Sequence[int]) -> list[Tensor]:
        batch = model.batch([encoded[i] for i in chosen])
        among = cells(model, batch, [prompts[i] for i in chosen], pooling)
        captured = model.capture(batch, [site], layers=layers, reduce=reduce, among=among)
        return [captured[site, layer] for layer in layers]

    done = 0
    for chosen, values in adaptive(_of_one_length(encoded, rows), run):
        places = torch.tensor(list(chosen), device=model.device)
        for target, value in zip(pooled, values, strict=True):
            target.index_copy_(1, places, value.to(target).T)
        done += len(chosen)
        progress(done, len(prompts))
    return pooled


def layer_blocks(model: HookedModel, n_prompts: int, site: Site, memory_bytes: int) -> list[range]:
    """The layers in consecutive blocks of even size, as few as keep one block's pooled activations
    below `memory_bytes`.

    Raises `MnemoscopeError` when not even one layer fits, `UnsupportedSiteError` where the model
    has no units at the site.
    """
    one = model.anatomy.n_units(site) * n_prompts * _BYTES
    if one > memory_bytes:
        raise MnemoscopeError(
            f"one layer of {model.name} takes {one} bytes at {site} for {n_prompts} prompts, but "
            f"memory_bytes is {memory_bytes}: allow at least that much or ask fewer prompts."
        )
    n_layers = model.anatomy.n_layers
    at_once = min(n_layers, memory_bytes // one) if one else n_layers
    n_blocks = -(-n_layers // at_once)
    edges = [i * n_layers // n_blocks for i in range(n_blocks + 1)]
    return [range(start, end) for start, end in pairwise(edges)]


def cells(
    model: HookedModel, batch: TokenBatch, prompts: Sequence[Prompt], pooling: Pooling
) -> Bool[Tensor, "batch pos"]:
    """The tokens that a pooling reads, from the tokenizer's character offsets; never padding.

    `batch` holds the tokens of the prompts' texts, row by row, padded on either side. Raises
    `PromptError` where it does not, or where a prompt has no such token; `MnemoscopeError` for an
    unknown pooling, or a tokenizer that cannot say where its tokens stand in the text.
    """
    if pooling not in get_args(Pooling):
        raise MnemoscopeError(
            f"pooling {pooling!r} is unknown: use {', '.join(get_args(Pooling))}."
        )
    found = _CELLS[pooling](model, batch, prompts)
    empty = (~found.any(dim=1)).nonzero().flatten().tolist()
    if empty:
        raise PromptError(
            f"{len(empty)} prompts have no token for the pooling {pooling!r}, the first is "
            f"{prompts[empty[0]].text!r}: choose another pooling or lengthen the prompt."
        )
    return found


_Cells = Callable[[HookedModel, TokenBatch, Sequence[Prompt]], Bool[Tensor, "batch pos"]]


def _all(model: HookedModel, batch: TokenBatch, prompts: Sequence[Prompt]) -> Tensor:
    return batch.mask.clone()


def _all_but_first(model: HookedModel, batch: TokenBatch, prompts: Sequence[Prompt]) -> Tensor:
    return batch.mask & ~_one_hot(batch, batch.starts)


def _last(model: HookedModel, batch: TokenBatch, prompts: Sequence[Prompt]) -> Tensor:
    return _one_hot(batch, batch.ends)


def _subject_last(model: HookedModel, batch: TokenBatch, prompts: Sequence[Prompt]) -> Tensor:
    subject, _ = _spans(model, batch, prompts)
    column = torch.arange(batch.ids.shape[1], device=subject.device)
    return subject & (column == (column * subject).amax(dim=1, keepdim=True))


def _relation_span(model: HookedModel, batch: TokenBatch, prompts: Sequence[Prompt]) -> Tensor:
    subject, text = _spans(model, batch, prompts)
    return text & ~subject & _all_but_first(model, batch, prompts)


_CELLS: Mapping[Pooling, _Cells] = {
    "mean_nobos": _all_but_first,
    "mean_all": _all,
    "last": _last,
    "subject_last": _subject_last,
    "relation_span": _relation_span,
    "pre_object": _last,
    "max": _all_but_first,
}


def _one_hot(batch: TokenBatch, column: Tensor) -> Bool[Tensor, "batch pos"]:
    return torch.arange(batch.ids.shape[1], device=column.device) == column[:, None]


def _spans(
    model: HookedModel, batch: TokenBatch, prompts: Sequence[Prompt]
) -> tuple[Bool[Tensor, "batch pos"], Bool[Tensor, "batch pos"]]:
    """Tokens that share a character with the subject, and tokens that stand for any text at all
    (special tokens do not)."""
    offsets = _offsets(model, batch, prompts)
    start, end = offsets.unbind(dim=-1)
    first, last = (
        torch.tensor(ends, device=offsets.device)[:, None]
        for ends in ([p.subject_start for p in prompts], [p.subject_end for p in prompts])
    )
    text = end > start
    return text & (start < last) & (end > first), text


def _offsets(model: HookedModel, batch: TokenBatch, prompts: Sequence[Prompt]) -> Tensor:
    """First and one-after-last character of each token, `[batch, pos, 2]`; (0, 0) on padding."""
    tokenizer = model.text_tokenizer
    if not tokenizer.is_fast:
        raise MnemoscopeError(
            f"the tokenizer of {model.name} gives no character offsets, which this pooling needs: "
            "load its fast version or choose a pooling of all tokens or the last one."
        )
    given = encode_with_offsets(tokenizer, [p.text for p in prompts])
    offsets = torch.zeros(*batch.ids.shape, 2, dtype=torch.long)
    here = batch.to("cpu")
    for i, (ids, places) in enumerate(given):
        if ids != here.row(i).tolist():
            raise PromptError(f"row {i} of the batch is not the prompt {prompts[i].text!r}.")
        offsets[i, here.mask[i]] = torch.tensor(places)
    return offsets.to(batch.ids.device)


def _of_one_length(encoded: Sequence[Sequence[int]], rows: int) -> list[list[int]]:
    """Indices in batches of at most `rows` rows, all of one length."""
    by_length: dict[int, list[int]] = {}
    for i in sorted(range(len(encoded)), key=lambda i: len(encoded[i])):
        by_length.setdefault(len(encoded[i]), []).append(i)
    return [
        same[start : start + rows]
        for same in by_length.values()
        for start in range(0, len(same), rows)
    ]
