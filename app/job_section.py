"""A job on a page: the form that starts it, and the card that follows, cancels and resumes it.

The card reads the run's folder alone, so that every tab, user and terminal sees the same; the
address keeps the run's id (`job` on the pages of methods, `run` on the page of runs).
"""

from __future__ import annotations

import shlex
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import streamlit as st

from ..results.provenance import JSON
from .jobs import Job, cancel_job, job_of, resume_job, start_job
from .plain import as_text, told
from .settings import Settings, settings_from_environment

SECONDS, IDLE_SECONDS = 1, 3
"""Between two readings of a job that is at work, and of one that a terminal may go on with."""
ADDRESS = "job"
VIEWS = Path(__file__).parent / "views"
_COLOURS = {"finished": "green", "running": "blue", "queued": "blue", "cancelled": "gray"}
_WORDS = {
    "interrupted": "Its process is gone; what it finished is kept.",
    "cancelled": "It was cancelled; what it finished is kept.",
    "failed": "It failed.",
    "finished": "It is finished.",
}


@dataclass(frozen=True)
class Order:
    """What a form asks for: the kind of run and what names it, as the command line would."""

    kind: str
    key: Mapping[str, JSON]


def show_job_start(settings: Settings, words: str, form: Callable[[], Callable[[], Order]]) -> None:
    """A form whose button starts a job, and below it the card of the address's job.

    `form` draws the fields and returns what makes the order of them, which may take seconds and
    is called only when the button was pressed. What either raises is shown in its place, above the
    card.
    """
    st.header("As a job", anchor=False)
    st.caption(
        f"{words} It goes on when this tab is closed, and the command line sees the same run."
    )
    with told():
        with st.form("job_form", border=True):
            order = form()
            pressed = st.form_submit_button("Start as a job", type="primary")
        if pressed:
            with st.spinner("Starting …"):
                start(settings, order())
    show_job_of_address()


def start(settings: Settings, order: Order) -> None:
    """Start the job and put it into the address. Raises what `start_job` raises."""
    st.query_params[ADDRESS] = start_job(settings, order.kind, order.key)


def show_job_of_address() -> None:
    """The card of the address's job, and a link to the page of runs; nothing without a job."""
    run_id = st.query_params.get(ADDRESS)
    if run_id:
        job_card(run_id)
        st.page_link(
            VIEWS / "runs.py", label="Open on the page of runs", query_params={"run": run_id}
        )


def job_card(run_id: str) -> None:
    """Where a run stands, read again every second, or less often once it has stopped unfinished.

    So a page that nobody touches sees what a terminal or another tab does with the run. Nothing is
    raised for a run that is damaged, gone or no run at all: the card says so.
    """
    settings = settings_from_environment()
    every = None
    with told():
        every = _pace(job_of(settings, run_id))
    st.fragment(_show, run_every=every)(run_id, every)


def _pace(job: Job) -> int | None:
    """How often a job is read again; None for what is final."""
    if job.active or job.closing:
        return SECONDS
    return None if job.status in ("finished", "gone") else IDLE_SECONDS


def _show(run_id: str, every: int | None) -> None:
    settings = settings_from_environment()
    with told(), st.container(border=True):
        job = job_of(settings, run_id)
        _show_state(job)
        _show_buttons(settings, job)
        if job.record is not None:
            st.caption(as_text(job.record.words))
        if job.log:
            with st.expander("What its process said"):
                st.code(job.log, language=None, wrap_lines=True)
        # Last, so that a button that was pressed a moment ago has been heeded.
        if _pace(job) != every:  # the page around it may say something else now
            st.rerun()


def _show_state(job: Job) -> None:
    """Name, status and progress, and in words what is the matter."""
    with st.container(horizontal=True, vertical_alignment="center"):
        st.markdown(f"**{as_text(job.id)}**", width="content")
        st.badge(job.status, color=_COLOURS.get(job.status, "orange"))  # type: ignore[arg-type]
    if job.state is None:
        st.warning(as_text(job.trouble))
        return
    state = job.state
    if state.total:
        share = min(1.0, max(0.0, state.done / state.total))
        st.progress(share, as_text(f"{state.message} {state.done} of {state.total}".strip()))
    elif job.active:
        st.progress(0.0, as_text(state.message or "on its way"))
    if not job.active:
        why = "" if state.message in ("", job.status) else f" Last word: {state.message}"
        (st.error if job.status == "failed" else st.caption)(as_text(_WORDS[job.status] + why))


def _show_buttons(settings: Settings, job: Job) -> None:
    """Cancel or Resume, whichever there is to do; and the same for a terminal."""
    if job.active and st.button("Cancel", key=f"cancel-{job.id}"):
        with told():
            cancel_job(settings, job.id)
        st.rerun()
    if job.may_resume and st.button("Resume", key=f"resume-{job.id}"):
        with told():
            resume_job(settings, job.id)
            st.rerun()
    if job.obstacle:
        st.caption(as_text(job.obstacle))
    verb = "cancel" if job.active else "resume" if job.may_resume else "show"
    if job.state is not None:
        command = ("mnemoscope", "runs", verb, job.id, "--runs", str(settings.runs_root))
        with st.expander("The same in a terminal"):
            st.code(shlex.join(command), language="bash", wrap_lines=True)
