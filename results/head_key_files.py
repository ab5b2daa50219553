"""JSON files of other projects whose keys are heads, written `"<layer>-<head>"`."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

from ..models.types import HeadId
from .errors import UnitSetError

_KEY = re.compile(r"\s*(\d+)\s*[-_]\s*(\d+)\s*", re.ASCII)


def head_key(head: HeadId) -> str:
    """`12-5` for layer 12, head 5; both from 0, query heads."""
    return f"{int(head.layer)}-{int(head.head)}"


def head_of_key(key: Any, where: object) -> HeadId:
    """Read `12-5` (or `12_5`, as some lists have it). Raises `UnitSetError` that names `where`."""
    match = _KEY.fullmatch(key) if isinstance(key, str) else None
    if match is None:
        raise UnitSetError(f"{where}: {key!r} is no head, which is written layer-head, as 12-5.")
    return HeadId(int(match[1]), int(match[2]))


def read_text(path: Path | str) -> str:
    """A file's text. Raises `UnitSetError` when it is missing or not UTF-8."""
    try:
        return Path(path).read_text(encoding="utf-8")
    except OSError as error:
        raise UnitSetError(f"{path} cannot be read ({error.strerror}).") from error
    except UnicodeDecodeError as error:
        raise UnitSetError(f"{path} is not text in UTF-8.") from error


def read_head_object(path: Path | str) -> dict[HeadId, Any]:
    """The one JSON object of a file, head to value, in the order of the file.

    Raises `UnitSetError` for another form, a key that is no head, and a head named twice, also
    where the same key comes twice (which JSON readers pass over in silence).
    """
    try:
        pairs = json.loads(read_text(path), object_pairs_hook=_Pairs)
    except ValueError as error:
        several = "; it holds several objects, keep one" if "Extra data" in str(error) else ""
        raise UnitSetError(f"{path} cannot be read as JSON ({error}){several}.") from error
    if not isinstance(pairs, _Pairs):
        raise UnitSetError(f'{path} must hold one object of the form {{"layer-head": ...}}.')
    heads = {head_of_key(key, path): value for key, value in pairs}
    if len(heads) < len(pairs):
        raise UnitSetError(f"{path} names a head twice.")
    return heads


class _Pairs(list[tuple[str, Any]]):
    """An object's keys and values, repeated keys included."""
