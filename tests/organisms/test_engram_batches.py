"""From documents to batches: the tokenizer of engram, and rows of one document each."""

from __future__ import annotations

from collections import Counter
from random import Random

import pytest
import torch
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from mnemoscope.organisms.engram.batches import END_ID, IGNORED, LONGEST_ROW, Rows, batches
from mnemoscope.organisms.engram.corpus import build_corpus
from mnemoscope.organisms.engram.tokenizer import END, train_tokenizer
from transformers import PreTrainedTokenizerFast

VOCABULARY = 1024


@pytest.fixture(scope="module")
def texts() -> list[str]:
    return [document.text for document in build_corpus(0, scale=0.02).documents]


@pytest.fixture(scope="module")
def tokenizer(texts: list[str]) -> PreTrainedTokenizerFast:
    return train_tokenizer(texts, VOCABULARY)


# ---- batches


def _documents(count: int, seed: int = 0) -> list[list[int]]:
    """Documents of all lengths that a row can hold, each with an id of its own behind END."""
    random = Random(seed)
    lengths = [random.choice((2, 30, 200, 257, 600, 1024)) for _ in range(count)]
    return [[END_ID, *(i + 1 for _ in range(length - 1))] for i, length in enumerate(lengths)]


def _told(batch: tuple[Rows, ...]) -> list[list[int]]:
    """The documents of a batch, read from the targets."""
    return [row[row != IGNORED].tolist() for rows in batch for row in rows.targets]


def _read(documents: list[list[int]], order: str = "0:0") -> list[tuple[Rows, ...]]:
    return list(batches(documents, order=order, tokens_a_batch=4096))


def test_every_document_is_whole_and_once_in_a_pass() -> None:
    documents = _documents(300)
    for order in ("0:0", "0:1"):
        told = [document for batch in _read(documents, order) for document in _told(batch)]
        assert Counter(map(tuple, told)) == Counter(map(tuple, documents))


def test_rows_are_as_wide_as_their_longest_document_and_little_is_padding() -> None:
    random = Random(0)
    documents = [[END_ID] * random.randint(30, 900) for _ in range(400)]
    real = padded = 0
    for batch in _read(documents):
        for rows in batch:
            lengths = (rows.targets != IGNORED).sum(1)
            assert rows.tokens.shape[1] == int(lengths.max()) <= LONGEST_ROW
            real, padded = real + int(lengths.sum()), padded + rows.tokens.numel()
    assert padded < 1.2 * real


def test_what_is_over_of_the_longest_row_is_cut_off() -> None:
    long = [END_ID, *range(1, 1500)]
    assert _told(_read([long])[0]) == [long[:LONGEST_ROW]]


def test_only_padding_is_ignored() -> None:
    for batch in _read(_documents(300)):
        assert len({rows.tokens.shape[1] for rows in batch}) == len(batch)
        for rows in batch:
            assert rows.tokens.shape == rows.targets.shape
            real = rows.targets != IGNORED
            assert torch.equal(rows.tokens[real], rows.targets[real])
            assert bool((rows.tokens[~real] == END_ID).all())
            assert bool((rows.tokens[:, 0] == END_ID).all())
            assert bool(real[:, 0].all())
            assert not bool((real[:, 1:] & ~real[:, :-1]).any())  # padding stands at the end


def test_the_order_decides_the_batches() -> None:
    documents = _documents(300)
    first = [_told(batch) for batch in _read(documents)]
    assert first == [_told(batch) for batch in _read(documents)]
    assert first != [_told(batch) for batch in _read(documents, "0:1")]


def test_a_batch_has_about_the_tokens_asked_for() -> None:
    sizes = [sum(map(len, _told(batch))) for batch in _read(_documents(300))]
    assert len(sizes) > 5
    assert all(4096 <= size < 4096 + LONGEST_ROW for size in sizes[:-1])
    assert 0 < sizes[-1] < 4096 + LONGEST_ROW


# ---- tokenizer


def test_token_zero_is_put_before_every_text(
    tokenizer: PreTrainedTokenizerFast, texts: list[str]
) -> None:
    assert tokenizer.convert_tokens_to_ids(END) == END_ID == 0
    assert tokenizer.bos_token_id == tokenizer.eos_token_id == tokenizer.pad_token_id == END_ID
    for ids in tokenizer(texts[:200])["input_ids"]:
        assert ids[0] == END_ID
        assert END_ID not in ids[1:]
    assert tokenizer("")["input_ids"] == [END_ID]


def test_the_vocabulary_has_the_size_asked_for(tokenizer: PreTrainedTokenizerFast) -> None:
    assert len(tokenizer) == tokenizer.vocab_size == VOCABULARY
    assert sorted(tokenizer.get_vocab().values()) == list(range(VOCABULARY))


def test_the_tokenizer_is_the_same_for_the_same_texts(
    tokenizer: PreTrainedTokenizerFast, texts: list[str]
) -> None:
    again = train_tokenizer(iter(texts), VOCABULARY)
    assert again.backend_tokenizer.to_str() == tokenizer.backend_tokenizer.to_str()
    other = train_tokenizer(texts[:300], VOCABULARY)
    assert other.get_vocab() != tokenizer.get_vocab()


@hypothesis_settings(max_examples=200, deadline=None)
@given(text=st.text(max_size=60))
def test_any_text_comes_back(small_tokenizer: PreTrainedTokenizerFast, text: str) -> None:
    first, *ids = small_tokenizer(text)["input_ids"]
    assert first == END_ID
    assert small_tokenizer.decode(ids) == text


@pytest.fixture(scope="module")
def small_tokenizer() -> PreTrainedTokenizerFast:
    return train_tokenizer(["The cat sat on the mat, and the dog sat on the cat."] * 3, 300)


def test_texts_of_the_corpus_come_back_and_get_shorter(
    tokenizer: PreTrainedTokenizerFast, texts: list[str]
) -> None:
    for text in texts[:200]:
        assert tokenizer.decode(tokenizer(text)["input_ids"], skip_special_tokens=True) == text
    tokens = sum(len(ids) for ids in tokenizer(texts)["input_ids"])
    assert tokens < sum(map(len, texts)) / 2
