"""Which units tell a relation, and what the model says without them."""

from __future__ import annotations

import streamlit as st
from mnemoscope.app import exports
from mnemoscope.app.job_forms import show_neurons_job
from mnemoscope.app.neuron_card_section import show_unit
from mnemoscope.app.neuron_overview_section import show_layers, show_verdicts
from mnemoscope.app.neuron_scene import neuron_sidebar
from mnemoscope.app.neuron_set_section import show_unit_set
from mnemoscope.app.neuron_switch_section import show_unit_switch
from mnemoscope.app.plain import told
from mnemoscope.app.settings import settings_from_environment


def page() -> None:
    """The whole page, top to bottom."""
    settings = settings_from_environment()
    st.title("Which neurons know a relation?")
    with told():
        scene = neuron_sidebar(settings)
        if scene is None:
            show_neurons_job(settings, st.session_state["model"])
            return
        exports.about(
            {"model": scene.label, "run": scene.run.id, "relation": scene.relation},
            exports.measured_on(scene.loaded.model, "relation units of a run"),
        )
        show_verdicts(scene)
        show_layers(scene)
        show_unit(scene)
        show_unit_set(scene, show_unit_switch(scene))
        show_neurons_job(settings, scene.label)


page()
