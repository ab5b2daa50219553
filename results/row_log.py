"""`rows.jsonl`: the crash-safe log of a run, one line a unit of work."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

from .errors import RunFolderError
from .provenance import JSON
from .storage import storage_errors, write_all

Row = dict[str, Any]


class RowLog:
    """An append-only file of `{"key": ..., "row": {...}}` lines.

    Opening it cuts off a last line without its newline: the unit that was being written when the
    process died, to be done again. Each `append` is on the disk before it returns, so that a crash
    or a power cut loses at most the unit that was under way.
    """

    def __init__(self, path: Path) -> None:
        """Open or create the log. Raises `RunFolderError` for a damaged line, with its number."""
        self._path = path
        with storage_errors(path):
            self._descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o644)
        try:
            content = path.read_bytes()
            self._end = content.rfind(b"\n") + 1
            if self._end < len(content):
                with storage_errors(path):
                    os.ftruncate(self._descriptor, self._end)
            self._rows = parse_rows(content[: self._end], path)
        except BaseException:
            self.close()
            raise

    @property
    def rows(self) -> Mapping[str, Row]:
        """Key to row of every finished unit, in the order in which they were finished."""
        return MappingProxyType(self._rows)

    def append(self, key: str, row: Mapping[str, JSON]) -> None:
        """Add one finished unit.

        Raises `RunFolderError` when the key is there already, when the row is not plain JSON (NaN
        and NumPy scalars are not), or when the disk does not take it; then the log is as before.
        """
        if key in self._rows:
            raise RunFolderError(
                f"unit {key!r} is in {self._path} already: give each unit its key."
            )
        line = _line(key, row)
        try:
            with storage_errors(self._path, kept=len(self._rows)):
                write_all(self._descriptor, line)
                os.fsync(self._descriptor)
        except BaseException:
            self._take_back()
            raise
        self._end += len(line)
        self._rows[key] = json.loads(line)["row"]

    def close(self) -> None:
        """Close the file; closing twice is harmless."""
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1

    def _take_back(self) -> None:
        """Remove a line that was only half written, so that the next one does not follow it."""
        try:
            os.ftruncate(self._descriptor, self._end)
        except OSError:
            self.close()  # the torn line is cut off when the log is opened again


def parse_rows(content: bytes, path: Path) -> dict[str, Row]:
    """Read whole lines. Raises `RunFolderError` naming the line that cannot be read."""
    rows: dict[str, Row] = {}
    for number, line in enumerate(content.split(b"\n")[:-1], start=1):
        key, row = _parse_line(line, f"{path}, line {number}")
        if key in rows:
            raise RunFolderError(f"{path}, line {number}: unit {key!r} was there before.")
        rows[key] = row
    return rows


def row_lines(rows: Mapping[str, Mapping[str, JSON]]) -> bytes:
    """A whole log at once. Raises `RunFolderError` for a row that is not plain JSON."""
    return b"".join(_line(key, row) for key, row in rows.items())


def _line(key: str, row: Mapping[str, JSON]) -> bytes:
    try:
        text = json.dumps({"key": key, "row": row}, separators=(",", ":"), allow_nan=False)
    except (TypeError, ValueError) as error:
        raise RunFolderError(
            f"the row of unit {key!r} is not plain JSON ({error}): write numbers with float() or "
            ".tolist(), and None where a number is undefined."
        ) from error
    return text.encode() + b"\n"


def _parse_line(line: bytes, where: str) -> tuple[str, Row]:
    try:
        record = json.loads(line)
    except ValueError as error:
        raise RunFolderError(
            f"{where} is not JSON ({error}): the file was changed or damaged; remove that line to "
            "have its unit done again, or start over with force."
        ) from error
    match record:
        case {"key": str(key), "row": dict(row)} if len(record) == 2:
            return key, row
    raise RunFolderError(f'{where} is not of the form {{"key": ..., "row": {{...}}}}.')
