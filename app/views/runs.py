"""Runs under the runs root: what is going on, and what finished runs found."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

import polars
import streamlit as st
from mnemoscope.app import cached, exports
from mnemoscope.app.head_grid import head_grid
from mnemoscope.app.job_section import VIEWS, job_card
from mnemoscope.app.plain import as_text, told
from mnemoscope.app.run_scores import grid_frame
from mnemoscope.app.settings import settings_from_environment
from mnemoscope.cli import (
    binding_probing,
    neuron_finding,
    retrieval_gates,
    retrieval_scoring,
    scoring,
)
from mnemoscope.cli.resuming import models_of
from mnemoscope.probes.conflict_heads import ROLES
from mnemoscope.results.provenance import JSON
from mnemoscope.results.queued_runs import settle_runs
from mnemoscope.results.run_folder import RunInfo, RunStatus, load_run

SECONDS, IDLE_SECONDS = 2, 5
"""Between two readings of the list while something runs, and while nothing does."""
ROLES_PAGE = ("heads", "Heads by role", "sources")
SHOWN_ON: Mapping[str, tuple[tuple[str, str, str], ...]] = {
    scoring.KIND: (("explore", "Memory or context?", "source"), ROLES_PAGE),
    neuron_finding.KIND: (("neurons", "Which neurons know a relation?", "neuron_run"),),
    retrieval_scoring.KIND: (ROLES_PAGE,),
    retrieval_gates.KIND: (ROLES_PAGE,),
    binding_probing.KIND: (("binding", "Does it hold both ways?", "curves"),),
}
"""Kind of run to the pages that read it: file, title, and what names the run in the address."""


def page() -> None:
    """The listing, and below it the run that is opened."""
    root = settings_from_environment().runs_root
    st.title("Runs")
    exports.caption(
        f"Run folders under {as_text(str(root))}; the command line writes the same ones."
    )
    runs = settle_runs(root)
    show_missing(runs)
    every = SECONDS if going_on(runs) else IDLE_SECONDS
    st.fragment(show_listing, run_every=every)(root, tuple(run.id for run in runs), every)
    if runs:
        show_chosen(runs)


def going_on(runs: tuple[RunInfo, ...]) -> bool:
    """Whether one of them may change by itself."""
    return any(run.status in (RunStatus.RUNNING, RunStatus.QUEUED) for run in runs)


def show_missing(runs: tuple[RunInfo, ...]) -> None:
    """The card of a run that the address names and the list has not: it says what became of it."""
    named = st.query_params.get("run")
    if named and named not in {run.id for run in runs}:
        job_card(named)


def show_listing(root: Path, known: tuple[str, ...], every: int) -> None:
    """The table, read again every so many seconds; new runs, of a terminal too, redraw the page."""
    runs = settle_runs(root)
    still = going_on(runs)
    if {run.id for run in runs} != set(known) or every != (SECONDS if still else IDLE_SECONDS):
        st.rerun()
    with exports.section("listing"):
        show_table(runs)
    when = "while a run is going." if still else "for runs of a terminal: nothing is running."
    st.caption(f"Read again every {every} seconds {when}")


def show_table(runs: tuple[RunInfo, ...]) -> None:
    """Every run with how far it is, or how to come by one."""
    if not runs:
        exports.info(
            "There are no runs yet. Start one as a job on the page of a method, or in a terminal, "
            "for example `mnemoscope heads score engram`."
        )
        return
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
    exports.table(
        polars.DataFrame(rows, schema_overrides={"progress": polars.Float64}),
        name="all runs",
        columns={"progress": progress},
        alt="Table of runs with status and progress.",
    )


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
    if run.status == RunStatus.FINISHED or "provenance.json" in run.message:
        with told():  # says what the card cannot know: which file of the results is damaged
            show_finished(run)


def show_finished(run: RunInfo) -> None:
    """Grid, table and provenance of a finished run."""
    loaded = load_run(run.folder)
    exports.about({"run": run.id, "model": run.model_id}, loaded.provenance)
    show_links(run, loaded.config)
    scores = cached.scores_of_run(str(run.folder), run.updated)
    if scores is not None:
        role = st.segmented_control(
            "Score",
            ROLES,
            default="memory",
            required=True,
            key="run_role",
            bind="query-params",
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
    show_record(json.loads(loaded.provenance.to_json()))
    with st.expander("Configuration"):
        show_record(dict(loaded.config))


def show_links(run: RunInfo, config: Mapping[str, JSON]) -> None:
    """A link to each page that shows such a run, where this explorer serves its model."""
    label = served_label(run.model_id, models_of(config, {}))
    if label is None:
        return
    for view, title, name in SHOWN_ON.get(run.kind, ()):
        st.page_link(
            VIEWS / f"{view}.py",
            label=f"Show it on the page “{title}”",
            query_params={"model": label, name: run.id},
        )


def served_label(model_id: str, places: tuple[str, ...]) -> str | None:
    """What the pages call the model of a run, which names its places; None if it is not served."""
    models = settings_from_environment().models
    named = [label for label, place in models.items() if place in places]
    return named[0] if named else model_id if model_id in models else None


def show_record(record: Mapping[str, JSON]) -> None:
    """Plain JSON: the colours of `st.json` are too pale to be read."""
    st.code(json.dumps(record, indent=2), language=None, wrap_lines=True)


page()
