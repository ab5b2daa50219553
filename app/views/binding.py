"""Does a fact that was learned one way come back the other way, and if not, why not?"""

from __future__ import annotations

import streamlit as st
from mnemoscope.app import exports
from mnemoscope.app.binding_curve_section import show_curves
from mnemoscope.app.binding_pair_section import show_all, show_pair
from mnemoscope.app.binding_scene import binding_sidebar, show_pair_count
from mnemoscope.app.binding_swap_section import show_swap
from mnemoscope.app.job_forms import show_binding_job
from mnemoscope.app.plain import told
from mnemoscope.app.settings import settings_from_environment


def page() -> None:
    """The whole page, top to bottom."""
    settings = settings_from_environment()
    st.title("Does it hold both ways?")
    with told():
        scene = binding_sidebar(settings)
        exports.about(
            {"model": scene.label, "pairs": scene.name, "on show": f"{len(scene.pairs.pairs)}"},
            exports.measured_on(scene.loaded.model, "pairs asked in both directions"),
        )
        show_pair_count(scene)
        # A container each: widgets that move down the page drop out of the address.
        with st.container():
            place = show_pair(scene)
        with st.container(), told():
            show_all(scene)
        with st.container():
            show_curves(scene)
        with st.container():
            show_swap(scene, place)
    with told():  # whatever became of the pairs: the address may name a job
        show_binding_job(settings, st.session_state["model"])


page()
