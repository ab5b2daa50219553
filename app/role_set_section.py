"""The chosen heads: links that switch them off live; as a head set, with what pruning changes."""

from __future__ import annotations

from collections.abc import Sequence

import streamlit as st

from ..models.types import HeadId
from .head_files import chosen_set, save_as
from .head_set_section import counted, note_saved, saved_file, show_pruning
from .plain import as_text, told
from .role_expression import Chosen
from .role_scene import RETRIEVAL, RoleScene, plain_name
from .role_scores import heads_in
from .trace_inside_section import LINK, VIEWS

LIVE = {"explore": "Memory or context?", "retrieval": "Who reads the context?"}
"""Pages that switch heads off, and their titles."""
MOST = 200
"""Heads that an address is given at most: some 2,500 characters."""


def show_role_set(scene: RoleScene, expression: str, chosen: Chosen) -> None:
    """Try the set live, or name and save it; then what pruning by it would change."""
    heads = heads_in(chosen.mask)
    if not heads:
        return
    show_live(scene.label, heads)
    save_form(scene, expression, chosen, heads)
    file = saved_file("saved_roles", (scene.loaded.key, heads))
    show_pruning(scene.settings, scene.label, heads, file)


def show_live(label: str, heads: Sequence[HeadId]) -> None:
    """Links to the pages that ask the model without these heads."""
    if len(heads) > MOST:
        st.caption(
            f"{len(heads)} heads are more than the {MOST} that a link carries: save them, then "
            "load the file on the page that switches heads off."
        )
        return
    for view, title in LIVE.items():
        st.page_link(
            VIEWS / f"{view}.py",
            label=f"Switch these off on “{title}”",
            icon=LINK,
            query_params=off_address(label, heads),
        )


def off_address(label: str, heads: Sequence[HeadId]) -> dict[str, str | list[str]]:
    """These heads zeroed and nothing else changed, whatever the page was left with."""
    off = [str(head) for head in heads]
    return {"model": label, "off": off, "of": "output", "mode": "zero", "units": ""}


def save_form(scene: RoleScene, expression: str, chosen: Chosen, heads: tuple[HeadId, ...]) -> None:
    """Name and save."""
    ranking = scene.ranking(chosen)
    with st.form("save_roles", border=False):
        name = st.text_input("File name", plain_name(expression), key="role_file")
        force = st.checkbox("Replace a file of this name", key="role_replace")
        st.caption(
            as_text(
                f"The file keeps the {ranking.name} scores of the heads, the expression, the rule "
                "of each role and where its scores come from."
            )
        )
        pressed = st.form_submit_button(f"Save them as a head set ({counted(len(heads))})")
    if not pressed:
        return
    with told():
        runs = {scene.role(one).run_id for one in used(scene, chosen)}
        made = chosen_set(
            scene.loaded.model,
            heads,
            ranking.frame,
            expression,
            name=name.strip(),
            method=provenance(scene, expression, chosen),
            run_id=runs.pop() if len(runs) == 1 else None,
        )
        path = save_as(scene.settings.head_sets, name, made, force=force)
        note_saved("saved_roles", (scene.loaded.key, heads), path)
        st.success(as_text(f"Saved {counted(len(heads))} to {path}."))


def used(scene: RoleScene, chosen: Chosen) -> tuple[str, ...]:
    """The roles on show that an expression goes by."""
    parts = [
        one.name
        for one in scene.roles
        if one.name in chosen.names
        or (RETRIEVAL in chosen.names and RETRIEVAL not in scene.masks and one.family == RETRIEVAL)
    ]
    return tuple(parts)


def provenance(scene: RoleScene, expression: str, chosen: Chosen) -> str:
    """Where a chosen set comes from, in one line that goes into its file."""
    parts = [
        f"{one.name}: {scene.rule.of(one)}, {one.method}, from {one.source}"
        for one in (scene.role(name) for name in used(scene, chosen))
    ]
    ranking = scene.ranking(chosen).name
    weights = scene.loaded.model.weights_sha256[:12]
    return (
        f"set algebra: {' '.join(expression.split())} [{'; '.join(parts)}]; scores: {ranking}; "
        f"weights {weights}"
    )
