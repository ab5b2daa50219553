"""Pooled activations: which tokens are read, the same numbers as by hand, whatever the batch."""

from __future__ import annotations

from copy import deepcopy
from typing import Any, get_args
from unittest.mock import patch

import pytest
import torch
from families import FAMILIES, tiny
from mnemoscope.data.facts.designs import Prompt
from mnemoscope.models import HookedModel, MnemoscopeError, wrap
from mnemoscope.models.errors import PromptError, UnitOutOfRangeError, UnsupportedSiteError
from mnemoscope.models.tokens import encode, pad
from mnemoscope.models.types import Site
from mnemoscope.probes.pooled_activations import (
    Pooling,
    cells,
    layer_blocks,
    pooled_activations,
)
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

BOS = "<s>"


def tokenizer(*, adds_specials: bool = True) -> Any:
    """Byte-level BPE that knows no merge but ` P` + `ar` + `is`; a letter beyond ASCII is two
    tokens. Adds BOS and EOS, or neither."""
    specials = ["<unk>", BOS, "</s>"]
    merges = [("Ġ", "P"), ("a", "r"), ("i", "s"), ("ĠP", "ar"), ("ĠPar", "is")]
    pieces = [*specials, *sorted(pre_tokenizers.ByteLevel.alphabet()), *map("".join, merges)]
    made = Tokenizer(models.BPE({piece: i for i, piece in enumerate(pieces)}, merges))
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    if adds_specials:
        made.post_processor = processors.TemplateProcessing(
            single=f"{BOS} $A </s>", special_tokens=[(BOS, 1), ("</s>", 2)]
        )
    return PreTrainedTokenizerFast(
        tokenizer_object=made, unk_token="<unk>", bos_token=BOS, eos_token="</s>"
    )


def random_model(family: str = "llama", *, adds_specials: bool = True) -> HookedModel:
    config = deepcopy(FAMILIES[family])
    config.vocab_size = 300
    with patch.dict(FAMILIES, {family: config}):
        module = tiny(family)
    return wrap(module, tokenizer(adds_specials=adds_specials), name="tiny")


def prompt(before: str, subject: str, after: str) -> Prompt:
    start = len(before)
    return Prompt(before + subject + after, "r", subject, "cloze 0", start, start + len(subject))


MODEL = random_model()
PROMPTS = [
    prompt("In ", "Paris", " is"),
    prompt("", "Åland", " has"),
    prompt("Is May in ", "May", "? Answer:"),
    prompt("Is in ", "Paris", " is"),
    prompt("at ", "Rome", ""),
    prompt("In ", "Par", " is"),
]


def read(model: HookedModel, asked: Prompt, pooling: Pooling) -> list[str]:
    """The tokens that a pooling reads; a token that is part of a letter is written `~`."""
    batch = model.tokens([asked.text])
    chosen = cells(model, batch, [asked], pooling)
    pieces = model.pieces(batch.ids[0][chosen[0]].tolist())
    return [piece.replace("\N{REPLACEMENT CHARACTER}", "~") for piece in pieces]


# -- cells -----------------------------------------------------------------------------------------


READ: dict[Pooling, tuple[list[str], list[str]]] = {
    "mean_all": ([BOS, "I", "n", " Paris", " ", "is"], ["I", "n", " Paris", " ", "is"]),
    "mean_nobos": (["I", "n", " Paris", " ", "is"], ["n", " Paris", " ", "is"]),
    "max": (["I", "n", " Paris", " ", "is"], ["n", " Paris", " ", "is"]),
    "last": (["is"], ["is"]),
    "pre_object": (["is"], ["is"]),
    "subject_last": ([" Paris"], [" Paris"]),
    "relation_span": (["I", "n", " ", "is"], ["n", " ", "is"]),
}


@pytest.mark.parametrize("pooling", get_args(Pooling))
def test_each_pooling_reads_its_tokens_with_and_without_a_bos(pooling: Pooling) -> None:
    bare = random_model(adds_specials=False)
    assert (read(MODEL, PROMPTS[0], pooling), read(bare, PROMPTS[0], pooling)) == READ[pooling]


def test_a_letter_of_two_tokens_belongs_to_the_subject_with_both() -> None:
    assert read(MODEL, prompt("", "Å", "b"), "relation_span") == ["b"]
    assert read(MODEL, prompt("a", "Å", "b"), "subject_last") == ["~"]
    assert read(MODEL, prompt("a", "Å", "b"), "relation_span") == ["a", "b"]


def test_the_subject_is_where_the_prompt_says_not_where_its_word_comes_first() -> None:
    spelled = "".join(read(MODEL, PROMPTS[2], "relation_span"))
    assert spelled.replace(" ", "") == "IsMayin?Answer:"


def test_padding_on_either_side_is_never_read() -> None:
    rows = [encode(MODEL.text_tokenizer, p.text) for p in PROMPTS]
    for pooling in get_args(Pooling):
        left, right = (
            (batch.ids, cells(MODEL, batch, PROMPTS, pooling) & batch.mask, batch)
            for batch in (pad(rows, side="left"), pad(rows, side="right"))
        )
        for i, asked in enumerate(PROMPTS):
            pieces = [MODEL.pieces(ids[i][found[i]].tolist()) for ids, found, _ in (left, right)]
            assert pieces[0] == pieces[1]
            assert [x.replace("\N{REPLACEMENT CHARACTER}", "~") for x in pieces[0]] == read(
                MODEL, asked, pooling
            )
        for _, found, batch in (left, right):
            assert torch.equal(found, cells(MODEL, batch, PROMPTS, pooling))


# -- values ----------------------------------------------------------------------------------------


def by_hand(site: Site, layer: int, asked: Prompt, pooling: Pooling) -> torch.Tensor:
    """One prompt alone, a hook by hand, the mean or maximum written out."""
    mlp = MODEL.module.model.layers[layer].mlp
    target = {
        Site.NEURON: mlp.down_proj,
        Site.MLP_OUT: mlp.down_proj,
        Site.GATE_PRE: mlp.gate_proj,
        Site.UP: mlp.up_proj,
    }[site]
    seen: list[torch.Tensor] = []

    def hook(_: Any, args: tuple[torch.Tensor, ...], output: torch.Tensor) -> None:
        seen.append((args[0] if site is Site.NEURON else output)[0])

    handle = target.register_forward_hook(hook)
    ids = torch.tensor([encode(MODEL.text_tokenizer, asked.text)])
    with torch.no_grad():
        MODEL.module(input_ids=ids)
    handle.remove()
    chosen = cells(MODEL, pad(ids.tolist()), [asked], pooling)[0]
    values = seen[0][chosen]
    return values.amax(0) if pooling == "max" else values.mean(0)


@pytest.mark.parametrize("site", [Site.NEURON, Site.GATE_PRE, Site.UP, Site.MLP_OUT])
@pytest.mark.parametrize("pooling", get_args(Pooling))
def test_values_are_those_of_each_prompt_alone(site: Site, pooling: Pooling) -> None:
    asked = PROMPTS
    pooled = pooled_activations(MODEL, asked, site=site, pooling=pooling, layers=[2, 0], rows=2)
    assert pooled.shape == (2, MODEL.anatomy.n_units(site), len(asked))
    assert (pooled.dtype, pooled.stride(-1)) == (torch.float32, 1)
    for i, layer in enumerate([2, 0]):
        for j, one in enumerate(asked):
            alone = by_hand(site, layer, one, pooling)
            torch.testing.assert_close(pooled[i, :, j], alone.float(), atol=1e-6, rtol=1e-6)


def test_the_size_of_a_batch_changes_nothing_but_rounding() -> None:
    many = [prompt("In ", name, " is") for name in ("Rome", "Bonn", "Oslo", "Å", "Riga", "Paris")]
    single = pooled_activations(MODEL, many, layers=range(3), rows=1)
    for rows in (2, 4, 32):
        batched = pooled_activations(MODEL, many, layers=range(3), rows=rows)
        torch.testing.assert_close(batched, single, atol=1e-6, rtol=1e-6)


def test_batches_hold_one_length_and_no_more_rows_than_allowed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    many = [*PROMPTS, *PROMPTS, *PROMPTS]
    shapes, padded = [], []
    original = HookedModel.capture

    def capture(self: HookedModel, batch: Any, *args: Any, **kwargs: Any) -> Any:
        shapes.append(batch.ids.shape)
        padded.append(not bool(batch.mask.all()))
        return original(self, batch, *args, **kwargs)

    monkeypatch.setattr(HookedModel, "capture", capture)
    told: list[tuple[int, int]] = []
    pooled_activations(
        MODEL, many, layers=[1], rows=2, progress=lambda done, total: told.append((done, total))
    )
    assert not any(padded)
    assert max(rows for rows, _ in shapes) == 2
    assert sum(rows for rows, _ in shapes) == len(many)
    assert told[-1] == (len(many), len(many))
    assert [done for done, _ in told] == sorted(done for done, _ in told)


def test_half_precision_is_pooled_in_float32() -> None:
    """A mean of n bfloat16 values, rounded to bfloat16 only before it, is no bfloat16 number."""
    half = random_model()
    half.module.to(torch.bfloat16)
    pooled = pooled_activations(half, PROMPTS, layers=[1])
    assert pooled.dtype == torch.float32
    assert (pooled != pooled.bfloat16().float()).float().mean() > 0.5


def test_no_prompts_are_no_columns() -> None:
    assert pooled_activations(MODEL, [], layers=[0, 1]).shape == (2, 48, 0)


# -- blocks of layers ------------------------------------------------------------------------------


@pytest.mark.parametrize("fitting", [1, 2, 3, 50])
def test_blocks_of_layers_cover_all_once_and_fit(fitting: int) -> None:
    one = 48 * 100 * 4
    blocks = layer_blocks(MODEL, 100, Site.NEURON, fitting * one + one - 1)
    assert [layer for block in blocks for layer in block] == [0, 1, 2]
    assert max(map(len, blocks)) <= fitting
    assert len(blocks) == {1: 3, 2: 2}.get(fitting, 1)


def test_a_block_holds_what_the_pooled_activations_take() -> None:
    for site in (Site.NEURON, Site.MLP_OUT):
        pooled = pooled_activations(MODEL, PROMPTS, site=site, layers=[0])
        size = pooled.numel() * pooled.element_size()
        assert layer_blocks(MODEL, len(PROMPTS), site, size) == [range(i, i + 1) for i in range(3)]
        with pytest.raises(MnemoscopeError, match=f"one layer .* takes {size} bytes"):
            layer_blocks(MODEL, len(PROMPTS), site, size - 1)


# -- refusals --------------------------------------------------------------------------------------


def test_an_unknown_pooling_is_refused() -> None:
    with pytest.raises(MnemoscopeError, match="mean_nobos, mean_all"):
        pooled_activations(MODEL, PROMPTS, pooling="median", layers=[0])  # type: ignore[arg-type]


def test_a_prompt_without_the_tokens_asked_for_is_refused() -> None:
    with pytest.raises(PromptError, match="no token for the pooling 'relation_span'"):
        pooled_activations(MODEL, [prompt("", "Åland", "")], pooling="relation_span", layers=[0])
    bare = random_model(adds_specials=False)
    with pytest.raises(PromptError, match="'a': choose another pooling"):
        pooled_activations(bare, [prompt("", "a", "")], layers=[0])


def test_tokens_of_another_text_are_refused() -> None:
    batch = MODEL.tokens(["at home"])
    with pytest.raises(PromptError, match="not the prompt 'In Paris is'"):
        cells(MODEL, batch, PROMPTS[:1], "subject_last")


def test_a_tokenizer_without_offsets_is_refused_only_where_offsets_are_needed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(type(MODEL.tokenizer), "is_fast", property(lambda _: False))
    with pytest.raises(MnemoscopeError, match="load its fast version"):
        pooled_activations(MODEL, PROMPTS, pooling="subject_last", layers=[0])
    assert pooled_activations(MODEL, PROMPTS, pooling="last", layers=[0]).isfinite().all()


def test_sites_and_layers_that_the_model_lacks_are_refused() -> None:
    with pytest.raises(UnsupportedSiteError):
        pooled_activations(random_model("gpt2"), PROMPTS, site=Site.GATE_PRE, layers=[0])
    with pytest.raises(UnsupportedSiteError):
        layer_blocks(MODEL, 10, Site.RESID_POST, 10**9)
    with pytest.raises(UnitOutOfRangeError):
        pooled_activations(MODEL, PROMPTS, layers=[3])
