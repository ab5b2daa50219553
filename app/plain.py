"""Text that people or models wrote, shown as text: Streamlit reads most strings as Markdown."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager

import streamlit as st

from ..models.errors import MnemoscopeError

_MARKS = re.compile(r"([!-/:-@\[-`{-~])")


def as_text(text: str) -> str:
    """The text with every Markdown mark escaped, so that no link, image or colour comes of it."""
    return _MARKS.sub(r"\\\1", text)


@contextmanager
def told() -> Iterator[None]:
    """Show a `MnemoscopeError` of the block where the block stands; all else goes on upward."""
    try:
        yield
    except MnemoscopeError as error:
        st.error(as_text(str(error)))
