"""A pruned folder appears whole or not at all, and never in the place of something else."""

import errno
import hashlib
import json
import os
import shutil

import pytest
from checkpoints import (
    HEADS,
    files,
    prune,
)
from mnemoscope.interventions import checkpoint_surgery as surgery
from mnemoscope.interventions import checkpoint_verify, edited_copies, new_folder, safetensors_bytes
from mnemoscope.interventions.checkpoint_surgery import (
    MANIFEST,
    CheckpointError,
    plan_pruning,
    prune_checkpoint,
    verify_pruned,
)
from mnemoscope.models import HeadId

# -- refusals: the target --------------------------------------------------------------------------


def test_target_on_or_around_the_source_is_refused(llama, tmp_path):
    before = files(tmp_path)
    (tmp_path / "alias").symlink_to(llama)
    for out in (
        llama,
        llama / "out",
        tmp_path,
        tmp_path / "x" / ".." / "llama",
        tmp_path / "alias",
    ):
        for force in (False, True):
            with pytest.raises(CheckpointError, match="inside the source"):
                prune(llama, out, force=force)
    (tmp_path / "alias").unlink()
    assert files(tmp_path) == before


def test_existing_target_needs_force_and_must_be_a_pruned_folder(llama, tmp_path):
    out = prune(llama, tmp_path / "out", [HeadId(0, 0)])
    (out / "note.txt").write_text("mine")
    before = files(out)
    with pytest.raises(CheckpointError, match="exists already: choose another name, or use force"):
        prune(llama, out)
    assert files(out) == before
    prune(llama, out, force=True)
    verify_pruned(out)
    assert not (out / "note.txt").exists()
    (tmp_path / "thesis").mkdir()
    (tmp_path / "file").write_text("x")
    for other in ("thesis", "file"):
        with pytest.raises(CheckpointError, match="is not a pruned checkpoint, so force does not"):
            prune(llama, tmp_path / other, force=True)
    assert sorted(os.listdir(tmp_path)) == ["file", "llama", "out", "thesis"]


def test_parents_are_made(llama, tmp_path):
    verify_pruned(prune(llama, tmp_path / "a" / "b" / "out"))


def test_target_below_a_file_is_refused(llama, tmp_path):
    (tmp_path / "file").write_text("x")
    with pytest.raises(CheckpointError, match="is a file"):
        prune(llama, tmp_path / "file" / "out")


def test_too_small_disk_is_refused_before_writing(llama, tmp_path, monkeypatch):
    plan = plan_pruning(llama, HEADS)
    usage = shutil.disk_usage(tmp_path)._replace(free=plan.disk_bytes - plan.untouched_bytes - 1)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage)
    with pytest.raises(CheckpointError, match=r"needs .* MB but .* MB are free"):
        prune_checkpoint(plan, tmp_path / "a" / "out")
    assert os.listdir(tmp_path) == ["llama"]


def test_manifest_extra_must_be_json(llama, tmp_path):
    with pytest.raises(CheckpointError, match="not plain JSON"):
        prune(llama, tmp_path / "out", manifest_extra={"score": float("nan")})
    assert os.listdir(tmp_path) == ["llama"]


# -- interruptions ---------------------------------------------------------------------------------


class Failing:
    """Stands in for a function and raises at its n-th call, after doing half of its work."""

    def __init__(self, real, at: int, error: BaseException):
        self.real, self.left, self.error = real, at, error

    def __call__(self, *args, **kwargs):
        result = self.real(*args, **kwargs)
        self.left -= 1
        if self.left == 0:
            raise self.error
        return result


PLACES = [
    (edited_copies, "_edited", 2),
    (surgery, "share_or_copy", 1),
    (surgery, "_start_file", 3),
    (surgery, "write_file", 1),
    (checkpoint_verify, "_differs", 1),
    (os, "fsync", 2),
]
ERRORS = [
    (KeyboardInterrupt(), KeyboardInterrupt, None),
    (OSError(errno.ENOSPC, "No space left"), CheckpointError, "is full .* nothing was left behind"),
    (OSError(errno.EROFS, "Read-only"), CheckpointError, "Read-only.*nothing was left behind"),
]


@pytest.mark.parametrize(("error", "raised", "says"), ERRORS, ids=["ctrl-c", "full", "read-only"])
@pytest.mark.parametrize("place", PLACES, ids=[name for _, name, _ in PLACES])
@pytest.mark.parametrize("replacing", [False, True], ids=["new", "replacing"])
def test_interruption_leaves_nothing(
    llama, tmp_path, monkeypatch, place, error, raised, says, replacing
):
    out = tmp_path / "a" / "out"
    if replacing:
        prune(llama, out, [HeadId(0, 0)])
    before = files(tmp_path)
    module, name, at = place
    monkeypatch.setattr(module, name, Failing(getattr(module, name), at, error))
    with pytest.raises(raised, match=says):
        prune(llama, out, force=True)
    monkeypatch.undo()
    assert files(tmp_path) == before
    assert sorted(os.listdir(tmp_path)) == (["a", "llama"] if replacing else ["llama"])


@pytest.mark.parametrize("at", [1, 2])
def test_interrupted_rename_puts_the_old_folder_back(llama, tmp_path, monkeypatch, at):
    out = prune(llama, tmp_path / "out", [HeadId(0, 0)])
    before, calls, rename = files(tmp_path), [], os.rename

    def fails_once(old, new):
        calls.append(new)
        if len(calls) == at:
            raise KeyboardInterrupt
        rename(old, new)

    monkeypatch.setattr(new_folder, "_exchange", lambda a, b: False)
    monkeypatch.setattr(os, "rename", fails_once)
    with pytest.raises(KeyboardInterrupt):
        prune(llama, out, force=True)
    assert files(tmp_path) == before


def test_read_only_place_is_refused(llama, tmp_path, monkeypatch):
    def refuses(path, *args, **kwargs):
        raise PermissionError(errno.EACCES, "Permission denied", str(path))

    plan = plan_pruning(llama, HEADS)
    monkeypatch.setattr(os, "mkdir", refuses)
    with pytest.raises(CheckpointError, match=r"Permission denied.*make its folder writable"):
        prune_checkpoint(plan, tmp_path / "out")
    assert os.listdir(tmp_path) == ["llama"]


def test_copy_that_was_spoilt_on_the_way_is_refused(llama, tmp_path, monkeypatch):
    real = surgery.start_copy

    def spoils(threads, source, target, changes=(), kept=None):
        hashes = real(threads, source, target, changes, kept)
        if changes:
            content = bytearray(target.read_bytes())
            content[changes[0].edit.tensor.end - 1] ^= 1
            target.write_bytes(content)
        return hashes

    monkeypatch.setattr(surgery, "start_copy", spoils)
    with pytest.raises(CheckpointError, match="does not hold the planned numbers"):
        prune(llama, tmp_path / "out")
    assert os.listdir(tmp_path) == ["llama"]


def test_wrong_byte_ranges_are_caught_by_the_second_reader(llama, tmp_path, monkeypatch):
    """Ranges off by one number agree with themselves; the safetensors library finds the rest."""
    real = safetensors_bytes.TensorEdit._places

    def shifted(edit, rows, first):
        places = real(edit, rows, first)
        return [(r, slice(columns.start + 4, columns.stop + 4)) for r, columns in places]

    monkeypatch.setattr(safetensors_bytes.TensorEdit, "_places", shifted)
    with pytest.raises(CheckpointError, match=r"does not hold the planned numbers"):
        prune(llama, tmp_path / "out", [HeadId(0, 1)])
    assert os.listdir(tmp_path) == ["llama"]


# -- leftovers and links ---------------------------------------------------------------------------


def test_leftovers_of_killed_runs_go_at_the_next_run(llama, tmp_path):
    dead = tmp_path / ".out.0123abcd.partial"
    other = tmp_path / ".out2.0123abcd.partial"
    for folder in (dead, other, tmp_path / ".out.notes.partial"):
        folder.mkdir()
        (folder / "model.safetensors").write_text("half")
    prune(llama, tmp_path / "out")
    assert sorted(os.listdir(tmp_path)) == [".out.notes.partial", other.name, "llama", "out"]


def test_folders_of_running_runs_are_left_alone(llama, tmp_path):
    with new_folder._folder_beside(tmp_path / "out") as busy:
        new_folder.remove_leftovers(tmp_path / "out")
        assert busy.is_dir()
    new_folder.remove_leftovers(tmp_path / "out")
    assert not busy.exists()


def test_earlier_folder_returns_after_a_kill_between_two_renames(llama, tmp_path):
    out = prune(llama, tmp_path / "out", [HeadId(0, 0)])
    before = files(out)
    out.rename(tmp_path / ".out.0123abcd.old")
    with pytest.raises(CheckpointError, match="exists already"):
        prune(llama, out)
    assert files(out) == before
    assert sorted(os.listdir(tmp_path)) == ["llama", "out"]


def test_replacing_swaps_where_the_system_can_and_renames_elsewhere(llama, tmp_path, monkeypatch):
    out = prune(llama, tmp_path / "out", [HeadId(0, 0)])
    prune(llama, out, force=True)
    assert verify_pruned(out, llama).heads == HEADS
    monkeypatch.setattr(new_folder, "_exchange", lambda a, b: False)
    prune(llama, out, [HeadId(1, 1)], force=True)
    assert verify_pruned(out, llama).heads == (HeadId(1, 1),)
    assert sorted(os.listdir(tmp_path)) == ["llama", "out"]


def test_untouched_shards_share_their_bytes_and_the_source_is_never_written(llama, tmp_path):
    shards = sorted(llama.glob("*.safetensors"))
    before = {path.name: (path.read_bytes(), path.stat().st_ino) for path in shards}
    plan = plan_pruning(llama, HEADS)
    out = prune_checkpoint(plan, tmp_path / "out")
    record = json.loads((out / MANIFEST).read_text())["shards"]
    untouched = [shard.name for shard in plan.shards if not shard.touched]
    assert untouched
    for name, (content, inode) in before.items():
        assert ((llama / name).read_bytes(), (llama / name).stat().st_ino) == (content, inode)
        touched = name not in untouched
        assert ((out / name).read_bytes() != content) == touched
        linked = record[name]["how"] == "linked"
        assert ((out / name).stat().st_ino == inode) == linked
        assert not (touched and linked)
        assert record[name]["how"] in (("edited",) if touched else ("linked", "reflinked"))


def test_a_second_pruning_leaves_linked_shards_of_the_first_alone(llama, tmp_path):
    """The shard that the first shares with the source is edited in the second: only there."""
    first = prune(llama, tmp_path / "first", [HeadId(0, 1)])
    before = files(llama), files(first)
    second = prune(first, tmp_path / "second", [HeadId(2, 3)])
    assert (files(llama), files(first)) == before
    verify_pruned(second, first)


def test_untouched_shards_are_copied_on_request_and_where_links_fail(llama, tmp_path, monkeypatch):
    a = prune(llama, tmp_path / "a", copy_untouched=True)

    def refuses(*args, **kwargs):
        raise OSError(errno.EPERM, "no links here")

    monkeypatch.setattr(os, "link", refuses)
    monkeypatch.setattr(edited_copies, "_reflink", lambda source, target: False)
    b = prune(llama, tmp_path / "b")
    for out in (a, b):
        for path in out.glob("*.safetensors"):
            assert path.stat().st_nlink == 1
        verify_pruned(out, llama)
    assert not verify_pruned(a).unhashed


def test_hashes_that_others_noted_are_taken_over(llama, tmp_path):
    """The hub's cache names its files by their hash."""
    blobs = tmp_path / "blobs"
    blobs.mkdir()
    for path in llama.glob("*.safetensors"):
        blob = blobs / hashlib.sha256(path.read_bytes()).hexdigest()
        path.rename(blob)
        path.symlink_to(blob)
    out = prune(llama, tmp_path / "out", [HeadId(0, 1)])
    assert not verify_pruned(out).unhashed
    twice = prune(out, tmp_path / "twice", [HeadId(1, 0)])
    assert not verify_pruned(twice).unhashed
