"""A folder that appears complete under its name or not at all.

The folder is built in a hidden sibling (`.NAME.HEX.partial`), which is locked while its process
lives, and gets its name by one rename (where the system can, an older folder is swapped in the same
instant). Whatever is raised, the sibling is removed; a killed process leaves it behind without its
lock, and the next run for the same name removes it then.
"""

from __future__ import annotations

import ctypes
import os
import re
import secrets
import shutil
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from errno import EDQUOT, ENOSPC
from pathlib import Path

from ..models.errors import CheckpointError
from ..results.storage import sync_folder

if sys.platform != "win32":
    import fcntl

SPARE = 2**20
"""Bytes that a new folder needs for its notes and its own entries, beside the files it holds."""

_AT_FDCWD, _RENAME_EXCHANGE = -100, 2  # fcntl.h, linux/fs.h


@contextmanager
def new_folder(
    out: Path, source: Path, n_bytes: int, *, force: bool, replaceable: Callable[[Path], bool]
) -> Iterator[Path]:
    """A temporary folder that becomes `out` when the block ends without an error.

    `n_bytes` must be free on its disk. An existing `out` is replaced with `force` and only when
    `replaceable` says that it is one of ours. Raises `CheckpointError` for an unsuitable `out`, a
    full disk and whatever else the system refuses.
    """
    try:
        remove_leftovers(out)  # first: it may put an earlier folder back
        _check_target(out, source, n_bytes, force, replaceable)
        with _folder_beside(out) as folder:
            yield folder
            _publish(folder, out)
    except OSError as error:
        raise _write_error(out, n_bytes, error) from error


def write_file(path: Path, content: bytes) -> None:
    """Write a small file of the new folder to disk."""
    with path.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())


def existing_parent(out: Path) -> Path:
    """The nearest folder above `out` that exists."""
    return next(folder for folder in out.parents if folder.exists())


def remove_leftovers(out: Path) -> None:
    """Remove what killed runs for the same `out` left beside it; running ones are left alone."""
    if sys.platform == "win32" or not out.parent.is_dir():
        return
    ours = re.compile(rf"\.{re.escape(out.name)}\.[0-9a-f]{{8}}\.(partial|old)")
    for path in [path for path in out.parent.iterdir() if ours.fullmatch(path.name)]:
        with suppress(OSError):
            lock = _locked(path)
            try:
                if path.suffix == ".old" and not out.exists():
                    os.rename(path, out)  # killed between two renames: put the earlier one back
                else:
                    shutil.rmtree(path, ignore_errors=True)
            finally:
                os.close(lock)


def _check_target(
    out: Path, source: Path, n_bytes: int, force: bool, replaceable: Callable[[Path], bool]
) -> None:
    same = out.exists() and out.samefile(source)  # two spellings of one folder
    if same or source in (out, *out.parents) or out in source.parents:
        raise CheckpointError(
            f"{out} is, contains or lies inside the source {source}: choose a folder beside it."
        )
    if out.exists() and not force:
        raise CheckpointError(f"{out} exists already: choose another name, or use force.")
    if out.exists() and not replaceable(out):
        raise CheckpointError(
            f"{out} is not a pruned checkpoint, so force does not replace it: choose another name."
        )
    place = existing_parent(out)
    if not place.is_dir():
        raise CheckpointError(f"{place} is a file, so {out} cannot be made: choose another place.")
    free = shutil.disk_usage(place).free
    if free < n_bytes:
        raise CheckpointError(
            f"{out} needs {n_bytes / 1e6:,.1f} MB but {free / 1e6:,.1f} MB are free in "
            f"{place}: free some space or choose another disk."
        )


@contextmanager
def _folder_beside(out: Path) -> Iterator[Path]:
    """A locked temporary sibling; it and the parents made for it go when anything is raised."""
    made = [folder for folder in out.parents if not folder.exists()]
    folder = out.with_name(f".{out.name}.{secrets.token_hex(4)}.partial")
    lock = None
    try:
        folder.mkdir(parents=True)
        with suppress(OSError):  # file systems without locks: leftovers stay there
            lock = _locked(folder)
        yield folder
    except BaseException:
        shutil.rmtree(folder, ignore_errors=True)
        for parent in made:
            with suppress(OSError):  # not ours alone any more
                parent.rmdir()
        raise
    finally:
        if lock is not None:
            os.close(lock)


def _locked(folder: Path) -> int:
    """A descriptor that holds the folder's lock until it is closed or the process ends.

    Raises `OSError` when another process holds it or there are no locks here.
    """
    if sys.platform == "win32":
        raise OSError("no folder locks")
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BaseException:
        os.close(descriptor)
        raise
    return descriptor


def _publish(folder: Path, out: Path) -> None:
    """Give the finished folder its name; an older one is swapped or steps aside, and is removed."""
    for path in (folder, *(path for path in folder.rglob("*") if path.is_dir())):
        sync_folder(path)
    if not out.exists():
        os.rename(folder, out)
    elif _exchange(folder, out):
        shutil.rmtree(folder, ignore_errors=True)
    else:
        old = folder.with_suffix(".old")
        try:
            os.rename(out, old)
            os.rename(folder, out)
        except BaseException:
            if old.exists() and not out.exists():
                os.rename(old, out)
            raise
        shutil.rmtree(old, ignore_errors=True)
    sync_folder(out.parent)


def _exchange(a: Path, b: Path) -> bool:
    """Swap two folders in one instant (Linux, renameat2). False where the system cannot."""
    if not sys.platform.startswith("linux"):
        return False
    try:
        rename = ctypes.CDLL(None).renameat2
    except (OSError, AttributeError):
        return False
    return rename(_AT_FDCWD, bytes(a), _AT_FDCWD, bytes(b), _RENAME_EXCHANGE) == 0


def _write_error(out: Path, n_bytes: int, error: OSError) -> CheckpointError:
    if error.errno in (ENOSPC, EDQUOT):
        return CheckpointError(
            f"the disk of {out} is full ({n_bytes / 1e6:,.1f} MB are needed): free some "
            "space and try again; nothing was left behind."
        )
    return CheckpointError(
        f"cannot write {out} ({error}): make its folder writable or choose another place; nothing "
        "was left behind."
    )
