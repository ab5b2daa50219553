"""`generate`: the argmax of plain full forwards, step by step, whatever the checkpoint prefers."""

from __future__ import annotations

from typing import Any

import plain
import pytest
import torch
from families import FAMILIES, ids
from mnemoscope.models import MnemoscopeError, TokenBatch
from mnemoscope.models.errors import PromptError
from plain import stopping_at
from torch import Tensor


def by_hand(module: Any, tokens: Tensor, steps: int) -> list[int]:
    """Greedy new ids of one unpadded prompt; every step reads the whole sequence again."""
    tokens = tokens[None]
    for _ in range(steps):
        chosen = plain.forward(module, tokens).logits[:, -1].argmax(-1)
        tokens = torch.cat([tokens, chosen[None]], dim=1)
    return tokens[0, -steps:].tolist()


@pytest.mark.parametrize("family", list(FAMILIES))
def test_generation_is_greedy_for_each_prompt_of_a_padded_batch(family: str) -> None:
    model = plain.padded_model_of(family)
    tokens, mask = plain.padded("left")
    batch = TokenBatch(tokens, mask.bool())
    with stopping_at(model, None):
        new = model.generate(batch, 6)
    assert new == [by_hand(model.module, batch.row(i), 6) for i in range(3)]


def test_preferences_of_the_checkpoint_do_not_enter() -> None:
    model = plain.model_of("llama")
    want = [by_hand(model.module, row, 6) for row in ids()]
    config = model.module.generation_config
    before = config.to_dict()
    config.update(repetition_penalty=5.0, num_beams=3, do_sample=True, min_new_tokens=3)
    config.update(suppress_tokens=[row[0] for row in want], no_repeat_ngram_size=1)
    try:
        with stopping_at(model, None):
            assert model.generate(model.batch(ids().tolist()), 6) == want
    finally:
        config.update(**before)


@pytest.mark.parametrize("as_list", [False, True])
def test_each_row_stops_before_its_own_end_of_text(as_list: bool) -> None:
    model = plain.model_of("llama")
    batch = model.batch(ids(4).tolist())
    with stopping_at(model, None):
        full = model.generate(batch, 8)
    stop = full[0][3]
    with stopping_at(model, [stop, 60] if as_list else stop):
        cut = model.generate(batch, 8)
    stops = {stop, 60} if as_list else {stop}
    for short, long in zip(cut, full, strict=True):
        first = next((i for i, token in enumerate(long) if token in stops), len(long))
        assert short == long[:first]
    assert len(cut[0]) < 8


def test_generation_ends_when_all_rows_have_ended() -> None:
    model = plain.model_of("llama")
    batch = model.batch(ids(1).tolist())
    with stopping_at(model, None):
        full = model.generate(batch, 8)[0]
    passes: list[int] = []
    handle = model.module.register_forward_hook(lambda *_: passes.append(1))
    with stopping_at(model, full[2]):
        model.generate(batch, 8)
    handle.remove()
    assert len(passes) == full.index(full[2]) + 1


def test_right_padding_is_refused() -> None:
    tokens, mask = plain.padded("right")
    with pytest.raises(PromptError, match="left"):
        plain.model_of("llama").generate(TokenBatch(tokens, mask.bool()))


def test_prompts_that_leave_no_room_are_refused() -> None:
    model = plain.model_of("llama")
    with stopping_at(model, None):
        assert len(model.generate(model.batch([[5] * 60]), 4)[0]) == 4
    with pytest.raises(PromptError, match="61 prompt tokens and 4 new ones exceed"):
        model.generate(model.batch([[5] * 61]), 4)
    with pytest.raises(MnemoscopeError, match="max_new_tokens"):
        model.generate(model.batch([[5]]), 0)
