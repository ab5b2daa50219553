"""Runs under the runs root: what is going on, and what finished runs found."""

from __future__ import annotations

from pathlib import Path

import polars
import streamlit as st
from mnemoscope.app import cached, exports
from mnemoscope.app.head_grid import head_grid
from mnemoscope.app.job_section import job_card
from mnemoscope.app.plain import as_text, told
from mnemoscope.app.run_scores import grid_frame
from mnemoscope.app.settings import settings_from_environment
from mnemoscope.probes.conflict_heads import ROLES
from mnemoscope.results.queued_runs import settle_runs
from mnemoscope.results.run_folder import RunInfo, RunStatus, load_run

SECONDS = 2


def page() -> None:
    """The listing, and below it the run that is opened."""
    root = settings_from_environment().runs_root
    st.title("Runs")
    exports.caption(
        f"Run folders under {as_text(str(root))}; the command line writes the same ones."
    )
    runs = settle_runs(root)
    show_missing(runs)
    if not runs:
        exports.info(
            "There are no runs yet. Start one as a job on the page of a method, or in a terminal, "
            "for example `mnemoscope heads score engram`."
        )
        return
    watched = any(run.status in (RunStatus.RUNNING, RunStatus.QUEUED) for run in runs)
    st.fragment(show_listing, run_every=SECONDS if watched else None)(root, watched)
    show_chosen(runs)


def show_missing(runs: tuple[RunInfo, ...]) -> None:
    """The card of a run that the address names and the list has not: it says what became of it."""
    named = st.query_params.get("run")
    if named and named not in {run.id for run in runs}:
        job_card(named)


def show_listing(root: Path, watched: bool) -> None:
    """The table; while something runs it is read again every two seconds."""
    runs = settle_runs(root)
    rows = [
        {
            "run": run.id,
            "status": str(run.status),
            "progress": run.done / run.total if run.total else None,
            "units": f"{run.done} of {run.total if run.total is not None else '?'}",
            "model": run.model_id,
            "updated (UTC)": run.updated[:19].replace("T", " "),
            "message": run.message,
        }
        for run in runs
    ]
    progress = st.column_config.ProgressColumn("progress", min_value=0.0, max_value=1.0)
    with exports.section("listing"):
        exports.table(
            polars.DataFrame(rows, schema_overrides={"progress": polars.Float64}),
            name="all runs",
            columns={"progress": progress},
            alt="Table of runs with status and progress.",
        )
    still = any(run.status in (RunStatus.RUNNING, RunStatus.QUEUED) for run in runs)
    st.caption(
        f"Read again every {SECONDS} seconds while a run is going."
        if still
        else "Nothing is running."
    )
    if watched and not still:
        st.rerun()


def show_chosen(runs: tuple[RunInfo, ...]) -> None:
    """One run: why it is not finished, or its scores, table and provenance."""
    by_id = {run.id: run for run in runs}
    if "run" not in st.query_params and st.session_state.get("run") not in by_id:
        st.session_state["run"] = next(iter(by_id))
    run_id = st.selectbox(
        "Open a run",
        list(by_id),
        None,  # so that the latest run is written into the address too
        key="run",
        bind="query-params",
    )
    if run_id is None:
        return
    run = by_id[run_id]
    job_card(run_id)
    if run.status == RunStatus.FINISHED:
        with told():
            show_finished(run)


def show_finished(run: RunInfo) -> None:
    """Grid, table and provenance of a finished run."""
    loaded = load_run(run.folder)
    exports.about({"run": run.id, "model": run.model_id}, loaded.provenance)
    scores = cached.scores_of_run(str(run.folder), run.updated)
    if scores is not None:
        role = st.segmented_control(
            "Score",
            ROLES,
            default="memory",
            required=True,
            key="run_role",
        )
        head_grid(
            grid_frame(scores.table, role),
            key=f"run-grid-{run.id}-{role}",
            title=f"{role} score, positive: does this job",
        )
        exports.caption(
            f"Estimand: {as_text(scores.estimand)}. Cells with q > 0.05 are faded. To look at a "
            "head, choose this run as the source of scores on the page “Memory or context?”."
        )
    exports.subheader("Table")
    exports.table(loaded.table, name="table of the run", alt="The table of the run.")
    st.subheader("Provenance", anchor=False)  # a saved view has it at its end
    st.json(loaded.provenance.to_json(), expanded=1)
    with st.expander("Configuration"):
        st.json(dict(loaded.config))


page()
