"""Runs under the runs root: what is going on, and what finished runs found."""

from __future__ import annotations

from pathlib import Path

import streamlit as st
from mnemoscope.app import cached
from mnemoscope.app.head_grid import head_grid
from mnemoscope.app.plain import as_text, told
from mnemoscope.app.run_scores import grid_frame
from mnemoscope.app.settings import settings_from_environment
from mnemoscope.probes.conflict_heads import ROLES
from mnemoscope.results.run_folder import (
    RunFolderError,
    RunInfo,
    RunStatus,
    list_runs,
    load_run,
    mark_interrupted_if_dead,
)

SECONDS = 2


def page() -> None:
    """The listing, and below it the run that is opened."""
    root = settings_from_environment().runs_root
    st.title("Runs")
    st.caption(f"Run folders under {as_text(str(root))}; the command line writes the same ones.")
    runs = living(root)
    if not runs:
        st.info(
            "There are no runs yet. Start one in a terminal, for example "
            "`mnemoscope heads score engram`."
        )
        return
    watched = any(run.status in (RunStatus.RUNNING, RunStatus.QUEUED) for run in runs)
    st.fragment(show_listing, run_every=SECONDS if watched else None)(root, watched)
    show_chosen(runs)


def living(root: Path) -> tuple[RunInfo, ...]:
    """The runs, with those whose process is gone marked as interrupted."""
    for run in list_runs(root):
        if run.status == RunStatus.RUNNING:
            try:
                mark_interrupted_if_dead(run.folder)
            except RunFolderError:
                continue  # the listing below shows what is wrong with it
    return list_runs(root)


def show_listing(root: Path, watched: bool) -> None:
    """The table; while something runs it is read again every two seconds."""
    runs = living(root)
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
    st.dataframe(
        rows,
        hide_index=True,
        column_config={"progress": progress},
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
    run_id = st.selectbox("Open a run", list(by_id), key="run", bind="query-params")
    run = by_id[run_id]
    if run.status != RunStatus.FINISHED:
        st.warning(
            as_text(f"{run.id} is {run.status}. {run.message}".strip())
            + "  \nThe command that started it, run again, goes on where it stopped."
        )
        return
    with told():
        show_finished(run)


def show_finished(run: RunInfo) -> None:
    """Grid, table and provenance of a finished run."""
    loaded = load_run(run.folder)
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
        st.caption(
            f"Estimand: {as_text(scores.estimand)}. Cells with q > 0.05 are faded. To look at a "
            "head, choose this run as the source of scores on the first page."
        )
    st.subheader("Table", anchor=False)
    st.dataframe(loaded.table, hide_index=True, alt="The table of the run.")
    st.subheader("Provenance", anchor=False)
    st.json(loaded.provenance.to_json(), expanded=1)
    with st.expander("Configuration"):
        st.json(dict(loaded.config))


page()
