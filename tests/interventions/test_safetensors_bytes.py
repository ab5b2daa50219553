"""Byte ranges against NumPy slicing, headers against the safetensors library, copies in chunks."""

import json
import shutil
import struct
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from mnemoscope.interventions import edited_copies as copies
from mnemoscope.interventions import safetensors_bytes as sb
from mnemoscope.interventions.file_digests import file_digest
from mnemoscope.models.checkpoint_files import read_header
from mnemoscope.models.errors import CheckpointError, DamagedCheckpointError
from safetensors.torch import load_file, save_file

DTYPES = sorted(sb.FLOATS)


def matrix_file(path: Path, dtype: str, shape: tuple[int, int], seed: int = 0) -> torch.Tensor:
    """A file with a matrix between two other tensors of odd sizes; returns the matrix."""
    numbers = torch.randn(shape, generator=torch.Generator().manual_seed(seed))
    matrix = (numbers + 3 * torch.sign(numbers)).to(sb.FLOATS[dtype])  # no zeros
    around = {"a": torch.arange(7, dtype=torch.uint8), "z": torch.arange(5, dtype=torch.int16)}
    save_file({"m": matrix, **around}, path, metadata={"format": "pt"})
    return matrix


def edit_of(path: Path, axis: int, blocks: tuple[tuple[int, int], ...]) -> sb.TensorEdit:
    entry = next(t for t in read_header(path).tensors if t.name == "m")
    return sb.TensorEdit(entry, axis, blocks)


def as_bytes(tensor: torch.Tensor) -> bytes:
    return tensor.contiguous().view(torch.uint8).numpy().tobytes()


def raw_file(path: Path, header: object, data: bytes) -> Path:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + data)
    return path


def copied(source: Path, target: Path) -> bool:
    shutil.copyfile(source, target)
    return True


@settings(max_examples=120, deadline=None)
@given(data=st.data())
def test_ranges_are_the_bytes_that_numpy_slices(data, tmp_path_factory):
    path = tmp_path_factory.mktemp("m") / "m.safetensors"
    dtype, axis = data.draw(st.sampled_from(DTYPES)), data.draw(st.sampled_from([0, 1]))
    n_heads, d_v = data.draw(st.integers(1, 6)), data.draw(st.integers(1, 5))
    other = data.draw(st.integers(1, 9))
    shape = (n_heads * d_v, other) if axis == 0 else (other, n_heads * d_v)
    heads = data.draw(st.sets(st.integers(0, n_heads - 1), min_size=1))
    factor = data.draw(st.sampled_from([0.0, 0.5, -1.0, 2.0]))
    chunk = data.draw(st.sampled_from([8, 16, 64, 4096]))
    shares = data.draw(st.booleans())
    matrix = matrix_file(path, dtype, shape)
    edit = edit_of(path, axis, tuple((h * d_v, (h + 1) * d_v) for h in sorted(heads)))

    chosen = np.zeros(shape, dtype=bool)
    for h in heads:
        rows_or_columns = slice(h * d_v, (h + 1) * d_v)
        chosen[(rows_or_columns,) if axis == 0 else (slice(None), rows_or_columns)] = True
    whole = np.frombuffer(path.read_bytes(), np.uint8)
    in_file = np.zeros(len(whole), dtype=bool)
    in_file[edit.tensor.offset : edit.tensor.end] = np.repeat(chosen, matrix.element_size())

    # the ranges, read literally
    literal = np.zeros(len(whole), dtype=bool)
    for r in edit.ranges:
        for i in range(r.count):
            literal[r.offset + i * r.stride : r.offset + i * r.stride + r.length] = True
    assert np.array_equal(literal, in_file)
    assert edit.n_bytes == in_file.sum()
    # and the edited copy, whatever the size of the chunks
    with pytest.MonkeyPatch.context() as patch:
        for module in (sb, copies):
            patch.setattr(module, "CHUNK", chunk)
        if shares:  # as on a file system whose files can share blocks
            patch.setattr(copies, "_reflink", copied)
        target = path.with_name(f"out-{chunk}")
        change = sb.scaling(edit, factor)
        with target.with_suffix(".kept").open("w+b") as kept:
            hashes = copies.copy_edited(path, target, [change], kept)
            kept.seek(0)
            assert kept.read() == whole[in_file].tobytes()
            restored = path.with_name("restored")
            back = copies.copy_edited(target, restored, [sb.restoring(edit, kept, 0)])
        assert hashes == (file_digest(path), file_digest(target)) == back[::-1]
        assert restored.read_bytes() == path.read_bytes()
        compared = copies.compare_edited(path, target, [change])
        assert compared[:2] == hashes
        assert compared[2] == (whole != np.frombuffer(target.read_bytes(), np.uint8)).sum()
    expected = matrix.double().numpy().copy()
    expected[chosen] = expected[chosen] * factor + 0.0  # never -0.0
    expected = torch.from_numpy(expected).to(matrix.dtype)
    assert as_bytes(load_file(target)["m"]) == as_bytes(expected)
    assert np.array_equal(np.frombuffer(target.read_bytes(), np.uint8)[~in_file], whole[~in_file])


def test_rows_are_one_run_and_columns_one_run_a_row(tmp_path):
    path = tmp_path / "m.safetensors"
    matrix_file(path, "BF16", (6, 8))
    at = edit_of(path, 0, ((2, 4),)).tensor.offset
    assert edit_of(path, 0, ((2, 4),)).ranges == (sb.StridedBytes(at + 32, 32, 32, 1),)
    assert edit_of(path, 1, ((2, 4),)).ranges == (sb.StridedBytes(at + 4, 16, 4, 6),)


def test_header_says_what_the_library_says(tmp_path):
    path = tmp_path / "m.safetensors"
    matrix_file(path, "F16", (3, 4))
    header, tensors = read_header(path), load_file(path)
    assert header.size == path.stat().st_size
    assert {t.name for t in header.tensors} == set(tensors)
    for entry in header.tensors:
        assert entry.shape == tuple(tensors[entry.name].shape)
        found = path.read_bytes()[entry.offset : entry.end]
        assert found == as_bytes(tensors[entry.name])


ENTRY = {"dtype": "F32", "shape": [2, 2], "data_offsets": [0, 16]}


@pytest.mark.parametrize(
    ("header", "data", "says"),
    [
        ({"w": ENTRY}, b"\0" * 15, "truncated: w ends at byte"),
        ({"w": ENTRY}, b"\0" * 17, "1 bytes after its last tensor"),
        ({"w": ENTRY, "v": ENTRY}, b"\0" * 16, "shared bytes"),
        ({"w": {**ENTRY, "data_offsets": [4, 20]}}, b"\0" * 20, "unnamed bytes"),
        ({"w": {**ENTRY, "shape": [2, 3]}}, b"\0" * 16, "another size than its shape"),
        ({"w": {**ENTRY, "data_offsets": [16, 0]}}, b"\0" * 16, "impossible numbers"),
        ({"w": {**ENTRY, "shape": [-2, -2]}}, b"\0" * 16, "impossible numbers"),
        ({"w": {"dtype": "F32"}}, b"", "unreadable header"),
        ([1, 2], b"", "unreadable header"),
        (b"{not json", b"", "unreadable header"),
        (b'{"w":' + json.dumps(ENTRY).encode() + b',"w":{}}', b"\0" * 16, "used twice"),
        (b"[" * 100_000, b"", "unreadable header"),
    ],
)
def test_damaged_headers_are_refused(tmp_path, header, data, says):
    path = raw_file(tmp_path / "w.safetensors", header, data)
    with pytest.raises(DamagedCheckpointError, match=says):
        read_header(path)


@pytest.mark.parametrize("content", [b"", b"\1\2\3", struct.pack("<Q", 10**6) + b"{}"])
def test_header_longer_than_the_file_is_refused(tmp_path, content):
    path = tmp_path / "w.safetensors"
    path.write_bytes(content)
    with pytest.raises(DamagedCheckpointError, match="header longer than the file"):
        read_header(path)


def test_git_lfs_pointer_is_named(tmp_path):
    path = tmp_path / "w.safetensors"
    path.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 123\n")
    with pytest.raises(DamagedCheckpointError, match="git lfs pull"):
        read_header(path)


@pytest.mark.parametrize("dtype", ["F16", "F8_E4M3", "F8_E5M2", "F32", "BF16", "F64"])
def test_overflow_is_refused(dtype):
    largest = torch.finfo(sb.FLOATS[dtype]).max
    numbers = torch.tensor([1.0, largest], dtype=torch.float64).to(sb.FLOATS[dtype])
    with pytest.raises(CheckpointError, match=f"the largest {dtype} number"):
        sb.scaled(numbers.view(torch.uint8).numpy(), dtype, 1.5)
    kept = sb.scaled(numbers.view(torch.uint8).numpy(), dtype, -0.5)
    assert torch.from_numpy(kept).view(numbers.dtype).tolist() == [-0.5, -largest / 2]


def test_nan_and_infinity_become_zero_and_stay_themselves_when_scaled():
    numbers = torch.tensor([float("nan"), float("inf"), 2.0]).view(torch.uint8).numpy()
    assert not sb.scaled(numbers, "F32", 0.0).any()
    new = torch.from_numpy(sb.scaled(numbers, "F32", -2.0)).view(torch.float32)
    assert new[0].isnan()
    assert new[1:].tolist() == [-float("inf"), -4.0]


@pytest.mark.parametrize(
    ("place", "says"),
    [
        ("head", "m in copy does not hold the edited numbers"),
        ("matrix", "m in copy differs from its source outside the heads"),
        ("file", "copy differs from its source outside the heads"),
        ("length", "another length"),
    ],
)
def test_comparison_finds_a_single_changed_byte(tmp_path, place, says):
    path, target = tmp_path / "m.safetensors", tmp_path / "copy"
    matrix_file(path, "F32", (8, 8))
    edit = edit_of(path, 1, ((2, 4),))
    copies.copy_edited(path, target, [sb.scaling(edit, 0.0)])
    content = bytearray(target.read_bytes())
    head = edit.ranges[0]
    at = {"head": head.offset, "matrix": head.offset + head.length, "file": 3, "length": 3}[place]
    content[at] ^= 1
    target.write_bytes(content[: -1 if place == "length" else None])
    with pytest.raises(CheckpointError, match=says):
        copies.compare_edited(path, target, [sb.scaling(edit, 0.0)])


def test_a_file_is_never_held_whole(tmp_path, monkeypatch):
    path, target = tmp_path / "m.safetensors", tmp_path / "copy"
    matrix_file(path, "F32", (2048, 1024))  # 8 MiB
    change = sb.scaling(edit_of(path, 1, ((64, 128), (512, 576))), 0.5)
    for module in (sb, copies):
        monkeypatch.setattr(module, "CHUNK", 2**17)
    tracemalloc.start()
    copies.copy_edited(path, target, [change])
    copies.compare_edited(path, target, [change])
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    # Five pieces wait for their hashes, each as it was and as it became, beside the one at work.
    assert peak < 16 * 2**17 < path.stat().st_size / 4
