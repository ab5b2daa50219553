"""Third section: heads, edges into them or units changed; answers before and after; controls."""

from __future__ import annotations

import streamlit as st

from ..models.types import HeadId
from . import cached, exports
from .answers import token_label
from .change_section import choose_op, choose_switched
from .charts import before_after_chart
from .fact_rates_section import show_rates
from .forecast import LONGEST_WAIT, control_seconds
from .plain import told
from .scene import Scene, reading, shown_text
from .switched_cached import control_of
from .switched_off import OF_TOKENS, HeadChange, Switched
from .switched_readings import (
    CONTROL_DRAWS,
    FEWER_DRAWS,
    Control,
    Reading,
    no_better_than_random,
)


def show_switch(scene: Scene) -> Switched:
    """Choose what is changed; answers before and after, beside a control; rates over many facts.

    Returns the change."""
    switched = choose_switched(scene.loaded.model, lambda heads: choose_change(scene, heads))
    if switched.nothing:
        return switched
    with told():
        show_change(scene, switched)
    with told():
        show_rates(scene, switched)
    return switched


def choose_change(scene: Scene, heads: tuple[HeadId, ...]) -> HeadChange:
    """What becomes of the heads, part of the address."""
    op, factor = choose_op()
    if op not in OF_TOKENS:
        return HeadChange(op, factor)
    name, text = shown_text(scene)
    labels = token_labels(scene, text)
    start_hidden(scene, heads, text, labels)
    hidden = st.multiselect(
        f"Edges to these tokens, {name}",
        labels,
        key="hidden",
        bind="query-params",
        placeholder="choose tokens of the text",
    )
    number = [name for name, _ in scene.named].index(name)
    return HeadChange(op, factor, tuple(sorted(map(labels.index, hidden))), number)


def token_labels(scene: Scene, text: str) -> list[str]:
    """Position and text of each token."""
    model = scene.loaded.model
    pieces = model.pieces(model.tokens(text).ids[0].tolist())
    return [f"{i} {token_label(piece)}" for i, piece in enumerate(pieces)]


def start_hidden(scene: Scene, heads: tuple[HeadId, ...], text: str, labels: list[str]) -> None:
    """Begin with the token that END reads most in the first of the heads, the sink and END itself
    left out; forget tokens of another text."""
    state = st.session_state
    if "hidden" in state:
        state["hidden"] = [label for label in state["hidden"] if label in labels]
    elif "hidden" not in st.query_params and heads and len(labels) > 2:
        layer, head = heads[0].layer, heads[0].head
        found = cached.pattern_of_head(scene.loaded, scene.loaded.key, text, layer, head)
        state["hidden"] = [labels[1 + int(found.end_row[1:-1].argmax())]]


def show_change(scene: Scene, switched: Switched) -> None:
    """Before and after for each text, then the same change of what should not matter."""
    if switched.of_tokens and not switched.change.hidden:
        exports.info("No token is chosen: choose one to change what the heads of the list see.")
        return
    with st.spinner("Asking again …"):
        before, after = reading(scene), reading(scene, switched)
    drawn = random_changes_of(scene, switched)
    what = compared_with(switched)
    touched = [i for i in range(len(scene.named)) if switched.holds_in(i)]
    for i, (column, (name, _)) in enumerate(
        zip(st.columns(2, gap="large"), scene.named, strict=False)
    ):
        with column:
            show_one_change(name, before[i], after[i], drawn if i in touched else None, i, what)
            if i not in touched:
                exports.caption("Nothing is changed here: choose the other pattern above.")
    if drawn is not None:
        note = f" Matching: {drawn.note}." if drawn.note else ""
        exports.caption(
            "Bars: probability of each answer's first token before and after. Grey: range of "
            f"{control_words(switched, len(drawn.contrast[0]))}; a set that does nothing special "
            f"falls outside it in {drawn.chance_outside:.0%} of cases.{note}"
        )


def compared_with(switched: Switched) -> str:
    """What the change is held against, in two words."""
    if switched.of_tokens:
        return "other tokens"
    if switched.heads and switched.units:
        return "random heads and units"
    return "random heads" if switched.heads else "random units"


def control_words(switched: Switched, draws: int) -> str:
    """What the change is held against."""
    parts = []
    if switched.of_tokens:
        parts.append("the same heads and as many other tokens")
    elif switched.heads:
        parts.append("random heads of the same layers with similar output norms")
    if switched.units:
        parts.append("random units of the same layers that write as much on neutral text")
    return f"the same change of {draws} sets of {' and '.join(parts)}"


def random_changes_of(scene: Scene, switched: Switched) -> Control | None:
    """The control, or None where it fails (the reason is shown) or waits for a click."""
    model, question, answers = scene.loaded.model, scene.question, scene.answers
    draws = CONTROL_DRAWS
    if control_seconds(model, question, draws) > LONGEST_WAIT:
        draws = FEWER_DRAWS
    seconds = control_seconds(model, question, draws)
    what = compared_with(switched)
    if seconds > LONGEST_WAIT and not st.button(
        f"Compare with {draws} sets of {what} (about {seconds:.0f} s)"
    ):
        return None
    with told(), st.spinner(f"The same with {draws} sets of {what} …"):
        return control_of(
            scene.loaded,
            scene.loaded.key,
            question.prompt,
            question.context,
            answers.memory,
            answers.context,
            switched,
            draws,
        )
    return None


def show_one_change(
    name: str, before: Reading, after: Reading, drawn: Control | None, i: int, what: str
) -> None:
    """One text: the answer and the probabilities, before and after."""
    exports.subheader(name.capitalize())
    text = f"before: {before.said.strip()!r}\nafter:  {after.said.strip()!r}"
    exports.quote(text)
    random = {} if drawn is None else drawn.probability[i]
    exports.chart(
        before_after_chart(before.probability, after.probability, random),
        name=f"before and after {name}",
        alt=f"Probabilities of the answers {name}, before and after.",
    )
    if before.contrast is None or after.contrast is None:
        return
    change = after.contrast - before.contrast
    words = (
        "log P(memory) − log P(context)" if len(before.probability) == 2 else "log P of the answer"
    )
    exports.caption(f"Change of {words}: {change:+.3f}.")
    if drawn is not None:
        span = [contrast - before.contrast for contrast in drawn.contrast[i]]
        show_verdict(no_better_than_random(before, after, drawn.contrast[i]), span, what)


def show_verdict(inside: bool, span: list[float], what: str = "random heads") -> None:
    """The badge, inside the range of the control or outside it, and the range."""
    if inside:
        exports.badge("not better than random", color="gray")
    else:
        exports.badge("outside the random range", color="green")
    exports.caption(f"The same with {what}: {min(span):+.3f} to {max(span):+.3f}.")
