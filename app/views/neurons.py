"""Which units tell a relation, and what the model says without them."""

from __future__ import annotations

import streamlit as st
from mnemoscope.app import cached, exports
from mnemoscope.app.job_forms import show_neurons_job
from mnemoscope.app.neuron_card_section import show_unit
from mnemoscope.app.neuron_overview_section import show_layers, show_verdicts
from mnemoscope.app.neuron_scene import NeuronScene, neuron_sidebar
from mnemoscope.app.neuron_set_section import show_unit_set
from mnemoscope.app.neuron_switch_section import show_unit_switch
from mnemoscope.app.plain import told
from mnemoscope.app.settings import settings_from_environment
from mnemoscope.app.unit_text_section import show_any_unit


def page() -> None:
    """The whole page, top to bottom."""
    settings = settings_from_environment()
    st.title("Which neurons know a relation?")
    with told():
        scene = neuron_sidebar(settings)
        if scene is None:
            label = st.session_state["model"]
            show_any_unit(cached.loaded_model(settings.models[label]))
        else:
            show_units(scene)
    with told():  # whatever became of the run: the address may name a job
        show_neurons_job(settings, st.session_state["model"])


def show_units(scene: NeuronScene) -> None:
    """The sections about the run."""
    exports.about(
        {"model": scene.label, "run": scene.run.id, "relation": scene.relation},
        exports.measured_on(scene.loaded.model, "relation units of a run"),
    )
    show_verdicts(scene)
    show_layers(scene)
    show_unit(scene)
    show_unit_set(scene, show_unit_switch(scene))


page()
