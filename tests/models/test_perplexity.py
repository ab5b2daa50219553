"""Perplexity: the exponential of the mean loss per token, however the texts are batched."""

import math

import pytest
import torch
from mnemoscope.models.errors import MnemoscopeError
from mnemoscope.models.hooked import wrap
from mnemoscope.models.perplexity import perplexity
from mnemoscope.organisms import planted_model

TEXTS = ("the river is wide", "a house", "the house is old and the river is wide")


def test_it_is_the_mean_loss_of_single_texts() -> None:
    planted = planted_model()
    model = wrap(planted.module, planted.tokenizer)
    total, count = 0.0, 0
    for text in TEXTS:
        ids = model.tokens(text).ids
        with torch.no_grad():
            loss = model.module(ids, labels=ids).loss
        total, count = total + float(loss) * (ids.shape[1] - 1), count + ids.shape[1] - 1
    assert perplexity(model, TEXTS, rows=2) == pytest.approx(math.exp(total / count), rel=1e-5)


def test_texts_of_one_token_have_none() -> None:
    planted = planted_model()
    model = wrap(planted.module, planted.tokenizer)
    with pytest.raises(MnemoscopeError, match="at least two tokens"):
        perplexity(model, ["a"])
