"""The tie index is 1 by construction where one table serves both ends, and measured elsewhere."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from families import tiny
from mnemoscope.models import HookedModel, wrap
from mnemoscope.models.errors import MnemoscopeError
from mnemoscope.probes.embedding_tie import embedding_tie, is_tied

TOKENS = list(range(5, 45))


def with_written(table: torch.Tensor) -> HookedModel:
    """A tiny model whose unembedding is the given table."""
    module = tiny("llama")
    module.get_output_embeddings().weight = torch.nn.Parameter(table)
    return wrap(module)


def read_table() -> torch.Tensor:
    return tiny("llama").get_input_embeddings().weight.detach().clone()


def test_a_tied_model_has_index_1_and_the_reading_says_by_construction() -> None:
    model = wrap(tiny("gpt2"))
    tie = embedding_tie(model, TOKENS)
    assert tie.tied
    assert is_tied(model)
    assert np.allclose(tie.cosine, 1)
    assert np.allclose(tie.centred, 1)
    assert tie.cka == pytest.approx(1)
    assert "by construction" in tie.reading


def test_two_random_tables_are_not_alike() -> None:
    tie = embedding_tie(wrap(tiny("llama")), TOKENS)
    assert not tie.tied
    assert abs(float(tie.interval.mean)) < 0.1
    assert abs(tie.cka) < 0.1
    assert "two tables" in tie.reading
    assert "by construction" not in tie.reading


def test_a_copy_with_noise_lies_between() -> None:
    table = read_table()
    noise = torch.randn(table.shape, generator=torch.Generator().manual_seed(0)).to(table)
    near = embedding_tie(with_written(table + table.std() * noise), TOKENS)
    assert 0.6 < float(near.interval.mean) < 0.8  # 1 / sqrt(2) for noise as large as the signal
    assert near.cka > near.cka_null + 0.2
    assert near.interval.low < near.interval.mean < near.interval.high


def test_a_rotated_copy_has_no_cosine_but_full_cka() -> None:
    table = read_table()
    generator = torch.Generator().manual_seed(0)
    turn = torch.linalg.qr(torch.randn(32, 32, generator=generator, dtype=table.dtype))[0]
    tie = embedding_tie(with_written(table @ turn), TOKENS)
    assert abs(float(tie.interval.mean)) < 0.15
    assert tie.cka == pytest.approx(1)


def test_the_cosine_is_that_of_the_two_rows() -> None:
    model = wrap(tiny("llama"))
    read = model.module.get_input_embeddings().weight.detach().numpy()
    written = model.module.get_output_embeddings().weight.detach().numpy()
    tie = embedding_tie(model, [7, 9, 7])
    assert tie.tokens == (7, 9)
    for token, cosine in zip(tie.tokens, tie.cosine, strict=True):
        a, b = read[token], written[token]
        assert cosine == pytest.approx(a @ b / np.linalg.norm(a) / np.linalg.norm(b))


@pytest.mark.parametrize("tokens", [[5], [5, 5], [5, 61], [-1, 5]])
def test_tokens_have_to_be_two_of_the_vocabulary(tokens: list[int]) -> None:
    with pytest.raises(MnemoscopeError, match="two different tokens"):
        embedding_tie(wrap(tiny("llama")), tokens)
