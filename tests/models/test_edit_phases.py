"""Edits in prompt and generation: with a cache, they equal whole sequences read again."""

from __future__ import annotations

import plain
import pytest
import torch
from families import FAMILIES, ids
from mnemoscope.models import (
    Edit,
    HeadId,
    TokenBatch,
    zero,
)
from mnemoscope.models.errors import (
    EditNeverFiredError,
)
from plain import close, noise, stopping_at
from torch import Tensor

IDS = ids()
FULL = TokenBatch(IDS, torch.ones_like(IDS, dtype=torch.bool))


def grown(tokens: Tensor, mask: Tensor, logits: Tensor) -> tuple[Tensor, Tensor]:
    """The sequences with their most likely next token."""
    tokens = torch.cat([tokens, logits.argmax(-1, keepdim=True)], dim=1)
    return tokens, torch.cat([mask, torch.ones_like(mask[:, :1])], dim=1)


@pytest.mark.parametrize("phase", ["prefill", "decode", "both"])
@pytest.mark.parametrize("family", list(FAMILIES))
def test_phases_of_a_generation_equal_recomputed_sequences(family: str, phase: str) -> None:
    model, steps = plain.padded_model_of(family), 4
    width, prompt = model.anatomy.d_v, max(plain.LENGTHS)
    value = 3 * noise(1, width).to(model.dtype)

    def change(x: Tensor) -> Tensor:
        x = x.clone()
        cells = {"prefill": slice(0, prompt), "decode": slice(prompt, None), "both": slice(None)}
        x[:, cells[phase], width : 2 * width] += value[0]
        return x

    tokens, mask = plain.padded("left")
    want: list[Tensor] = []
    with plain.input_changed(plain.o_proj(model.module, family, 1), change):
        for _ in range(steps):
            want.append(plain.forward(model.module, tokens, mask).logits[:, -1])
            tokens, mask = grown(tokens, mask, want[-1])

    batch = TokenBatch(tokens[:, :prompt], mask[:, :prompt].bool())
    got: list[Tensor] = []
    keep = model.module.register_forward_hook(lambda _, __, out: got.append(out.logits[:, -1]))
    edit = Edit("add", (HeadId(1, 1),), value, "all", phase)  # type: ignore[arg-type]
    with stopping_at(model, None), model.intervene([edit]) as installed:
        new = model.generate(batch, steps)
    keep.remove()
    assert new == tokens[:, prompt:].tolist()
    for one, other in zip(got, want, strict=True):
        close(one, other, max(plain.SINGLE, plain.tolerance(model.dtype)))
    in_prompt = 0 if phase == "decode" else sum(plain.LENGTHS)
    in_answer = 0 if phase == "prefill" else 3 * (steps - 1)
    assert installed[0].fired == in_prompt + in_answer


@pytest.mark.parametrize("family", list(FAMILIES))
def test_an_edit_at_end_of_the_prompt_stays_there_while_decoding(family: str) -> None:
    model, width = plain.padded_model_of(family), plain.model_of(family).anatomy.d_v
    tokens, mask = plain.padded("left")

    def change(x: Tensor) -> Tensor:
        x = x.clone()
        x[:, 8, :width] = 0.5
        return x

    with plain.input_changed(plain.o_proj(model.module, family, 0), change):
        for _ in range(3):
            logits = plain.forward(model.module, tokens, mask).logits[:, -1]
            tokens, mask = grown(tokens, mask, logits)
    edit = Edit("set", (HeadId(0, 0),), 0.5, "end", "both")
    with stopping_at(model, None), model.intervene([edit]) as installed:
        new = model.generate(TokenBatch(tokens[:, :9], mask[:, :9].bool()), 3)
    assert new == tokens[:, 9:].tolist()
    assert installed[0].fired == 3


def test_a_prompt_of_one_token_is_still_a_prompt() -> None:
    model = plain.model_of("llama")
    one = model.batch([[5]])
    with model.intervene([zero([HeadId(0, 0)], phase="prefill")]) as installed:
        model.logits(one)
    assert installed[0].fired == 1
    with (
        pytest.raises(EditNeverFiredError),
        model.intervene([zero([HeadId(0, 0)], "all", "decode")]),
    ):
        model.logits(one)


def test_edits_also_reach_a_plain_call_of_the_module() -> None:
    model = plain.model_of("llama")
    with model.intervene([zero([HeadId(1, 0)])]):
        want = model.logits(FULL)
        close(model.module(IDS).logits.detach(), want)
        close(
            model.module(input_ids=IDS, attention_mask=torch.ones_like(IDS)).logits.detach(), want
        )
