"""The tables of `RESULTS.md`, read back."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import takewhile
from pathlib import Path

Row = dict[str, str]


def recorded(path: Path, section: str) -> list[list[Row]]:
    """The tables of a script's section in their order; no table where there is no such section."""
    text = path.read_text("utf-8")
    _, found, rest = text.partition(f"<!-- begin {section} -->")
    return list(tables(rest.partition(f"<!-- end {section} -->")[0])) if found else []


def tables(text: str) -> Iterator[list[Row]]:
    """The Markdown tables of a text, a dictionary a row."""
    lines = text.splitlines()
    for i, line in enumerate(lines):
        if line.startswith("|--") and i:
            columns = _cells(lines[i - 1])
            rows = takewhile(lambda row: row.startswith("|"), lines[i + 1 :])
            yield [dict(zip(columns, _cells(row), strict=True)) for row in rows]


def _cells(line: str) -> list[str]:
    return [cell.strip() for cell in line.strip().strip("|").split("|")]
