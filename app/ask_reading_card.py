"""Third card: the heads that read the context from the end of the prompt, and what they read."""

from __future__ import annotations

import streamlit as st

from . import ask_cached, exports
from .ask_charts import reader_chart
from .ask_links import onward
from .ask_reading import SHOWN, ContextReading
from .ask_scene import AskScene
from .plain import as_text


def fill_reading(asked: AskScene) -> None:
    """The strongest readers; without a context, how to give one."""
    question, loaded = asked.question, asked.loaded
    if question.given is None:
        exports.info("There is no context to read: type one on the left.")
        return
    answer = asked.scene().answers.context
    with st.spinner("Reading attention …"):
        found = ask_cached.reading_of(loaded, loaded.key, question.prompt, question.context, answer)
    best = found.best
    exports.chart(
        reader_chart(found.heads.head(SHOWN)),
        name="heads that read the context",
        alt=f"The {SHOWN} heads that look hardest at one token of the context, {best} first.",
    )
    exports.caption(
        f"END is the last token of the prompt, where the answer is decided. Even attention would "
        f"put {found.even:.3f} on each token. The text's first token, the sink, is left out."
    )
    if answer is not None:
        exports.markdown(words_on_answer(found, answer))
    head = {"layer": str(best.layer), "head": str(best.head)}
    onward("explore", f"The whole pattern of {best} on this prompt", {**asked.address, **head})
    onward(
        "retrieval",
        f"Follow {best} through this context, token by token",
        {**asked.address, **head, "hay": "my own"},
    )


def words_on_answer(found: ContextReading, answer: str) -> str:
    """How many of the strongest readers look at the answer, beside what chance would have."""
    if not found.n_answer:
        return f"“{as_text(answer)}” does not stand in the context."
    shown = min(SHOWN, found.heads.height)
    return (
        f"{found.on_answer()} of these {shown} look at “{as_text(answer)}”; looking at any token "
        f"of the context alike, {found.chance_on_answer():.1f} would."
    )
