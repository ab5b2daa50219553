"""Fourth section: save the heads of the list as a head set, or load one."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import streamlit as st

from ..models.errors import MnemoscopeError
from ..models.types import HeadId
from . import selection
from .head_files import chosen_set, dry_run, heads_of, prune_command, save_as, saved_sets
from .plain import as_text, told
from .scene import Grid, Scene
from .settings import Settings


def show_head_sets(scene: Scene, grid: Grid | None) -> None:
    """Save the heads of the list, or load a set."""
    st.header("Head set", anchor=False)
    left, right = st.columns(2, gap="large")
    with left:
        save_form(scene, grid)
    with right:
        load_form(scene)


def save_form(scene: Scene, grid: Grid | None) -> None:
    """Name and save; then the command that prunes by the file, and its dry run."""
    heads = [HeadId.parse(name) for name in st.session_state.get("off", [])]
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
        show_pruning(scene.settings, scene.label, path, heads)


def show_pruning(settings: Settings, label: str, path: Path, heads: Sequence[HeadId]) -> None:
    """The command that prunes by a saved set, and its dry run."""
    checkpoint = settings.models[label]
    command = prune_command(checkpoint, path, f"{label}-pruned")
    st.code(command, language="bash", wrap_lines=True)
    st.caption("Run this to write a copy of the checkpoint with these heads pruned.")
    with st.expander("Dry run: what it would change", expanded=True):
        st.code(dry_run(checkpoint, heads), language=None, wrap_lines=True)


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
