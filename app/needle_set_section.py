"""Save the heads that read the needle."""

from __future__ import annotations

import streamlit as st

from ..models.types import HeadId
from .head_files import chosen_set, prune_command, save_as
from .head_set_section import counted
from .needle_scene import NeedleScene
from .needle_trial import SCORES
from .plain import as_text, told

ROLE = "retrieval"


def show_needle_set(scene: NeedleScene, score: str) -> None:
    """Choose how many of the best heads; save them as a set."""
    st.header("Head set", anchor=False)
    best = (
        scene.frame(score).drop_nulls("score").sort("score", descending=True, maintain_order=True)
    )
    if best.is_empty():
        return
    with st.form("save_readers", border=False):
        count = st.number_input("Best heads", 1, best.height, min(8, best.height), key="best")
        name = st.text_input("File name", "my-readers", key="reader_file")
        force = st.checkbox("Replace a file of this name", key="reader_replace")
        pressed = st.form_submit_button("Save them as a head set")
    if not pressed:
        return
    with told():
        rows = best.head(int(count)).iter_rows(named=True)
        heads = [HeadId(row["layer"], row["head"]) for row in rows]
        method = (
            f"one needle trial ({scene.found.trial.needle_id}, {scene.asked.length} tokens, depth "
            f"{scene.asked.depth + 1} of 5, {scene.mode}): {SCORES[score][1]}"
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
        place = scene.settings.models[scene.label]
        st.code(
            prune_command(place, path, f"{scene.label}-pruned"), language="bash", wrap_lines=True
        )
        st.caption(
            "Run this to write a copy of the checkpoint without these heads. One trial is an "
            "anecdote: measure many needles before you conclude."
        )
