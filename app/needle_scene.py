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
from . import background, cached, exports, needle_cached, selection
from .arrival import QUESTION
from .forecast import LONGEST_WAIT, rough_pace, trial_seconds
from .needle_trial import (
    MODES,
    NEW_TOKENS,
    Asked,
    Hay,
    Mode,
    NeedleTrial,
    lengths_for,
    longest_text,
    run_trial,
    score_frame,
)
from .own_haystack import DEPTHS, OwnText, split
from .own_haystack_fields import choose_source, own_text
from .settings import Settings

KINDS: tuple[NeedleKind, ...] = ("literal", "non-literal")
OF_A_QUESTION = (*QUESTION, "units", *selection.HEADS)
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
    asked: Hay
    found: NeedleTrial
    mode: Mode

    @property
    def own(self) -> OwnText | None:
        """The text of one's own, None for a made needle."""
        return self.asked if isinstance(self.asked, OwnText) else None

    @property
    def hay(self) -> str:
        """The haystack in words."""
        if isinstance(self.asked, OwnText):
            return f"{self.found.trial.length} tokens of one's own text"
        return f"{self.asked.length} tokens, depth {self.asked.depth + 1} of {DEPTHS}"

    @property
    def stamp(self) -> tuple[str, Hay, Mode]:
        """What results of this trial are kept by: the load, what was asked, the mode."""
        return self.loaded.key, self.asked, self.mode

    @property
    def facts(self) -> dict[str, str]:
        """What is asked, for a saved view."""
        needle, asked = self.found.needle, self.asked
        if isinstance(asked, OwnText):
            told = {"context": asked.context, "answer": needle.answer}
        else:
            told = {"needle number": str(asked.seed)}
        return {
            "model": self.label,
            "needle": needle.statement,
            "question": needle.questions[self.found.trial.question],
            "haystack": self.hay,
            **told,
        }

    def frame(self, score: str) -> polars.DataFrame:
        """The grid of a score."""
        return score_frame(self.found, self.mode, score)

    def steps(self, head: HeadId) -> polars.DataFrame:
        """What each token of the answer read in a head."""
        return needle_cached.steps_of(self.loaded, self.found, *self.stamp, head)


def needle_sidebar(settings: Settings) -> NeedleScene | None:
    """Model and trial, each part of the address; None while a long trial waits for a click, or
    there is no text to read."""
    with st.sidebar:
        label = selection.choose_model(settings, of_a_question=OF_A_QUESTION)
    loaded = cached.loaded_model(settings.models[label])
    source = choose_source()
    asked = ask_for(loaded.model) if source == "made" else own_text(settings, source)
    if asked is None:
        exports.info("No text to read yet: choose a file on the left, or paste one.")
        return None
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
    # Without the lock: another thread may be at the trial, and takes it for each of its passes.
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


def may_run(loaded: cached.Loaded, asked: Hay) -> bool:
    """Whether the trial is short, or was asked for by a click and is over.

    Raises `PromptError` for a text of one's own that is empty or too long.
    """
    if isinstance(asked, OwnText):
        length = len(split(loaded.model, asked, longest_text(loaded.model)).ids)
    else:
        length = asked.length
    # The haystack, and the question with its answers behind it; both are answered step by step.
    tokens, steps = length + 8 * NEW_TOKENS, 2 * NEW_TOKENS

    def seconds() -> float:
        rough = trial_seconds(loaded.model, rough_pace(loaded.model), tokens, steps)
        if rough <= LONGEST_WAIT * SURELY_SHORT:
            return rough
        with st.spinner("Seeing how fast this machine is now …"):
            pace = needle_cached.pace_of(loaded, loaded.key, asked)
        return trial_seconds(loaded.model, pace, tokens, steps)

    return background.ready(
        "trial",
        (loaded.key, asked),
        seconds,
        lambda tell: run_trial(loaded.model, asked, tell),
        label="Run the trial",
        words="Hiding the needle and asking for it",
        hint="A long haystack on this machine: the trial waits for a click.",
    )


def forget_unless(key: str, options: object) -> None:
    """A choice of another model that is not offered here is made anew."""
    if key in st.session_state and st.session_state[key] not in options:  # type: ignore[operator]
        del st.session_state[key]
