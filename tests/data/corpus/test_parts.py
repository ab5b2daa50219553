"""A corpus cut into parts: every document in exactly one of them, in order, as among all."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st
from mnemoscope.data.corpus.documents import Split, cut_of, read_documents
from mnemoscope.data.corpus.parts import Part, parse_part, windows


def write_corpus(folder: Path) -> Path:
    """Files of every kind, some empty, of very different sizes."""
    folder.mkdir()
    rows = [{"text": f"line {i} " + "x" * (i * 7 % 50), "n": i} for i in range(60)]
    lines = "".join(json.dumps(row) + "\n" for row in rows)
    (folder / "a.jsonl").write_text("\ufeff" + lines.replace("\n", "\n\n", 9), "utf-8")
    (folder / "b.txt").write_text("\n\n".join(f"par {i}\nends {i}" for i in range(25)), "utf-8")
    (folder / "c.jsonl.gz").write_bytes(gzip.compress(lines.encode()))
    pl.DataFrame(rows).write_parquet(folder / "d.parquet")
    (folder / "e.txt").write_text("", "utf-8")
    (folder / "f.jsonl").write_text("", "utf-8")
    (folder / "g.txt").write_text("\n\n \n", "utf-8")
    return folder


@pytest.mark.parametrize("split", ["file", "blank-lines"])
@pytest.mark.parametrize("of", [1, 2, 3, 7, 40, 400])
def test_the_parts_together_are_the_corpus(tmp_path: Path, split: Split, of: int) -> None:
    folder = write_corpus(tmp_path / "corpus")
    whole = list(read_documents(folder, split=split))
    parts = [list(read_documents(folder, split=split, part=Part(i + 1, of))) for i in range(of)]
    assert [document for part in parts for document in part] == whole
    if of == 3:
        assert all(parts)


@given(
    sizes=st.lists(st.integers(0, 40), min_size=1, max_size=8),
    of=st.integers(1, 12),
    splits=st.lists(st.booleans(), min_size=8, max_size=8),
)
def test_windows_hold_every_byte_once(sizes: list[int], of: int, splits: list[bool]) -> None:
    splits = splits[: len(sizes)]
    found = [windows(sizes, splits, Part(i + 1, of)) for i in range(of)]
    for number, size in enumerate(sizes):
        mine = [row[number] for row in found if row[number] is not None]
        assert [b for window in mine for b in range(window.start, window.stop)] == [*range(size)]
        assert len(mine) == 1 or splits[number]


def test_a_part_before_the_last_does_not_read_on(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    good = [json.dumps({"text": f"text {i}"}) for i in range(9)]
    path.write_text("\n".join([*good, "{no json", *good]) + "\n", "utf-8")
    assert len(list(read_documents(path, part=Part(1, 3)))) == 7
    assert len(list(read_documents(path, part=Part(3, 3)))) == 6
    with pytest.raises(ValueError, match=r"a\.jsonl, line 10 is no JSON"):
        list(read_documents(path, part=Part(2, 3)))


def test_two_workers_agree_on_the_cut_or_are_told_apart(tmp_path: Path) -> None:
    folder = write_corpus(tmp_path / "corpus")
    cut = cut_of(folder, field="text", split="file", parts=3)
    assert cut == cut_of(str(folder), field="text", split="file", parts=3)
    others = [
        cut_of(folder, field="text", split="file", parts=4),
        cut_of(folder, field="body", split="file", parts=3),
        cut_of(folder, field="text", split="blank-lines", parts=3),
    ]
    with (folder / "a.jsonl").open("a") as file:
        file.write('{"text": "more"}\n')
    others.append(cut_of(folder, field="text", split="file", parts=3))
    assert len({cut, *others}) == 5


@pytest.mark.parametrize("text", ["", "3", "0/3", "4/3", "a/b", "1/0", "1/3/4", "-1/3"])
def test_what_names_no_part_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="no part"):
        parse_part(text)
    assert str(parse_part(" 2/8 ")) == "2/8"
