"""Who reads the context: one needle in a haystack, heads that read it, and their maps."""

from __future__ import annotations

import streamlit as st
from mnemoscope.app import exports
from mnemoscope.app.atlas_section import show_maps
from mnemoscope.app.job_forms import show_retrieval_job
from mnemoscope.app.needle_scene import NeedleScene, needle_sidebar
from mnemoscope.app.needle_section import show_readers, show_trial
from mnemoscope.app.needle_set_section import show_needle_set
from mnemoscope.app.needle_switch_section import show_needle_switch
from mnemoscope.app.plain import told
from mnemoscope.app.settings import settings_from_environment


def page() -> None:
    """The whole page, top to bottom."""
    settings = settings_from_environment()
    st.title("Who reads the context?")
    with told():
        scene = needle_sidebar(settings)
        if scene is not None:
            show_needle(scene)
    with told():  # whatever became of the trial: the address may name a job
        show_retrieval_job(settings, st.session_state["model"])


def show_needle(scene: NeedleScene) -> None:
    """The sections about the trial."""
    exports.about(scene.facts, exports.measured_on(scene.loaded.model, "one needle trial"))
    show_trial(scene)
    score = show_readers(scene)
    show_maps(scene)
    switched = show_needle_switch(scene)
    show_needle_set(scene, score, switched)


page()
