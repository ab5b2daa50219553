"""Every head's roles on one map, sets of them by algebra, and what such a set is worth."""

from __future__ import annotations

import streamlit as st
from mnemoscope.app import exports
from mnemoscope.app.plain import told
from mnemoscope.app.role_export_section import show_export
from mnemoscope.app.role_import_section import show_import
from mnemoscope.app.role_scene import ESTIMAND, role_sidebar
from mnemoscope.app.role_section import (
    show_expression,
    show_map,
    show_overlap,
    show_profile,
    show_roles,
)
from mnemoscope.app.role_set_section import show_role_set
from mnemoscope.app.settings import settings_from_environment


def page() -> None:
    """The whole page, top to bottom."""
    settings = settings_from_environment()
    st.title("Heads by role")
    with told():
        scene = role_sidebar(settings)
        if scene is not None:
            chosen = show_expression(scene)
            exports.about(scene.facts, exports.measured_on(scene.loaded.model, ESTIMAND))
            show_map(scene, chosen)
            show_roles(scene)
            if chosen is not None:
                show_profile(scene, chosen)
                show_role_set(scene, str(st.session_state["expr"]), chosen)
            show_overlap(scene)
            show_export(scene, chosen)
    with told():
        show_import(settings)


page()
