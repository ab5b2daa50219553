"""Save the heads that read the needle."""

from __future__ import annotations

from dataclasses import replace

import streamlit as st

from ..models.types import HeadId
from .head_files import chosen_set, save_as
from .head_set_section import counted, show_pruning
from .needle_scene import NeedleScene
from .needle_trial import SCORES
from .plain import as_text, told
from .switched_cached import means_for
from .switched_off import Switched

ROLE = "retrieval"


def show_needle_set(scene: NeedleScene, score: str, switched: Switched) -> None:
    """Save the heads that are changed, or as many of the best as are chosen; then the command that
    writes the change into a checkpoint, and its dry run."""
    st.header("Head set", anchor=False)
    best = (
        scene.frame(score).drop_nulls("score").sort("score", descending=True, maintain_order=True)
    )
    if best.is_empty():
        return
    with st.form("save_readers", border=False):
        count = 0
        if switched.heads:
            st.caption(f"The {counted(len(switched.heads))} changed above.")
        else:
            count = st.number_input("Best heads", 1, best.height, min(8, best.height), key="best")
        name = st.text_input("File name", "my-readers", key="reader_file")
        force = st.checkbox("Replace a file of this name", key="reader_replace")
        pressed = st.form_submit_button("Save them as a head set")
    if not pressed:
        return
    with told():
        rows = best.head(int(count)).iter_rows(named=True)
        heads = switched.heads or [HeadId(row["layer"], row["head"]) for row in rows]
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
        st.success(as_text(f"Saved {counted(len(heads))} to {path}."))
        means = means_for(scene.loaded, replace(switched, units=())).heads
        show_pruning(scene.settings, scene.label, path, heads, switched.change, means)
        st.caption("One trial is an anecdote: measure many needles before you conclude.")
