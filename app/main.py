"""The explorer's entry: Streamlit runs this file by its path (`app.launch` starts it)."""

from pathlib import Path

import streamlit as st
from mnemoscope.app import exports
from mnemoscope.app.arrival import turn_to

HERE = Path(__file__).parent
PAGES = {
    "ask": ("Ask", "Where does the answer come from?"),
    "explore": ("Memory", "Memory or context?"),
    "neurons": ("Neurons", "Which neurons know a relation?"),
    "retrieval": ("Retrieval", "Who reads the context?"),
    "heads": ("Roles", "Heads by role"),
    "provenance": ("Documents", "Which documents does it come from?"),
    "binding": ("Binding", "Does it hold both ways?"),
    "runs": ("Runs", "Runs"),
    "about": ("About", "About"),
}
"""By the last part of the address: the word in the menu, where all have room at 1024 pixels, and
the page's own title."""


def main() -> None:
    """The navigation, and the page that the address names."""
    pages = [
        st.Page(
            HERE / "views" / f"{name}.py",
            title=word,
            url_path=name,
            default=name == "ask",
            help=title if title != word else None,
        )
        for name, (word, title) in PAGES.items()
    ]
    page = st.navigation(pages, position="top")
    title = dict(PAGES.values())[page.title]
    st.set_page_config(
        page_title=f"{title} · Mnemoscope", layout="wide", initial_sidebar_state="expanded"
    )
    st.html(HERE / "page.css")
    if st.context.theme.type == "dark":
        st.html(HERE / "page-dark.css")
    exports.begin(title)
    turn_to(page.url_path)
    page.run()
    exports.save_view()


if __name__ == "__main__":  # processes that a page starts import this file, and must not run it
    main()
