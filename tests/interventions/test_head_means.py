"""Mean head outputs against a loop over single texts and positions."""

from __future__ import annotations

import plain
import pytest
import torch
from families import FAMILIES, tiny
from mnemoscope.interventions import head_means
from mnemoscope.interventions.head_means import (
    head_write_norms,
    mean_head_outputs,
    mean_queries,
)
from mnemoscope.models import HeadId, HookedModel, MnemoscopeError, wrap
from mnemoscope.models.errors import PromptError, UnitOutOfRangeError
from tokenizers import Tokenizer, models, pre_tokenizers
from torch import Tensor
from transformers import PreTrainedTokenizerFast

HEADS = (HeadId(2, 1), HeadId(0, 3), HeadId(2, 0))
TEXTS = ("w5 w6 w7 w8 w9 w10 w11", "w20", "w20 w21 w22", "w40 w3 w17 w31 w9", "w1 w2")


def tokenizer() -> PreTrainedTokenizerFast:
    words = {f"w{i}": i for i in range(61)}
    made = Tokenizer(models.WordLevel(words, unk_token="w0"))
    made.pre_tokenizer = pre_tokenizers.Whitespace()
    return PreTrainedTokenizerFast(tokenizer_object=made)


def model_of(family: str, dtype: torch.dtype = torch.float64) -> HookedModel:
    return wrap(tiny(family, dtype=dtype), tokenizer(), self_test=False)


def by_hand(model: HookedModel, family: str) -> dict[HeadId, Tensor]:
    """One text at a time; z is read as the output projection's input, by a hook of torch's own."""
    kept: dict[HeadId, list[Tensor]] = {head: [] for head in HEADS}
    for text in TEXTS:
        ids = torch.tensor([[int(word[1:]) for word in text.split()]])
        targets = {str(i): plain.o_proj(model.module, family, i) for i in (0, 2)}
        given, _ = plain.inputs_and_outputs(model.module, targets, ids)
        for head in HEADS:
            z = given[str(head.layer)].unflatten(-1, (4, -1))[0, 1:, head.head]
            kept[head] += list(z.double())
    return {head: torch.stack(found).mean(0) for head, found in kept.items()}


@pytest.mark.parametrize("family", FAMILIES)
def test_means_are_those_of_a_loop_over_positions(family: str) -> None:
    dtype = torch.float32 if family == "gemma2" else torch.float64  # see plain.padded_model_of
    model = model_of(family, dtype)
    means = mean_head_outputs(model, TEXTS, HEADS)
    assert tuple(means) == HEADS
    for head, want in by_hand(model, family).items():
        assert means[head].shape == (model.anatomy.d_v,)
        assert means[head].dtype == torch.float64
        plain.close(means[head], want, plain.SINGLE)


def test_the_sum_is_taken_in_float64_for_half_precision_models() -> None:
    model = model_of("llama", torch.bfloat16)
    want = by_hand(model, "llama")
    for head, mean in mean_head_outputs(model, TEXTS, HEADS).items():
        plain.close(mean, want[head], 1e-2)  # padding changes the rounding of single positions
        assert not torch.equal(mean, mean.bfloat16().double())


def test_the_split_into_batches_does_not_matter(monkeypatch: pytest.MonkeyPatch) -> None:
    model = model_of("gpt2")
    together = mean_head_outputs(model, TEXTS, HEADS)
    for rows in (1, 2):
        monkeypatch.setattr(head_means, "_ROWS", rows)
        for head, mean in mean_head_outputs(model, TEXTS, HEADS).items():
            plain.close(mean, together[head])


def test_a_batch_that_runs_out_of_memory_is_counted_once(monkeypatch: pytest.MonkeyPatch) -> None:
    model = model_of("gpt2")
    together = mean_head_outputs(model, TEXTS, HEADS)
    real = HookedModel.forward

    def small(self: HookedModel, batch: object, columns: object = None) -> Tensor:
        result = real(self, batch, columns)  # type: ignore[arg-type]
        if len(batch) > 1:  # type: ignore[arg-type]
            raise torch.OutOfMemoryError("too large")
        return result

    monkeypatch.setattr(HookedModel, "forward", small)
    for head, mean in mean_head_outputs(model, TEXTS, HEADS).items():
        plain.close(mean, together[head])


def test_hooks_are_gone_afterwards() -> None:
    model = model_of("llama")
    mean_head_outputs(model, TEXTS, HEADS)
    assert plain.hook_count(model.module) == 0


@pytest.mark.parametrize(
    ("texts", "heads", "error", "says"),
    [
        (("w1", "w2"), HEADS, PromptError, "no text has a second token"),
        ((), HEADS, PromptError, "no text has a second token"),
        (("w1 w2", " "), HEADS, PromptError, "empty"),
        (("w1 " * 65,), HEADS, PromptError, "reads at most 64"),
        (TEXTS, (), MnemoscopeError, "no heads given"),
        (TEXTS, (HeadId(0, 1), HeadId(0, 1)), MnemoscopeError, "named twice"),
        (TEXTS, (HeadId(3, 0),), UnitOutOfRangeError, "layers 0 to 2"),
    ],
)
def test_wrong_texts_and_heads_are_refused(
    texts: tuple[str, ...], heads: tuple[HeadId, ...], error: type[Exception], says: str
) -> None:
    with pytest.raises(error, match=says):
        mean_head_outputs(model_of("llama"), texts, heads)


# -- queries and norms ----------------------------------------------------------------------------


FUSED = {"gpt2": "c_attn", "phi3": "qkv_proj"}
FUSED["neox"] = FUSED["neox-sequential"] = "query_key_value"


@pytest.mark.parametrize("family", FAMILIES)
def test_mean_queries_are_those_of_the_projection(family: str) -> None:
    model = model_of(family, torch.float32 if family == "gemma2" else torch.float64)
    width = model.anatomy.d_v
    kept: dict[HeadId, list[Tensor]] = {head: [] for head in HEADS}
    for text in TEXTS:
        ids = torch.tensor([[int(word[1:]) for word in text.split()]])
        name = FUSED.get(family, "q_proj")
        attn = {i: plain.block(model.module, family, i) for i in (0, 2)}
        targets = {
            str(i): getattr(attn[i].get_submodule(plain.parts_of(family).attn), name) for i in attn
        }
        _, made = plain.inputs_and_outputs(model.module, targets, ids)
        for head in HEADS:
            first = head.head * width * (3 if "neox" in family else 1)
            kept[head] += list(made[str(head.layer)][0, 1:, first : first + width].double())
    for head, mean in mean_queries(model, TEXTS, HEADS).items():
        plain.close(mean, torch.stack(kept[head]).mean(0), plain.SINGLE)


@pytest.mark.parametrize("family", FAMILIES)
def test_write_norms_are_those_of_a_loop_over_positions(family: str) -> None:
    model = model_of(family, torch.float32 if family == "gemma2" else torch.float64)
    norms = head_write_norms(model, TEXTS)
    assert norms.shape == (3, 4)
    kept: list[Tensor] = []
    for text in TEXTS:
        ids = torch.tensor([[int(word[1:]) for word in text.split()]])
        given, _ = plain.inputs_and_outputs(
            model.module, {"z": plain.o_proj(model.module, family, 2)}, ids
        )
        kept += list(given["z"].unflatten(-1, (4, -1))[0, 1:, 1])
    weight = plain.o_proj(model.module, family, 2).weight.detach()
    weight = weight if family == "gpt2" else weight.T
    width = model.anatomy.d_v
    written = torch.stack(kept) @ weight[width : 2 * width]
    assert norms[2, 1] == pytest.approx(float(written.norm(dim=-1).mean()), rel=1e-5)
