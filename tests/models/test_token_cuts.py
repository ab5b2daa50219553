"""Where characters fall between tokens, with the tokenizer's offsets and without them."""

from __future__ import annotations

from typing import Any

import pytest
from mnemoscope.data.facts.items import load_relation
from mnemoscope.data.facts.pairs import WAYS, pairs_of
from mnemoscope.models import load_model
from mnemoscope.models.errors import PromptError
from mnemoscope.models.token_cuts import token_cuts
from mnemoscope.models.tokens import encode, encode_with_offsets
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast


def bytes_with_bos() -> Any:
    """Byte-level BPE that merges `ex` and ` P`, adds BOS and EOS; é is two tokens."""
    merges = [("e", "x"), ("Ġ", "P")]
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    pieces = ["<unk>", "<s>", "</s>", *alphabet, *map("".join, merges)]
    made = Tokenizer(models.BPE({piece: i for i, piece in enumerate(pieces)}, merges))
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    made.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", special_tokens=[("<s>", 1), ("</s>", 2)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=made, unk_token="<unk>", bos_token="<s>", eos_token="</s>"
    )


BYTES = bytes_with_bos()


@pytest.fixture
def without_offsets(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(PreTrainedTokenizerFast, "is_fast", property(lambda _: False))


def test_offsets_come_with_the_ids_of_encode() -> None:
    text = "a Pé"
    [(ids, offsets)] = encode_with_offsets(BYTES, [text])
    assert ids == encode(BYTES, text)
    assert [text[start:end].strip() for start, end in offsets] == ["", "a", "P", "é", "é"]
    with pytest.raises(PromptError, match="empty"):
        encode_with_offsets(BYTES, ["a", " "])


def test_a_space_belongs_to_the_word_behind_it() -> None:
    [(ids, cuts)] = token_cuts(BYTES, ["a Pé b"], [[0, 2, 4, 6]])
    pieces = [BYTES.decode(ids[:cut]) for cut in cuts or ()]
    assert pieces == ["<s>", "<s>a", "<s>a Pé", "<s>a Pé b"]


def test_a_cut_inside_a_token_has_no_place() -> None:
    (_, merged), (_, apart) = token_cuts(BYTES, ["nexy", "naxy"], [[2], [2]])
    assert merged is None
    assert apart == (3,)  # BOS, n, a


@pytest.mark.usefixtures("without_offsets")
def test_prefixes_say_the_same_without_offsets() -> None:
    assert token_cuts(BYTES, ["a Pé b"], [[0, 2, 4, 6]])[0][1] == (1, 2, 5, 7)
    assert token_cuts(BYTES, ["nexy"], [[2]])[0][1] is None


def test_both_ways_agree_on_names_of_several_tokens(monkeypatch: pytest.MonkeyPatch) -> None:
    tokenizer = load_model("engram").text_tokenizer
    relation = pairs_of(load_relation("capital"))
    asked = [
        (relation.prompt(pair, way, 0), relation.name_span(pair, way))
        for pair in relation.pairs[:40]
        for way in WAYS
    ]
    texts, spans = zip(*asked, strict=True)
    by_offsets = token_cuts(tokenizer, texts, spans)
    monkeypatch.setattr(type(tokenizer), "is_fast", property(lambda _: False))
    assert token_cuts(tokenizer, texts, spans) == by_offsets
    assert max(cuts[1] - cuts[0] for _, cuts in by_offsets if cuts) > 2
