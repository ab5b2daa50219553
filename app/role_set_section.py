"""Save the chosen heads as a head set, with the command that prunes by it and its dry run."""

from __future__ import annotations

import streamlit as st

from .head_files import chosen_set, save_as
from .head_set_section import counted, show_pruning
from .plain import as_text, told
from .role_expression import Chosen
from .role_scene import RETRIEVAL, RoleScene, plain_name
from .role_scores import heads_in


def show_role_set(scene: RoleScene, expression: str, chosen: Chosen) -> None:
    """Name and save; then what pruning by the file would change."""
    heads = heads_in(chosen.mask)
    if not heads:
        return
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
        st.success(as_text(f"Saved {counted(len(heads))} to {path}."))
        show_pruning(scene.settings, scene.label, path, heads)


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
