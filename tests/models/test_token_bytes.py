"""The bytes of a text's tokens are the bytes of the text, also where tokens cut characters."""

import pytest
from mnemoscope.models.errors import UnsupportedModelError
from mnemoscope.models.token_bytes import token_bytes
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

TEXTS = ["The cat sat.", "naïve café, 東京 \U0001f600!", " two  spaces\n\tand a tab", "<end> é"]


def byte_level():
    """256 bytes and a few merges: most characters beyond ASCII are several tokens."""
    words = Tokenizer(models.BPE())
    words.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    words.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    words.train_from_iterator(TEXTS, trainers.BpeTrainer(vocab_size=270, initial_alphabet=alphabet))
    return PreTrainedTokenizerFast(tokenizer_object=words, eos_token="<end>")


def byte_fallback():
    """Pieces with a mark for the space, and bytes for what they do not spell."""
    pieces = ["<unk>", *(f"<0x{b:02X}>" for b in range(256)), *"▁Thecatsn.,", "▁c", "▁ca"]
    vocabulary = {piece: i for i, piece in enumerate(pieces)}
    merges = [("▁", "c"), ("▁c", "a")]
    words = Tokenizer(models.BPE(vocabulary, merges, unk_token="<unk>", byte_fallback=True))
    words.normalizer = normalizers.Replace(" ", "▁")
    words.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    )
    return PreTrainedTokenizerFast(tokenizer_object=words, unk_token="<unk>", eos_token="<end>")


@pytest.mark.parametrize("make", [byte_level, byte_fallback])
@pytest.mark.parametrize("text", TEXTS[:3])
def test_tokens_put_end_to_end_are_the_text(make, text):
    tokenizer = make()
    bytes_of = token_bytes(tokenizer)
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    assert b"".join(map(bytes_of, ids)) == text.encode()


@pytest.mark.parametrize("make", [byte_level, byte_fallback])
def test_special_tokens_and_unknown_ids_stand_for_nothing(make):
    tokenizer = make()
    bytes_of = token_bytes(tokenizer)
    assert bytes_of(tokenizer.eos_token_id) == b""
    assert bytes_of(10_000) == b""


def test_a_vocabulary_that_does_not_spell_its_text_is_refused():
    words = Tokenizer(models.WordPiece({"a": 0, "##b": 1}, unk_token="a"))
    words.decoder = decoders.WordPiece()
    with pytest.raises(UnsupportedModelError, match="byte by byte"):
        token_bytes(PreTrainedTokenizerFast(tokenizer_object=words))
