"""The crash-safe log: killed at any byte, it goes on as if nothing had happened."""

import errno
import os

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from mnemoscope.results.errors import RunFolderError
from mnemoscope.results.row_log import RowLog

plain = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(st.characters(), max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner),
    max_leaves=6,
)
rows = st.dictionaries(
    st.text(max_size=8),
    st.dictionaries(st.text(max_size=4), plain, max_size=3),
    min_size=1,
    max_size=5,
)


def write(path, units):
    log = RowLog(path)
    for key, row in units.items():
        if key not in log.rows:
            log.append(key, row)
    log.close()


@settings(max_examples=40, deadline=None)
@given(units=rows, cut=st.integers(1, 10_000))
def test_killed_at_any_byte_of_the_last_line_and_resumed_equals_uninterrupted(
    tmp_path_factory, units, cut
):
    path = tmp_path_factory.mktemp("log") / "rows.jsonl"
    write(path, units)
    whole = path.read_bytes()
    last = len(whole.rstrip(b"\n").rpartition(b"\n")[2]) + 1
    path.write_bytes(whole[: len(whole) - (cut % last + 1)])

    log = RowLog(path)
    assert list(log.rows) == list(units)[:-1]
    log.close()
    write(path, units)

    assert path.read_bytes() == whole
    log = RowLog(path)
    assert dict(log.rows) == units
    log.close()


def test_every_byte_of_one_last_line(tmp_path):
    path = tmp_path / "rows.jsonl"
    units = {"first": {"score": 0.1}, "sécond\u2028": {"text": "\x85 ü", "score": [1.5, -2e-300]}}
    write(path, units)
    whole = path.read_bytes()
    start = whole.index(b"\n") + 1
    for end in range(start, len(whole)):
        path.write_bytes(whole[:end])
        write(path, units)
        assert path.read_bytes() == whole


def test_what_append_returns_to_memory_is_what_a_resumed_run_reads(tmp_path):
    log = RowLog(tmp_path / "rows.jsonl")
    log.append("a", {"span": (1, 2)})
    assert log.rows["a"] == {"span": [1, 2]}


@pytest.mark.parametrize(
    ("content", "line"),
    [
        (b'{"key":"a","row":{}}\n{"key":"b","ro\n{"key":"c","row":{}}\n', "line 2"),
        (b'{"key":"a","row":{}}\n\n', "line 2"),
        (b'{"key":"a","row":{}}\n{"key":1,"row":{}}\n', "line 2"),
        (b'{"key":"a","row":{},"more":1}\n', "line 1"),
        (b'{"key":"a","row":{}}\n{"key":"a","row":{}}\n', "line 2"),
        (b"\xff\xfe\n", "line 1"),
    ],
)
def test_a_damaged_line_is_named(tmp_path, content, line):
    path = tmp_path / "rows.jsonl"
    path.write_bytes(content)
    with pytest.raises(RunFolderError, match=line):
        RowLog(path)
    assert path.read_bytes() == content


def test_duplicates_and_what_json_cannot_hold_are_refused(tmp_path):
    log = RowLog(tmp_path / "rows.jsonl")
    log.append("a", {"score": 1.0})
    for key, row in [
        ("a", {}),
        ("b", {"score": float("nan")}),
        ("b", {"score": np.float32(1)}),
        ("b", {"score": np.zeros(2)}),
    ]:
        with pytest.raises(RunFolderError, match=key):
            log.append(key, row)
    log.append("b", {})
    assert list(log.rows) == ["a", "b"]


def test_a_line_that_the_disk_took_half_of_is_taken_back(tmp_path, monkeypatch):
    path = tmp_path / "rows.jsonl"
    log = RowLog(path)
    log.append("a", {"score": 1.0})
    before = path.read_bytes()
    real, calls = os.write, []

    def half_then_full(descriptor, data):
        calls.append(data)
        if len(calls) == 1:
            return real(descriptor, bytes(data)[:5])
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "write", half_then_full)
    with pytest.raises(RunFolderError, match=r"disk is full.*1 finished unit"):
        log.append("b", {"score": 2.0})
    monkeypatch.undo()

    assert path.read_bytes() == before
    log.append("b", {"score": 2.0})
    log.close()
    assert list(RowLog(path).rows) == ["a", "b"]
