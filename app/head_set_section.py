"""Fourth section: keep what is changed, as a head set for `prune` or a neuron set; load a set."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from pathlib import Path

import streamlit as st

from ..data.facts.items import relation_names
from ..models.checkpoint_files import file_sha256
from ..models.errors import MnemoscopeError
from ..models.types import HeadId
from . import cached, exports, selection
from .head_files import (
    chosen_set,
    dry_run,
    heads_of,
    plain_name,
    prune_command,
    pruned_name,
    pruned_root,
    pruning,
    save_as,
    saved_sets,
)
from .job_forms import show_prune_now
from .neuron_files import ablate_command, save_units, units_by_hand
from .plain import as_text, told
from .scene import Grid, Scene
from .settings import Settings
from .switched_off import OFF, HeadChange, Switched


@dataclass(frozen=True)
class Saved:
    """A file that was saved on a page; `stamp` is what was chosen there then."""

    stamp: Hashable
    path: Path
    sha256: str


def note_saved(key: str, stamp: Hashable, path: Path) -> None:
    """Note in the session, under this key, what was saved."""
    st.session_state[key] = Saved(stamp, path, file_sha256(path))


def saved_file(key: str, stamp: Hashable) -> Path | None:
    """The file that was saved under this key; None once something else is chosen, or the file is
    gone or another one."""
    kept = st.session_state.get(key)
    if kept is None or kept.stamp != stamp or not kept.path.is_file():
        return None
    return Path(kept.path) if file_sha256(kept.path) == kept.sha256 else None


def show_head_sets(scene: Scene, grid: Grid | None, switched: Switched) -> None:
    """Save the heads that are changed, or load a set."""
    st.header("Head set", anchor=False)
    stamp = (scene.loaded.key, switched.heads, switched.change)
    left, right = st.columns(2, gap="large")
    with left:
        save_form(scene, grid, switched.heads, stamp)
    with right:
        load_form(scene.settings, scene.label)
    file = saved_file("saved_heads", stamp)
    show_pruning(scene.settings, scene.label, switched.heads, file, switched.change)
    if switched.units:
        show_changed_units(scene, switched)


def save_form(scene: Scene, grid: Grid | None, heads: tuple[HeadId, ...], stamp: Hashable) -> None:
    """Name and save."""
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
        note_saved("saved_heads", stamp, path)
        st.success(as_text(f"Saved {counted(len(heads))} to {path}."))


def show_pruning(
    settings: Settings,
    label: str,
    heads: Sequence[HeadId],
    file: Path | None,
    change: HeadChange = OFF,
) -> None:
    """What a checkpoint with this change of the heads would differ in; once they are saved in a
    file, also the command that writes it, and the button that starts it as a job."""
    if not heads:
        return
    place, folder = settings.models[label], pruned_root(settings)
    if file is None:
        show_plan(place, heads, folder, change)
        return
    with told():
        exports.subheader("As a checkpoint")
        first = pruned_name(place, file, change)
        name = st.text_input(as_text(f"Folder to write in {folder}"), first, key=f"prune_{first}")
        config = pruning(place, file, folder / plain_name(name.strip()), change)
        exports.quote(prune_command(config, settings.runs_root))
        exports.caption("This writes a copy of the checkpoint with these heads changed for good.")
        with st.expander("Dry run: what it would change", expanded=True):
            exports.quote(dry_run(config))
        show_prune_now(settings, config)


def show_plan(place: str, heads: Sequence[HeadId], folder: Path, change: HeadChange) -> None:
    """The dry run of heads that are not saved, or why there can be none; no part of a saved view,
    as nobody asked for it."""
    with st.expander("Dry run: what a checkpoint with this change would differ in"):
        try:
            plan = dry_run(pruning(place, heads, folder, change))
            st.code(plan, language=None, wrap_lines=True)
        except MnemoscopeError as error:
            st.caption(as_text(str(error)))
    st.caption("Save the heads for the command that writes the checkpoint, and to start it.")


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
    change = switched.unit_op, switched.unit_factor
    stamp = (scene.loaded.key, switched.units, change)
    with told():
        if pressed:
            kept = units_by_hand(scene.loaded.model, switched.units, relation)
            path = save_units(scene.settings.neuron_sets, name, kept, force=force)
            note_saved("saved_changed_units", stamp, path)
            st.success(as_text(f"Saved {len(switched.units)} units to {path}."))
    file = saved_file("saved_changed_units", stamp)
    if file is not None:
        place, runs = scene.settings.models[scene.label], scene.settings.runs_root
        exports.quote(ablate_command(place, file, len(switched.units), *change, runs))
        exports.caption(
            "Units are no part of `prune`: run this to ask many facts without them, beside matched "
            "random units."
        )


def load_form(settings: Settings, label: str) -> None:
    """Choose a file of the head-set folder; its heads become the list."""
    files = saved_sets(settings.head_sets)
    if not files:
        st.info(as_text(f"No head set in {settings.head_sets} yet: save one first."))
        return
    file_name = st.selectbox("Saved head sets", files, key="saved")
    # No scene: what a button is given lives until it is shown again, and a model with it.
    st.button("Load", on_click=load_set, args=(settings, label, file_name))
    problem = st.session_state.pop("load_problem", None)
    if problem:
        st.error(as_text(problem))


def load_set(settings: Settings, label: str, file_name: str) -> None:
    """Callback: the set's heads are picked and listed."""
    try:
        model = cached.loaded_model(settings.models[label]).model
        heads = heads_of(settings.head_sets, file_name, model)
    except MnemoscopeError as error:
        st.session_state["load_problem"] = str(error)
        return
    st.session_state["follow"] = True
    selection.pick_heads(heads)


def counted(n: int) -> str:
    """Heads with their number: "no heads", "1 head", "2 heads"."""
    return "1 head" if n == 1 else f"{n or 'no'} heads"
