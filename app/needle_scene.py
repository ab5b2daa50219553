"""What the page about retrieval is about: the model, the haystack and the trial of the sidebar."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import polars
import streamlit as st

from ..data.facts.needle_templates import TOPICS
from ..data.facts.needles import NeedleKind
from ..models.hooked import HookedModel
from ..models.types import HeadId
from ..probes.retrieval_designs import TAUGHT
from . import cached, needle_cached, selection
from .forecast import LONGEST_WAIT, rough_pace, trial_seconds
from .needle_trial import (
    DEPTHS,
    MODES,
    NEW_TOKENS,
    Asked,
    Mode,
    NeedleTrial,
    lengths_for,
    score_frame,
)
from .settings import Settings

KINDS: tuple[NeedleKind, ...] = ("literal", "non-literal")
FIRST_LENGTH = 512
MOST_SEEDS = 99
SURELY_SHORT = 0.05
"""A rough forecast of so small a part of the longest wait is trusted unmeasured."""
SPAN_COLOURS: Mapping[str, str] = {
    "needle": "#0072B2",
    "answer": "#D55E00",
    "rival": "#8A8F98",
    "question": "#009E73",
}
"""Okabe and Ito (2008), as in the other charts."""


@dataclass(frozen=True, eq=False)
class NeedleScene:
    """What the whole page is about; `mode` says which answer's rows are on show."""

    settings: Settings
    label: str
    loaded: cached.Loaded
    asked: Asked
    found: NeedleTrial
    mode: Mode

    @property
    def stamp(self) -> tuple[str, Asked, Mode]:
        """What results of this trial are kept by: the load, what was asked, the mode."""
        return self.loaded.key, self.asked, self.mode

    @property
    def facts(self) -> dict[str, str]:
        """What is asked, for a saved view."""
        needle, asked = self.found.needle, self.asked
        return {
            "model": self.label,
            "needle": needle.statement,
            "question": needle.questions[self.found.trial.question],
            "haystack": f"{asked.length} tokens, depth {asked.depth + 1} of {DEPTHS}",
            "needle number": str(asked.seed),
        }

    def frame(self, score: str) -> polars.DataFrame:
        """The grid of a score."""
        return score_frame(self.found, self.mode, score)

    def steps(self, head: HeadId) -> polars.DataFrame:
        """What each token of the answer read in a head."""
        return needle_cached.steps_of(self.loaded, self.found, *self.stamp, head)


def needle_sidebar(settings: Settings) -> NeedleScene | None:
    """Model and trial, each part of the address; None while a long trial waits for a click."""
    with st.sidebar:
        label = selection.choose_model(settings)
    loaded = cached.loaded_model(settings.models[label])
    asked = ask_for(loaded.model)
    with st.sidebar:
        mode: Mode = st.segmented_control(
            "Rows of",
            MODES,
            default="forced",
            required=True,
            key="answer",
            bind="query-params",
            help="The gold answer put behind the question (forced), or what the model says by "
            "itself (free).",
        )
    if not may_run(loaded, asked):
        return None
    with loaded.model.lock:
        found = needle_cached.trial_of(loaded, loaded.key, asked)
    return NeedleScene(settings, label, loaded, asked, found, mode)


def ask_for(model: HookedModel) -> Asked:
    """The trial: length, depth, kind and number of the needle, a rival beside it or not."""
    lengths = lengths_for(model)
    forget_unless("length", lengths)
    with st.sidebar:
        length = st.select_slider(
            "Haystack, tokens",
            lengths,
            max(n for n in lengths if n <= FIRST_LENGTH),
            key="length",
            bind="query-params",
        )
        depth = st.select_slider(
            "Depth of the needle, fifths",
            range(1, DEPTHS + 1),
            3,
            key="depth",
            bind="query-params",
            help="1: in the first fifth of the haystack, 5: in the last.",
        )
        kind: NeedleKind = st.segmented_control(
            "Needle",
            KINDS,
            default="literal",
            required=True,
            key="kind",
            bind="query-params",
            help="A non-literal needle shares no content word with its question.",
        )
        topic = None
        if kind == "literal":
            topics = TAUGHT.get(model.name, TOPICS["literal"])
            forget_unless("topic", topics)
            topic = st.selectbox("About", topics, key="topic", bind="query-params")
        seed = st.number_input(
            "Number",
            1,
            MOST_SEEDS,
            1,
            key="seed",
            bind="query-params",
            help="Another number is another needle in another haystack.",
        )
        rival = st.toggle(
            "A rival beside it",
            key="rival",
            bind="query-params",
            help="Another statement of the same kind, half the haystack away.",
        )
    return Asked(length, depth - 1, kind, topic, int(seed), rival)


def may_run(loaded: cached.Loaded, asked: Asked) -> bool:
    """Whether the trial is short, was run, or is asked for by a click."""
    # The haystack, and the question with its answers behind it; both are answered step by step.
    tokens, steps = asked.length + 8 * NEW_TOKENS, 2 * NEW_TOKENS
    trial = (loaded.key, asked)
    rough = trial_seconds(loaded.model, rough_pace(loaded.model), tokens, steps)
    if st.session_state.get("asked") == trial or rough <= LONGEST_WAIT * SURELY_SHORT:
        return True
    with st.spinner("Seeing how fast this machine is now …"):
        pace = needle_cached.pace_of(loaded, loaded.key, asked)
    seconds = trial_seconds(loaded.model, pace, tokens, steps)
    if seconds <= LONGEST_WAIT:
        return True
    st.info("A long haystack on this machine: the trial waits for a click.")
    if not st.button(f"Run the trial (about {seconds:.0f} s at the present pace)", type="primary"):
        return False
    st.session_state["asked"] = trial
    return True


def forget_unless(key: str, options: object) -> None:
    """A choice of another model that is not offered here is made anew."""
    if key in st.session_state and st.session_state[key] not in options:  # type: ignore[operator]
        del st.session_state[key]
