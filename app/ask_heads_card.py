"""First cards: what the model says, the probabilities of both answers, the heads behind them."""

from __future__ import annotations

import polars
import streamlit as st

from ..models.types import HeadId
from ..probes.conflict_heads import ROLES, Role
from . import cached, exports
from .ask_charts import effect_chart
from .ask_links import may_start, onward
from .ask_scene import AskScene, answer_sentence
from .forecast import sweep_seconds
from .plain import as_text
from .scene import Scene, reading
from .switch_section import random_changes_of, show_verdict
from .switched_off import Switched
from .switched_readings import no_better_than_random

SHOWN = 8


def fill_answer(asked: AskScene) -> None:
    """Greedy answers with and without the context, and where the two answers come from."""
    with st.spinner("Asking the model …"):
        scene = asked.scene()
    named = list(zip(scene.named, scene.said, strict=True))
    for place, ((name, _), said) in zip(st.columns(2), named, strict=False):
        with place:
            exports.caption(name.capitalize())
            exports.quote(said.strip("\n") or "(nothing)")
    answers = scene.answers
    exports.markdown(
        f"Memory answer: :blue-badge[{as_text(answers.memory or 'none')}] ({answers.memory_from}). "
        f"&nbsp; Context answer: :orange-badge[{as_text(answers.context or 'none')}] "
        f"({answers.context_from})."
    )


def fill_heads(asked: AskScene) -> None:
    """Probabilities, the heads with the largest direct effect, and the first of them off."""
    scene = asked.scene()
    show_probabilities(scene)
    if not may_start(asked, "Score all heads", sweep_seconds(asked.loaded.model)):
        return
    table = effects(scene)
    exports.chart(
        effect_chart(table.head(SHOWN), both=scene.answers.both is not None),
        name="heads by direct effect",
        alt=f"The {SHOWN} heads with the largest direct effect on the answer.",
    )
    exports.caption(
        "Direct effect: change of the answers' logits at the end of the prompt when the head's "
        "output there is set to zero and all other heads are held still. One prompt: no interval."
    )
    role, first = speaker(scene, table)
    show_off(scene, role, first)
    onward(
        "explore",
        f"All heads of this prompt, {first} chosen",
        {**asked.address, "layer": str(first.layer), "head": str(first.head)},
    )


def show_probabilities(scene: Scene) -> None:
    """First-token probabilities of the two answers."""
    with st.spinner("Asking the model …"):
        readings = reading(scene)
    for (name, _), one in zip(scene.named, readings, strict=True):
        exports.caption(name.capitalize())
        for place, role in zip(st.columns(2), ROLES, strict=True):
            if role in one.probability:
                exports.metric(place, f"P({role} answer)", f"{one.probability[role]:.3f}")
    if len(readings) == 1:
        exports.caption("Type a context on the left to see whom the model follows.")


def effects(scene: Scene) -> polars.DataFrame:
    """`layer`, `head`, `score` (above zero: speaks for the memory answer, or for the only one), the
    largest first."""
    loaded, answers = scene.loaded, scene.answers
    text = scene.question.given or scene.question.closed
    with st.spinner("Scoring all heads …"):
        table = cached.scores_of_prompt(loaded, loaded.key, text, answers.memory, answers.context)
    role = "memory" if "memory" in table.columns else "context"
    return table.select("layer", "head", polars.col(role).alias("score")).sort(
        polars.col("score").abs(), descending=True, maintain_order=True
    )


def speaker(scene: Scene, table: polars.DataFrame) -> tuple[Role, HeadId]:
    """The likelier answer's role, with the context if there is one, and the head that speaks most
    for it."""
    likely = reading(scene)[-1].probability
    role: Role = max((role for role in ROLES if role in likely), key=lambda name: likely[name])
    falling = role == "memory" or scene.answers.both is None
    best = table.sort("score", descending=falling).row(0, named=True)
    return role, HeadId(best["layer"], best["head"])


def show_off(scene: Scene, role: Role, head: HeadId) -> None:
    """The head switched off everywhere, beside random heads of its layer."""
    with st.spinner("Asking again without it …"):
        before, after = reading(scene)[-1], reading(scene, Switched((head,)))[-1]
    was, now = before.probability[role], after.probability[role]
    exports.markdown(
        f"{head} speaks most for the {role} answer. Without it the model says "
        f"“{as_text(answer_sentence(after.said).strip())}”, and P({role} answer) goes from "
        f"{was:.3f} to {now:.3f}."
    )
    drawn = random_changes_of(scene, Switched((head,)))
    if drawn is None or before.contrast is None:
        return
    contrasts = drawn.contrast[-1]
    spread = [contrast - before.contrast for contrast in contrasts]
    show_verdict(no_better_than_random(before, after, contrasts), spread)
