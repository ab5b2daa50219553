"""Copies of weight files in which only planned blocks differ, hashed on the way.

The bytes pass through memory once: each piece is read, edited and written, and threads hash what it
was and what it became. Where the file system can share blocks, the copy shares them, the edits are
written in place and both files are read to be hashed. Nothing is held whole: a file passes in
pieces of at most `CHUNK` bytes, of which a few wait for their hashes.
"""

from __future__ import annotations

import os
import sys
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager, suppress
from itertools import zip_longest
from pathlib import Path
from typing import BinaryIO, Literal, TypeAlias

import numpy as np
from blake3 import blake3

from ..models.errors import CheckpointError
from .file_digests import hash_part, named, shorter
from .safetensors_bytes import CHUNK, Change, Rows, TensorEdit, read_exactly, row_pieces

if sys.platform != "win32":
    import fcntl

Hashes: TypeAlias = tuple[str, str]
"""Of source and target (`file_digests`)."""

_WAITING = 4  # pieces whose hashes are not done
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

    What lies before the first edited tensor is hashed once. `threads` may have any number of
    workers.
    """
    if _reflink(source, target):
        with target.open("r+b") as file:
            _edit_in_place(file, changes, kept, source)
        old, new = (threads.submit(hash_part, blake3(), path) for path in (source, target))
    else:
        old, new = _pass_through(threads, source, target, changes, kept)
    if target.stat().st_size != source.stat().st_size:
        raise shorter(source)
    synced = threads.submit(sync_file, target)

    def finished() -> Hashes:
        synced.result()
        return named(old.result()), named(new.result())

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
        hashes = [threads.submit(hash_part, blake3(), path) for path in (source, target)]
        for start, stop, change, first in _pieces(size, changes):
            before, after = _read(old, start, stop, source), _read(new, start, stop, target)
            if change is not None:
                rows = _rows(before, change.edit), _rows(after, change.edit)
                differing += _check_change(*rows, first, change, target.name)
            elif before != after:
                raise CheckpointError(f"{target.name} differs from its source outside the heads.")
        before_hash, after_hash = (named(one.result()) for one in hashes)
        return before_hash, after_hash, differing


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


def _pass_through(
    threads: ThreadPoolExecutor,
    source: Path,
    target: Path,
    changes: Sequence[Change],
    kept: BinaryIO | None,
) -> tuple[Future[blake3], Future[blake3]]:
    """Copy piece by piece with the edits applied; the hashes of source and target, on their way.

    Each hash is a chain of futures: a piece is added when those before it are.
    """
    old = new = threads.submit(blake3)
    waiting: deque[Future[blake3]] = deque()
    with source.open("rb") as reader, target.open("xb") as writer:
        size = os.fstat(reader.fileno()).st_size
        for start, stop, change, first in _pieces(size, changes):
            data = _read(reader, start, stop, source)
            if change is None:
                after: bytes | memoryview = data
            else:
                after = _edited(data, change, first, kept).data
                if new is old:  # the hashes part here, once all before is in both
                    new = threads.submit(old.result().copy)
                    new.result()
            same = new is old
            old = threads.submit(_added, old, data)
            new = old if same else threads.submit(_added, new, after)
            writer.write(after)
            waiting.append(new)
            if len(waiting) > _WAITING:
                waiting.popleft().result()
    return old, new


def _added(digest: Future[blake3], data: bytes | memoryview) -> blake3:
    """Submitted in order, so a worker has what this one waits for."""
    return digest.result().update(data)


def _edited(data: bytes, change: Change, first: int, kept: BinaryIO | None) -> Rows:
    """Rows of an edited tensor with the new numbers; the old ones are appended to `kept`."""
    edit = change.edit
    rows = _rows(data, edit).copy()
    old = edit.old(rows, first)
    if kept is not None:
        kept.write(old.data)
    edit.put(rows, first, change.rewrite(old, edit.n_before(first)))
    return rows


def _pieces(size: int, changes: Sequence[Change]) -> Iterator[tuple[int, int, Change | None, int]]:
    """(first byte, byte behind the last, change, first row of its tensor) of a file, in order."""
    ordered = _in_file_order(changes)
    starts = [0, *(change.edit.tensor.end for change in ordered)]
    ends = [*(change.edit.tensor.offset for change in ordered), size]
    for first, last, change in zip_longest(starts, ends, ordered):
        for start in range(first, last, CHUNK):
            yield start, min(start + CHUNK, last), None, 0
        if change is not None:
            for row, start, stop in _row_pieces(change.edit):
                yield start, stop, change, row


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


def _edit_in_place(
    file: BinaryIO, changes: Sequence[Change], kept: BinaryIO | None, path: Path
) -> None:
    """Write the new numbers over the old ones, tensor by tensor in file order."""
    size = os.fstat(file.fileno()).st_size
    for start, stop, change, first in _pieces(size, changes):
        if change is not None:
            rows = _edited(_read(file, start, stop, path), change, first, kept)
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
