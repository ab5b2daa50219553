"""Batches of similar length, whose size gives way when memory runs out."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import TypeVar

import torch

Result = TypeVar("Result")


def length_buckets(lengths: Sequence[int], rows: int) -> list[list[int]]:
    """Indices in batches of at most `rows`, sorted by length so that little is padding.

    The split depends on the lengths and `rows` only, so an interrupted run meets it again.
    """
    order = sorted(range(len(lengths)), key=lambda i: (lengths[i], i))
    return [order[start : start + rows] for start in range(0, len(order), rows)]


def adaptive(
    batches: Sequence[Sequence[int]], run: Callable[[Sequence[int]], Result]
) -> Iterator[tuple[Sequence[int], Result]]:
    """Run each batch; one that runs out of memory is halved until single rows fit."""
    waiting = [list(batch) for batch in reversed(batches)]
    while waiting:
        batch = waiting.pop()
        try:
            result = run(batch)
        except torch.OutOfMemoryError:
            if len(batch) == 1:
                raise
            torch.cuda.empty_cache()
            half = len(batch) // 2
            waiting += [batch[half:], batch[:half]]
            continue
        yield batch, result
