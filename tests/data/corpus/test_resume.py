"""A build that was stopped goes on after its last whole shard, to the same bytes."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from filelock import FileLock
from mnemoscope.data.corpus import shard_files
from mnemoscope.data.corpus.build import build_index
from mnemoscope.data.corpus.documents import Document

DOCUMENTS = [Document(f"this is text number {i}, " * 3, "a.txt", i) for i in range(60)]
SETTINGS: dict[str, Any] = {"tokens_per_shard": 700, "inverse": True}


def files(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def stopping_at(count: int) -> Iterator[Document]:
    yield from DOCUMENTS[:count]
    raise KeyboardInterrupt


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    folder = tmp_path_factory.mktemp("whole") / "ix"
    build_index(DOCUMENTS, folder, **SETTINGS)
    return files(folder)


@pytest.mark.parametrize("count", [0, 1, 9, 10, 35, 60])
def test_stopped_while_reading(tmp_path: Path, whole: dict[str, bytes], count: int) -> None:
    with pytest.raises(KeyboardInterrupt):
        build_index(stopping_at(count), tmp_path / "ix", **SETTINGS)
    assert not (tmp_path / "ix").exists()
    build_index(DOCUMENTS, tmp_path / "ix", **SETTINGS)
    assert files(tmp_path / "ix") == whole
    assert [path.name for path in tmp_path.iterdir()] == ["ix"]


@pytest.mark.parametrize("step", ["suffix_array", "_table", "_record_files"])
def test_stopped_while_sorting(
    tmp_path: Path, whole: dict[str, bytes], step: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    original: Callable[..., Any] = getattr(shard_files, step)
    calls = []

    def third_time_unlucky(*given: Any) -> Any:
        calls.append(given)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return original(*given)

    with monkeypatch.context() as patched:
        patched.setattr(shard_files, step, third_time_unlucky)
        with pytest.raises(KeyboardInterrupt):
            build_index(DOCUMENTS, tmp_path / "ix", **SETTINGS)
    built = tmp_path / ".ix.building"
    assert {path.name for path in (built / "records").glob("sorted*")} == {
        "sorted.0.json",
        "sorted.1.json",
    }
    build_index(DOCUMENTS, tmp_path / "ix", **SETTINGS)
    assert files(tmp_path / "ix") == whole


def test_killed_outright(tmp_path: Path, whole: dict[str, bytes]) -> None:
    code = f"""
import os
from mnemoscope.data.corpus.build import build_index
from mnemoscope.data.corpus.documents import Document
def documents():
    for i in range(60):
        if i == 40:
            os._exit(9)
        yield Document(f"this is text number {{i}}, " * 3, "a.txt", i)
build_index(documents(), {str(tmp_path / "ix")!r}, tokens_per_shard=700, inverse=True)
"""
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 9
    assert list((tmp_path / ".ix.building" / "records").glob("sorted*"))
    build_index(DOCUMENTS, tmp_path / "ix", **SETTINGS)
    assert files(tmp_path / "ix") == whole


def test_finished_shards_are_not_encoded_again(tmp_path: Path) -> None:
    encoded = []

    def encode(text: str) -> list[int]:
        encoded.append(text)
        return list(text.encode())

    settings = {**SETTINGS, "encode": encode, "vocab_size": 256}
    with pytest.raises(KeyboardInterrupt):
        build_index(stopping_at(35), tmp_path / "ix", **settings)
    encoded.clear()
    build_index(DOCUMENTS, tmp_path / "ix", **settings)
    assert 25 <= len(encoded) < 40


@pytest.mark.parametrize(
    "other",
    [
        [*DOCUMENTS[:3], Document("another text", "a.txt", 3), *DOCUMENTS[4:]],
        [*DOCUMENTS[:3], Document(DOCUMENTS[3].text, "moved.txt", 3), *DOCUMENTS[4:]],
        DOCUMENTS[:5],
    ],
)
def test_other_documents_than_before_are_refused(tmp_path: Path, other: list[Document]) -> None:
    with pytest.raises(KeyboardInterrupt):
        build_index(stopping_at(35), tmp_path / "ix", **SETTINGS)
    with pytest.raises(ValueError, match="not those of the unfinished build"):
        build_index(other, tmp_path / "ix", **SETTINGS)


def test_a_corpus_that_grew_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The last shard ended for want of documents; with more of them it would be another one."""
    with monkeypatch.context() as patched:
        patched.setattr("mnemoscope.data.corpus.build._info", lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            build_index(DOCUMENTS[:59], tmp_path / "ix", **SETTINGS)
    with pytest.raises(ValueError, match="not those of the unfinished build"):
        build_index(DOCUMENTS, tmp_path / "ix", **SETTINGS)


def test_other_settings_are_refused_and_another_builder_too(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        build_index(stopping_at(35), tmp_path / "ix", **SETTINGS)
    with pytest.raises(ValueError, match="unfinished build with other settings"):
        build_index(DOCUMENTS, tmp_path / "ix", **{**SETTINGS, "inverse": False})
    with (
        FileLock(tmp_path / ".ix.building" / "lock"),
        pytest.raises(ValueError, match="another process"),
    ):
        build_index(DOCUMENTS, tmp_path / "ix", **SETTINGS)
