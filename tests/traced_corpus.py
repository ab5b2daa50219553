"""A small corpus of invented sentences, a tokenizer trained on it, and its index, for tests."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from mnemoscope.data.corpus.build import build_index
from mnemoscope.data.corpus.documents import Document
from mnemoscope.data.corpus.suffix_index import SuffixIndex, open_index
from mnemoscope.probes.index_spelling import Spelling, byte_spelling, token_spelling
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

_WORDS = """
the quiet harbour keeps seven lanterns under a stone bridge while grey birds count slow boats
and every miller carries flour across wide fields before cold rain comes down from old hills
"""
WORDS = _WORDS.split()


def filler(seed: int, n_words: int = 120) -> str:
    """Sentences of random words."""
    random = np.random.default_rng(seed)
    sentences = [" ".join(random.choice(WORDS, 8)).capitalize() + "." for _ in range(n_words // 8)]
    return " ".join(sentences)


def tokenizer() -> PreTrainedTokenizerFast:
    """A byte-level BPE, in which a word behind a space is another token than without."""
    raw = Tokenizer(models.BPE())
    raw.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    raw.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=600,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    raw.train_from_iterator([filler(i) for i in range(20)], trainer)
    return PreTrainedTokenizerFast(tokenizer_object=raw)


def token_index(
    texts: Sequence[str], folder: Path, hf: PreTrainedTokenizerFast, sha256: str = "a" * 64
) -> SuffixIndex:
    """An index over the tokenizer's ids."""
    build_index(
        documents(texts),
        folder,
        encode=lambda text: hf(text, add_special_tokens=False)["input_ids"],
        vocab_size=len(hf),
        tokenizer_sha256=sha256,
        any_path=True,
    )
    return open_index(folder, kernels="numpy")


def byte_index(texts: Sequence[str], folder: Path) -> SuffixIndex:
    """An index over bytes."""
    build_index(documents(texts), folder, any_path=True)
    return open_index(folder, kernels="numpy")


def documents(texts: Sequence[str]) -> list[Document]:
    return [Document(text, f"book-{i}", i, {"id": i}) for i, text in enumerate(texts)]


def tokens_of(hf: PreTrainedTokenizerFast, sha256: str = "a" * 64) -> Spelling:
    return token_spelling(hf, sha256)


BYTES = byte_spelling()
