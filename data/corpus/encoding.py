"""Texts become checked token ids, in this process or in several, in the order of the documents."""

from __future__ import annotations

import pickle
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from contextlib import contextmanager
from multiprocessing import get_context

import numpy as np
from jaxtyping import Int, UInt

from .documents import Document
from .index_info import dtype_of, separator_of

Encode = Callable[[str], Sequence[int]]
Encoded = tuple[Document, UInt[np.ndarray, " token"] | None]

_BATCH_CHARACTERS = 1 << 19
_BATCH_DOCUMENTS = 1024
_BATCHES_PER_WORKER = 3

_encode: Encode | None = None
"""What this worker process encodes with; set once by `_start_worker`."""


@contextmanager
def process_pool(workers: int, encode: Encode | None) -> Iterator[ProcessPoolExecutor | None]:
    """Worker processes that know `encode`; None for one worker, which is this process.

    Raises ValueError when `encode` cannot be sent to another process. After an error what has not
    begun is not begun.
    """
    if workers == 1:
        yield None
        return
    try:
        pickle.dumps(encode)
    except (pickle.PicklingError, AttributeError, TypeError) as error:
        raise ValueError(
            f"encode cannot be sent to {workers} processes ({error}): give a function of a module "
            "or a method of an object that can be pickled, or use workers=1."
        ) from error
    pool = ProcessPoolExecutor(workers, get_context("spawn"), _start_worker, (encode,))
    try:
        yield pool
    except BaseException:
        pool.shutdown(wait=True, cancel_futures=True)
        raise
    pool.shutdown(wait=True)


def encoded_documents(
    documents: Iterable[Document],
    encode: Encode | None,
    *,
    vocab_size: int,
    width: int,
    pool: ProcessPoolExecutor | None,
    workers: int,
) -> Iterator[Encoded]:
    """Each document with its ids, or with None when there is nothing to encode (bytes).

    Raises ValueError for ids that are no whole numbers from 0 to below `vocab_size`.
    """
    if encode is None:
        yield from ((document, None) for document in documents)
    elif pool is None:
        for document in documents:
            yield document, _checked(encode(document.text), document, vocab_size, width)
    else:
        for document, ids in _by_pool(documents, pool, workers):
            yield document, _checked(ids, document, vocab_size, width)


def _by_pool(
    documents: Iterable[Document], pool: ProcessPoolExecutor, workers: int
) -> Iterator[tuple[Document, Sequence[int] | Int[np.ndarray, " token"]]]:
    """Batches go out ahead of the one that is waited for, a few for each worker."""
    waiting: deque[tuple[list[Document], Future[list[Int[np.ndarray, " token"]]]]] = deque()
    for batch in _batches(documents):
        waiting.append((batch, pool.submit(_encode_batch, [document.text for document in batch])))
        if len(waiting) >= _BATCHES_PER_WORKER * workers:
            done, answer = waiting.popleft()
            yield from zip(done, answer.result(), strict=True)
    for done, answer in waiting:
        yield from zip(done, answer.result(), strict=True)


def _batches(documents: Iterable[Document]) -> Iterator[list[Document]]:
    batch: list[Document] = []
    characters = 0
    for document in documents:
        batch.append(document)
        characters += len(document.text)
        if characters >= _BATCH_CHARACTERS or len(batch) == _BATCH_DOCUMENTS:
            yield batch
            batch, characters = [], 0
    if batch:
        yield batch


def _start_worker(encode: Encode | None) -> None:
    global _encode
    _encode = encode


def _encode_batch(texts: list[str]) -> list[Int[np.ndarray, " token"]]:
    assert _encode is not None
    return [np.asarray(_encode(text)) for text in texts]


def _checked(
    ids: Sequence[int] | Int[np.ndarray, " token"], document: Document, vocab_size: int, width: int
) -> UInt[np.ndarray, " token"]:
    """The ids as they are stored."""
    found = np.asarray(ids)
    if not found.size:
        return np.zeros(0, dtype=dtype_of(width))
    where = f"{document.source}, record {document.line + 1}"
    if found.ndim != 1 or found.dtype.kind not in "iu":
        raise ValueError(
            f"encode gave {found.dtype} of shape {found.shape} for {where}: it must give a list of "
            "whole numbers."
        )
    lowest, highest = int(found.min()), int(found.max())
    if highest == separator_of(width):
        raise ValueError(
            f"{where} holds the id {highest}, which separates documents at width {width}: use "
            "another id or a larger width."
        )
    if lowest < 0 or highest >= vocab_size:
        wrong = lowest if lowest < 0 else highest
        raise ValueError(
            f"{where} holds the id {wrong}, outside the vocabulary of {vocab_size}: give the "
            "vocab_size of the tokenizer that encodes."
        )
    return found.astype(dtype_of(width))
