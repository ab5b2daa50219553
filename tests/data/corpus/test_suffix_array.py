"""The order of suffixes is that of sorting them, for every width and alphabet."""

from __future__ import annotations

import numpy as np
import pytest
from mnemoscope.data.corpus.suffix_array import check_order, suffix_array


def sorted_by_hand(tokens: np.ndarray) -> list[int]:
    return sorted(range(len(tokens)), key=lambda start: tokens[start:].tobytes())


@pytest.mark.parametrize("size", [1, 2, 3, 1000])
@pytest.mark.parametrize(
    ("dtype", "alphabet"),
    [
        ("<u1", 2),
        ("<u1", 255),
        ("<u2", 2),
        ("<u2", 300),
        ("<u2", 65_535),
        ("<u4", 2),
        ("<u4", 300),
        ("<u4", 70_000),
        ("<u4", 2**32 - 1),
    ],
)
@pytest.mark.parametrize("period", [None, 1, 3])
def test_order_is_that_of_the_little_endian_bytes(
    size: int, dtype: str, alphabet: int, period: int | None
) -> None:
    tokens = np.random.default_rng(0).integers(0, alphabet, size).astype(dtype)
    if period:
        tokens = np.resize(tokens[:period], size)
    tokens[::7] = np.iinfo(tokens.dtype).max  # separators
    before = tokens.copy()
    positions = suffix_array(tokens)
    assert positions.tolist() == sorted_by_hand(tokens)
    assert (tokens == before).all()
    check_order(tokens, positions)


def test_more_than_65536_distinct_ids_are_sorted_as_they_are() -> None:
    tokens = np.random.default_rng(1).permutation(70_000).astype("<u4")
    positions = suffix_array(tokens)
    assert (tokens[positions].byteswap() == np.sort(tokens.byteswap())).all()  # all ids distinct


def test_ids_of_several_bytes_are_not_in_numeric_order() -> None:
    """256 is 00 01 in little-endian bytes and comes before 1, which is 01 00."""
    assert suffix_array(np.array([1, 256], dtype="<u2")).tolist() == [1, 0]


def test_a_read_only_mapping_is_sorted_too() -> None:
    tokens = np.frombuffer(b"banana", dtype=np.uint8)
    assert not tokens.flags.writeable
    assert suffix_array(tokens).tolist() == [5, 3, 1, 0, 4, 2]


def test_nothing_to_sort_is_said() -> None:
    with pytest.raises(ValueError, match="empty"):
        suffix_array(np.zeros(0, dtype=np.uint16))


def test_a_wrong_order_is_found() -> None:
    tokens = np.random.default_rng(2).integers(0, 9, 500).astype("<u2")
    positions = suffix_array(tokens)
    with pytest.raises(ValueError, match="out of order"):
        check_order(tokens, positions[::-1])
    with pytest.raises(ValueError, match="out of order"):
        check_order(tokens, np.zeros_like(positions))
    with pytest.raises(ValueError, match="499 positions for 500 tokens"):
        check_order(tokens, positions[1:])
