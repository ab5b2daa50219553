"""What the entry page is about: model, question and index of the sidebar, and the way onward.

The model is loaded before the cards; what it says is asked for by whichever card comes first and
then kept for the others.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

import streamlit as st

from . import cached
from .answers import Question, resolve_answers
from .needle_scene import forget_unless
from .plain import as_text
from .scene import Scene, sidebar
from .settings import Settings
from .trace_corpus import Offer, offers
from .trace_scene import NO_INDEX

PREFIX = "ask_"
"""Before the names of this page's fields: Streamlit takes out of a link's address what has the name
of a field of the page that the link stands on."""
FIELDS = ("model", "prompt", "context", "mem", "ctx", "corpus")
"""The fields without it, as other pages have them."""
CORPUS = f"{PREFIX}corpus"
TEXTS = ("prompt", "context")
"""Fields of which nothing says something too: other pages begin with an example in them."""
_CAME_BACK = "the question came back"
_SENTENCE = re.compile(r"\s*.+?(?:[.!?](?=\s|$)|(?=\n)|$)")


@dataclass(frozen=True, eq=False)
class AskScene:
    """What all cards are about; `typed` are the two answers that somebody typed, or empty.

    `corpus` names the index, None where none is chosen.
    """

    settings: Settings
    label: str
    loaded: cached.Loaded
    question: Question
    typed: tuple[str, str]
    corpus: str | None

    @property
    def place(self) -> str:
        """The model's name or path in the allow-list."""
        return self.settings.models[self.label]

    @property
    def offer(self) -> Offer | None:
        """The index that is chosen."""
        return None if self.corpus is None else offers(self.settings)[self.corpus]

    @property
    def address(self) -> dict[str, str]:
        """Model and question as other pages take them from the address.

        The model that a page takes anyway, and answers that nobody typed, are left out: a page
        strips them from its address, one step of the browser's history each. `arrive` sees to it
        that none of an earlier visit takes their place.
        """
        asked = {
            "model": "" if self.label == next(iter(self.settings.models)) else self.label,
            "prompt": self.question.prompt,
            "context": self.question.context,
            "mem": self.typed[0],
            "ctx": self.typed[1],
        }
        return {name: value for name, value in asked.items() if value or name in TEXTS}

    def scene(self) -> Scene:
        """The question answered. Raises `MnemoscopeError` for an empty or too long prompt."""
        said = cached.greedy_texts(
            self.loaded, self.loaded.key, self.question.prompt, self.question.context
        )
        answers = resolve_answers(self.question, said, *self.typed)
        return Scene(self.settings, self.label, self.loaded, self.question, said, answers)


def ask_sidebar(settings: Settings) -> tuple[str, Question, tuple[str, str], str | None]:
    """Model, question, typed answers and index; each is part of the address."""
    label, question, typed = sidebar(settings, PREFIX)
    every = offers(settings)
    forget_unless(CORPUS, (NO_INDEX, *every))
    with st.sidebar:
        name = st.selectbox(
            "Look the answer up in (optional)",
            [NO_INDEX, *every],
            key=CORPUS,
            bind="query-params",
            help="An index of texts. `mnemoscope trace index` makes one of your own: keep it in "
            f"{as_text(str(settings.index_folder))}, or give it with --index at the start.",
        )
    return label, question, typed, None if name == NO_INDEX else name


def adopt_address() -> None:
    """Before the fields are drawn: a question in the names of the other pages is taken over.

    Where the browser's Back leads here from another page, what was asked here is not in the address
    that Streamlit restores. It goes back into it, and the script starts again, since the fields of
    a run that restores an address take nothing else.
    """
    came_back = st.session_state.pop(_CAME_BACK, False)
    returning = not came_back and any(name in st.session_state for name in FIELDS)
    for name in FIELDS:
        key = f"{PREFIX}{name}"
        if name in st.query_params:
            value = st.query_params[name]
            del st.query_params[name]
            if key not in st.session_state:
                st.session_state[key] = st.query_params[key] = value
        elif returning and st.session_state.get(key) and key not in st.query_params:
            st.session_state[key] = st.query_params[key] = st.session_state[key]
            st.session_state[_CAME_BACK] = True
    if _CAME_BACK in st.session_state:
        st.rerun()


def answer_sentence(said: str) -> str:
    """The first sentence or line of what was said; the model's ramblings behind it are cut off."""
    found = _SENTENCE.match(said)
    return said if found is None else found[0]
