"""Download what "Heads by role" is about as a whole: every score, and a tree for HeadVis."""

from __future__ import annotations

from collections.abc import Callable
from weakref import ref

import streamlit as st

from ..models.errors import MnemoscopeError
from ..results.head_vis import HeadVisTree
from . import exports
from .cached import Loaded
from .chart_files import csv_bytes, parquet_bytes
from .role_exports import head_vis_tree, with_attention, zipped
from .role_expression import Chosen
from .role_scene import RoleScene
from .role_scores import tidy

TEXTS = 4


def show_export(scene: RoleScene, chosen: Chosen | None) -> None:
    """Buttons for the table of all scores and for the tree that HeadVis reads."""
    exports.header("All scores as files")
    mask = scene.none if chosen is None else chosen.mask
    expression = "nothing" if chosen is None else str(st.session_state["expr"])
    stem = f"{scene.loaded.model.name}-heads-by-role"
    table = tidy(scene.roles, scene.rule, mask)
    deep = st.checkbox(
        f"HeadVis with every head's attention on {TEXTS} neutral texts",
        key="deep",
        bind="query-params",
        help="Without, the tree holds scores alone: its scatter plot works, its texts are empty.",
    )

    plain = head_vis_tree(scene.loaded.model, scene.roles, mask, expression)
    tree = zip_later(plain, scene.loaded if deep else None)
    left, middle, right = st.columns(3)
    with left:
        exports.file_button("Scores (CSV)", lambda: csv_bytes(table), f"{stem}.csv", "text/csv")
    with middle:
        kind = "application/vnd.apache.parquet"
        name = f"{stem}.parquet"
        exports.file_button("Scores (Parquet)", lambda: parquet_bytes(table), name, kind)
    with right:
        name = f"{stem}-headvis.zip"
        exports.file_button("HeadVis tree (zip)", tree, name, "application/zip")
    st.caption(
        "One row a role and head: score, interval, q, source, whether the head has the role and is "
        "in the set. HeadVis and Neuronpedia read the tree; unpack it as their `data` folder."
    )


def zip_later(tree: HeadVisTree, loaded: Loaded | None) -> Callable[[], bytes]:
    """What zips the tree, with the attention of this model in it if one is given.

    It does not keep the model: Streamlit lets go of downloads only after the next page is there,
    and the next model is loaded before. It raises `MnemoscopeError` when the model is gone.
    """
    if loaded is None:
        return lambda: zipped(tree)
    kept = ref(loaded)

    def made() -> bytes:
        there = kept()
        if there is None:
            raise MnemoscopeError("this model is no longer loaded: load the page again.")
        return zipped(with_attention(tree, there.model, TEXTS))

    return made
