"""What a page has shown so far in this session, so that it can be saved as it stands.

The list lives in the session's state: two tabs have two. A run of the whole page begins it anew; a
fragment that runs by itself replaces its own section and leaves the rest.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import TypeAlias
from urllib.parse import urlencode, urlsplit

import streamlit as st
from streamlit.runtime.scriptrunner import get_script_run_ctx

from ..results.bundle import Bundle, Part
from ..results.provenance import Provenance, provenance_beyond_a_model

Shown: TypeAlias = "Callable[[], Part]"
"""A part of the view, made when somebody saves it."""

_STATE = "kept_view"


@dataclass(eq=False)
class Section:
    """Parts and sections in the order in which they were shown."""

    parts: list[Shown | Section] = field(default_factory=list)

    def all(self) -> Iterator[Shown]:
        """The parts from top to bottom, those of sections in their places."""
        for part in tuple(self.parts):
            if isinstance(part, Section):
                yield from part.all()
            else:
                yield part


@dataclass(eq=False)
class View:
    """One page of one session; `address` holds every switch that the address holds."""

    title: str
    question: Mapping[str, str] = field(default_factory=dict)
    provenance: Provenance | None = None
    address: str = ""
    settings: Mapping[str, str] = field(default_factory=dict)
    root: Section = field(default_factory=Section)
    sections: dict[str, Section] = field(default_factory=dict)

    def look_at_address(self) -> None:
        """Note the address and the switches as they are now."""
        values = {name: st.query_params.get_all(name) for name in st.query_params}
        values |= _switches()
        place = urlsplit(st.context.url or "")._replace(query="", fragment="").geturl()
        self.address = f"{place}?{urlencode(values, doseq=True)}" if values else place
        self.settings = {name: ", ".join(several) for name, several in values.items()}

    def bundle(self) -> Bundle:
        """Everything on show."""
        return Bundle(
            self.title,
            self.question,
            self.address,
            self.settings,
            [made() for made in self.root.all()],
            self.provenance or nobody("what a page of the explorer showed"),
        )


_here: ContextVar[Section | None] = ContextVar("here", default=None)


def begin(title: str) -> View:
    """A new view: a page is about to be shown from its top."""
    view = View(title)
    view.look_at_address()
    st.session_state[_STATE] = view
    return view


def current() -> View | None:
    """The view of the page that is shown; None where nothing keeps one."""
    view = st.session_state.get(_STATE)
    return view if isinstance(view, View) else None


def keep(made: Shown) -> None:
    """Add a part at the place where the page is now."""
    view = current()
    if view is not None:
        (_here.get() or view.root).parts.append(made)


def reserve(*names: str) -> None:
    """Places for sections that fill in any order (parallel fragments)."""
    for name in names:
        _section_of(name)


@contextmanager
def section(name: str) -> Iterator[None]:
    """What is shown in the block replaces what this section showed before: put it into every
    fragment, which may run again without the rest of the page."""
    place = _section_of(name)
    if place is None:
        yield
        return
    place.parts.clear()
    view = current()
    if view is not None:
        view.look_at_address()
    token = _here.set(place)
    try:
        yield
    finally:
        _here.reset(token)


def nobody(estimand: str) -> Provenance:
    """The provenance of what no model had a part in."""
    return provenance_beyond_a_model(model_id="none", estimand=estimand, device="cpu", dtype="none")


def _switches() -> dict[str, list[str]]:
    """What the address will say of the widgets that are part of it.

    The browser writes it there; of what a callback or a first run has chosen the script itself
    hears only the next time.
    """
    context = get_script_run_ctx()
    if context is None:
        return {}
    with context.session_state.query_params() as params:
        bound = [str(name) for name in st.session_state if params.is_bound(str(name))]
    return {name: _in_address(st.session_state[name]) for name in sorted(bound)}


def _in_address(value: object) -> list[str]:
    if value is None:
        return []
    if isinstance(value, bool):
        return [str(value).lower()]
    if isinstance(value, list | tuple):
        return [str(one) for one in value]
    return [f"{value:g}" if isinstance(value, float) else str(value)]


def _section_of(name: str) -> Section | None:
    view = current()
    if view is None:
        return None
    if name not in view.sections:
        view.sections[name] = Section()
        (_here.get() or view.root).parts.append(view.sections[name])
    return view.sections[name]
