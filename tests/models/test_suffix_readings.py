"""Rows of a suffix behind a cached prompt: what one pass over everything would have said."""

from __future__ import annotations

import pytest
import torch
from families import FAMILIES
from mnemoscope.models import HookedModel, Site, TokenBatch, TokenSpan
from mnemoscope.models.errors import MnemoscopeError, PromptError
from plain import model_of

PROMPT, SUFFIX = tuple(range(3, 20)), (40, 9, 33, 12)
EVERYTHING = PROMPT + SUFFIX
SPANS = (TokenSpan(4, 8), TokenSpan(16, 19), TokenSpan(0, 1), TokenSpan(0, len(EVERYTHING)))
QUERIES = (0, 1, 3)
COLUMNS = torch.tensor([[len(PROMPT) + q for q in QUERIES]])
CLOSE = {"rtol": 0, "atol": 2e-6}


def batch_of() -> TokenBatch:
    return TokenBatch(torch.tensor([EVERYTHING]), torch.ones(1, len(EVERYTHING)).bool())


def full_values(model: HookedModel) -> torch.Tensor:
    """Value vectors of every query head `[layer, key, head, d_v]`."""
    v = model.capture(batch_of(), [Site.V]).stack(Site.V)[:, 0]
    return v.repeat_interleave(model.anatomy.n_heads // v.shape[2], dim=2)


@pytest.mark.parametrize("family", FAMILIES)
def test_rows_equal_those_of_the_pass_over_everything(family: str) -> None:
    model = model_of(family)
    reading = model.read_suffix(model.prefill(PROMPT, chunk=5), SUFFIX, QUERIES, SPANS, top=3)
    want = model.row_summaries(batch_of(), COLUMNS, [SPANS], top=3)
    got = reading.rows
    assert torch.equal(got.columns, COLUMNS)
    assert torch.equal(got.visible, want.visible)
    assert torch.equal(got.key, want.key)
    for one, other in (
        (got.top_weight, want.top_weight),
        (got.mass, want.mass),
        (got.peak, want.peak),
        (got.logsumexp, want.logsumexp),
    ):
        torch.testing.assert_close(one, other, **CLOSE, equal_nan=True)
    logits = model.logits(batch_of(), COLUMNS)[0]
    torch.testing.assert_close(reading.logits, logits, rtol=0, atol=2e-5)


@pytest.mark.parametrize("family", FAMILIES)
def test_peak_is_the_highest_weight_of_the_span(family: str) -> None:
    model = model_of(family)
    rows = model.rows(batch_of(), COLUMNS)
    got = model.read_suffix(model.prefill(PROMPT), SUFFIX, QUERIES, SPANS).rows
    for i, span in enumerate(SPANS):
        highest = rows[..., span.start : span.stop].amax(-1).log()
        seen = got.visible[..., i]
        assert torch.equal(seen, highest > -torch.inf)
        torch.testing.assert_close(got.peak[..., i][seen], highest[seen].float(), rtol=0, atol=1e-5)
        assert bool(got.peak[..., i][~seen].isnan().all())


@pytest.mark.parametrize("family", ["llama", "mistral", "qwen3", "gemma3", "gpt2", "neox", "opt"])
def test_values_of_spans_are_shares_of_z(family: str) -> None:
    model = model_of(family)
    reading = model.read_suffix(model.prefill(PROMPT), SUFFIX, QUERIES, SPANS, values=True)
    assert reading.z is not None
    assert reading.span_value is not None
    z = model.capture(batch_of(), [Site.Z], at=COLUMNS).stack(Site.Z)[:, 0]
    torch.testing.assert_close(reading.z, z, rtol=0, atol=1e-10)
    rows, values = model.rows(batch_of(), COLUMNS)[:, 0], full_values(model).float()
    for i, span in enumerate(SPANS):
        here = slice(span.start, span.stop)
        want = torch.einsum("lhqk,lkhd->lhqd", rows[..., here], values[:, here])
        torch.testing.assert_close(reading.span_value[..., i, :], want, rtol=0, atol=2e-6)
    everything = reading.span_value[..., 3, :].transpose(1, 2)
    torch.testing.assert_close(everything, z.float(), rtol=0, atol=2e-6)


def test_masks_chunks_and_chosen_layers_say_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    model = model_of("llama")
    prompt = model.prefill(PROMPT)
    masks = torch.zeros(2, len(EVERYTHING), dtype=torch.bool)
    masks[0, ::3] = True
    masks[1, 4:8] = True
    want = model.read_suffix(prompt, SUFFIX, QUERIES, masks, values=True)
    from mnemoscope.models import row_folding

    monkeypatch.setattr(row_folding, "LEAST_CHUNK", 2)
    monkeypatch.setattr(row_folding, "WORKING_BYTES", 2000)
    got = model.read_suffix(prompt, SUFFIX, QUERIES, masks, layers=[2, 0], values=True)
    assert got.rows.layers == (2, 0)
    for field in ("mass", "peak", "logsumexp", "top_weight"):
        one, other = getattr(got.rows, field), getattr(want.rows, field)[[2, 0]]
        torch.testing.assert_close(one, other, **CLOSE)
    assert got.span_value is not None
    assert want.span_value is not None
    torch.testing.assert_close(got.span_value, want.span_value[[2, 0]], **CLOSE)
    one = model.read_suffix(prompt, SUFFIX, QUERIES, [TokenSpan(4, 8)]).rows.mass[..., 0]
    torch.testing.assert_close(one, want.rows.mass[..., 1], **CLOSE)


def test_a_windowed_head_cannot_see_what_is_gone() -> None:
    model = model_of("mistral")  # windows of six keys
    rows = model.read_suffix(model.prefill(PROMPT), SUFFIX, [3], [TokenSpan(2, 9)], top=21).rows
    assert not bool(rows.visible.any())
    assert bool(rows.mass.isnan().all())
    assert int(rows.key.min()) >= len(EVERYTHING) - 6
    assert torch.equal((rows.top_weight > 0).sum(-1), torch.full((3, 1, 4, 1), 6))


def test_bad_input_is_one_clear_error() -> None:
    model = model_of("llama")
    prompt = model.prefill(PROMPT)
    with pytest.raises(PromptError, match="span 15:30 reaches beyond prompt and suffix"):
        model.read_suffix(prompt, SUFFIX, spans=[TokenSpan(15, 30)])
    with pytest.raises(MnemoscopeError, match=r"\[any, 21\]"):
        model.read_suffix(prompt, SUFFIX, spans=torch.ones(1, 5, dtype=torch.bool))
    with pytest.raises(MnemoscopeError, match="top=22"):
        model.read_suffix(prompt, SUFFIX, top=22)
    with pytest.raises(MnemoscopeError, match="name at least one"):
        model.read_suffix(prompt, SUFFIX, layers=[])
