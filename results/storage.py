"""Files that are either the old or the new one, and errors that say how to go on.

Everything that the results floor writes goes through `write_atomic` or `write_all`, so that a full
disk or a read-only folder is reported in one way.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from .errors import RunFolderError

_NO_SPACE = {errno.ENOSPC, errno.EDQUOT}
_NO_PERMISSION = {errno.EROFS, errno.EACCES, errno.EPERM}


def write_atomic(
    path: Path, content: bytes | str, *, durable: bool = True, kept: int | None = None
) -> None:
    """Write `path` through a temporary sibling and one `os.replace`.

    `durable=False` skips the fsync: right for a progress file that is rewritten every second.
    `kept` finished units are promised to the reader of the error, as in `storage_errors`.
    Raises `RunFolderError` when the disk is full or the folder cannot be written.
    """
    data = content.encode() if isinstance(content, str) else content
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with storage_errors(path, kept):
            descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644)
            try:
                write_all(descriptor, data)
                if durable:
                    os.fsync(descriptor)
            finally:
                os.close(descriptor)
            os.replace(temporary, path)
    except BaseException:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)
        raise


def write_new(path: Path, content: bytes | str, *, force: bool = False) -> None:
    """`write_atomic` that refuses to replace an existing file unless `force`."""
    if path.exists() and not force:
        raise RunFolderError(
            f"{path} exists already: choose another name, or use force to replace."
        )
    with storage_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
    write_atomic(path, content)


def write_all(descriptor: int, data: bytes) -> None:
    """`os.write` until every byte is written; the system may take fewer than it is given."""
    view = memoryview(data)
    while view:
        view = view[os.write(descriptor, view) :]


def sync_folder(folder: Path) -> None:
    """Make renames inside `folder` survive a power cut, where the system can."""
    with suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


@contextmanager
def storage_errors(path: Path, kept: int | None = None) -> Iterator[None]:
    """Turn a full disk, a read-only folder or missing rights into a `RunFolderError`.

    `kept` is the number of finished units that a second start would find again.
    """
    try:
        yield
    except OSError as error:
        again = "run the same command again"
        if kept is not None:
            again += f": {kept} finished unit{' is' if kept == 1 else 's are'} kept"
        if error.errno in _NO_SPACE:
            raise RunFolderError(
                f"cannot write {path}: the disk is full; free space and {again}."
            ) from error
        if error.errno in _NO_PERMISSION:
            raise RunFolderError(
                f"cannot write {path}: {error.strerror}; make the folder writable, or choose "
                f"another one, and {again}."
            ) from error
        raise
