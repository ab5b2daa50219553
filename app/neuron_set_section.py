"""Fifth section: save the chosen units as a neuron set."""

from __future__ import annotations

import streamlit as st

from . import exports
from .head_set_section import note_saved, saved_file
from .neuron_files import ablate_command, part_of, save_units
from .neuron_scene import NeuronScene
from .neuron_switch_section import UnitChange
from .plain import as_text, told


def show_unit_set(scene: NeuronScene, chosen: UnitChange | None) -> None:
    """Name and save; then the command that measures what the units do."""
    if chosen is None:
        return
    st.header("Neuron set", anchor=False)
    n = len(chosen.units)
    units = "1 unit" if n == 1 else f"{n} units"
    with st.form("save_units", border=False):
        name = st.text_input("File name", "my-units", key="unit_file")
        force = st.checkbox("Replace a file of this name", key="unit_replace")
        pressed = st.form_submit_button(f"Save {units} of {as_text(scene.relation)}")
    stamp = (scene.loaded.key, scene.relation, chosen.units, chosen.change, chosen.factor)
    with told():
        if pressed:
            kept = part_of(scene.run.sets[scene.relation], chosen.units)
            path = save_units(scene.settings.neuron_sets, name, kept, force=force)
            note_saved("saved_units", stamp, path)
            st.success(as_text(f"Saved {units} to {path}."))
    file = saved_file("saved_units", stamp)
    if file is not None:
        place, runs = scene.settings.models[scene.label], scene.settings.runs_root
        exports.quote(ablate_command(place, file, n, chosen.change, chosen.factor, runs))
        exports.caption(
            "Run this to ask many facts of the relation without these units, beside 20 sets of "
            "matched random units."
        )
