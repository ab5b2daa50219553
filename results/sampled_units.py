"""Rows gathered by the unit that was sampled."""

from __future__ import annotations

from collections.abc import Hashable, Sequence

import numpy as np
from jaxtyping import Float, Int

from .errors import StatisticsError


def unit_index(units: Sequence[Hashable]) -> Int[np.ndarray, " n"]:
    """For each row the number of its unit, in the order of first appearance.

    Raises `StatisticsError` when there are fewer than two units.
    """
    numbers: dict[Hashable, int] = {}
    index = np.array([numbers.setdefault(unit, len(numbers)) for unit in units], dtype=np.int64)
    if len(numbers) < 2:
        raise StatisticsError(f"{len(numbers)} sampled unit: uncertainty needs two at least.")
    return index


def unit_sums(
    values: Float[np.ndarray, "n ..."], units: Sequence[Hashable]
) -> tuple[Float[np.ndarray, "units cells"], Int[np.ndarray, " units"]]:
    """Sum of each unit's rows `[units, cells]`, cells flattened, and its number of rows.

    Raises `StatisticsError` for values that are not finite, no cells, fewer than two units, or
    `units` of another length.
    """
    values = np.asarray(values, dtype=np.float64)
    if values.ndim == 0 or len(values) != len(units):
        raise StatisticsError(f"{np.shape(values)} values do not fit {len(units)} unit names.")
    index = unit_index(units)
    flat = values.reshape(len(values), -1)
    if flat.shape[1] == 0 or not np.isfinite(flat).all():
        raise StatisticsError("values must be finite numbers: leave out the rows that have none.")
    rows = np.bincount(index)
    sums = np.zeros((len(rows), flat.shape[1]))
    np.add.at(sums, index, flat)
    return sums, rows
