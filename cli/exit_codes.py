"""What the command's exit codes mean, and which one an error stands for."""

from __future__ import annotations

from collections.abc import Iterable

from ..models.errors import (
    MnemoscopeError,
    UnitOutOfRangeError,
    UnsupportedModelError,
    UnsupportedSiteError,
)

FAILED = 1
USAGE = 2
UNSUPPORTED = 3
GATE_FAILED = 4
INTERRUPTED = 130


class GateFailedError(MnemoscopeError):
    """A check or a gate does not hold, so nothing was written."""


def exit_code_of(error: BaseException) -> int:
    """The exit code of a command that ends with this error."""
    if isinstance(error, UnsupportedModelError | UnsupportedSiteError):
        return UNSUPPORTED
    if isinstance(error, UnitOutOfRangeError):
        return USAGE
    if isinstance(error, GateFailedError):
        return GATE_FAILED
    return FAILED


def exit_code_of_all(codes: Iterable[int]) -> int:
    """0 without failures; 3 or 4 if that is what all of them stand for, else 1. A unit of a batch
    that cannot be is no wrong use of the command."""
    found = set(codes)
    if not found:
        return 0
    alike = found.pop() if len(found) == 1 else FAILED
    return alike if alike in (UNSUPPORTED, GATE_FAILED) else FAILED
