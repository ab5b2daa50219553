"""Take over files of other projects as sources of roles."""

from __future__ import annotations

import streamlit as st

from ..models.errors import MnemoscopeError
from .plain import as_text
from .role_imports import FILE_KINDS, keep_import
from .role_sources import imports_folder
from .settings import Settings


def show_import(settings: Settings) -> None:
    """An upload that goes into the imports folder, where the sidebar finds it."""
    with st.expander("Import scores of other projects"):
        st.caption(
            as_text(
                "JSON of Retrieval_Head or CoRe and head sets of ours, YAML of QRHead, TSV of "
                "PruLong; a DuoAttention folder or a HeadVis tree as a zip. Larger ones: put them "
                f"into {imports_folder(settings)}."
            )
        )
        with st.form("import_roles", border=False, clear_on_submit=True):
            given = st.file_uploader("File", FILE_KINDS, key="import_file")
            pressed = st.form_submit_button("Import")
        if pressed and given is None:
            st.error("No file is chosen: choose one first.")
        elif pressed and given is not None:
            _keep(settings, given.name, given.getvalue())
        done = st.session_state.pop("imported", None)
        if done:
            st.success(as_text(f"Imported {done}: choose it under Scores from in the sidebar."))


def _keep(settings: Settings, name: str, content: bytes) -> None:
    """Keep the file and draw the page again, so that the sidebar lists it."""
    try:
        path = keep_import(imports_folder(settings), name, content)
    except MnemoscopeError as error:
        st.error(as_text(str(error)))
        return
    st.session_state["imported"] = path.name
    st.rerun()
