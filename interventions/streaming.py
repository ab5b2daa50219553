"""Run a model whose streaming heads forget: prompts, suffixes and greedy text.

A streaming prompt is a `PromptCache` like any other, only that its cache is a `StreamingCache`;
inside `streaming_attention` the model continues from it by `suffix_logits` and `greedy_from`::

    prompt = stream_prompt(model, haystack, pattern, prefill="full")
    with streaming_attention(model):
        new = model.greedy_from(prompt, question, max_new_tokens=16)
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from typing import Any, Literal

from torch import Tensor
from transformers.cache_utils import DynamicLayer

from ..models.attention import AttentionCall, Kernel, around_attention
from ..models.errors import MnemoscopeError, PromptError, UnsupportedModelError
from ..models.hooked import HookedModel
from ..models.prompt_cache import PromptCache, check_room
from .streaming_cache import StreamingCache, StreamingLayer, attend
from .streaming_pattern import StreamingPattern
from .streaming_sight import Masks

Prefill = Literal["full", "chunked", "streaming"]
"""What streaming heads see while the prompt is read; what a number means depends on it.

- full: everything; sink and recent keys are kept when the whole prompt has been read. Peak memory
  is that of the full cache.
- chunked: sink and recent keys of what came before the chunk, and the whole chunk up to themselves
  (the first chunk therefore as in "full"). What the released code of DuoAttention does.
- streaming: sink and recent keys at every position, whatever the chunk.
"""


def stream_prompt(
    model: HookedModel,
    ids: Sequence[int],
    pattern: StreamingPattern,
    *,
    prefill: Prefill,
    chunk: int = 2048,
) -> PromptCache:
    """Read a prompt (one row, no padding) and keep of it what the pattern says.

    Edits of the model in force apply. Raises `MnemoscopeError` for a pattern of another model, an
    unknown policy or chunk, `PromptError` for no tokens or more than the context, and
    `UnsupportedModelError` like `streaming_attention`.
    """
    if prefill not in ("full", "chunked", "streaming"):
        raise MnemoscopeError(
            f"prefill policy {prefill!r} is unknown: use full, chunked or streaming."
        )
    _check_supported(model)
    pattern.check(model.anatomy)
    if prefill == "full":
        return forget(model.prefill(ids, chunk=chunk), pattern)
    empty = StreamingCache(pattern)
    empty.whole_chunks = prefill == "chunked"
    with streaming_attention(model):
        prompt = model.prefill(ids, before=PromptCache((), empty), chunk=chunk)
    prompt.cache.whole_chunks = False
    return prompt


def forget(prompt: PromptCache, pattern: StreamingPattern) -> PromptCache:
    """A prompt that was read with full attention, with only what the pattern keeps of it.

    The prompt given stays as it is. Raises `MnemoscopeError` for a pattern of another model or a
    cache that is not one of keys and values.
    """
    layers = prompt.cache.layers
    if len(layers) != len(pattern.full) or not all(isinstance(x, DynamicLayer) for x in layers):
        raise MnemoscopeError(
            f"a pattern of {len(pattern.full)} layers cannot be laid on this cache of "
            f"{len(layers)}: take a prompt that the same model has read with full attention."
        )
    cache = StreamingCache(pattern)
    for old, new in zip(layers, cache.layers, strict=True):
        _take_over(old, new, cache, len(prompt))
    return PromptCache(prompt.ids, cache)


@contextmanager
def streaming_attention(model: HookedModel) -> Iterator[None]:
    """Inside the block the model runs behind streaming prompts, and behind nothing else.

    Edits of `HookedModel.intervene` apply as ever; attention edits and attention rows do not mix
    with it. Raises `UnsupportedModelError` for a model without the attention interface or with
    another attention implementation than sdpa and eager.
    """
    _check_supported(model)
    config = model.module.config.get_text_config()
    masks = Masks(additive=config._attn_implementation == "eager")
    running: list[StreamingCache] = []

    def start(_: Any, __: Any, inputs: dict[str, Any]) -> None:
        cache = _running_cache(inputs, alone=config._attn_implementation == name)
        cache.running = True
        running[:] = [cache]

    def stop(_: Any, __: Any, ___: Any) -> None:
        running[0].running = False
        masks.made.clear()

    def around(call: AttentionCall, own: Kernel) -> Any:
        def kernel(query: Tensor, key: Any, value: Any, mask: Tensor | None) -> Tensor:
            return own(replace(call, query=query, key=key, value=value, mask=mask))[0]

        cache, window = running[0], call.options.get("sliding_window")
        sights = partial(cache.sights, window=window)
        return attend(cache.layers[call.layer], call.query, sights, masks, kernel), None

    with model.lock, around_attention(model.module, around):
        name = config._attn_implementation
        handles = (
            model.module.register_forward_pre_hook(start, with_kwargs=True),
            model.module.register_forward_hook(stop),
        )
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()


def streaming_greedy(
    model: HookedModel,
    ids: Sequence[int],
    pattern: StreamingPattern,
    max_new_tokens: int,
    *,
    prefill: Prefill,
    chunk: int = 2048,
    tail: int = 1,
) -> list[int]:
    """Greedy continuation of a prompt under a pattern: new ids, cut before the first EOS.

    The last `tail` tokens of the prompt are read after it, by streaming heads that see sink and
    recent keys: 1 is END alone, 50 the way in which DuoAttention was evaluated on LongBench.
    Raises like `stream_prompt`, and `PromptError` for a prompt of no more than `tail` tokens.
    """
    if not 1 <= tail < len(ids):
        raise PromptError(
            f"tail={tail} of a prompt of {len(ids)} tokens: the tail holds END at least, and the "
            "prompt one token more."
        )
    check_room(model, ids, None, max_new_tokens)
    prompt = stream_prompt(model, ids[:-tail], pattern, prefill=prefill, chunk=chunk)
    with streaming_attention(model):
        return model.greedy_from(prompt, ids[-tail:], max_new_tokens)


def _take_over(old: Any, new: StreamingLayer, cache: StreamingCache, length: int) -> None:
    window = getattr(old, "sliding_window", None)
    held = range(length - old.keys.shape[2], length)
    kept = []
    for group in new.groups:
        whole = group.joined(old.keys, old.values, held.start)
        _, keeps = cache.sights(group.streaming, window)
        kept.append(whole.keeping(keeps.past(length)))
    new.groups, new.seen = tuple(kept), length


def _check_supported(model: HookedModel) -> None:
    if not model.anatomy.spec.interface:
        raise UnsupportedModelError(
            f"{model.anatomy.model_type} does not use the attention interface of transformers, so "
            "its heads cannot hold different keys: mask them, or take another model."
        )
    kernel = model.module.config.get_text_config()._attn_implementation
    if kernel not in ("sdpa", "eager"):
        raise UnsupportedModelError(
            f"streaming heads run on the attention implementations 'sdpa' and 'eager', not on "
            f"{kernel!r}: load the model with one of them, and leave out attention edits and rows."
        )


def _running_cache(inputs: dict[str, Any], *, alone: bool) -> StreamingCache:
    cache = inputs.get("past_key_values")
    if not isinstance(cache, StreamingCache):
        raise MnemoscopeError(
            "inside `streaming_attention` the model was run without a streaming prompt: continue "
            "from what `stream_prompt` gives, and run everything else outside the block."
        )
    if not alone:
        raise MnemoscopeError(
            "attention edits and attention rows need all keys, which streaming heads have dropped: "
            "use `streaming` attention edits on the full cache instead."
        )
    return cache
