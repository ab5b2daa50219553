"""Sections of "Heads by role": the map with a head's card, the set algebra, overlap and profile."""

from __future__ import annotations

import numpy as np
import polars
import streamlit as st

from ..models.types import HeadId
from . import exports, selection
from .head_grid import head_grid
from .head_set_section import counted
from .patterns import sharing
from .plain import as_text, told
from .role_expression import Chosen, evaluate
from .role_grid import WIDE, role_map
from .role_overlap import (
    ALPHA,
    BY_CHOICE,
    DRAWS,
    HIGHER,
    NOT_BETTER,
    overlap_table,
    profile_table,
)
from .role_scene import RETRIEVAL, RoleScene
from .role_scores import heads_in

ALL = "all roles"
_ROUND = {"format": "%.3f"}


def show_expression(scene: RoleScene) -> Chosen | None:
    """The field for the expression, and the heads that it chooses; None while it cannot be read."""
    names = list(scene.sets)
    text = st.text_input(
        "Which heads?",
        _example(names),
        key="expr",
        bind="query-params",
        placeholder=_example(names),
        help="Roles with and, or, not, minus and brackets; also &, |, ! and -.",
    )
    chosen = None
    with told():
        chosen = evaluate(text, scene.sets)
    whole = f" {RETRIEVAL} stands for any of its roles." if RETRIEVAL not in scene.masks else ""
    whole = whole if RETRIEVAL in names else ""
    exports.caption(as_text(f"Names: {', '.join(names)}.{whole}"))
    return chosen


def show_map(scene: RoleScene, chosen: Chosen | None) -> None:
    """The map of all roles or of one score, and the clicked head, in a fragment of their own: a
    click changes nothing else."""
    st.fragment(show_map_and_head)(scene, chosen)


def show_map_and_head(scene: RoleScene, chosen: Chosen | None) -> None:
    """The map on the left, the clicked head on the right, with their own errors."""
    with exports.section("map"), told():
        show_both(scene, chosen)


def show_both(scene: RoleScene, chosen: Chosen | None) -> None:
    """Which map, then map and head."""
    mask = scene.none if chosen is None else chosen.mask
    shown = st.segmented_control(
        "Map of",
        [ALL, *scene.masks],
        default=ALL,
        required=True,
        key="map",
        bind="query-params",
    )
    wide = mask.shape[1] > WIDE
    left, right = (st.container(), st.container()) if wide else st.columns(2, gap="large")
    with right:  # first, as the map begins with the head of these fields
        show_head(scene, mask)
    with left:
        if shown in scene.masks:
            _show_one(scene, shown)
        else:
            _show_all(scene, mask)


def _show_all(scene: RoleScene, mask: np.ndarray) -> None:
    key = selection.grid_key(
        scene.loaded.key, scene.rule, tuple(scene.masks), mask.tobytes(), "roles"
    )
    role_map(
        scene.roles,
        scene.masks,
        mask,
        key=key,
        start=selection.start_of(key),
        on_pick=selection.on_pick,
    )
    exports.caption(
        "A strip in a cell is a role of that head; strips keep their place in every cell. Framed: "
        "the heads that the expression chooses. Click a cell for its scores, or type its layer "
        "and head."
    )


def _show_one(scene: RoleScene, name: str) -> None:
    role = scene.role(name)
    key = selection.grid_key(scene.loaded.key, role.source, name)
    head_grid(
        role.frame,
        key=key,
        title=f"{name} score, higher: more of this role",
        start=selection.start_of(key),
        on_pick=selection.on_pick,
    )
    test = "cells with q > 0.05 are faded" if role.tested else "nothing is tested"
    exports.caption(as_text(f"{role.source}: {role.method}; {test}."))


def show_head(scene: RoleScene, mask: np.ndarray) -> None:
    """Every role's score of the chosen head, its place in the ranking and its q."""
    anatomy = scene.loaded.model.anatomy
    selection.start_with_best(scene.roles[0].frame)
    selection.head_fields(anatomy)
    head = selection.chosen_head()
    exports.subheader(f"Head {head}")
    framed = "in the set" if mask[head.layer, head.head] else "not in the set"
    exports.caption(f"{head} {sharing(anatomy, head)}; it is {framed}.")
    exports.table(
        head_table(scene, head),
        name=f"roles of {head}",
        columns={
            "has it": st.column_config.CheckboxColumn(width="small"),
            "score": st.column_config.NumberColumn(**_ROUND, width="small"),
            "rank": st.column_config.NumberColumn(width="small"),
        },
        alt=f"Scores of {head} in every role on show.",
    )


def head_table(scene: RoleScene, head: HeadId) -> polars.DataFrame:
    """One row a role: whether the head has it, its score with interval, q and rank."""
    rows = []
    for one in scene.roles:
        row = one.frame.row(
            by_predicate=(polars.col("layer") == int(head.layer))
            & (polars.col("head") == int(head.head)),
            named=True,
        )
        better = None if row["score"] is None else int((one.grid > row["score"]).sum()) + 1
        interval = "" if row["low"] is None else f"{row['low']:.3f} to {row['high']:.3f}"
        rows.append(
            {
                "role": one.name,
                "has it": bool(scene.masks[one.name][head.layer, head.head]),
                "score": row["score"],
                "rank": better,
                "q": "not tested" if row["q"] is None else f"{row['q']:.2g}",
                "interval": interval,
            }
        )
    return polars.DataFrame(rows, schema_overrides={"score": polars.Float64, "rank": polars.Int64})


def show_roles(scene: RoleScene) -> None:
    """How many heads have each role, by what rule, from where."""
    rows = [
        {
            "role": one.name,
            "heads": int(scene.masks[one.name].sum()),
            "chosen by": scene.rule.of(one),
            "source": one.source,
            "score": one.method,
        }
        for one in scene.roles
    ]
    exports.table(
        polars.DataFrame(rows),
        name="roles on show",
        alt="Roles on show with rule, source and number of heads.",
    )
    empty = [row["role"] for row in rows if not row["heads"]]
    if empty:
        exports.info(
            as_text(f"No head has {', '.join(map(str, empty))} by this rule: ")
            + "raise q, choose by rank, or measure more trials."
        )


def show_overlap(scene: RoleScene) -> None:
    """Every pair of roles: shared heads beside chance."""
    exports.header("Do roles share heads?")
    table = overlap_table(scene.masks)
    if table.is_empty():
        exports.info("Two roles with heads are needed: show another role, or loosen the rule.")
        return
    alike = int((table["verdict"] == NOT_BETTER).sum())
    if alike:
        exports.badge(f"{alike} of {table.height} pairs: {NOT_BETTER}", color="orange")
    numbers = {
        name: st.column_config.NumberColumn(**_ROUND)
        for name in ("Jaccard", "chance", "chance, low", "chance, high")
    }
    numbers["q"] = st.column_config.NumberColumn(format="%.2g", width="small")
    exports.table(
        table, name="overlap of roles", columns=numbers, alt="Overlap of every pair of roles."
    )
    exports.caption(
        "Jaccard: shared heads over all heads of the two. Chance: its mean over random sets with "
        "as many heads in each layer, and the middle 95 % of them; exact, no draws. q: that pairs "
        "without a link share so many, or so few, heads, corrected for the number of pairs; above "
        f"{ALPHA} the verdict is *not better than random*."
    )


def show_profile(scene: RoleScene, chosen: Chosen) -> None:
    """What the chosen heads score in every role, beside random heads of the same layers."""
    heads = heads_in(chosen.mask)
    exports.header(f"The set: {counted(len(heads))}")
    if not heads:
        exports.info("No head is left: loosen the rule in the sidebar, or ask for less.")
        return
    exports.markdown(as_text(" ".join(map(str, heads[:60])) + (" …" if len(heads) > 60 else "")))
    named = [one.name for one in scene.roles if one.name in chosen.names]
    if RETRIEVAL in chosen.names and RETRIEVAL not in scene.masks:
        named += [one.name for one in scene.roles if one.family == RETRIEVAL]
    table, note = profile_table(scene.roles, chosen.mask, named)
    others = table.filter(polars.col("verdict") != BY_CHOICE)
    if not others.is_empty() and not (others["verdict"] == HIGHER).any():
        exports.badge(f"{NOT_BETTER} in every score that did not choose it", color="orange")
    numbers = {
        name: st.column_config.NumberColumn(**_ROUND)
        for name in ("mean score", "random, low", "random, high")
    }
    exports.table(
        table, name="scores of the set", columns=numbers, alt="Mean scores of the chosen heads."
    )
    exports.caption(
        as_text(
            f"Mean score of these heads beside the range of {DRAWS} random sets of the same layers "
            "and size. A score that chose the heads is high by choice and proves nothing; the "
            f"others tell. A set that does nothing special falls outside the range of {DRAWS} sets "
            f"one time in ten.{f' Matching: {note}' if note else ''}"
        )
    )


def _example(names: list[str]) -> str:
    """A first expression: the best-known question where its roles are on show."""
    if RETRIEVAL in names and "memory" in names:
        return f"{RETRIEVAL} and not memory"
    if {"memory", "context"} <= set(names):
        return "memory and not context"
    return names[0]
