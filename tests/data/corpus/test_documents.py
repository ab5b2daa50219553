"""Documents come from every source in order, one at a time, with where they stood."""

from __future__ import annotations

import gzip
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import polars as pl
import pytest
from mnemoscope.data.corpus.documents import Document, read_documents


def test_a_file_of_text_is_one_document_to_the_byte(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_bytes("\ufeffzwölf\r\n\r\nBoxkämpfer \n".encode())
    (document,) = read_documents(path)
    assert document == Document("zwölf\r\n\r\nBoxkämpfer \n", str(path), 0, {})


def test_paragraphs_on_request_with_their_first_line(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_text("\n\none\ntwo\n \n\nthree\n\n", encoding="utf-8")
    found = [(d.text, d.line) for d in read_documents(path, split="blank-lines")]
    assert found == [("one\ntwo", 2), ("three", 6)]


@pytest.mark.parametrize("ending", [".jsonl", ".jsonl.gz"])
def test_json_lines_keep_the_rest_as_metadata(tmp_path: Path, ending: str) -> None:
    path = tmp_path / f"a{ending}"
    raw = b'{"text": "a\\u2028b", "url": "u"}\n\n{"id": [1], "text": ""}\n'
    path.write_bytes(gzip.compress(raw) if ending.endswith("gz") else raw)
    assert list(read_documents(path)) == [
        Document("a\u2028b", str(path), 0, {"url": "u"}),
        Document("", str(path), 2, {"id": [1]}),
    ]


def test_parquet_rows_beyond_one_slice(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    pl.DataFrame({"n": range(9000), "body": [f"t{i}" for i in range(9000)]}).write_parquet(path)
    found = list(read_documents(path, field="body"))
    assert [d.text for d in found] == [f"t{i}" for i in range(9000)]
    assert (found[8999].line, found[8999].metadata) == (8999, {"n": 8999})


def test_a_folder_in_the_order_of_its_paths_without_hidden_files(tmp_path: Path) -> None:
    (tmp_path / "b").mkdir()
    for name in ("b/z.txt", "a.txt", ".hidden", "c.jsonl"):
        (tmp_path / name).write_text(json.dumps({"text": name}), encoding="utf-8")
    found = list(read_documents(tmp_path))
    assert [d.source for d in found] == ["a.txt", "b/z.txt", "c.jsonl"]
    assert found[2].text == "c.jsonl"
    assert [d.source for d in read_documents([tmp_path / "a.txt", str(tmp_path / "b" / "*")])] == [
        str(tmp_path / "a.txt"),
        str(tmp_path / "b" / "z.txt"),
    ]


def test_reading_is_lazy(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text('{"text": "good"}\nnot json\n', encoding="utf-8")
    documents = read_documents(path)
    assert next(documents).text == "good"
    with pytest.raises(ValueError, match="line 2 is no JSON"):
        next(documents)


@pytest.mark.parametrize("name", ["a.txt", "a.jsonl"])
@pytest.mark.parametrize("split", ["file", "blank-lines"])
def test_text_that_is_not_utf8_is_named_with_its_byte(
    tmp_path: Path, name: str, split: Any
) -> None:
    raw = b'{"text": "fine"}\n\n{"text": "caf\xe9 noir"}\n'
    (tmp_path / name).write_bytes(raw)
    with pytest.raises(ValueError, match=rf"{name} is not UTF-8 at byte {raw.index(0xE9)}:"):
        list(read_documents(tmp_path / name, split=split))


def test_records_without_text_tell_what_they_have(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text('{"body": "x"}\n', encoding="utf-8")
    with pytest.raises(ValueError, match=r"record 1 has no text under 'text' \(it has 'body'"):
        list(read_documents(path))
    path.write_text("[1]\n", encoding="utf-8")
    with pytest.raises(ValueError, match="no object"):
        list(read_documents(path))


def test_a_source_that_names_nothing_is_said_before_reading(tmp_path: Path) -> None:
    for source in (tmp_path / "none.txt", str(tmp_path / "*.jsonl"), tmp_path):
        with pytest.raises(FileNotFoundError, match="no file at"):
            read_documents(source)


def test_damaged_files_are_said(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl.gz").write_bytes(gzip.compress(b'{"text": "x"}\n' * 99)[:-9])
    with pytest.raises(ValueError, match="cannot be unpacked"):
        list(read_documents(tmp_path / "a.jsonl.gz"))
    (tmp_path / "a.parquet").write_bytes(b"no parquet at all")
    with pytest.raises(ValueError, match="cannot be read as parquet"):
        list(read_documents(tmp_path / "a.parquet"))


def test_a_data_set_by_name_is_streamed(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def load_dataset(name: str, config: str | None, *, streaming: bool) -> dict[str, Iterator[Any]]:
        asked.append((name, config, streaming))
        return {"train": iter([{"text": "one", "id": 7}]), "test": iter([{"text": "two"}])}

    stand_in = ModuleType("datasets")
    stand_in.load_dataset = load_dataset  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "datasets", stand_in)
    assert list(read_documents("datasets:owner/name:small")) == [
        Document("one", "owner/name:small/train", 0, {"id": 7}),
        Document("two", "owner/name:small/test", 0, {}),
    ]
    assert asked == [("owner/name", "small", True)]


def test_without_the_data_sets_package_it_says_how_to_get_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(ImportError, match=r"mnemoscope\[data\]"):
        list(read_documents("datasets:owner/name"))
