"""An index opens in constant time and says what is wrong with it."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import pytest
from mnemoscope.data.corpus.build import build_index
from mnemoscope.data.corpus.documents import Document
from mnemoscope.data.corpus.index_info import INFO_NAME
from mnemoscope.data.corpus.layout import ratio_of
from mnemoscope.data.corpus.opening import open_shards


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    documents = [Document(f"{i} apples and {i} pears", "a.txt", i) for i in range(200)]
    build_index(
        documents,
        tmp_path / "ix",
        encode=lambda text: list(text.encode()),
        vocab_size=300,
        tokens_per_shard=2000,
        inverse=True,
    )
    return tmp_path / "ix"


def test_an_offset_takes_as_many_bytes_as_infini_gram_gives_it() -> None:
    """ceil(log2(size) / 8), but at least one."""
    sizes = (1, 2, 256, 257, 65_536, 65_537, 2**32, 2**32 + 1)
    assert [ratio_of(size) for size in sizes] == [1, 1, 1, 2, 2, 3, 4, 5]


def test_a_moved_folder_opens(folder: Path) -> None:
    info, shards = open_shards(folder)
    moved = folder.rename(folder.with_name("elsewhere"))
    assert open_shards(moved, verify=True)[0] == info
    assert not any(shard.tokens.flags.writeable for shard in shards)


def test_a_missing_folder_or_file_is_said(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="there is no index folder"):
        open_shards(tmp_path / "nowhere")
    with pytest.raises(FileNotFoundError, match="no index folder"):
        open_shards(tmp_path)
    (folder / "table.1").unlink()
    with pytest.raises(FileNotFoundError, match=r"table\.1 is missing"):
        open_shards(folder)


@pytest.mark.parametrize("kind", ["tokenized", "table", "offset", "directory", "metaoff"])
def test_a_shortened_file_is_found_without_reading_it(folder: Path, kind: str) -> None:
    path = folder / f"{kind}.0"
    os.truncate(path, path.stat().st_size - 8)
    with pytest.raises(ValueError, match="is truncated"):
        open_shards(folder)


def test_a_changed_byte_is_found_when_asked_to_verify(folder: Path) -> None:
    path = folder / "table.0"
    raw = bytearray(path.read_bytes())
    raw[100] ^= 1
    path.write_bytes(raw)
    open_shards(folder)
    with pytest.raises(ValueError, match=r"table\.0 is damaged"):
        open_shards(folder, verify=True)


def test_a_damaged_or_later_description_is_said(folder: Path) -> None:
    path = folder / INFO_NAME
    raw = json.loads(path.read_text("utf-8"))
    for text in ("{", "[]", json.dumps({**raw, "width": 3}), json.dumps({**raw, "extra": 1})):
        path.write_text(text, encoding="utf-8")
        with pytest.raises(ValueError, match="is damaged"):
            open_shards(folder)
    path.write_text(json.dumps({**raw, "format": 2}), encoding="utf-8")
    with pytest.raises(ValueError, match="later format"):
        open_shards(folder)
    path.write_text(json.dumps({**raw, "n_documents": 199}), encoding="utf-8")
    with pytest.raises(ValueError, match="as a whole"):
        open_shards(folder)


def test_a_folder_without_description_is_opened_by_its_sizes(folder: Path) -> None:
    info, shards = open_shards(folder)
    (folder / INFO_NAME).unlink()
    foreign, again = open_shards(folder)
    assert foreign.foreign
    assert (foreign.mode, foreign.width, foreign.vocab_size) == ("tokens", 2, 65_535)
    assert (foreign.n_tokens, foreign.n_documents) == (info.n_tokens, info.n_documents)
    assert [shard.tokens.tolist() for shard in again] == [shard.tokens.tolist() for shard in shards]
    with pytest.raises(ValueError, match=r"inverse\.0 has 1981 entries for 3962 tokens"):
        open_shards(folder, width=1)


def test_the_vocabulary_of_a_foreign_index_of_width_4_is_read_from_its_tokens(
    tmp_path: Path,
) -> None:
    documents = [Document("x", "a")] * 3
    build_index(documents, tmp_path / "ix", encode=lambda _: [7, 99_999], vocab_size=128_000)
    (tmp_path / "ix" / INFO_NAME).unlink()
    info, (shard,) = open_shards(tmp_path / "ix")
    assert (info.width, info.vocab_size) == (4, 100_000)
    assert shard.unigram_counts(info.vocab_size)[[7, 99_999]].tolist() == [3, 3]


def test_foreign_files_that_do_not_fit_together_are_refused(folder: Path) -> None:
    (folder / INFO_NAME).unlink()
    shutil.copy(folder / "offset.1", folder / "offset.0.kept")
    table = folder / "table.0"
    os.truncate(table, table.stat().st_size - 1)
    with pytest.raises(ValueError, match="do not fit together"):
        open_shards(folder)


def test_places_outside_a_shard_are_refused(folder: Path) -> None:
    _, (shard, *_) = open_shards(folder)
    with pytest.raises(IndexError, match="outside shard 0"):
        shard.document_of(shard.n_tokens)
    with pytest.raises(IndexError, match="outside shard 0"):
        shard.document_span(shard.n_documents)
