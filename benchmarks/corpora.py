"""Large corpora of token ids: generated, or made from the text files of a folder."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice
from pathlib import Path

import numpy as np
from jaxtyping import UInt16
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

Ids = UInt16[np.ndarray, " n"]

VOCABULARY = 50_000
DOCUMENT = 3_000  # mean tokens of a generated document
COPIED = 0.5  # share of the segments that repeat an earlier passage
SEGMENT = 40  # mean tokens of a segment
TRAINED_ON = 20_000_000  # characters of text that the vocabulary is learnt from
LARGEST_FILE = 1_000_000
SUFFIXES = {".py", ".md", ".txt", ".rst", ".html", ".c", ".h", ".js", ".json", ".tex"}


def generated(n_tokens: int, seed: int = 0) -> list[Ids]:
    """Documents of ids with Zipf's frequencies, in segments half of which were seen before, so that
    matches are of all lengths."""
    random = np.random.default_rng(seed)
    weights = 1 / (np.arange(VOCABULARY) + 2.7)
    names = random.permutation(VOCABULARY).astype(np.uint16)
    flat = names[np.searchsorted(np.cumsum(weights / weights.sum()), random.random(n_tokens))]
    flat = np.ascontiguousarray(flat)
    lengths = random.geometric(1 / SEGMENT, size=2 * n_tokens // SEGMENT)
    copied = random.random(len(lengths)) < COPIED
    places = random.random(len(lengths))
    start = 0
    for length, again, place in zip(lengths.tolist(), copied.tolist(), places, strict=True):
        stop = min(start + length, n_tokens)
        if again and start > length:
            source = int(place * (start - length))
            flat[start:stop] = flat[source : source + stop - start]
        start = stop
        if start == n_tokens:
            break
    cuts = np.sort(random.choice(np.arange(1, n_tokens), size=n_tokens // DOCUMENT, replace=False))
    return np.split(flat, cuts)


def from_text(folder: Path, n_tokens: int) -> list[Ids]:
    """One document a text file, by a byte-level BPE that is learnt from the first files."""
    tokenizer = _trained(folder)
    documents: list[Ids] = []
    total = 0
    texts = _texts(folder)
    while total < n_tokens and (batch := list(islice(texts, 64))):
        for encoding in tokenizer.encode_batch(batch, add_special_tokens=False):
            documents.append(np.array(encoding.ids, dtype=np.uint16))
            total += len(encoding.ids)
    if total < n_tokens:
        raise ValueError(f"{folder} holds {total} tokens of text, {n_tokens} are needed.")
    return documents


def _trained(folder: Path) -> Tokenizer:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY, initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator(_first(folder, TRAINED_ON), trainer)
    return tokenizer


def _first(folder: Path, characters: int) -> Iterator[str]:
    taken = 0
    for text in _texts(folder):
        if taken > characters:
            return
        taken += len(text)
        yield text


def _texts(folder: Path) -> Iterator[str]:
    """The folder's UTF-8 text files, in an order that mixes its parts but is always the same."""
    paths = sorted(path for path in folder.rglob("*") if path.suffix in SUFFIXES and path.is_file())
    for i in np.random.default_rng(0).permutation(len(paths)):
        path = paths[i]
        if 0 < path.stat().st_size <= LARGEST_FILE:
            text = path.read_bytes().decode("utf-8", errors="ignore")
            if text.strip():
                yield text
