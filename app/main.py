"""The explorer's entry: Streamlit runs this file by its path (`app.launch` starts it)."""

from pathlib import Path

import streamlit as st
from mnemoscope.app import exports

VIEWS = Path(__file__).parent / "views"


def main() -> None:
    """The navigation, and the page that the address names."""
    st.set_page_config(page_title="Mnemoscope", layout="wide", initial_sidebar_state="expanded")
    page = st.navigation(
        [
            st.Page(
                VIEWS / "ask.py",
                title="Where does the answer come from?",
                url_path="ask",
                default=True,
            ),
            st.Page(VIEWS / "explore.py", title="Memory or context?", url_path="explore"),
            st.Page(
                VIEWS / "neurons.py", title="Which neurons know a relation?", url_path="neurons"
            ),
            st.Page(VIEWS / "retrieval.py", title="Who reads the context?", url_path="retrieval"),
            st.Page(VIEWS / "heads.py", title="Heads by role", url_path="heads"),
            st.Page(
                VIEWS / "provenance.py",
                title="Which documents does it come from?",
                url_path="provenance",
            ),
            st.Page(VIEWS / "binding.py", title="Does it hold both ways?", url_path="binding"),
            st.Page(VIEWS / "runs.py", title="Runs", url_path="runs"),
            st.Page(VIEWS / "about.py", title="About", url_path="about"),
        ],
        position="top",
    )
    exports.begin(page.title)
    page.run()
    exports.save_view()


if __name__ == "__main__":  # processes that a page starts import this file, and must not run it
    main()
