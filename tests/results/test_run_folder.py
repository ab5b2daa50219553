"""Run folders: found again by their configuration, resumed, locked, cancelled, verified."""

import errno
import json
import os
import signal
import subprocess
import sys
import time
from contextlib import nullcontext

import numpy as np
import polars
import pytest
from mnemoscope.results.run_folder import (
    RunBusyError,
    RunCancelled,
    RunFolderError,
    RunStatus,
    list_runs,
    load_run,
    mark_interrupted_if_dead,
    open_run,
    queue_run,
    read_state,
    request_cancel,
    run_id_of,
    verify_run,
)

CONFIG = {"model": "engram", "heads": [1, 2], "seed": 0}
KEYS = [f"needle {i}" for i in range(6)]


def work(run, provenance, *, stop_at=None):
    """Score every unit that is not done yet, then finish."""
    for i, key in enumerate(KEYS):
        if key in run.done:
            continue
        if key == stop_at:
            raise ValueError("the power went")
        run.save_unit_arrays(key, {"scores": np.full((2, 3), i / 7)})
        run.append(key, {"score": i / 7})
        run.progress(len(run.done), len(KEYS), key)
        run.check_cancelled()
    table = polars.DataFrame(
        {"key": list(run.done), "score": [r["score"] for r in run.done.values()]}
    )
    arrays = {"scores": np.stack([run.load_unit_arrays(key)["scores"] for key in KEYS])}
    return run.finish(table, arrays, provenance, {"a.html": "<p>", "b.png": b"\x89"}, "<html>")


def test_a_finished_run_holds_the_layout_and_reads_back(tmp_path, provenance):
    with open_run(tmp_path, "head-scores", CONFIG) as run:
        assert not run.finished
        folder = work(run, provenance)
    assert folder == tmp_path / run_id_of("head-scores", CONFIG) == run.folder
    assert {path.name for path in folder.iterdir()} == {
        "config.json", "state.json", "rows.jsonl", "table.parquet", "arrays.safetensors",
        "provenance.json", "figures", "report.html", "units",
    }  # fmt: skip
    loaded = load_run(folder)
    assert loaded.config == CONFIG
    assert loaded.provenance == provenance
    assert loaded.table["key"].to_list() == list(loaded.rows) == KEYS
    np.testing.assert_array_equal(loaded.arrays["scores"][:, 1, 2], np.arange(6) / 7)
    assert (folder / "figures" / "b.png").read_bytes() == b"\x89"
    verify_run(folder)


def test_the_id_follows_from_the_configuration_alone():
    reordered = {"seed": 0, "heads": (1, 2), "model": "engram"}
    assert run_id_of("head-scores", CONFIG) == run_id_of("head-scores", reordered)
    assert run_id_of("head-scores", CONFIG) != run_id_of("head-scores", {**CONFIG, "seed": 1})
    for kind in ("", "Head", "a/b", "..", "a--b"):
        with pytest.raises(RunFolderError, match="kind"):
            run_id_of(kind, CONFIG)
    with pytest.raises(RunFolderError, match="not plain JSON"):
        run_id_of("x", {"a": float("inf")})


def test_resumed_equals_uninterrupted(tmp_path, provenance):
    with open_run(tmp_path / "whole", "scores", CONFIG) as run:
        whole = work(run, provenance)
    for stop_at in KEYS[1:]:
        root = tmp_path / stop_at
        with pytest.raises(ValueError, match="power"), open_run(root, "scores", CONFIG) as run:
            work(run, provenance, stop_at=stop_at)
        with open_run(root, "scores", CONFIG) as run:
            assert list(run.done) == KEYS[: KEYS.index(stop_at)]
            resumed = work(run, provenance)
        for name in ("rows.jsonl", "table.parquet", "arrays.safetensors", "config.json"):
            assert (resumed / name).read_bytes() == (whole / name).read_bytes()


def test_the_folder_appears_only_when_it_is_finished(tmp_path, provenance):
    with open_run(tmp_path, "scores", CONFIG) as run:
        run.append("needle 0", {"score": 0.0})
        assert list(tmp_path.glob("[!.]*")) == []
        with pytest.raises(RunFolderError, match="no finished run"):
            load_run(run.folder)


def test_a_finished_run_is_found_again_and_force_starts_over(tmp_path, provenance):
    with open_run(tmp_path, "scores", CONFIG) as run:
        work(run, provenance)
    with open_run(tmp_path, "scores", CONFIG) as again:
        assert again.finished
        assert list(again.done) == KEYS
        with pytest.raises(RunFolderError, match="finished"):
            again.append("more", {})
    assert read_state(again.folder).status is RunStatus.FINISHED
    with open_run(tmp_path, "scores", CONFIG, force=True) as fresh:
        assert not fresh.finished
        assert not fresh.done


def test_another_configuration_in_the_folder_is_refused(tmp_path):
    with open_run(tmp_path, "scores", CONFIG) as run:
        (run.folder / "config.json").write_text(json.dumps({"model": "other"}))
    with pytest.raises(RunFolderError, match="another configuration"):
        open_run(tmp_path, "scores", CONFIG)
    with open_run(tmp_path, "scores", CONFIG, force=True):
        pass


@pytest.mark.parametrize(
    ("error", "status", "message"),
    [
        (ValueError("too hot"), RunStatus.FAILED, "ValueError: too hot"),
        (KeyboardInterrupt(), RunStatus.INTERRUPTED, "KeyboardInterrupt"),
        (RunCancelled("by signal"), RunStatus.INTERRUPTED, "RunCancelled"),
        (None, RunStatus.INTERRUPTED, "left before"),
    ],
)
def test_how_the_block_ended_is_recorded(tmp_path, error, status, message):
    def start():
        with open_run(tmp_path, "scores", CONFIG) as run:
            run.append("needle 0", {})
            if error is not None:
                raise error

    with pytest.raises(type(error)) if error else nullcontext():
        start()
    (info,) = list_runs(tmp_path)
    assert info.status == status
    assert message in info.message
    assert info.done == 1
    with open_run(tmp_path, "scores", CONFIG) as run:  # the lock is free and the work is there
        assert list(run.done) == ["needle 0"]


def test_cancel_stops_after_the_unit_and_can_be_resumed(tmp_path, provenance):
    def start_and_cancel():
        with open_run(tmp_path, "scores", CONFIG) as run:
            request_cancel(run.folder)
            work(run, provenance)

    with pytest.raises(RunCancelled):
        start_and_cancel()
    (info,) = list_runs(tmp_path)
    assert (info.status, info.done, info.total) == (RunStatus.CANCELLED, 1, 6)
    with pytest.raises(RunFolderError, match="nothing to cancel"):
        request_cancel(info.folder)
    with open_run(tmp_path, "scores", CONFIG) as run:
        verify_run(work(run, provenance))


def test_a_cancel_is_no_exception_that_a_broad_except_would_swallow():
    assert not issubclass(RunCancelled, Exception)


def test_a_queued_run_waits_in_the_list_and_can_be_cancelled(tmp_path):
    folder = queue_run(tmp_path, "scores", CONFIG)
    (info,) = list_runs(tmp_path)
    assert (info.status, info.model_id, info.folder) == ("queued", "engram", folder.partial)
    request_cancel(folder.path)
    assert read_state(folder.path).status is RunStatus.CANCELLED
    with open_run(tmp_path, "scores", CONFIG) as run:
        assert queue_run(tmp_path, "scores", CONFIG).path == run.folder  # running: left alone
        assert read_state(run.folder).status is RunStatus.RUNNING
        run.check_cancelled()


HOLDER = """
import sys, time
from mnemoscope.results.run_folder import open_run
with open_run(sys.argv[1], "scores", {"model": "engram", "heads": [1, 2], "seed": 0}) as run:
    run.append("needle 0", {})
    print("ready", flush=True)
    time.sleep(60)
"""


@pytest.fixture
def holder(tmp_path):
    process = subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(tmp_path)], stdout=subprocess.PIPE, text=True
    )
    assert process.stdout.readline() == "ready\n"
    yield process
    process.kill()
    process.wait()


def test_a_second_process_is_told_who_works_on_the_run(tmp_path, holder):
    with pytest.raises(RunBusyError, match=f"process {holder.pid} on"):
        open_run(tmp_path, "scores", CONFIG)
    with pytest.raises(RunBusyError):
        open_run(tmp_path, "scores", CONFIG, force=True)
    (info,) = list_runs(tmp_path)
    assert mark_interrupted_if_dead(info.folder).status is RunStatus.RUNNING


def test_a_killed_process_is_noticed_even_before_its_parent_looks(tmp_path, holder):
    holder.send_signal(signal.SIGKILL)
    (info,) = list_runs(tmp_path)
    assert info.status == RunStatus.RUNNING
    for _ in range(100):
        state = mark_interrupted_if_dead(info.folder)
        if state.status is not RunStatus.RUNNING:
            break
        time.sleep(0.05)
    assert state.status is RunStatus.INTERRUPTED
    assert holder.returncode is None  # not waited for: its process id still exists
    assert read_state(info.folder) == state
    with open_run(tmp_path, "scores", CONFIG) as run:
        assert list(run.done) == ["needle 0"]


def test_sigterm_is_recorded_as_interrupted(tmp_path, holder):
    holder.send_signal(signal.SIGTERM)
    assert holder.wait(timeout=20) != 0
    (info,) = list_runs(tmp_path)
    assert (info.status, info.done) == (RunStatus.INTERRUPTED, 1)


def test_sigterm_does_what_it_did_before_once_the_block_is_left(tmp_path):
    before = signal.getsignal(signal.SIGTERM)
    with open_run(tmp_path, "scores", CONFIG):
        assert signal.getsignal(signal.SIGTERM) != before
    assert signal.getsignal(signal.SIGTERM) == before


def test_a_full_disk_names_the_path_and_what_is_kept(tmp_path, provenance, monkeypatch):
    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    with open_run(tmp_path, "scores", CONFIG) as run:
        run.save_unit_arrays("needle 0", {"scores": np.zeros((2, 3))})
        run.append("needle 0", {"score": 0.0})
        monkeypatch.setattr(os, "write", full)
        for step in (
            lambda: run.append("needle 1", {}),
            lambda: run.save_unit_arrays("needle 1", {"x": np.zeros(3)}),
            lambda: run.progress(1, 6),
            lambda: run.finish(polars.DataFrame(), {}, provenance),
        ):
            with pytest.raises(RunFolderError, match=r"disk is full; free space.*1 finished unit"):
                step()
        monkeypatch.undo()
        assert not list(run.folder.rglob("*.tmp"))
        folder = work(run, provenance)
    verify_run(folder)
    assert not list(folder.rglob("*.tmp"))


def test_a_full_disk_does_not_hide_the_first_error(tmp_path, monkeypatch):
    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    def fail_on_a_full_disk():
        with open_run(tmp_path, "a", CONFIG):
            monkeypatch.setattr(os, "write", full)
            raise ValueError("the real one")

    with pytest.raises(ValueError, match="the real one"):
        fail_on_a_full_disk()
    monkeypatch.undo()
    open_run(tmp_path, "a", CONFIG).close()


@pytest.mark.parametrize("code", [errno.EROFS, errno.EACCES])
def test_a_read_only_folder_is_a_clear_error(tmp_path, monkeypatch, code):
    real = os.open

    def read_only(path, flags, *rest, **named):
        if flags & (os.O_WRONLY | os.O_RDWR) and str(path).startswith(str(tmp_path)):
            raise OSError(code, os.strerror(code))
        return real(path, flags, *rest, **named)

    monkeypatch.setattr(os, "open", read_only)
    with pytest.raises(RunFolderError, match=f"cannot write {tmp_path}.*writable"):
        open_run(tmp_path, "scores", CONFIG)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_folder_without_write_permission(tmp_path):
    tmp_path.chmod(0o555)
    with pytest.raises(RunFolderError, match="writable"):
        open_run(tmp_path, "scores", CONFIG)


@pytest.mark.parametrize("name", ["table.parquet", "arrays.safetensors"])
@pytest.mark.parametrize("damage", ["cut", "flipped", "gone"])
def test_damaged_results_are_named(tmp_path, provenance, name, damage):
    with open_run(tmp_path, "scores", CONFIG) as run:
        path = work(run, provenance) / name
    content = bytearray(path.read_bytes())
    if damage == "cut":
        path.write_bytes(content[: len(content) // 2])
    elif damage == "flipped":
        content[len(content) // 2] ^= 1
        path.write_bytes(content)
    else:
        path.unlink()
    with pytest.raises(RunFolderError, match=name):
        verify_run(run.folder)


def test_changed_rows_and_configuration_do_not_verify(tmp_path, provenance):
    with open_run(tmp_path, "scores", CONFIG) as run:
        folder = work(run, provenance)
    rows = (folder / "rows.jsonl").read_bytes()
    (folder / "rows.jsonl").write_bytes(rows.replace(b"0.0", b"0.5"))
    with pytest.raises(RunFolderError, match=r"rows\.jsonl"):
        verify_run(folder)
    (folder / "rows.jsonl").write_bytes(rows)
    (folder / "config.json").write_text(json.dumps({**CONFIG, "seed": 1}))
    with pytest.raises(RunFolderError, match=r"config\.json"):
        verify_run(folder)


def test_a_damaged_run_is_listed_as_such_beside_the_others(tmp_path, provenance):
    assert list_runs(tmp_path / "nothing") == ()
    with open_run(tmp_path, "scores", CONFIG) as run:
        work(run, provenance)
    with open_run(tmp_path, "scores", {"seed": 2}) as other:
        (other.folder / "state.json").write_text("{")
        other.close()
    found = {info.id: info for info in list_runs(tmp_path)}
    assert found[run.id].status == "finished"
    assert (found[run.id].kind, found[run.id].model_id) == ("scores", "engram")
    assert found[other.id].status == "damaged"
    assert "state.json" in found[other.id].message


def test_arrays_in_any_memory_order_come_back_alike(tmp_path, provenance):
    arrays = {
        "transposed": np.arange(6.0).reshape(2, 3).T,
        "strided": np.arange(10)[::3],
        "empty": np.zeros((0, 4), dtype=np.float32),
        "single": np.array(True),
    }
    with open_run(tmp_path, "scores", CONFIG) as run:
        with pytest.raises(RunFolderError, match="words"):
            run.save_unit_arrays("a", {"words": np.array(["a"])})
        run.save_unit_arrays("a", arrays)
        run.save_unit_arrays("a", arrays)  # a unit that was under way when it died is done again
        for name, array in run.load_unit_arrays("a").items():
            np.testing.assert_array_equal(array, arrays[name])
            assert (array.dtype, array.shape) == (arrays[name].dtype, arrays[name].shape)
        run.append("a", {})
        with pytest.raises(RunFolderError, match="is done"):
            run.save_unit_arrays("a", arrays)
        with pytest.raises(RunFolderError, match="missing"):
            run.load_unit_arrays("b")


def test_figure_names_stay_in_their_folder(tmp_path, provenance):
    with open_run(tmp_path, "scores", CONFIG) as run:
        for name in ("../a.html", "a/b.html", ".hidden", ""):
            with pytest.raises(RunFolderError, match="plain file name"):
                run.finish(polars.DataFrame(), {}, provenance, {name: ""})
