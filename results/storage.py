"""Files that are either the old or the new one, and errors that say how to go on.

Everything that the results floor writes goes through `write_atomic` or `write_all`, so that a full
disk or a read-only folder is reported in one way.
"""

from __future__ import annotations

import errno
import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from .errors import RunFolderError

_NO_SPACE = {errno.ENOSPC, errno.EDQUOT}
_NO_PERMISSION = {errno.EROFS, errno.EACCES, errno.EPERM}
_NO_LINKS = {errno.EPERM, errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP, errno.EMLINK}


def write_atomic(
    path: Path, content: bytes | str, *, durable: bool = True, kept: int | None = None
) -> None:
    """Write `path` through a temporary sibling and one `os.replace`.

    `durable=False` skips the fsync: right for a progress file that is rewritten every second.
    `kept` finished units are promised to the reader of the error, as in `storage_errors`.
    Raises `RunFolderError` when the disk is full or the folder cannot be written.
    """
    data = content.encode() if isinstance(content, str) else content
    temporary = _temporary(path)
    try:
        with storage_errors(path, kept):
            _write(temporary, data, os.O_TRUNC, durable=durable)
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


def write_if_absent(path: Path, content: bytes | str) -> bool:
    """Write `path` unless it is there; of all processes on all machines exactly one gets `True`.

    A hard link to a whole file, which network file systems make atomically too, so that nobody sees
    half of it; where there are no links, an exclusive open. Raises `RunFolderError` as
    `write_atomic` does.
    """
    data = content.encode() if isinstance(content, str) else content
    temporary = _temporary(path)
    with storage_errors(path):
        try:
            _write(temporary, data, os.O_TRUNC)
            return _linked(temporary, path)
        except OSError as error:
            if error.errno not in _NO_LINKS:
                raise
        finally:
            with suppress(OSError):
                temporary.unlink(missing_ok=True)
        try:
            _write(path, data, os.O_EXCL)
        except FileExistsError:
            return False
    return True


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


def _temporary(path: Path) -> Path:
    """A name that nobody else uses, not even a machine of the same name on a shared folder."""
    return path.with_name(f".{path.name}.{secrets.token_hex(6)}.tmp")


def _write(path: Path, data: bytes, how: int, *, durable: bool = True) -> None:
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | how, 0o644)
    try:
        write_all(descriptor, data)
        if durable:
            os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _linked(temporary: Path, path: Path) -> bool:
    try:
        os.link(temporary, path)
    except FileExistsError:  # also a link of ours whose first answer the network lost
        return os.stat(temporary).st_nlink == 2
    return True


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
