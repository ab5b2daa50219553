"""Documents as batches: a document a row, rows of similar length together, nothing read twice.

A document stands alone in its row. Strangers before it would be something to attend to: with
several documents to a row, copying was learned about half as fast.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from random import Random

import torch
from jaxtyping import Int
from torch import Tensor

LONGEST_ROW = 1024
END_ID = 0
IGNORED = -100
_BOUNDS = (64, 96, 128, 192, 256, 384, 512, 768, LONGEST_ROW)


@dataclass(frozen=True)
class Rows:
    """Documents of similar length. `targets` are the tokens, `IGNORED` where a row is padded."""

    tokens: Int[Tensor, "row position"]
    targets: Int[Tensor, "row position"]


def batches(
    documents: Sequence[Sequence[int]], *, order: str, tokens_a_batch: int
) -> Iterator[tuple[Rows, ...]]:
    """Every document once, in an order that depends on the text `order` alone.

    A batch ends with the document that fills `tokens_a_batch`. What is over of `LONGEST_ROW` is cut
    off. Every document starts with `END_ID` already: the tokenizer puts it there.
    """
    batch: list[Sequence[int]] = []
    tokens = 0
    for document in Random(order).sample(list(documents), len(documents)):
        batch.append(document[:LONGEST_ROW])
        tokens += len(batch[-1])
        if tokens >= tokens_a_batch:
            yield _by_length(batch)
            batch, tokens = [], 0
    if batch:
        yield _by_length(batch)


def _by_length(batch: list[Sequence[int]]) -> tuple[Rows, ...]:
    ordered = sorted(batch, key=len)
    return tuple(_rows(list(group)) for _, group in groupby(ordered, key=_bound))


def _bound(document: Sequence[int]) -> int:
    return next(bound for bound in _BOUNDS if len(document) <= bound)


def _rows(documents: list[Sequence[int]]) -> Rows:
    width = len(documents[-1])
    tokens = torch.full((len(documents), width), END_ID)
    targets = torch.full((len(documents), width), IGNORED)
    for i, document in enumerate(documents):
        tokens[i, : len(document)] = targets[i, : len(document)] = torch.tensor(document)
    return Rows(tokens, targets)
