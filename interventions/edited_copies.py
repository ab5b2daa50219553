"""Copies of weight files in which only planned blocks differ, hashed on the way.

The system copies the file (or shares its blocks), the edits are then written in place, and
threads compute SHA-256 meanwhile: hashing costs more than all the rest. Nothing is held whole:
edits pass in chunks of `CHUNK` bytes.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import sys
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO, Literal, TypeAlias

import numpy as np

from ..models.errors import CheckpointError, DamagedCheckpointError
from .safetensors_bytes import CHUNK, Change, Rows, TensorEdit, read_exactly, row_pieces

if sys.platform != "win32":
    import fcntl
if TYPE_CHECKING:
    from hashlib import _Hash

Hashes: TypeAlias = tuple[str, str]
"""SHA-256 of source and target."""

IN_CACHE = 2**18
"""Bytes read at once for hashing: they stay in the processor's own cache."""

_FICLONE = 0x40049409  # linux/fs.h


def copy_edited(
    source: Path, target: Path, changes: Sequence[Change] = (), kept: BinaryIO | None = None
) -> Hashes:
    """Copy a file with the changes applied, and fsync it; the old bytes of the edited blocks are
    appended to `kept`. Returns the hashes of source and target.

    Raises `DamagedCheckpointError` for a source that became shorter.
    """
    with copying_threads() as threads:
        return start_copy(threads, source, target, changes, kept)()


@contextmanager
def copying_threads() -> Iterator[ThreadPoolExecutor]:
    """Two that hash and one that waits for the disk; an error drops what has not begun."""
    threads = ThreadPoolExecutor(3)
    try:
        yield threads
    finally:
        threads.shutdown(cancel_futures=True)


def start_copy(
    threads: ThreadPoolExecutor,
    source: Path,
    target: Path,
    changes: Sequence[Change] = (),
    kept: BinaryIO | None = None,
) -> Callable[[], Hashes]:
    """As `copy_edited`, but hashes and fsync are still on their way in `threads` when it returns
    (so that the next file can be copied): call the result to wait for them.

    What lies before the first edit is hashed once. `threads` may have any number of workers.
    """
    same = min((part.offset for change in changes for part in change.edit.ranges), default=None)
    start = threads.submit(_sha256, hashlib.sha256(), source, 0, same)
    old = _hash_rest(threads, start, source, same)  # while the system copies
    _copy_bytes(source, target)
    with target.open("r+b") as file:
        _edit(file, changes, kept, source)
    new = _hash_rest(threads, start, target, same)
    synced = threads.submit(sync_file, target)

    def finished() -> Hashes:
        synced.result()
        return old.result().hexdigest(), new.result().hexdigest()

    return finished


def compare_edited(
    source: Path, target: Path, changes: Sequence[Change] = ()
) -> tuple[str, str, int]:
    """Prove that `target` is `source` except inside the edits, which hold the new numbers.

    Reads both files. Returns the hashes of source and target and how many bytes differ; raises
    `CheckpointError` for any difference that was not planned.
    """
    differing = 0
    with (
        source.open("rb") as old,
        target.open("rb") as new,
        copying_threads() as threads,
    ):
        size = os.fstat(old.fileno()).st_size
        if size != os.fstat(new.fileno()).st_size:
            raise CheckpointError(f"{target.name} has another length than its source.")
        hashes = [
            threads.submit(_sha256, hashlib.sha256(), path, 0, None) for path in (source, target)
        ]
        for start, stop in _untouched(size, changes):
            if _read(old, start, stop, source) != _read(new, start, stop, target):
                raise CheckpointError(f"{target.name} differs from its source outside the heads.")
        for change in changes:
            for first, start, stop in _row_pieces(change.edit):
                before = _rows(_read(old, start, stop, source), change.edit)
                after = _rows(_read(new, start, stop, target), change.edit)
                differing += _check_change(before, after, first, change, target.name)
        before_sha, after_sha = (one.result().hexdigest() for one in hashes)
        return before_sha, after_sha, differing


def share_or_copy(source: Path, target: Path) -> Literal["reflinked", "linked", "copied"]:
    """Give `target` the bytes of `source` at no cost if the file system can: a reflink (Linux; its
    blocks are shared until either file changes), a hard link (one file with two names), a copy."""
    if _reflink(source, target):
        sync_file(target)
        return "reflinked"
    try:
        os.link(source.resolve(), target)  # never a link to a link
    except OSError:
        copy_edited(source, target)
        return "copied"
    return "linked"


def can_share(source: Path, place: Path) -> bool:
    """True when files of both folders lie on one file system, so that links can work."""
    return source.resolve().stat().st_dev == place.stat().st_dev


def sync_file(path: Path) -> None:
    """Wait until the file is on the disk."""
    with path.open("r+b") as file:
        os.fsync(file.fileno())


def _copy_bytes(source: Path, target: Path) -> None:
    """All bytes, by a reflink or by the system's own copying; never over another file."""
    if not _reflink(source, target):
        with target.open("xb"):
            shutil.copyfile(source, target)
    if target.stat().st_size != source.stat().st_size:
        raise _shorter(source)


def _reflink(source: Path, target: Path) -> bool:
    """Let the new file `target` share the blocks of `source`; False, and no target, where the
    file system cannot."""
    if not sys.platform.startswith("linux"):
        return False
    with source.open("rb") as old, target.open("xb") as new, suppress(OSError):
        fcntl.ioctl(new.fileno(), _FICLONE, old.fileno())
        return True
    target.unlink()
    return False


def _edit(file: BinaryIO, changes: Sequence[Change], kept: BinaryIO | None, path: Path) -> None:
    """Write the new numbers over the old ones, tensor by tensor in file order."""
    for change in _in_file_order(changes):
        edit = change.edit
        for first, start, stop in _row_pieces(edit):
            rows = _rows(_read(file, start, stop, path), edit).copy()
            old = edit.old(rows, first)
            if kept is not None:
                kept.write(old.data)
            edit.put(rows, first, change.rewrite(old, edit.n_before(first)))
            file.seek(start)
            file.write(rows.data)
    file.flush()


def _row_pieces(edit: TensorEdit) -> Iterator[tuple[int, int, int]]:
    """(first row, first byte of the file, byte behind the last) of pieces of an edited tensor."""
    row = edit.tensor.n_bytes // edit.tensor.shape[0]
    for first, last in row_pieces(edit.tensor):
        yield first, edit.tensor.offset + first * row, edit.tensor.offset + last * row


def _rows(data: bytes, edit: TensorEdit) -> Rows:
    """Bytes of whole rows, a row of the tensor to a row."""
    return np.frombuffer(data, np.uint8).reshape(-1, edit.tensor.n_bytes // edit.tensor.shape[0])


def _hash_rest(
    threads: ThreadPoolExecutor, start: Future[_Hash], path: Path, same: int | None
) -> Future[_Hash]:
    """Go on from the hash of the common `start` to the end of a file; None: there is no more."""
    if same is None:
        return start
    # `start` was submitted earlier, so a worker has it before this one waits for it
    return threads.submit(lambda: _sha256(start.result().copy(), path, same, None))


def _sha256(digest: _Hash, path: Path, start: int, stop: int | None) -> _Hash:
    """Go on with a digest over the bytes of a file from `start` to `stop` (None: the end)."""
    with path.open("rb", buffering=0) as file:
        size = os.fstat(file.fileno()).st_size
        left = (size if stop is None else stop) - start
        buffer = memoryview(bytearray(min(IN_CACHE, max(1, left))))
        file.seek(start)
        while left:
            n = file.readinto(buffer[: min(left, len(buffer))])
            if not n:
                raise _shorter(path)
            digest.update(buffer[:n])
            left -= n
    return digest


def _shorter(path: Path) -> DamagedCheckpointError:
    return DamagedCheckpointError(f"{path} became shorter while it was read: try again.")


def _untouched(size: int, changes: Sequence[Change]) -> Iterator[tuple[int, int]]:
    """Pieces of a file outside the edited tensors."""
    tensors = [change.edit.tensor for change in _in_file_order(changes)]
    starts = [0, *(tensor.end for tensor in tensors)]
    ends = [*(tensor.offset for tensor in tensors), size]
    for first, last in zip(starts, ends, strict=True):
        for start in range(first, last, CHUNK):
            yield start, min(start + CHUNK, last)


def _read(file: BinaryIO, start: int, stop: int, path: Path) -> bytes:
    file.seek(start)
    return read_exactly(file, stop - start, path)


def _in_file_order(changes: Sequence[Change]) -> list[Change]:
    return sorted(changes, key=lambda change: change.edit.tensor.offset)


def _check_change(before: Rows, after: Rows, first: int, change: Change, name: str) -> int:
    """How many bytes differ in rows of an edited tensor. Raises `CheckpointError`."""
    edit, expected = change.edit, before.copy()
    edit.put(expected, first, edit.old(after, first))
    if not np.array_equal(expected, after):
        raise CheckpointError(
            f"{edit.tensor.name} in {name} differs from its source outside the heads."
        )
    edit.put(expected, first, change.rewrite(edit.old(before, first), edit.n_before(first)))
    if not np.array_equal(expected, after):
        raise CheckpointError(f"{edit.tensor.name} in {name} does not hold the edited numbers.")
    return int(np.count_nonzero(before != after))
