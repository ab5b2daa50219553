"""Options that hold several values, parted by commas."""

from __future__ import annotations

import typer


def words(text: str) -> list[str]:
    """`a, b` as `["a", "b"]`."""
    return [part.strip() for part in text.split(",") if part.strip()]


def numbers(text: str) -> list[float]:
    """`0.5,2` as numbers; a usage error otherwise."""
    try:
        return [float(part) for part in text.split(",")]
    except ValueError:
        raise typer.BadParameter(f"{text!r} is no list of numbers such as 10,30.") from None


def whole_numbers(text: str) -> list[int]:
    """`10,30` as whole numbers; a usage error otherwise."""
    found = numbers(text)
    if any(number != int(number) for number in found):
        raise typer.BadParameter(f"{text!r} is no list of whole numbers such as 10,30.")
    return [int(number) for number in found]
