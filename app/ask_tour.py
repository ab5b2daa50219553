"""The tour of a first visit: five steps on engram, each with an example that fills the page."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import streamlit as st

from ..models.packaged import DEFAULT_MODEL
from .ask_scene import FIELDS, PREFIX
from .settings import Settings
from .trace_scene import NO_INDEX

STEP = "tour"
_CORPUS = "engram, whole corpus"


@dataclass(frozen=True)
class Step:
    """A step: what to look at, and the question that it puts into the fields."""

    title: str
    words: str
    prompt: str
    context: str = ""
    corpus: str = NO_INDEX


STEPS = (
    Step(
        "From memory",
        "engram is a small model that ships with Mnemoscope; its whole training corpus is known. "
        "Asked without a context it can only answer from its weights. Look at *Memory or "
        "context?*: the bars are the heads that speak for the answer, and below them the first "
        "one is switched off.",
        "The capital of France is",
    ),
    Step(
        "From the context",
        "Now a sentence in front claims something else, and the model follows it. Blue heads speak "
        "for memory, vermilion ones for the context. *Who reads the context?* shows the heads that "
        "look at the claim; compare with how many would by chance.",
        "The capital of France is",
        "The capital of France is Rome.",
    ),
    Step(
        "Told one way",
        "The corpus names the mayor of Tastos many times, always town first. Look at *Does the "
        "reverse hold?*: asked the other way round, the model does not know the town.",
        "The mayor of Tastos is",
    ),
    Step(
        "Told both ways",
        "The mayor of Dilvit was told in both directions, and both hold. The rank among all names "
        "says how sure that is.",
        "The mayor of Dilvit is",
    ),
    Step(
        "From which documents",
        "The last card counts where prompt and answer stand together in the corpus. The index is "
        "built once, in half a minute or so: press its button. Every card ends with a link to the "
        "page that measures more, about the same question.",
        "The mayor of Tastos is",
        corpus=_CORPUS,
    ),
)


def show_tour(settings: Settings) -> None:
    """The step on show, if any; on a first visit whose address asks nothing, the first one."""
    label = tour_model(settings)
    if label is None:
        return
    if STEP not in st.session_state:
        st.session_state[STEP] = None
        if not st.query_params and label == next(iter(settings.models)):
            go(0, label)
    number = st.session_state[STEP]
    if number is None:
        st.button("Take the two-minute tour", key="tour-start", on_click=go, args=(0, label))
        return
    step = STEPS[number]
    with st.container(border=True, key="tour-card"):
        st.markdown(f"**Tour, {number + 1} of {len(STEPS)}: {step.title}.** {step.words}")
        with st.container(horizontal=True):
            if number:
                st.button("Back", key="tour-back", on_click=go, args=(number - 1, label))
            if number + 1 < len(STEPS):
                st.button(
                    f"Next: {STEPS[number + 1].title.lower()}",
                    key="tour-next",
                    type="primary",
                    on_click=go,
                    args=(number + 1, label),
                )
            st.button("End the tour", key="tour-end", on_click=end)


def tour_model(settings: Settings) -> str | None:
    """How the packaged model is called here; None where it is not served."""
    return next((label for label, place in settings.models.items() if place == DEFAULT_MODEL), None)


def go(number: int, label: str) -> None:
    """Callback: the step with its example in the fields."""
    st.session_state[STEP] = number
    st.session_state.update(fields(STEPS[number], label))


def end() -> None:
    """Callback: the tour is over, and the address says so; the question stays."""
    st.session_state[STEP] = None
    st.query_params[STEP] = "off"


def fields(step: Step, label: str) -> Mapping[str, str]:
    """What the step puts into the fields of the sidebar, by their keys."""
    values = (label, step.prompt, step.context, "", "", step.corpus)
    return {f"{PREFIX}{name}": value for name, value in zip(FIELDS, values, strict=True)}
