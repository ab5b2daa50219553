"""Fourth section: keep what is changed, as a head set for `prune` or a neuron set; load a set."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import streamlit as st
from torch import Tensor

from ..data.facts.items import relation_names
from ..models.errors import MnemoscopeError
from ..models.types import HeadId
from . import selection
from .head_files import chosen_set, dry_run, heads_of, prune_command, save_as, saved_sets
from .neuron_files import ablate_command, save_units, units_by_hand
from .plain import as_text, told
from .scene import Grid, Scene
from .settings import Settings
from .switched_cached import means_for
from .switched_off import OFF, HeadChange, Switched


def show_head_sets(scene: Scene, grid: Grid | None, switched: Switched) -> None:
    """Save the heads that are changed, or load a set."""
    st.header("Head set", anchor=False)
    left, right = st.columns(2, gap="large")
    with left:
        save_form(scene, grid, switched)
    with right:
        load_form(scene)
    if switched.units:
        show_changed_units(scene, switched)


def save_form(scene: Scene, grid: Grid | None, switched: Switched) -> None:
    """Name and save; then the command that writes the change into a checkpoint, and its dry run."""
    heads = switched.heads
    with st.form("save", border=False):
        name = st.text_input("File name", "my-heads", key="file_name")
        force = st.checkbox("Replace a file of this name", key="replace")
        pressed = st.form_submit_button(f"Save the list ({counted(len(heads))})")
    if not pressed:
        return
    with told():
        if grid is None:
            raise MnemoscopeError("there are no scores on show to save: choose a score above.")
        head_set = chosen_set(
            scene.loaded.model,
            heads,
            grid.frame,
            grid.role,
            name=name.strip(),
            method=grid.method,
            run_id=grid.run_id,
        )
        path = save_as(scene.settings.head_sets, name, head_set, force=force)
        st.success(as_text(f"Saved {counted(len(heads))} to {path}."))
        means = means_for(scene.loaded, replace(switched, units=())).heads
        show_pruning(scene.settings, scene.label, path, heads, switched.change, means)


def show_pruning(
    settings: Settings,
    label: str,
    path: Path,
    heads: Sequence[HeadId],
    change: HeadChange = OFF,
    means: Mapping[HeadId, Tensor] | None = None,
) -> None:
    """The command that writes the change of a saved set into a checkpoint, and its dry run.

    Raises what `prune_command` and `dry_run` raise.
    """
    checkpoint = settings.models[label]
    command = prune_command(checkpoint, path, f"{label}-pruned", change)
    st.code(command, language="bash", wrap_lines=True)
    st.caption("Run this to write a copy of the checkpoint with these heads changed for good.")
    with st.expander("Dry run: what it would change", expanded=True):
        st.code(dry_run(checkpoint, heads, change, means), language=None, wrap_lines=True)


def show_changed_units(scene: Scene, switched: Switched) -> None:
    """Name and save the units; then the command that asks many facts without them."""
    with st.form("save_changed_units", border=False):
        left, right = st.columns(2)
        name = left.text_input("File name of the units", "my-units", key="changed_units_file")
        names = list(relation_names())
        first = names.index("capital") if "capital" in names else 0
        relation = right.selectbox("Relation to ask about", names, first, key="changed_units_about")
        force = st.checkbox("Replace a file of this name", key="changed_units_replace")
        pressed = st.form_submit_button(f"Save the units ({len(switched.units)})")
    if not pressed:
        return
    with told():
        kept = units_by_hand(scene.loaded.model, switched.units, relation)
        path = save_units(scene.settings.neuron_sets, name, kept, force=force)
        st.success(as_text(f"Saved {len(switched.units)} units to {path}."))
        place, runs = scene.settings.models[scene.label], scene.settings.runs_root
        change = switched.unit_op, switched.unit_factor
        command = ablate_command(place, path, len(switched.units), *change, runs)
        st.code(command, language="bash", wrap_lines=True)
        st.caption(
            "Units are no part of `prune`: run this to ask many facts without them, beside matched "
            "random units."
        )


def load_form(scene: Scene) -> None:
    """Choose a file of the head-set folder; its heads become the list."""
    files = saved_sets(scene.settings.head_sets)
    if not files:
        st.info(as_text(f"No head set in {scene.settings.head_sets} yet: save one first."))
        return
    file_name = st.selectbox("Saved head sets", files, key="saved")
    st.button("Load", on_click=load_set, args=(scene, file_name))
    problem = st.session_state.pop("load_problem", None)
    if problem:
        st.error(as_text(problem))


def load_set(scene: Scene, file_name: str) -> None:
    """Callback: the set's heads are picked and listed."""
    try:
        heads = heads_of(scene.settings.head_sets, file_name, scene.loaded.model)
    except MnemoscopeError as error:
        st.session_state["load_problem"] = str(error)
        return
    st.session_state["follow"] = True
    selection.pick_heads(heads)


def counted(n: int) -> str:
    """Heads with their number: "no heads", "1 head", "2 heads"."""
    return "1 head" if n == 1 else f"{n or 'no'} heads"
