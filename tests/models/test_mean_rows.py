"""The mean attention row of a suffix: the mean of the rows, wherever they are computed."""

from __future__ import annotations

import pytest
import torch
from families import FAMILIES
from mnemoscope.models.errors import MnemoscopeError, PromptError, UnitOutOfRangeError
from mnemoscope.models.mean_rows import mean_rows
from plain import model_of

PROMPT, SUFFIX = tuple(range(3, 20)), (40, 9, 33, 12, 21)
COLUMNS = torch.tensor([[len(PROMPT) + q for q in (0, 1, 3)]])
QUERIES = (0, 1, 3)


@pytest.mark.parametrize("family", FAMILIES)
def test_is_the_mean_of_the_eager_rows(family: str) -> None:
    model = model_of(family)
    rows = model.rows(model.batch([PROMPT + SUFFIX]), COLUMNS)[:, 0]
    got = model.mean_rows(model.prefill(PROMPT, chunk=5), SUFFIX, QUERIES)
    assert got.shape == (3, 4, len(PROMPT) + len(SUFFIX))
    assert got.dtype == torch.float32
    torch.testing.assert_close(got.nan_to_num(0.0), rows.mean(2), rtol=0, atol=2e-6)
    # A key that no query can see has no weight at all, which is not a weight of 0.
    assert torch.equal(got.isnan(), (rows == 0).all(2))


def test_keys_behind_the_window_and_in_the_future_are_not_applicable() -> None:
    got = model_of("mistral").mean_rows(model_of("mistral").prefill(PROMPT), SUFFIX, (1,))
    own = len(PROMPT) + 1
    seen = torch.arange(len(PROMPT) + len(SUFFIX))
    want = (seen <= own) & (seen > own - 6)  # the family's window
    assert torch.equal(~got.isnan(), want.expand(3, 4, -1))
    torch.testing.assert_close(got.nansum(-1), torch.ones(3, 4))


@pytest.mark.parametrize("family", ["llama", "gemma2", "gptj"])
def test_pieces_of_queries_and_keys_and_chosen_layers_say_the_same(
    family: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = model_of(family)
    prompt = model.prefill(PROMPT)
    want = model.mean_rows(prompt, SUFFIX)
    one = model.mean_rows(prompt, SUFFIX, layers=[2, 0])
    torch.testing.assert_close(one, want[[2, 0]], rtol=0, atol=0, equal_nan=True)
    monkeypatch.setattr("mnemoscope.models.mean_rows.WORKING_BYTES", 8 * 2 * 12 * 3)  # a few keys
    got = mean_rows(model, prompt, SUFFIX, None, [0, 1, 2], at_once=2)
    torch.testing.assert_close(got, want, rtol=0, atol=1e-6, equal_nan=True)


def test_the_prompt_stays_as_it_was() -> None:
    model = model_of("llama")
    prompt = model.prefill(PROMPT)
    first = model.mean_rows(prompt, SUFFIX)
    model.mean_rows(prompt, (5, 6))
    torch.testing.assert_close(
        model.mean_rows(prompt, SUFFIX), first, rtol=0, atol=0, equal_nan=True
    )
    assert prompt.cache.get_seq_length() == len(PROMPT)


def test_what_does_not_fit_is_refused() -> None:
    model = model_of("llama")
    prompt = model.prefill(PROMPT)
    with pytest.raises(PromptError, match="reads"):
        model.mean_rows(prompt, [5] * 60)
    with pytest.raises(PromptError, match="offsets"):
        model.mean_rows(prompt, SUFFIX, (7,))
    with pytest.raises(UnitOutOfRangeError, match="layer 9"):
        model.mean_rows(prompt, SUFFIX, layers=[9])
    with pytest.raises(MnemoscopeError, match="each once"):
        model.mean_rows(prompt, SUFFIX, layers=[1, 1])
    with pytest.raises(MnemoscopeError, match="at_once"):
        mean_rows(model, prompt, SUFFIX, None, [0], at_once=0)
