"""A cached prompt is the same model, sooner: equal to the pass over everything at once."""

from __future__ import annotations

import hashlib

import pytest
import torch
from families import FAMILIES
from mnemoscope.models import Edit, HeadId, HookedModel, MnemoscopeError, TokenBatch, zero
from mnemoscope.models.errors import PromptError
from mnemoscope.models.prompt_cache import PromptCache
from plain import model_of

PROMPT, SUFFIX = tuple(range(3, 20)), (40, 9, 33, 12)
LOOSE = {"gptj": 2e-5, "gemma2": 2e-5, "gemma3": 2e-5}  # attention computed in float32


def whole(model: HookedModel, ids: tuple[int, ...]) -> torch.Tensor:
    return model.logits(TokenBatch(torch.tensor([ids]), torch.ones(1, len(ids)).bool()))[0]


def fingerprint(prompt: PromptCache) -> str:
    digest = hashlib.sha256()
    for layer in prompt.cache.layers:
        for x in (layer.keys, layer.values):
            digest.update(f"{tuple(x.shape)}".encode() + x.contiguous().numpy().tobytes())
    return digest.hexdigest()


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("chunk", [4, 64])
def test_suffix_logits_equal_the_pass_over_everything(family: str, chunk: int) -> None:
    model = model_of(family)
    prompt = model.prefill(PROMPT, chunk=chunk)
    got = model.suffix_logits(prompt, SUFFIX)[0]
    want = whole(model, PROMPT + SUFFIX)[len(PROMPT) :]
    torch.testing.assert_close(got, want, rtol=0, atol=LOOSE.get(family, 1e-10))


@pytest.mark.parametrize("family", ["llama", "mistral", "gemma3", "gpt2", "opt"])
def test_what_continues_leaves_the_prompt_as_it_is(family: str) -> None:
    model = model_of(family)
    prompt = model.prefill(PROMPT)
    before = fingerprint(prompt)
    first = model.suffix_logits(prompt, SUFFIX)
    model.greedy_from(prompt, SUFFIX, 3)
    longer = model.prefill(SUFFIX, before=prompt)
    assert fingerprint(prompt) == before
    assert longer.ids == PROMPT + SUFFIX
    torch.testing.assert_close(model.suffix_logits(prompt, SUFFIX), first, rtol=0, atol=0)


@pytest.mark.parametrize("family", ["llama", "gemma3"])
def test_a_prompt_can_be_prolonged(family: str) -> None:
    model = model_of(family)
    longer = model.prefill(PROMPT[9:], before=model.prefill(PROMPT[:9]))
    got = model.suffix_logits(longer, SUFFIX, [1, 3])[0]
    want = whole(model, PROMPT + SUFFIX)[len(PROMPT) :][[1, 3]]
    torch.testing.assert_close(got, want, rtol=0, atol=LOOSE.get(family, 1e-10))


@pytest.mark.parametrize("family", ["llama", "mistral", "gpt2", "gptj", "opt"])
def test_greedy_from_is_generate(family: str) -> None:
    model = model_of(family)
    want = model.generate(model.batch([PROMPT + SUFFIX]), 6)[0]
    assert model.greedy_from(model.prefill(PROMPT), SUFFIX, 6) == want


def test_rows_of_one_suffix_can_be_edited_apart() -> None:
    model = model_of("llama")
    prompt = model.prefill(PROMPT)
    heads = (HeadId(0, 1), HeadId(2, 3))
    keep = torch.tensor([[1.0, 1.0], [0.0, 1.0], [1.0, 0.0]])  # [row, head]
    with model.intervene([Edit("scale", heads, keep.double()[..., None])]):
        got = model.suffix_logits(prompt, SUFFIX, rows=3)
    torch.testing.assert_close(got[0], model.suffix_logits(prompt, SUFFIX)[0])
    for row, head in ((1, heads[0]), (2, heads[1])):
        with model.intervene([zero([head])]):
            torch.testing.assert_close(got[row], model.suffix_logits(prompt, SUFFIX)[0])
    assert not torch.allclose(got[1], got[0])
    assert not torch.allclose(got[2], got[0])


def test_an_edit_of_the_prefill_stays_in_the_cache() -> None:
    model = model_of("llama")
    with model.intervene([zero([HeadId(0, 0)])]):
        edited = model.prefill(PROMPT)
        everything = whole(model, PROMPT + SUFFIX)[-1]
        assert torch.allclose(model.suffix_logits(edited, SUFFIX)[0, -1], everything)
    plain = model.suffix_logits(model.prefill(PROMPT), SUFFIX)[0, -1]
    assert not torch.allclose(model.suffix_logits(edited, SUFFIX)[0, -1], plain)


def test_bad_input_is_one_clear_error() -> None:
    model = model_of("llama")
    prompt = model.prefill(PROMPT)
    with pytest.raises(PromptError, match="no tokens"):
        model.prefill([])
    with pytest.raises(PromptError, match="70 tokens are more than the 64"):
        model.prefill([5] * 70)
    with pytest.raises(PromptError, match="67 tokens are more than the 64"):
        model.suffix_logits(prompt, [5] * 50)
    with pytest.raises(PromptError, match="66 tokens are more than the 64"):
        model.greedy_from(prompt, SUFFIX, 45)
    with pytest.raises(PromptError, match=r"queries \[4\].*use 0 to 3"):
        model.suffix_logits(prompt, SUFFIX, [0, 4])
    with pytest.raises(MnemoscopeError, match="chunk=0"):
        model.prefill(PROMPT, chunk=0)
