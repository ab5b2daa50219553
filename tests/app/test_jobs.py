"""Jobs: one run from a page, a terminal and a process of its own, whatever happens to any of them.

Most tests do the worker's work in this process; two start the real one.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import replace
from pathlib import Path
from typing import Any

import polars
import pytest
import streamlit as st
from mnemoscope.app import background, binding_pairs, binding_scene, job_forms, jobs
from mnemoscope.app.jobs import cancel_job, job_of, resume_job, start_job
from mnemoscope.app.settings import VARIABLE, Settings, settings_for
from mnemoscope.cli import device_turns, job_worker
from mnemoscope.cli.commands.runs import resume
from mnemoscope.cli.resuming import device_of, models_of, run_config
from mnemoscope.cli.scoring import KIND, ScoreConfig, run_key, score_heads
from mnemoscope.data.facts.items import relation_to_json
from mnemoscope.interventions.checkpoint_verify import verify_pruned
from mnemoscope.models.errors import MnemoscopeError
from mnemoscope.models.hooked import HookedModel
from mnemoscope.models.types import HeadId
from mnemoscope.organisms import planted_model, planted_relation
from mnemoscope.results.errors import RunBusyError, RunCancelled, RunFolderError
from mnemoscope.results.queued_runs import living_state, settle_runs, worker_lock
from mnemoscope.results.run import RunFolder
from mnemoscope.results.run_folder import open_run
from mnemoscope.results.run_state import RunStatus, read_state, write_state
from page_at import page_at, texts
from streamlit.testing.v1 import AppTest


def quiet(*_: object) -> None:
    pass


@pytest.fixture(autouse=True)
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Locks of devices in a folder of this test, and no torch threads beside each other."""
    monkeypatch.setenv("MNEMOSCOPE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(device_turns, "POLL_SECONDS", 0.05)
    st.cache_data.clear()
    yield
    st.cache_resource.clear()


@pytest.fixture(scope="session")
def config(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> ScoreConfig:
    """Scores of the planted model on its own relation: a fraction of a second."""
    relation = tmp_path_factory.mktemp("facts") / "relation.json"
    relation.write_text(json.dumps(relation_to_json(planted_relation(planted_model()))), "utf-8")
    return ScoreConfig(str(checkpoint), relation=str(relation), templates=(0,), demonstrations=0)


@pytest.fixture
def key(config: ScoreConfig, model: HookedModel) -> dict[str, Any]:
    return run_key(config, model)


@pytest.fixture
def unstarted(monkeypatch: pytest.MonkeyPatch) -> list[RunFolder]:
    """Processes that would have been started."""
    asked: list[RunFolder] = []
    monkeypatch.setattr(jobs, "_start_process", asked.append)
    return asked


def work(folder: RunFolder) -> None:
    """What the job's process does."""
    job_worker.work_on(folder, say=quiet, tell=quiet)


def holding(run_id: str) -> AbstractContextManager[str]:
    """The CPU is taken by another job, which came long before."""
    return device_turns.turn_on(lambda: "cpu", run_id, "2020-01-01T00:00:00.000+00:00", quiet)


def until(holds: Callable[[], bool], seconds: float = 60) -> None:
    deadline = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.02)


def table(root: Path, run_id: str) -> polars.DataFrame:
    return polars.read_parquet(root / run_id / "table.parquet")


def test_a_job_is_the_run_of_the_command_and_ends_with_its_result(
    settings: Settings, config: ScoreConfig, key: dict[str, Any], unstarted: Any, tmp_path: Path
) -> None:
    run_id = start_job(settings, KIND, key)
    assert job_of(settings, run_id).status == "queued"
    (folder,) = unstarted
    work(folder)
    assert job_of(settings, run_id).status == "finished"
    straight = score_heads(config, tmp_path / "cli", force=False, say=quiet, tell=quiet)
    assert straight.folder.name == run_id
    assert table(settings.runs_root, run_id).equals(straight.table)
    assert start_job(settings, KIND, key) == run_id
    assert len(unstarted) == 1, "a finished run needs no process"
    record = job_of(settings, run_id).record
    assert record is not None
    assert (record.device, record.device_bytes, record.pid) == ("cpu", None, os.getpid())
    assert (record.host_bytes or 0) > 2**20
    assert record.seconds > 0
    assert "on cpu" in record.words


def test_another_job_of_the_device_is_waited_for_by_name_and_cancel_ends_the_wait(
    settings: Settings, key: dict[str, Any], unstarted: Any
) -> None:
    run_id = start_job(settings, KIND, key)
    seen: list[str] = []

    def watch() -> None:
        def behind() -> bool:
            state = job_of(settings, run_id).state
            return state is not None and "behind" in state.message

        until(behind)
        seen.append(job_of(settings, run_id).state.message)  # type: ignore[union-attr]
        cancel_job(settings, run_id)

    other = threading.Thread(target=watch)
    with holding("retrieval-scores-0123456789"):
        other.start()
        with pytest.raises(RunCancelled):
            work(unstarted[0])
        other.join()
    assert seen == ["queued behind retrieval-scores-0123456789"]
    assert job_of(settings, run_id).status == "cancelled"
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL
    resume_job(settings, run_id)
    assert job_of(settings, run_id).status == "queued"
    work(unstarted[1])
    assert job_of(settings, run_id).status == "finished"


def test_cancel_in_the_middle_of_the_work_keeps_what_is_finished(
    settings: Settings, key: dict[str, Any], unstarted: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The watcher stops work that looks for no cancel file itself."""
    from mnemoscope.results.run import Run

    run_id = start_job(settings, KIND, key)
    append = Run.append

    def slow(self: Run, key: str, row: Any) -> None:
        append(self, key, row)
        cancel_job(settings, run_id)
        time.sleep(30)

    with monkeypatch.context() as patched:
        patched.setattr(Run, "append", slow)
        began = time.monotonic()
        with pytest.raises(RunCancelled):
            work(unstarted[0])
        assert time.monotonic() - began < 20
    job = job_of(settings, run_id)
    assert (job.status, job.may_resume) == ("cancelled", True)
    assert len((job.folder.partial / "rows.jsonl").read_text().splitlines()) == 1


def test_a_deleted_folder_stops_the_work_and_says_so(
    settings: Settings, key: dict[str, Any], unstarted: Any
) -> None:
    run_id = start_job(settings, KIND, key)
    deleted = settings.runs_root.with_name("deleted")
    timer = threading.Timer(0.5, os.replace, (unstarted[0].partial, deleted))  # all at once
    with holding("x-0123456789"):
        timer.start()
        with pytest.raises((RunCancelled, RunFolderError)):
            work(unstarted[0])
    job = job_of(settings, run_id)
    assert (job.status, job.active, job.may_resume) == ("gone", False, False)
    assert "Start it again" in job.trouble


@pytest.mark.parametrize("name", ["state.json", "config.json"])
def test_a_damaged_folder_says_which_file(
    settings: Settings, key: dict[str, Any], unstarted: Any, name: str
) -> None:
    run_id = start_job(settings, KIND, key)
    (unstarted[0].partial / name).write_text("{")
    job = job_of(settings, run_id)
    assert job.status == "damaged"
    assert name in job.trouble
    if name == "config.json":
        with pytest.raises(RunFolderError, match="delete the folder"):
            resume_job(settings, run_id)
        return
    resume_job(settings, run_id)  # the state is made anew, the work is all there
    assert job_of(settings, run_id).status == "queued"


def test_damaged_rows_fail_with_their_line(
    settings: Settings, key: dict[str, Any], unstarted: Any
) -> None:
    run_id = start_job(settings, KIND, key)
    (unstarted[0].partial / "rows.jsonl").write_text("no row\n")
    with pytest.raises(RunFolderError, match="line 1"):
        work(unstarted[0])
    job = job_of(settings, run_id)
    assert job.status == "failed"
    assert job.state is not None
    assert "rows.jsonl, line 1" in job.state.message


def test_an_error_before_the_work_begins_is_told(
    settings: Settings, config: ScoreConfig, key: dict[str, Any], unstarted: Any
) -> None:
    run_id = start_job(settings, KIND, {**key, "relation": "no-such"})
    with pytest.raises(MnemoscopeError):
        work(unstarted[0])
    job = job_of(settings, run_id)
    assert job.status == "failed"
    assert job.state is not None
    assert "no-such" in job.state.message


def test_other_weights_than_were_queued_are_told(
    settings: Settings, key: dict[str, Any], unstarted: Any
) -> None:
    run_id = start_job(settings, KIND, {**key, "weights_sha256": "0" * 64})
    with pytest.raises(RunFolderError, match="has changed"):
        work(unstarted[0])
    assert job_of(settings, run_id).status == "failed"


def test_a_queued_run_without_a_process_is_interrupted_when_the_server_starts(
    settings: Settings, key: dict[str, Any], unstarted: Any
) -> None:
    run_id = start_job(settings, KIND, key)
    folder = unstarted[0]
    state = read_state(folder.partial)
    assert living_state(folder).status is RunStatus.QUEUED, "its process may be about to come"
    write_state(folder.partial, replace(state, updated="2020-01-01T00:00:00.000+00:00"))
    with worker_lock(folder).acquire():
        assert [run.status for run in settle_runs(settings.runs_root)] == ["queued"]
    assert [run.status for run in settle_runs(settings.runs_root)] == ["interrupted"]
    assert job_of(settings, run_id).may_resume


def test_two_workers_of_one_run_do_not_meet(
    settings: Settings, key: dict[str, Any], unstarted: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(job_worker, "SUCCESSION_SECONDS", 0.1)
    start_job(settings, KIND, key)
    assert start_job(settings, KIND, key) == unstarted[0].id, "two users, one run"
    with worker_lock(unstarted[0]).acquire(), pytest.raises(RunBusyError):
        work(unstarted[1])
    work(unstarted[0])
    before = (unstarted[0].final / "state.json").stat().st_mtime_ns
    work(unstarted[1])  # it came too late, and leaves
    assert (unstarted[0].final / "state.json").stat().st_mtime_ns == before


def test_only_models_of_the_allow_list_and_ids_of_runs_are_taken(
    settings: Settings, key: dict[str, Any], unstarted: Any
) -> None:
    with pytest.raises(MnemoscopeError, match="does not serve"):
        start_job(settings, KIND, {**key, "model": "/etc"})
    with pytest.raises(MnemoscopeError, match="does not serve"):
        start_job(settings, "binding-roles", {"pairs": {"model": "/etc"}})
    for name in ("../secret", "head-scores-0123456789/..", "x", ""):
        with pytest.raises(RunFolderError, match="no id of a run"):
            job_of(settings, name)
    assert unstarted == []


def test_a_terminal_resumes_in_turn_what_a_page_has_queued(
    settings: Settings, key: dict[str, Any], unstarted: Any
) -> None:
    run_id = start_job(settings, KIND, key)
    cancel_job(settings, run_id)
    resume(run_id, settings.runs_root, queue=True)
    assert job_of(settings, run_id).status == "finished"


def test_a_damaged_finished_run_offers_no_resume(
    settings: Settings, key: dict[str, Any], unstarted: Any
) -> None:
    run_id = start_job(settings, KIND, key)
    work(unstarted[0])
    (unstarted[0].final / "state.json").write_text("{")
    job = job_of(settings, run_id)
    assert (job.status, job.may_resume) == ("damaged", False)
    assert "--force" in job.trouble


def test_a_run_that_an_id_is_not_enough_for_says_what_is(
    settings: Settings, tmp_path: Path
) -> None:
    with open_run(settings.runs_root, "prune-eval", {"model": "m"}) as run:
        name = run.id
    job = job_of(settings, name)
    assert (job.status, job.may_resume) == ("interrupted", False)
    assert "resume that one" in job.obstacle
    with pytest.raises(RunFolderError, match="resume that one"):
        resume_job(settings, name)
    app = page_at("runs", run=name)
    assert "resume that one" in texts(app.caption)
    assert not app.button


def test_the_real_process_killed_resumed_and_finished(
    settings: Settings, key: dict[str, Any]
) -> None:
    """SIGKILL as soon as the process shows itself; the watcher thread sees it die at once."""
    run_id = start_job(settings, KIND, key)
    folder = RunFolder(settings.runs_root, run_id)

    def shown() -> bool:
        state = read_state(folder.path)
        return state.pid != os.getpid()

    until(shown)
    os.kill(read_state(folder.path).pid, signal.SIGKILL)
    until(lambda: not job_of(settings, run_id).active)
    assert job_of(settings, run_id).status == "interrupted"
    resume_job(settings, run_id)
    until(lambda: not job_of(settings, run_id).active)
    job = job_of(settings, run_id)
    assert job.status == "finished", job.log
    assert "conflict items" in job.log
    until(lambda: not job_of(settings, run_id).closing)
    record = job_of(settings, run_id).record
    assert record is not None
    assert record.pid != os.getpid()
    assert "free again" in texts(page_at("runs", run=run_id).caption)


class Process:
    """One that has ended once `wait` returns, and what happens until then."""

    def __init__(self, meanwhile: Callable[[], object]) -> None:
        self.wait = meanwhile


def test_who_sees_a_process_end_takes_no_run_away_that_is_queued_for_the_next(
    settings: Settings, key: dict[str, Any], unstarted: Any
) -> None:
    """A cancelled process takes a moment to leave, and Resume may be pressed in that moment."""
    run_id = start_job(settings, KIND, key)
    folder = unstarted[0]
    first = read_state(folder.path).started
    cancel_job(settings, run_id)

    def resumed() -> None:
        time.sleep(0.002)  # moments of queueing are told in milliseconds
        resume_job(settings, run_id)

    jobs._await(Process(resumed), folder, first)
    second = read_state(folder.path)
    assert second.status is RunStatus.QUEUED
    jobs._await(Process(lambda: None), folder, second.started)
    assert read_state(folder.path).status is RunStatus.INTERRUPTED


def test_sigterm_to_the_real_process_leaves_a_run_to_resume(
    settings: Settings, key: dict[str, Any], unstarted: Any
) -> None:
    run_id = start_job(settings, KIND, key)
    folder = unstarted[0]
    with holding("x-0123456789"):
        command = [sys.executable, "-m", "mnemoscope.cli.job_worker", str(folder.root), folder.id]
        process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
        until(lambda: "behind" in read_state(folder.partial).message)
        process.send_signal(signal.SIGTERM)
        said = process.communicate(timeout=30)[1]
    assert process.returncode == 130
    assert "can be resumed" in said
    assert job_of(settings, run_id).status == "interrupted"


def press(app: AppTest, label: str) -> None:
    next(button for button in app.button if button.label == label).click().run()
    assert not app.exception, app.exception


def test_a_page_starts_a_job_shows_its_card_and_cancels_it(
    settings: Settings, unstarted: Any
) -> None:
    app = page_at("explore", prompt="The capital of bravia is", context="")
    press(app, "Start as a job")
    (folder,) = unstarted
    assert app.query_params["job"] in (folder.id, [folder.id])
    assert run_config(folder)["relation"] == "capital"
    assert folder.id in texts(app.markdown)
    press(app, "Cancel")
    assert "cancelled" in texts(app.caption)
    press(app, "Resume")
    assert len(unstarted) == 2
    assert job_of(settings, folder.id).status == "queued"


def pruning_page() -> AppTest:
    """A saved set, halved, with the button that writes the checkpoint."""
    app = page_at(
        "explore",
        prompt="The capital of bravia is",
        context="",
        off=["L1.H2", "L1.H5"],
        mode="scale",
        factor="0.5",
    )
    press(app, "Save the list (2 heads)")
    return app


def test_prune_now_starts_the_run_of_the_shown_command_and_refuses_what_is_there(
    settings: Settings, unstarted: Any
) -> None:
    app = pruning_page()
    press(app, "Prune now")
    assert not app.error
    (folder,) = unstarted
    assert folder.id.startswith("prune-")
    asked, out = (
        run_config(folder),
        settings.head_sets.with_name("pruned") / "planted-my-heads-x0.5",
    )
    (place,) = settings.models.values()
    assert asked["source"]["path"] == place
    assert asked["heads"] == {"from": str(settings.head_sets / "my-heads.json")}
    assert (asked["method"]["mode"], asked["method"]["factor"]) == ("scale", 0.5)
    assert asked["output"]["path"] == str(out)
    assert folder.id in texts(app.markdown), "the card of the job"
    assert f"--out {out} --runs {settings.runs_root}" in texts(app.code)
    cancel_job(settings, folder.id)
    out.mkdir(parents=True)
    press(app, "Prune now")
    assert len(unstarted) == 2, "the run that was stopped goes on, whatever it left"
    shutil.rmtree(folder.partial)
    press(app, "Prune now")
    assert "exists already: choose another name" in texts(app.error)
    assert len(unstarted) == 2
    name = next(one for one in app.text_input if one.label.startswith("Folder to write"))
    name.set_value("../../elsewhere").run()
    assert "no plain file name" in texts(app.error)
    assert "Prune now" not in [one.label for one in app.button]


def test_prune_now_ends_in_a_checkpoint_that_is_what_its_manifest_says(
    settings: Settings, unstarted: Any
) -> None:
    app = pruning_page()
    press(app, "Prune now")
    work(unstarted[0])
    assert job_of(settings, unstarted[0].id).status == "finished"
    out = Path(run_config(unstarted[0])["output"]["path"])
    (place,) = settings.models.values()
    report = verify_pruned(out, Path(place))
    assert report.heads == (HeadId(1, 2), HeadId(1, 5))
    assert report.differing_bytes
    press(app, "Prune now")
    assert "exists already" in texts(app.error)
    shutil.rmtree(out)
    press(app, "Prune now")
    assert "is gone since the run" in texts(app.error)
    assert len(unstarted) == 1


def test_heads_by_role_shows_the_card_of_its_pruning(
    settings: Settings, scored: Path, unstarted: Any
) -> None:
    shutil.copytree(scored, settings.runs_root)
    app = page_at("heads", expr="memory", by="rank", k="1")
    press(app, "Save them as a head set (1 head)")
    press(app, "Prune now")
    assert unstarted[0].id in texts(app.markdown)
    assert run_config(unstarted[0])["method"]["mode"] == "zero"


@pytest.mark.parametrize(
    ("view", "kind"),
    [
        ("neurons", "relation-neurons"),
        ("retrieval", "retrieval-scores"),
        ("binding", "binding-roles"),
    ],
)
def test_the_other_pages_start_theirs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, unstarted: Any, view: str, kind: str
) -> None:
    monkeypatch.setattr(binding_scene, "LONGEST_WAIT", 0.0)  # parts that take time are left out
    settings = settings_for(["engram"], tmp_path / "runs")
    monkeypatch.setenv(VARIABLE, settings.to_json())
    small = {"retrieval": {"length": "128"}, "binding": {"most_pairs": "16", "pairs": "capital"}}
    app = page_at(view, **small.get(view, {}))
    press(app, "Start as a job")
    assert not app.error
    assert unstarted[0].id.startswith(kind)
    assert app.query_params["job"] in (unstarted[0].id, [unstarted[0].id])
    assert settings.models["engram"] == models_of(run_config(unstarted[0]), {})[0]
    device_of(unstarted[0])  # the job's process understands what the page asked for


@pytest.mark.parametrize(
    ("view", "address", "why"),
    [
        ("retrieval", {"model": "engram"}, "waits for a click"),
        ("retrieval", {"model": "engram", "hay": "a file"}, "No text to read yet"),
        ("retrieval", {"model": "planted"}, "too few tokens"),
        ("explore", {"model": "planted", "prompt": " "}, "the prompt is empty"),
        ("binding", {"model": "planted"}, "choose another relation"),
        ("neurons", {"model": "planted"}, "No run has looked"),
    ],
)
def test_the_job_of_an_address_is_shown_where_the_page_above_it_stops_early(
    settings: Settings,
    key: dict[str, Any],
    unstarted: Any,
    monkeypatch: pytest.MonkeyPatch,
    view: str,
    address: dict[str, str],
    why: str,
) -> None:
    run_id = start_job(settings, KIND, key)
    both = settings_for([*settings.models.values(), "engram"], settings.runs_root)
    monkeypatch.setenv(VARIABLE, both.to_json())
    monkeypatch.setattr(background, "LONGEST_WAIT", 0.0)  # every trial waits for a click
    monkeypatch.setattr(binding_pairs, "FEWEST", 10**6)  # no relation has so many pairs
    app = page_at(view, job=run_id, **address)
    assert why in texts(app.info) + texts(app.error)
    assert run_id in texts(app.markdown)
    assert "Cancel" in [one.label for one in app.button]
    assert app.query_params["job"] in (run_id, [run_id]), "it can be loaded again"


def test_the_job_of_an_address_is_shown_beside_a_form_that_cannot_be(
    settings: Settings, key: dict[str, Any], unstarted: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    run_id = start_job(settings, KIND, key)

    def broken(place: str) -> tuple[str, ...]:
        raise MnemoscopeError(f"{place} has no relations.")

    monkeypatch.setattr(job_forms, "pair_relation_names", broken)
    app = page_at("binding", job=run_id)
    assert "has no relations" in texts(app.error)
    assert run_id in texts(app.markdown)


def test_the_address_of_a_job_that_is_not_there_or_none_says_what_to_do(
    settings: Settings, key: dict[str, Any], unstarted: Any
) -> None:
    start_job(settings, KIND, key)
    app = page_at("runs", run="head-scores-0123456789")
    assert "its folder was deleted" in texts(app.warning)
    app = page_at("runs", run="../../etc/passwd")
    assert "no id of a run" in texts(app.error)


def test_the_page_of_runs_shows_a_damaged_run_and_a_dead_one(
    settings: Settings, key: dict[str, Any], unstarted: Any
) -> None:
    run_id = start_job(settings, KIND, key)
    state = read_state(unstarted[0].partial)
    write_state(unstarted[0].partial, replace(state, updated="2020-01-01T00:00:00.000+00:00"))
    app = page_at("runs", run=run_id)
    assert "process is gone" in texts(app.caption)
    assert [button.label for button in app.button] == ["Resume"]
    (unstarted[0].partial / "state.json").write_text("{")
    app = page_at("runs", run=run_id)
    assert "state.json" in texts(app.warning)
