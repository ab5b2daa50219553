"""Hashes with the name of their algorithm."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest
from blake3 import blake3
from mnemoscope.interventions.file_digests import IN_CACHE, file_digest, has_digest, hash_part

# The test vector of the BLAKE3 paper for no input.
NOTHING = "af1349b9f5f9a1a6a0404dea36dcc9499bcb25c9adc112b7cc9a93cae41f3262"


@pytest.mark.parametrize("size", [0, 1, IN_CACHE - 1, IN_CACHE, 3 * IN_CACHE + 7])
def test_a_file_is_hashed_whole(size: int, tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(content := bytes(range(251)) * (size // 251 + 1))
    path.write_bytes(content[:size])
    assert file_digest(path) == f"blake3:{blake3(content[:size]).hexdigest()}"
    assert size or file_digest(path) == f"blake3:{NOTHING}"
    assert has_digest(path, file_digest(path))
    assert has_digest(path, f"sha256:{hashlib.sha256(content[:size]).hexdigest()}")
    assert not has_digest(path, f"sha256:{NOTHING}")


def test_a_hash_goes_on_where_another_stopped(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"abcdef" * 100_000)
    start = hash_part(blake3(), path, 0, 300_001)
    assert hash_part(start.copy(), path, 300_001).digest() == blake3(path.read_bytes()).digest()


def test_a_note_without_an_algorithm_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"")
    with pytest.raises(ValueError, match="names no hash"):
        has_digest(path, NOTHING)
