"""Save the heads that read the needle."""

from __future__ import annotations

from collections.abc import Hashable

import streamlit as st

from ..models.types import HeadId
from .head_files import chosen_set, save_as
from .head_set_section import counted, load_form, note_saved, saved_file, show_pruning
from .needle_scene import NeedleScene
from .needle_trial import SCORES
from .plain import as_text, told
from .switched_off import Switched

ROLE = "retrieval"


def show_needle_set(scene: NeedleScene, score: str, switched: Switched) -> None:
    """Save the heads that are changed, or as many of the best as are chosen, or load a set; then
    what a checkpoint with the change would differ in."""
    st.header("Head set", anchor=False)
    left, right = st.columns(2, gap="large")
    with left:
        heads = switched.heads or choose_best(scene, score)
        if switched.heads:
            st.caption(f"The {counted(len(heads))} changed above.")
        stamp = (scene.loaded.key, heads, switched.change)
        if heads:
            save_form(scene, score, heads, stamp)
    with right:
        load_form(scene.settings, scene.label)
    file = saved_file("saved_readers", stamp)
    if file is not None or switched.heads:
        show_pruning(scene.settings, scene.label, heads, file, switched.change)
    if file is not None:
        st.caption("One trial is an anecdote: measure many needles before you conclude.")


def choose_best(scene: NeedleScene, score: str) -> tuple[HeadId, ...]:
    """As many of the heads with the highest scores as are asked for; none without scores."""
    frame = scene.frame(score).drop_nulls("score")
    best = frame.sort("score", descending=True, maintain_order=True)
    if best.is_empty():
        return ()
    count = st.number_input("Best heads", 1, best.height, min(8, best.height), key="best")
    rows = best.head(int(count)).iter_rows(named=True)
    return tuple(HeadId(row["layer"], row["head"]) for row in rows)


def save_form(scene: NeedleScene, score: str, heads: tuple[HeadId, ...], stamp: Hashable) -> None:
    """Name and save."""
    with st.form("save_readers", border=False):
        name = st.text_input("File name", "my-readers", key="reader_file")
        force = st.checkbox("Replace a file of this name", key="reader_replace")
        pressed = st.form_submit_button("Save them as a head set")
    if not pressed:
        return
    with told():
        method = (
            f"one needle trial ({scene.found.trial.needle_id}, {scene.hay}, {scene.mode}): "
            f"{SCORES[score][1]}"
        )
        kept = chosen_set(
            scene.loaded.model,
            heads,
            scene.frame(score),
            ROLE,
            name=name.strip(),
            method=method,
            run_id=None,
        )
        path = save_as(scene.settings.head_sets, name, kept, force=force)
        note_saved("saved_readers", stamp, path)
        st.success(as_text(f"Saved {counted(len(heads))} to {path}."))
