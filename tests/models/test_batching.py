"""Batches by length, and batches that give way when memory runs out."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from mnemoscope.models.batching import adaptive, length_buckets

LENGTHS = st.lists(st.integers(1, 50), max_size=40)


@given(LENGTHS, st.integers(1, 9))
def test_every_index_is_in_one_batch(lengths: list[int], rows: int) -> None:
    batches = length_buckets(lengths, rows)
    assert sorted(i for batch in batches for i in batch) == list(range(len(lengths)))
    assert all(1 <= len(batch) <= rows for batch in batches)
    assert batches == length_buckets(lengths, rows)
    for one, after in pairwise(batches):
        assert len(one) == rows
        assert max(lengths[i] for i in one) <= min(lengths[i] for i in after)


@given(LENGTHS, st.integers(1, 9), st.integers(1, 9))
def test_halved_batches_give_the_same_results(lengths: list[int], rows: int, fits: int) -> None:
    batches = length_buckets(lengths, rows)

    def run(batch: Sequence[int]) -> list[int]:
        if len(batch) > fits:
            raise torch.OutOfMemoryError("too big")
        return [2 * i for i in batch]

    done = list(adaptive(batches, run))
    assert all(len(batch) <= fits for batch, _ in done)
    assert [i for batch, _ in done for i in batch] == [i for batch in batches for i in batch]
    assert all(result == [2 * i for i in batch] for batch, result in done)


def test_a_single_row_that_does_not_fit_raises() -> None:
    def run(_: Sequence[int]) -> None:
        raise torch.OutOfMemoryError("too big")

    with pytest.raises(torch.OutOfMemoryError):
        list(adaptive([[0, 1, 2]], run))


def test_other_errors_are_not_swallowed() -> None:
    def run(_: Sequence[int]) -> None:
        raise RuntimeError("something else")

    with pytest.raises(RuntimeError, match="something else"):
        list(adaptive([[0, 1]], run))
