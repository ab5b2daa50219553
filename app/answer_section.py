"""First section: what the model says with and without the context."""

from __future__ import annotations

import streamlit as st

from ..probes.conflict_heads import ROLES
from . import cached, exports
from .charts import next_token_chart
from .plain import as_text, told
from .scene import WITHOUT, Scene, reading


def show_answers(scene: Scene) -> None:
    """Greedy answers and next tokens, side by side."""
    anatomy = scene.loaded.model.anatomy
    exports.caption(
        f"{as_text(scene.label)}: {anatomy.n_layers} layers of {anatomy.n_heads} query heads "
        f"({anatomy.n_kv_heads} key/value heads), on {scene.loaded.model.device}."
    )
    exports.markdown(
        f"Memory answer: :blue-badge[{as_text(scene.answers.memory or 'none')}] "
        f"({scene.answers.memory_from}). &nbsp; Context answer: "
        f":orange-badge[{as_text(scene.answers.context or 'none')}] ({scene.answers.context_from})."
    )
    columns = st.columns(2, gap="large")
    for column, (name, text), said in zip(columns, scene.named, scene.said, strict=False):
        with column, told():
            show_next(scene, name, text, said)
    if scene.question.given is None:
        with columns[1]:
            exports.info("Type a context on the left to see the answer with it.")


def show_next(scene: Scene, name: str, text: str, said: str) -> None:
    """One text: what the model says, the answers' probabilities, the next tokens."""
    exports.subheader(name.capitalize())
    exports.quote(said.strip("\n") or "(nothing)")
    ids = scene.ids(text)
    table = cached.next_tokens(scene.loaded, scene.loaded.key, text)
    before = reading(scene)[0 if name == WITHOUT else 1]
    for place, role in zip(st.columns(2), ROLES, strict=True):
        if role in ids:
            exports.metric(place, f"P({role} answer)", f"{before.probability[role]:.3f}")
    exports.chart(
        next_token_chart(table, ids),
        name=f"next tokens {name}",
        alt=f"Ten most probable next tokens {name}.",
    )
    exports.caption(f"The ten most probable next tokens {name}; ␣ marks a space.")
