"""A streaming head is full attention with everything masked but sink and window."""

from __future__ import annotations

import pytest
import torch
from families import FAMILIES, ids, tiny
from mnemoscope.models import wrap
from mnemoscope.models.attention import AttentionCall
from mnemoscope.models.errors import MnemoscopeError, UnsupportedModelError
from mnemoscope.probes import streaming_heads
from mnemoscope.probes.streaming_heads import (
    checkpointed_blocks,
    mixed_attention,
    streaming_output,
)

SEEN = [family for family in FAMILIES if family != "gptj"]


def by_definition(call: AttentionCall, sink: int, recent: int, first_key: int = 0) -> torch.Tensor:
    """The formula, with the whole `[pos, key]` matrix and repeated keys."""
    n_queries, n_keys = call.query.shape[2], call.key.shape[2]
    group = call.query.shape[1] // call.key.shape[1]
    k, v = (x.repeat_interleave(group, dim=1) for x in (call.key, call.value))
    scores = call.query @ k.transpose(-1, -2) * call.options["scaling"]
    cap = call.options.get("softcap")
    scores = scores if cap is None else cap * torch.tanh(scores / cap)
    t = torch.arange(n_keys - n_queries, n_keys)[:, None]
    j = torch.arange(n_keys)[None]
    kept = (j <= t) & ((j + first_key < sink) | (j > t - recent))
    window = call.options.get("sliding_window")
    kept &= (t - j < window) if window else kept
    weights = scores.masked_fill(~kept, -torch.inf).softmax(-1)
    return (weights @ v).transpose(1, 2)


def calls_of(family: str, length: int) -> list[AttentionCall]:
    model = wrap(tiny(family))
    calls = []

    def keep(call, full):
        calls.append(call)
        return full()

    with mixed_attention(model, keep), torch.no_grad():
        model.forward(model.batch(ids(2, length).tolist()))
    return calls


@pytest.mark.parametrize("family", SEEN)
@pytest.mark.parametrize(("sink", "recent"), [(0, 1), (2, 3), (4, 40), (30, 2)])
def test_equals_the_masked_formula_in_every_family(monkeypatch, family, sink, recent):
    monkeypatch.setattr(streaming_heads, "LEAST_BLOCK", 4)  # several blocks in a short text
    calls = calls_of(family, 23)
    assert [call.layer for call in calls] == [0, 1, 2]
    for call in calls:
        found = streaming_output(call, sink, recent)
        torch.testing.assert_close(found, by_definition(call, sink, recent), rtol=0, atol=1e-10)


@pytest.mark.parametrize("first_key", [0, 3])
def test_queries_behind_a_cached_prompt(first_key):
    draw = torch.Generator().manual_seed(0)

    def made(*shape):
        return torch.randn(*shape, generator=draw, dtype=torch.float64)

    call = AttentionCall(
        0, made(2, 6, 5, 8), made(2, 2, 31, 8), made(2, 2, 31, 4), None, {"scaling": 0.3}
    )
    for sink, recent in [(0, 1), (4, 6), (5, 31), (50, 50)]:
        found = streaming_output(call, sink, recent, first_key)
        expected = by_definition(call, sink, recent, first_key)
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-12)


def test_gradients_are_those_of_the_formula(monkeypatch):
    monkeypatch.setattr(streaming_heads, "LEAST_BLOCK", 4)
    call = calls_of("llama", 19)[1]
    q, k, v = (x.clone().requires_grad_() for x in (call.query, call.key, call.value))
    live = AttentionCall(1, q, k, v, None, call.options)
    weights = torch.randn(by_definition(call, 2, 5).shape, dtype=torch.float64)
    found = torch.autograd.grad((streaming_output(live, 2, 5) * weights).sum(), (q, k, v))
    expected = torch.autograd.grad((by_definition(live, 2, 5) * weights).sum(), (q, k, v))
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-10)


def test_checkpointed_blocks_compute_the_same_and_are_taken_off():
    model = wrap(tiny("qwen3"))
    batch = model.batch(ids(1, 12).tolist())
    plain = model.forward(batch)
    with checkpointed_blocks(model):
        again = model.forward(batch)
        weight = model.module.get_input_embeddings().weight
        (gradient,) = torch.autograd.grad(again.square().sum(), weight)
    (expected,) = torch.autograd.grad(plain.square().sum(), weight)
    assert torch.equal(plain, again)
    torch.testing.assert_close(gradient, expected, rtol=1e-12, atol=1e-12)
    assert all("forward" not in vars(block) for block in model.module.model.layers)


def test_models_and_windows_that_cannot_stream_are_refused():
    with (
        pytest.raises(UnsupportedModelError, match="attention interface"),
        mixed_attention(wrap(tiny("gptj")), lambda call, full: full()),
    ):
        pass
    call = calls_of("llama", 8)[0]
    for sink, recent in [(-1, 3), (4, 0)]:
        with pytest.raises(MnemoscopeError, match="own key"):
            streaming_output(call, sink, recent)


def test_padding_is_never_read():
    model = wrap(tiny("llama"))
    short, long = ids(2, 14).tolist()
    short = short[:9]
    read = {}

    def stream(call, full):
        return streaming_output(call, 0, 5)

    for name, rows in {"padded": [short, long], "alone": [short]}.items():
        with mixed_attention(model, stream), torch.no_grad():
            read[name] = model.forward(model.batch(rows))[0, -1]
    torch.testing.assert_close(read["padded"], read["alone"], rtol=0, atol=1e-10)
