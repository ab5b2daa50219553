"""What the first page is about: the question in the sidebar, the model and the two answers."""

from __future__ import annotations

from dataclasses import dataclass

import polars
import streamlit as st

from ..probes.conflict_heads import Role
from . import cached, selection
from .answers import Answers, Question, first_ids
from .arrival import QUESTION
from .settings import Settings
from .switched_cached import readings_of
from .switched_off import NOTHING, Switched
from .switched_readings import Reading

PROMPT, CONTEXT = "The capital of France is", "The capital of France is Rome."
WITHOUT, WITH = "without context", "with context"
OF_A_QUESTION = (
    *QUESTION,
    *("source", "role", "pattern", "hidden", "units", *selection.HEADS),
)
"""Names of the question's fields, and of what was chosen to be shown of its answers."""


@dataclass(frozen=True, eq=False)
class Scene:
    """What the whole page is about: settings, model, question, what was said, the answers."""

    settings: Settings
    label: str
    loaded: cached.Loaded
    question: Question
    said: tuple[str, ...]
    answers: Answers

    @property
    def named(self) -> list[tuple[str, str]]:
        """(name, text) of each text of the question."""
        return list(zip((WITHOUT, WITH), self.question.texts, strict=False))

    @property
    def facts(self) -> dict[str, str]:
        """What is asked, for a saved view."""
        answers = {"memory answer": self.answers.memory, "context answer": self.answers.context}
        said = {name: text for name, text in answers.items() if text is not None}
        asked = {"model": self.label, "prompt": self.question.prompt}
        return {**asked, "context": self.question.context, **said}

    def ids(self, text: str) -> dict[str, int]:
        """Role to the first token of its answer after this text."""
        return first_ids(self.loaded.model, text, self.answers)


@dataclass(frozen=True, eq=False)
class Grid:
    """The scores on show: one role's frame, and where it came from."""

    frame: polars.DataFrame
    role: Role
    method: str
    run_id: str | None


def sidebar(settings: Settings, prefix: str = "") -> tuple[str, Question, tuple[str, str]]:
    """Model, prompt, context and typed answers; each is part of the address, under its name there
    with the prefix."""
    with st.sidebar:
        label = selection.choose_model(settings, f"{prefix}model", of_a_question=OF_A_QUESTION)
        prompt = st.text_area(
            "Prompt", PROMPT, key=f"{prefix}prompt", bind="query-params", height=90
        )
        context = st.text_area(
            "Context, put before the prompt (optional)",
            CONTEXT,
            key=f"{prefix}context",
            bind="query-params",
            height=90,
        )
        memory = st.text_input(
            "Memory answer",
            key=f"{prefix}mem",
            bind="query-params",
            placeholder="the model's own",
            help="Empty: the first word that the model says without the context.",
        )
        claimed = st.text_input(
            "Context answer",
            key=f"{prefix}ctx",
            bind="query-params",
            placeholder="what the context claims",
            help="Empty: the model's answer with the context, or the context's last word.",
        )
        st.caption("Changes take effect with Ctrl+Enter in a box, Enter in a field, or Tab.")
    return label, Question(prompt, context), (memory, claimed)


def reading(scene: Scene, switched: Switched = NOTHING) -> tuple[Reading, ...]:
    """Answers and probabilities with this change; of the model as it is without one."""
    question, answers = scene.question, scene.answers
    return readings_of(
        scene.loaded,
        scene.loaded.key,
        question.prompt,
        question.context,
        answers.memory,
        answers.context,
        switched,
    )


def shown_text(scene: Scene) -> tuple[str, str]:
    """Name and text of what the "Pattern" switch shows; the last text where it names none."""
    named = dict(scene.named)
    name = st.session_state.get("pattern")
    name = name if name in named else scene.named[-1][0]
    return name, named[name]
