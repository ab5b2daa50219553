"""Text to token ids: one BOS rule, answers as the ids they add, padding that is counted right."""

from __future__ import annotations

from typing import Any

import plain
import pytest
import torch
from families import tiny
from hypothesis import given
from hypothesis import strategies as st
from mnemoscope.models import HookedModel, MnemoscopeError, wrap
from mnemoscope.models.errors import PromptError
from mnemoscope.models.tokens import answer_ids, bos_rule, encode, pad, text_pieces
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

BOS, EOS = 1, 2


def byte_tokenizer(*, adds_specials: bool) -> Any:
    """Byte-level BPE with merges for ` Paris` and `ab`; adds BOS and EOS, or neither."""
    specials = ["<unk>", "<s>", "</s>"]
    merges = [("a", "b"), ("Ġ", "P"), ("a", "r"), ("i", "s"), ("ĠP", "ar"), ("ĠPar", "is")]
    pieces = [*specials, *sorted(pre_tokenizers.ByteLevel.alphabet()), *map("".join, merges)]
    vocab = {piece: i for i, piece in enumerate(pieces)}
    tokenizer = Tokenizer(models.BPE(vocab=vocab, merges=merges))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    if adds_specials:
        tokenizer.post_processor = processors.TemplateProcessing(
            single="<s> $A </s>", special_tokens=[("<s>", BOS), ("</s>", EOS)]
        )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, unk_token="<unk>", bos_token="<s>", eos_token="</s>"
    )


ADDING, BARE = byte_tokenizer(adds_specials=True), byte_tokenizer(adds_specials=False)


# -- the BOS rule ---------------------------------------------------------------------------------


def test_a_bos_that_the_authors_add_is_kept_and_a_trailing_eos_removed() -> None:
    assert ADDING("ab")["input_ids"] == [BOS, ADDING.convert_tokens_to_ids("ab"), EOS]
    assert encode(ADDING, "ab") == [BOS, ADDING.convert_tokens_to_ids("ab")]
    assert bos_rule(ADDING) == "tokenizer default ('<s>' added)"


def test_nothing_is_added_where_the_authors_add_nothing() -> None:
    assert encode(BARE, "ab") == [BARE.convert_tokens_to_ids("ab")]
    assert bos_rule(BARE) == "no BOS added"


@pytest.mark.parametrize("tokenizer", [ADDING, BARE], ids=["adding", "bare"])
@pytest.mark.parametrize("text", ["", "   ", "\n\t"])
def test_an_empty_prompt_is_refused(tokenizer: Any, text: str) -> None:
    with pytest.raises(PromptError, match="empty"):
        encode(tokenizer, text)


@given(st.text(min_size=1).filter(str.strip))
def test_ids_are_the_tokenizers_own_less_the_eos(text: str) -> None:
    bare = BARE(text)["input_ids"]
    kept = bare
    while len(kept) > 1 and kept[-1] == EOS:  # a text may spell </s> itself
        kept = kept[:-1]
    assert encode(BARE, text) == kept
    assert encode(ADDING, text)[0] == BOS
    assert encode(ADDING, text)[1:] == kept or kept == [EOS]


def test_pieces_are_the_text_of_each_token() -> None:
    assert text_pieces(BARE, encode(BARE, "ab Paris")) == ["ab", " Paris"]


# -- answers --------------------------------------------------------------------------------------


@pytest.mark.parametrize("tokenizer", [ADDING, BARE], ids=["adding", "bare"])
def test_answer_ids_are_what_the_answer_adds(tokenizer: Any) -> None:
    paris = tokenizer.convert_tokens_to_ids("ĠParis")
    assert answer_ids(tokenizer, "It is", "Paris") == (paris,)
    added = answer_ids(tokenizer, "It is", "Parisx")
    assert added == (paris, tokenizer.convert_tokens_to_ids("x"))


@pytest.mark.parametrize("tokenizer", [ADDING, BARE], ids=["adding", "bare"])
def test_an_answer_that_merges_with_the_prompt_is_refused(tokenizer: Any) -> None:
    assert answer_ids(tokenizer, "x a", "c", separator="")  # "a" and "c" do not merge
    with pytest.raises(PromptError, match="merges"):
        answer_ids(tokenizer, "x a", "b", separator="")  # "a" and "b" do
    with pytest.raises(PromptError, match="trailing space"):
        answer_ids(tokenizer, "It is ", "Paris", separator="")  # the space is Paris's


@pytest.mark.parametrize("answer", ["", "  "])
def test_an_empty_answer_is_refused(answer: str) -> None:
    with pytest.raises(PromptError, match="answer is empty"):
        answer_ids(BARE, "It is", answer)


# -- padding --------------------------------------------------------------------------------------

ROWS = st.lists(st.lists(st.integers(0, 60), min_size=1, max_size=8), min_size=1, max_size=5)


@given(ROWS, st.sampled_from(["left", "right"]))
def test_padding_can_be_taken_off_again(rows: list[list[int]], side: Any) -> None:
    batch = pad(rows, side=side)
    width = max(map(len, rows))
    assert batch.ids.shape == batch.mask.shape == (len(rows), width)
    assert len(batch) == len(rows)
    for i, row in enumerate(rows):
        assert batch.row(i).tolist() == row
        first = width - len(row) if side == "left" else 0
        assert batch.starts[i] == first
        assert batch.ends[i] == first + len(row) - 1
        want = torch.zeros(width, dtype=torch.long)
        want[first : first + len(row)] = torch.arange(len(row))
        assert torch.equal(batch.position_ids[i], want)


@pytest.mark.parametrize("rows", [[], [[]], [[1], []]])
def test_no_tokens_are_refused(rows: list[list[int]]) -> None:
    with pytest.raises(PromptError, match="no tokens"):
        pad(rows)


# -- a model with a tokenizer ---------------------------------------------------------------------


@pytest.fixture(scope="module")
def model() -> HookedModel:
    return wrap(tiny("llama"), ADDING, name="small")


def test_a_model_encodes_and_pads(model: HookedModel) -> None:
    batch = model.tokens(["ab", "ab ab"])
    assert batch.row(0).tolist() == encode(ADDING, "ab")
    assert batch.row(1).tolist() == encode(ADDING, "ab ab")
    assert batch.mask[0].tolist() == [False, False, True, True]
    assert model.tokens("ab", side="right").mask.all()
    assert model.bos_rule == "tokenizer default ('<s>' added)"
    assert model.answer_ids("It is", "Paris") == answer_ids(ADDING, "It is", "Paris")
    assert model.pieces([BOS]) == ["<s>"]


def test_empty_and_overlong_prompts_are_refused(model: HookedModel) -> None:
    with pytest.raises(PromptError, match="empty"):
        model.tokens(["ab", " "])
    with pytest.raises(PromptError, match="no tokens"):
        model.tokens([])
    assert model.batch([[5] * 64]).ids.shape == (1, 64)
    with pytest.raises(PromptError, match="65 tokens but small reads at most 64"):
        model.batch([[5], [5] * 65])


def test_a_model_without_a_tokenizer_says_so() -> None:
    bare = plain.model_of("llama")
    assert bare.bos_rule == "token ids given"
    assert bare.tokenizer_sha256 == ""
    with pytest.raises(MnemoscopeError, match="pass token ids"):
        bare.tokens("ab")
