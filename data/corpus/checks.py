"""What can be wrong with an index folder, each said in one sentence with the way to mend it."""

from __future__ import annotations

import errno
import hashlib
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

RESERVED_WORDS = ("tokenized", "table", "offset", "metadata", "metaoff", "unigram")
"""Other engines take a file's kind from these words anywhere in its whole path."""

_NO_SPACE = {errno.ENOSPC, errno.EDQUOT}
_NO_PERMISSION = {errno.EROFS, errno.EACCES, errno.EPERM}


def reserved_words(folder: str | Path) -> tuple[str, ...]:
    """The reserved words in the whole path of `folder`; with any, only we can open the index."""
    path = str(Path(folder).resolve())
    return tuple(word for word in RESERVED_WORDS if word in path)


def check_path(folder: Path) -> None:
    """Raise ValueError when the path of an index would confuse other engines."""
    words = reserved_words(folder)
    if words:
        raise ValueError(
            f"the path {folder.resolve()} holds the word {words[0]!r}, by which infini-gram tells "
            "files apart, so that it could not open this index: choose another folder, or allow "
            "it with any_path=True."
        )


def missing(folder: str, name: str) -> FileNotFoundError:
    """What is raised for a file that an index must have."""
    return FileNotFoundError(
        f"{folder}/{name} is missing: copy the folder again as a whole, or build it again."
    )


def check_size(path: str, found: int, n_bytes: int) -> None:
    """Raise ValueError unless a file of `found` bytes is as long as it was made."""
    if found != n_bytes:
        what = "truncated" if found < n_bytes else "too long"
        raise ValueError(
            f"{path} is {what} ({found} of {n_bytes} bytes): copy it again, or build it again."
        )


def check_hash(path: str, found: str, sha256: str) -> None:
    """Raise ValueError unless a file is what was made."""
    if found != sha256:
        raise ValueError(
            f"{path} is damaged (its SHA-256 is another one): copy it again, or build it again."
        )


def file_sha256(path: Path) -> str:
    """SHA-256 of a file, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def check_space(folder: Path, n_bytes: int) -> None:
    """Raise OSError (no space left) when the disk of `folder` has less than `n_bytes` free."""
    free = shutil.disk_usage(folder).free
    if free < n_bytes:
        raise OSError(
            errno.ENOSPC,
            f"the next files of the index take {_gb(n_bytes)} and the disk has {_gb(free)} free: "
            "free space, or build on another disk, and start again: finished shards are kept",
            str(folder),
        )


@contextmanager
def full_disk_errors(folder: Path) -> Iterator[None]:
    """Say of a full disk how to go on; other errors pass unchanged."""
    try:
        yield
    except OSError as error:
        if error.errno in _NO_SPACE and "finished shards are kept" not in str(error):
            raise OSError(
                error.errno,
                "the disk is full: free space and start again: finished shards are kept",
                str(folder),
            ) from error
        raise


@contextmanager
def rights_errors(folder: Path) -> Iterator[None]:
    """Say of a folder that may not be written what to do; other errors pass unchanged."""
    try:
        yield
    except OSError as error:
        if error.errno in _NO_PERMISSION:
            raise PermissionError(
                error.errno,
                "cannot write the index: make the folder writable, or choose another one",
                str(folder),
            ) from error
        raise


def _gb(n_bytes: int) -> str:
    return f"{n_bytes / 1e9:.2f} GB"
