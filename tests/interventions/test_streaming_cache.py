"""Streaming heads that forget equal heads that are masked, and hold as many bytes as they say."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any, get_args

import pytest
import torch
from families import FAMILIES, ids
from mnemoscope.data.neutral import neutral_passages
from mnemoscope.interventions.streaming import (
    Prefill,
    forget,
    stream_prompt,
    streaming_attention,
    streaming_greedy,
)
from mnemoscope.interventions.streaming_cache import cache_bytes
from mnemoscope.interventions.streaming_pattern import StreamingPattern
from mnemoscope.interventions.streaming_sight import Sight
from mnemoscope.models import HeadId, HookedModel, load_model, zero
from mnemoscope.models.attention_edits import AttentionEdit, streaming
from mnemoscope.models.errors import MnemoscopeError, PromptError, UnsupportedModelError
from mnemoscope.models.prompt_cache import PromptCache
from plain import EXACT, SINGLE, close, model_of
from torch import Tensor
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.masking_utils import sdpa_mask

INTERFACE = [name for name in FAMILIES if name != "gptj"]
WINDOWED = ("mistral", "gemma2", "gemma3")
POLICIES = get_args(Prefill)
SINK, RECENT, CHUNK = 2, 4, 7
LENGTH, PROMPT = 24, 17
IDS = ids(1, LENGTH)[0].tolist()


def pattern_of(model: HookedModel) -> StreamingPattern:
    """A layer with heads of both kinds (the last one is full), one all streaming, one all full."""
    full = torch.zeros(model.anatomy.n_layers, model.anatomy.n_kv_heads, dtype=torch.bool)
    full[0, -1] = True
    full[2] = True
    return StreamingPattern(full, SINK, RECENT)


def edges(policy: str, prompt: int, length: int) -> Tensor:
    """For every query the position that its `recent` keys are counted back from: its own, or the
    first of its chunk; under the policy "full" nothing is hidden from a prompt token."""
    edge = torch.arange(length)
    if policy == "full":
        edge[:prompt] = 0
    if policy == "chunked":
        edge[:prompt] = edge[:prompt] // CHUNK * CHUNK
    return edge


@contextmanager
def masked(model: HookedModel, pattern: StreamingPattern, edge: Tensor) -> Iterator[None]:
    """Attention written out, in which streaming heads are masked and forget nothing."""

    def attention(
        attn: Any, q: Tensor, k: Tensor, v: Tensor, mask: Tensor, **options: Any
    ) -> tuple[Tensor, None]:
        share = q.shape[1] // k.shape[1]
        k, v = k.repeat_interleave(share, 1), v.repeat_interleave(share, 1)
        scores = q @ k.mT * options["scaling"]
        if options.get("softcap") is not None:
            scores = options["softcap"] * torch.tanh(scores / options["softcap"])
        key = torch.arange(len(edge))
        near = (key < pattern.sink) | (key > edge[:, None] - pattern.recent)
        full = pattern.full[attn.layer_idx].repeat_interleave(share)[:, None, None]
        weights = scores.masked_fill(~(mask & (near | full)), -torch.inf).softmax(-1)
        return (weights @ v).transpose(1, 2), None

    AttentionInterface.register("written_out", attention)
    AttentionMaskInterface.register("written_out", always_a_mask)
    config = model.module.config
    own = config._attn_implementation
    config._attn_implementation = "written_out"
    try:
        yield
    finally:
        config._attn_implementation = own


def always_a_mask(*args: Any, **options: Any) -> Any:
    return sdpa_mask(*args, **{**options, "allow_is_causal_skip": False})


def masked_logits(model: HookedModel, pattern: StreamingPattern, policy: str) -> Tensor:
    """Of the whole sequence in one pass: the prompt under a policy, streaming behind it."""
    with masked(model, pattern, edges(policy, PROMPT, LENGTH)):
        return model.logits(model.batch([IDS]))[0]


def streamed_prompt(
    model: HookedModel, pattern: StreamingPattern, policy: Prefill = "streaming"
) -> PromptCache:
    return stream_prompt(model, IDS[:PROMPT], pattern, prefill=policy, chunk=CHUNK)


@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("family", INTERFACE)
def test_heads_that_forget_give_the_logits_of_masked_heads(family: str, policy: Prefill) -> None:
    """Prompt in chunks, then the rest together and token by token."""
    model = model_of(family)
    pattern = pattern_of(model)
    want = masked_logits(model, pattern, policy)[PROMPT:]
    prompt = streamed_prompt(model, pattern, policy)
    one_by_one = []
    with streaming_attention(model):
        together = model.suffix_logits(prompt, IDS[PROMPT:])[0]
        for token in IDS[PROMPT:]:
            one_by_one.append(model.suffix_logits(prompt, [token])[0, 0])
            prompt = model.prefill([token], before=prompt)
    atol = SINGLE if family == "gemma2" else EXACT
    close(together, want, atol)
    close(torch.stack(one_by_one), want, atol)


@pytest.mark.parametrize("family", ["llama", "gemma2", "mistral"])
def test_the_pattern_and_the_policy_change_what_is_said(family: str) -> None:
    """The equalities above could fail: with other heads or another policy the logits differ."""
    model = model_of(family)
    pattern = pattern_of(model)
    others = [masked_logits(model, pattern, policy)[PROMPT:] for policy in POLICIES]
    others.append(masked_logits(model, replace(pattern, full=~pattern.full), "full")[PROMPT:])
    others.append(model.logits(model.batch([IDS]))[0, PROMPT:])
    for i, one in enumerate(others):
        for other in others[:i]:
            assert float((one - other).abs().max()) > 1e-3


@pytest.mark.parametrize("family", ["llama", "mistral", "gemma3"])
def test_streaming_equals_streaming_attention_edits(family: str) -> None:
    model = model_of(family)
    pattern = pattern_of(model)
    share = model.anatomy.heads_per_kv
    narrow = [
        HeadId(layer, kv_head * share + j)
        for layer, kv_head in (~pattern.full).nonzero().tolist()
        for j in range(share)
    ]
    with model.intervene([streaming(narrow, SINK, RECENT)]):
        want = model.logits(model.batch([IDS]))[0, PROMPT:]
    prompt = streamed_prompt(model, pattern)
    with streaming_attention(model):
        close(model.suffix_logits(prompt, IDS[PROMPT:])[0], want)


@pytest.mark.parametrize("policy", POLICIES)
def test_all_heads_full_is_the_model_itself(policy: Prefill) -> None:
    model = model_of("qwen3")
    pattern = replace(pattern_of(model), full=torch.ones(3, 2, dtype=torch.bool))
    want = model.logits(model.batch([IDS]))[:, PROMPT:]
    prompt = streamed_prompt(model, pattern, policy)
    with streaming_attention(model):
        close(model.suffix_logits(prompt, IDS[PROMPT:]), want)


@pytest.mark.parametrize("chunk", [1, 3, LENGTH])
def test_the_chunk_does_not_matter_to_streaming_and_full(chunk: int) -> None:
    model = model_of("llama")
    pattern = pattern_of(model)
    for policy in ("full", "streaming"):
        prompt = stream_prompt(model, IDS[:PROMPT], pattern, prefill=policy, chunk=chunk)
        with streaming_attention(model):
            got = model.suffix_logits(prompt, IDS[PROMPT:])[0]
        close(got, masked_logits(model, pattern, policy)[PROMPT:])


def test_several_rows_continue_one_prompt() -> None:
    model = model_of("llama")
    prompt = streamed_prompt(model, pattern_of(model))
    with streaming_attention(model):
        one = model.suffix_logits(prompt, IDS[PROMPT:])
        close(model.suffix_logits(prompt, IDS[PROMPT:], rows=3), one.expand(3, -1, -1))


def test_edits_of_head_outputs_apply_to_streaming_heads() -> None:
    model = model_of("llama")
    pattern = pattern_of(model)
    prompt = streamed_prompt(model, pattern)
    edit = zero([HeadId(1, 0)])
    with model.intervene([edit]), masked(model, pattern, edges("streaming", PROMPT, LENGTH)):
        want = model.logits(model.batch([IDS]))[0, -1]
    with model.intervene([edit]):
        edited = streamed_prompt(model, pattern)
        with streaming_attention(model):
            got = model.suffix_logits(edited, IDS[PROMPT:])[0, -1]
            late = model.suffix_logits(prompt, IDS[PROMPT:])[0, -1]
    close(got, want)
    assert float((late - want).abs().max()) > 1e-6  # the edited prompt mattered


# -- what is held ----------------------------------------------------------------------------------


def held_by_hand(pattern: StreamingPattern, length: int, window: int | None = None) -> int:
    """Keys that some later query sees, counted one by one over layers and KV heads."""
    total = 0
    for full in pattern.full.flatten().tolist():
        for key in range(length):
            near = key < pattern.sink or key > length - pattern.recent
            in_window = window is None or key > length - window
            total += (full or near) and in_window
    return total


@pytest.mark.parametrize("family", [name for name in INTERFACE if name not in WINDOWED])
@pytest.mark.parametrize("policy", POLICIES)
def test_bytes_follow_the_formula(family: str, policy: Prefill) -> None:
    model = model_of(family)
    pattern, width = pattern_of(model), model.anatomy.d_v
    for length in (1, SINK + RECENT - 1, SINK + RECENT, PROMPT):
        assert pattern.keys_held(length) == held_by_hand(pattern, length)
        prompt = stream_prompt(model, IDS[:length], pattern, prefill=policy, chunk=CHUNK)
        assert cache_bytes(prompt.cache) == pattern.keys_held(length) * 2 * width * 8
    full = cache_bytes(model.prefill(IDS[:PROMPT]).cache)
    assert full == pattern.full.numel() * PROMPT * 2 * width * 8


@pytest.mark.parametrize("policy", POLICIES)
def test_behind_a_sliding_window_nothing_is_held_that_it_hides(policy: Prefill) -> None:
    model = model_of("mistral")  # every layer sees 6 keys
    pattern = pattern_of(model)
    prompt = streamed_prompt(model, pattern, policy)
    with streaming_attention(model):
        prompt = model.prefill(IDS[PROMPT:], before=prompt)
    held = held_by_hand(pattern, LENGTH, window=6)
    assert cache_bytes(prompt.cache) == held * 2 * model.anatomy.d_v * 8


def test_decoding_holds_no_more_in_streaming_heads() -> None:
    model = model_of("llama")
    pattern = replace(pattern_of(model), full=torch.zeros(3, 2, dtype=torch.bool))
    prompt = streamed_prompt(model, pattern)
    before = cache_bytes(prompt.cache)
    with streaming_attention(model):
        for token in IDS[PROMPT:]:
            prompt = model.prefill([token], before=prompt)
            assert cache_bytes(prompt.cache) == before
    assert prompt.cache.get_seq_length() == LENGTH


def test_a_view_counts_as_what_it_keeps_in_memory() -> None:
    model = model_of("llama")
    cache = model.prefill(IDS).cache
    whole = cache_bytes(cache)
    for layer in cache.layers:
        layer.keys, layer.values = layer.keys[:, :, -1:], layer.values[:, :, -1:]
    assert cache_bytes(cache) == whole


def test_the_prompt_that_is_forgotten_stays_as_it_was() -> None:
    model = model_of("llama")
    prompt = model.prefill(IDS[:PROMPT])
    before = [layer.keys.clone() for layer in prompt.cache.layers]
    short = forget(prompt, pattern_of(model))
    with streaming_attention(model):
        first = model.suffix_logits(short, IDS[PROMPT:])
        again = model.suffix_logits(short, IDS[PROMPT:])
    assert torch.equal(first, again)
    for layer, keys in zip(prompt.cache.layers, before, strict=True):
        assert torch.equal(layer.keys, keys)
    assert short.ids == prompt.ids


@pytest.mark.parametrize("sink", [0, 1, 3])
@pytest.mark.parametrize("recent", [None, 1, 2, 9])
@pytest.mark.parametrize("window", [None, 1, 4])
def test_past_and_mask_say_the_same(sink: int, recent: int | None, window: int | None) -> None:
    sight = Sight(sink, recent, window)
    at = torch.arange(12)
    visible = sight.visible(at, at)
    for query in range(12):
        past = [key for r in sight.past(query) for key in r]
        assert past == sorted(set(past))
        assert visible[query].nonzero()[:, 0].tolist() == [*past, query]


# -- text ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("tail", [1, 5])
def test_greedy_text_is_that_of_masked_heads(policy: Prefill, tail: int) -> None:
    model = model_of("llama")
    pattern = pattern_of(model)
    prompt, want = IDS[:PROMPT], []
    for _ in range(6):
        given = [*prompt, *want]
        with masked(model, pattern, edges(policy, PROMPT - tail, len(given))):
            token = int(model.logits(model.batch([given]), at="end").argmax())
        if token in model.stop_ids:
            break
        want.append(token)
    got = streaming_greedy(model, prompt, pattern, 6, prefill=policy, chunk=CHUNK, tail=tail)
    assert got == want


def test_engram_says_the_same_within_sink_and_recent() -> None:
    """As long as nothing has been forgotten, a model of streaming heads is the model."""
    model = load_model("engram")
    given = model.tokens(neutral_passages()[0]).row(0).tolist()[:100]
    full = torch.zeros(6, 4, dtype=torch.bool)
    plain = model.generate(model.batch([given]), 12)[0]
    roomy = StreamingPattern(full, sink=4, recent=112)
    assert streaming_greedy(model, given, roomy, 12, prefill="streaming", chunk=32) == plain
    narrow = StreamingPattern(full, sink=4, recent=4)
    assert streaming_greedy(model, given, narrow, 12, prefill="streaming", chunk=32) != plain


# -- what is refused -------------------------------------------------------------------------------


def test_a_streaming_prompt_outside_the_block_is_refused() -> None:
    model = model_of("llama")
    prompt = streamed_prompt(model, pattern_of(model))
    with pytest.raises(MnemoscopeError, match="with streaming_attention"):
        model.suffix_logits(prompt, IDS[PROMPT:])


def test_after_an_error_the_model_and_the_prompt_are_as_before() -> None:
    model = model_of("llama")
    own = model.module.config._attn_implementation
    prompt = streamed_prompt(model, pattern_of(model))
    with pytest.raises(PromptError, match="more than"), streaming_attention(model):
        model.suffix_logits(prompt, IDS * 3)
    assert model.module.config._attn_implementation == own
    assert not model.module._forward_pre_hooks
    with pytest.raises(MnemoscopeError, match="with streaming_attention"):
        model.suffix_logits(prompt, IDS[PROMPT:])


def test_other_runs_inside_the_block_are_refused() -> None:
    model = model_of("llama")
    with streaming_attention(model), pytest.raises(MnemoscopeError, match="outside the block"):
        model.logits(model.batch([IDS]))


def test_attention_edits_are_refused_on_either_side() -> None:
    model = model_of("llama")
    prompt = streamed_prompt(model, pattern_of(model))
    edit = AttentionEdit("uniform", (HeadId(0, 0),))
    with (
        pytest.raises(UnsupportedModelError, match="leave out attention edits"),
        model.intervene([edit]),
        streaming_attention(model),
    ):
        pass
    with (
        pytest.raises(MnemoscopeError, match="need all keys"),
        streaming_attention(model),
        model.intervene([edit]),
    ):
        model.suffix_logits(prompt, IDS[PROMPT:])


def test_a_model_without_the_interface_is_refused() -> None:
    model = model_of("gptj")
    full = torch.ones(3, 4, dtype=torch.bool)
    with pytest.raises(UnsupportedModelError, match="attention interface"):
        stream_prompt(model, IDS, StreamingPattern(full, 1, 1), prefill="full")


def test_patterns_that_do_not_fit_are_refused() -> None:
    model = model_of("llama")
    other = StreamingPattern(torch.ones(3, 4, dtype=torch.bool), 1, 1)
    with pytest.raises(MnemoscopeError, match="take the pattern of this model"):
        stream_prompt(model, IDS, other, prefill="streaming")
    with pytest.raises(MnemoscopeError, match="cannot be laid on"):
        forget(model.prefill(IDS), StreamingPattern(torch.ones(4, 2, dtype=torch.bool), 1, 1))
    with pytest.raises(MnemoscopeError, match="recent >= 1"):
        StreamingPattern(other.full, 1, 0)
    with pytest.raises(MnemoscopeError, match="binarise"):
        StreamingPattern(other.full.float(), 1, 1)  # type: ignore[arg-type]


def test_wrong_prompts_and_policies_are_refused() -> None:
    model = model_of("llama")
    pattern = pattern_of(model)
    with pytest.raises(MnemoscopeError, match="policy 'none'"):
        stream_prompt(model, IDS, pattern, prefill="none")  # type: ignore[arg-type]
    with pytest.raises(MnemoscopeError, match="chunk=0"):
        stream_prompt(model, IDS, pattern, prefill="streaming", chunk=0)
    with pytest.raises(PromptError, match="no tokens"):
        stream_prompt(model, [], pattern, prefill="chunked")
    with pytest.raises(PromptError, match="65 tokens"):
        streaming_greedy(model, IDS, pattern, 65 - LENGTH, prefill="streaming")
    with pytest.raises(PromptError, match="tail=24"):
        streaming_greedy(model, IDS, pattern, 1, prefill="streaming", tail=LENGTH)
