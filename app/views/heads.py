"""Every head's roles on one map, sets of them by algebra, and what such a set is worth."""

from __future__ import annotations

import streamlit as st
from mnemoscope.app import exports
from mnemoscope.app.job_section import VIEWS, show_job_of_address
from mnemoscope.app.plain import told
from mnemoscope.app.role_export_section import show_export
from mnemoscope.app.role_import_section import show_import
from mnemoscope.app.role_scene import ESTIMAND, role_sidebar
from mnemoscope.app.role_section import (
    show_expression,
    show_map,
    show_overlap,
    show_profile,
    show_roles,
)
from mnemoscope.app.role_set_section import show_role_set
from mnemoscope.app.settings import settings_from_environment


def page() -> None:
    """The whole page, top to bottom."""
    settings = settings_from_environment()
    st.title("Heads by role")
    with told():
        scene = role_sidebar(settings)
        if scene is None:
            show_jobs(st.session_state["model"])
        else:
            chosen = show_expression(scene)
            exports.about(scene.facts, exports.measured_on(scene.loaded.model, ESTIMAND))
            show_map(scene, chosen)
            show_roles(scene)
            if chosen is not None:
                show_profile(scene, chosen)
                show_role_set(scene, str(st.session_state["expr"]), chosen)
            show_overlap(scene)
            show_export(scene, chosen)
    show_job_of_address()  # whatever became of the scores
    with told():
        show_import(settings)


def show_jobs(label: str) -> None:
    """Links to the pages that start runs which score heads."""
    st.caption("More scores of heads come from runs that these pages start as jobs:")
    jobs = {
        "explore": "“Memory or context?”: memory and context",
        "retrieval": "“Who reads the context?”: copy, locate, emit, induction",
    }
    for view, words in jobs.items():
        st.page_link(VIEWS / f"{view}.py", label=words, query_params={"model": label})


page()
