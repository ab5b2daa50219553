"""What commands say: people read stderr, programs read one JSON document on stdout."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

SCHEMA = "mnemoscope/cli/1"
LINE_EVERY_S = 30.0

console = Console(stderr=True)


def print_json(kind: str, body: Mapping[str, Any]) -> None:
    """One schema-versioned document on stdout."""
    sys.stdout.write(json.dumps({"schema": SCHEMA, "kind": kind, **body}, indent=1) + "\n")


def say(text: str) -> None:
    """A line for people. Square brackets in it are text, not markup."""
    console.print(text, markup=False, highlight=False)


def say_where(folder: Path) -> None:
    """Where a run and its report are."""
    say(f"run      {folder}")
    say(f"report   {folder / 'report.html'}")


def show_table(title: str, columns: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
    """A table for people; cells are written as they are."""
    table = Table(title=title, title_justify="left", header_style="bold")
    for column in columns:
        table.add_column(column, overflow="fold")
    for row in rows:
        table.add_row(*(_cell(value) for value in row))
    console.print(table)


@contextmanager
def progress(what: str) -> Iterator[Callable[[int, int], None]]:
    """A callback `(done, total)`: a bar on a terminal, a line now and then elsewhere.

    A total of 0 is one that is not known.
    """
    if not console.is_terminal:
        yield _lines(what)
        return
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())
    with Progress(*columns, TimeRemainingColumn(), console=console, transient=True) as bar:
        task = bar.add_task(what, total=None)
        yield lambda done, total: bar.update(task, completed=done, total=total or None)


def _lines(what: str) -> Callable[[int, int], None]:
    said = time.monotonic()

    def tell(done: int, total: int) -> None:
        nonlocal said
        now = time.monotonic()
        if now - said >= LINE_EVERY_S or done == total:
            said = now
            say(f"{what}: {done} of {total}" if total else f"{what}: {done}")

    return tell


def _cell(value: object) -> str:
    text = f"{value:.3g}" if isinstance(value, float) else str(value)
    return text.replace("[", r"\[")
