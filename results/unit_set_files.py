"""What head-set and neuron-set files have in common: one JSON object, checked field by field."""

from __future__ import annotations

import json
import math
import numbers
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Any, TypeVar

from .errors import UnitSetError
from .storage import write_new

Record = Mapping[str, Any]
Made = TypeVar("Made")


def write_set(path: Path | str, record: Record, *, force: bool) -> None:
    """Write a set in one step, its units one a line. Raises `RunFolderError` when the file is
    there and `force` is not given, or when the disk does not take it."""
    *head, (last, units) = record.items()
    lines = [f"  {json.dumps(name)}: {json.dumps(value)}," for name, value in head]
    body = ",\n".join(f"    {json.dumps(unit, allow_nan=False)}" for unit in units)
    text = "\n".join(["{", *lines, f"  {json.dumps(last)}: [", body, "  ]", "}", ""])
    write_new(Path(path), text, force=force)


def read_set(path: Path | str, schema: str, build: Callable[[Record], Made]) -> Made:
    """Read a file of this schema and hand its object to `build`; errors name the file.

    Raises `UnitSetError` when the file is missing, not JSON, of another schema, or refused.
    """
    try:
        record = json.loads(Path(path).read_bytes())
    except OSError as error:
        raise UnitSetError(f"{path} cannot be read ({error.strerror}).") from error
    except ValueError as error:
        raise UnitSetError(f"{path} is not JSON ({error}).") from error
    found = record.get("schema") if isinstance(record, dict) else None
    if found != schema:
        raise UnitSetError(f"{path} is no {schema} file: its schema says {found!r}.")
    try:
        return build(record)
    except UnitSetError as error:
        raise UnitSetError(f"{path}: {error}") from error


def expect_fields(record: Any, names: Collection[str], what: str) -> Record:
    """The record itself, if it is an object with exactly these fields."""
    if not isinstance(record, dict) or set(record) != set(names):
        have = sorted(record) if isinstance(record, dict) else record
        raise UnitSetError(f"{what} needs the fields {sorted(names)}, got {have}.")
    return record


def whole(record: Record, name: str) -> int:
    """A whole number that is not negative."""
    value = record[name]
    if isinstance(value, bool) or not isinstance(value, int) or value < 0:
        raise UnitSetError(f"{name} must be a whole number from 0, got {value!r}.")
    return value


def text(record: Record, name: str) -> str:
    """A string."""
    if not isinstance(record[name], str):
        raise UnitSetError(f"{name} must be text, got {record[name]!r}.")
    return record[name]


def text_or_none(record: Record, name: str) -> str | None:
    """A string or null."""
    return None if record[name] is None else text(record, name)


def number(value: Any, what: str) -> float:
    """A finite number."""
    if isinstance(value, bool) or not isinstance(value, numbers.Real) or not math.isfinite(value):
        raise UnitSetError(f"{what} must be a finite number, got {value!r}.")
    return float(value)


def probability_or_none(value: Any) -> float | None:
    """A p-value or null."""
    if value is None:
        return None
    p = number(value, "p")
    if not 0 <= p <= 1:
        raise UnitSetError(f"p must lie between 0 and 1, got {p}.")
    return p


def interval_or_none(value: Any) -> tuple[float, float] | None:
    """`[low, high]` or null."""
    if value is None:
        return None
    if not isinstance(value, list | tuple) or len(value) != 2:
        raise UnitSetError(f"ci must be [low, high] or null, got {value!r}.")
    low, high = number(value[0], "ci"), number(value[1], "ci")
    if low > high:
        raise UnitSetError(f"ci must be [low, high], got [{low}, {high}].")
    return low, high
