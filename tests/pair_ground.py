"""A small world of mothers and children whose names are words, for tests of pairs."""

from __future__ import annotations

from typing import Any

from families import tiny
from mnemoscope.data.facts.pairs import Pair, PairRelation
from mnemoscope.models import HookedModel, wrap
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

PAIRS = (
    Pair("ann lee", "eve lee", group="often"),
    Pair("bob lee", "fay moe", group="once"),
    Pair("cat", "gus", group="often"),
    Pair("dan moe", "hal ivy kay", group="once"),
    Pair("ian", "jo moe"),
)
MOTHERS = PairRelation(
    "mother",
    ("the mother of {a} is", "{a} has the mother"),
    ("the child of {b} is", "{b} has one child called", "it is {b} whose child is"),
    PAIRS,
)


def word_tokenizer() -> Any:
    """A token a word and a full stop, no special token added; words are split at spaces."""
    texts = [*MOTHERS.forward, *MOTHERS.reverse, *(f"{pair.a} {pair.b}" for pair in PAIRS)]
    words = {word for text in texts for word in text.split() if "{" not in word}
    vocab = {word: i for i, word in enumerate(["<pad>", "<s>", "</s>", "It", ".", *sorted(words)])}
    made = Tokenizer(models.WordLevel(vocab, unk_token="<pad>"))
    made.pre_tokenizer = pre_tokenizers.Whitespace()
    return PreTrainedTokenizerFast(
        tokenizer_object=made, pad_token="<pad>", bos_token="<s>", eos_token="</s>"
    )


def tiny_reader(family: str = "llama", seed: int = 0) -> HookedModel:
    """A tiny random model of the family that reads this world."""
    return wrap(tiny(family, seed), word_tokenizer())
