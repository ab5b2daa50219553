"""Hashes of whole files, written with the name of the algorithm: `blake3:1f2e...`.

We compute BLAKE3, at a third of the cost of SHA-256 where the processor has instructions for that:
hashing was what pruning waited for. `sha256:...` is what the hub's cache has noted about a file.
"""

from __future__ import annotations

import hashlib
from pathlib import Path

from blake3 import blake3

from ..models.errors import DamagedCheckpointError

IN_CACHE = 2**18
"""Bytes read at once: they stay in the processor's own cache."""


def named(digest: blake3) -> str:
    """A finished hash as it stands in manifests."""
    return f"blake3:{digest.hexdigest()}"


def file_digest(path: Path) -> str:
    """BLAKE3 of a file's bytes, read in pieces. Raises `DamagedCheckpointError` for a file that
    became shorter meanwhile."""
    return named(hash_part(blake3(), path))


def has_digest(path: Path, noted: str) -> bool:
    """Whether a file has the hash that was noted, by either algorithm.

    Raises ValueError for a note that names neither.
    """
    algorithm, _, digits = noted.partition(":")
    if algorithm == "blake3":
        return file_digest(path) == noted
    if algorithm != "sha256":
        raise ValueError(f"{noted[:20]!r} names no hash: it must begin with blake3: or sha256:.")
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest() == digits


def hash_part(digest: blake3, path: Path, start: int = 0, stop: int | None = None) -> blake3:
    """Go on with a hash over the bytes of a file from `start` to `stop` (None: the end)."""
    with path.open("rb", buffering=0) as file:
        size = file.seek(0, 2)
        left = (size if stop is None else stop) - start
        buffer = memoryview(bytearray(min(IN_CACHE, max(1, left))))
        file.seek(start)
        while left:
            n = file.readinto(buffer[: min(left, len(buffer))])
            if not n:
                raise shorter(path)
            digest.update(buffer[:n])
            left -= n
    return digest


def shorter(path: Path) -> DamagedCheckpointError:
    """The error for a file that lost bytes while it was read."""
    return DamagedCheckpointError(f"{path} became shorter while it was read: try again.")
