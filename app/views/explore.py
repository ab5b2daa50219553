"""One prompt, with and without a context: answers, heads, patterns, heads off, head sets."""

from __future__ import annotations

import streamlit as st
from mnemoscope.app import cached, exports
from mnemoscope.app.answer_section import show_answers
from mnemoscope.app.answers import resolve_answers
from mnemoscope.app.head_section import show_heads
from mnemoscope.app.head_set_section import show_head_sets
from mnemoscope.app.job_forms import show_heads_job
from mnemoscope.app.lens_section import show_lens
from mnemoscope.app.plain import told
from mnemoscope.app.scene import Scene, sidebar
from mnemoscope.app.settings import settings_from_environment
from mnemoscope.app.switch_section import show_switch


def page() -> None:
    """The whole page, top to bottom."""
    settings = settings_from_environment()
    st.title("Memory or context?")
    label, question, typed = sidebar(settings)
    with told():
        loaded = cached.loaded_model(settings.models[label])
        with st.spinner("Asking the model …"):
            said = cached.greedy_texts(loaded, loaded.key, question.prompt, question.context)
        answers = resolve_answers(question, said, *typed)
        scene = Scene(settings, label, loaded, question, said, answers)
        exports.about(scene.facts, exports.measured_on(loaded.model, "conflict heads, one prompt"))
        show_answers(scene)
        grid = show_heads(scene)
        show_lens(scene)
        switched = show_switch(scene)
        show_head_sets(scene, grid, switched)
    with told():  # whatever became of the prompt: the address may name a job
        show_heads_job(settings, label)


page()
