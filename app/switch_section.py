"""Third section: heads, or edges into them, switched off; answers before and after; controls."""

from __future__ import annotations

import streamlit as st

from ..models.types import HeadId
from . import cached, exports, selection
from .answers import token_label
from .charts import before_after_chart
from .forecast import LONGEST_WAIT, control_seconds
from .plain import told
from .scene import Scene, reading, shown_text
from .switched_off import (
    CONTROL_DRAWS,
    FEWER_DRAWS,
    OFF,
    OPS,
    Control,
    HeadChange,
    Op,
    Reading,
    no_better_than_random,
)

HIDE: Op = "hide tokens"


def show_switch(scene: Scene) -> None:
    """Choose heads and a change; the answers before and after, beside a control."""
    exports.header("Switch heads or edges off")
    every = [str(head) for head in scene.loaded.model.anatomy.all_heads()]
    left, right = st.columns(2)
    heads = left.multiselect(
        "Heads",
        every,
        key="off",
        bind="query-params",
        on_change=selection.on_list_edited,
        placeholder="click cells of the grid, or choose here",
    )
    left.toggle("The list follows the grid", True, key="follow")
    with right:
        change = choose_change(scene, tuple(heads))
    if not heads:
        exports.info("No head is chosen: click a cell of the grid to switch that head off.")
        return
    with told():
        show_change(scene, tuple(heads), change)


def choose_change(scene: Scene, heads: tuple[str, ...]) -> HeadChange:
    """What becomes of the heads, part of the address."""
    op: Op = st.segmented_control(
        "Edit",
        OPS,
        default="zero",
        required=True,
        key="mode",
        bind="query-params",
        help="zero: the heads put out nothing. mean: their mean on neutral text. scale: what they "
        "do, times a factor. hide tokens: edges off, the heads no longer see the chosen tokens.",
    )
    if op == "scale":
        return HeadChange(
            op, st.slider("Factor", -2.0, 3.0, 0.5, 0.1, key="factor", bind="query-params")
        )
    if op != HIDE:
        return HeadChange(op)
    name, text = shown_text(scene)
    labels = token_labels(scene, text)
    start_hidden(scene, heads, text, labels)
    hidden = st.multiselect(
        f"Tokens hidden from them, {name}",
        labels,
        key="hidden",
        bind="query-params",
        placeholder="choose tokens of the text",
    )
    number = [name for name, _ in scene.named].index(name)
    return HeadChange(op, hidden=tuple(sorted(map(labels.index, hidden))), text=number)


def token_labels(scene: Scene, text: str) -> list[str]:
    """Position and text of each token."""
    model = scene.loaded.model
    pieces = model.pieces(model.tokens(text).ids[0].tolist())
    return [f"{i} {token_label(piece)}" for i, piece in enumerate(pieces)]


def start_hidden(scene: Scene, heads: tuple[str, ...], text: str, labels: list[str]) -> None:
    """Begin with the token that END reads most in the first of the heads, the sink and END itself
    left out; forget tokens of another text."""
    state = st.session_state
    if "hidden" in state:
        state["hidden"] = [label for label in state["hidden"] if label in labels]
    elif "hidden" not in st.query_params and heads and len(labels) > 2:
        head = HeadId.parse(heads[0])
        found = cached.pattern_of_head(scene.loaded, scene.loaded.key, text, head.layer, head.head)
        state["hidden"] = [labels[1 + int(found.end_row[1:-1].argmax())]]


def show_change(scene: Scene, heads: tuple[str, ...], change: HeadChange) -> None:
    """Before and after for each text, then the same change of what should not matter."""
    if change.op == HIDE and not change.hidden:
        exports.info("No token is chosen: choose one to hide it from the heads of the list.")
        return
    with st.spinner("Asking again …"):
        before, after = reading(scene, ()), reading(scene, heads, change)
    drawn = random_heads(scene, heads, change)
    what = "other tokens" if change.op == HIDE else "random heads"
    touched = [i for i in range(len(scene.named)) if change.op != HIDE or i == change.text]
    for i, (column, (name, _)) in enumerate(
        zip(st.columns(2, gap="large"), scene.named, strict=False)
    ):
        with column:
            show_one_change(name, before[i], after[i], drawn if i in touched else None, i, what)
            if i not in touched:
                exports.caption("Nothing is hidden here: choose the other pattern above.")
    if drawn is not None:
        note = f" Matching: {drawn.note}." if drawn.note else ""
        exports.caption(
            "Bars: probability of each answer's first token before and after. Grey: range of "
            f"{control_words(change, len(drawn.contrast[0]))}; a set that does nothing special "
            f"falls outside it in {drawn.chance_outside:.0%} of cases.{note}"
        )


def control_words(change: HeadChange, draws: int) -> str:
    """What the change is held against."""
    if change.op == HIDE:
        return f"the same heads without as many other tokens, {draws} random sets"
    return (
        f"the same edit on {draws} sets of random heads of the same layers with similar output "
        "norms"
    )


def random_heads(scene: Scene, heads: tuple[str, ...], change: HeadChange = OFF) -> Control | None:
    """The control, or None where it fails (the reason is shown) or waits for a click."""
    model, question, answers = scene.loaded.model, scene.question, scene.answers
    draws = CONTROL_DRAWS
    if control_seconds(model, question, draws) > LONGEST_WAIT:
        draws = FEWER_DRAWS
    seconds = control_seconds(model, question, draws)
    what = "tokens" if change.op == HIDE else "heads"
    if seconds > LONGEST_WAIT and not st.button(
        f"Compare with {draws} sets of random {what} (about {seconds:.0f} s)"
    ):
        return None
    with told(), st.spinner(f"The same with {draws} sets of random {what} …"):
        return cached.control_of(
            scene.loaded,
            scene.loaded.key,
            question.prompt,
            question.context,
            answers.memory,
            answers.context,
            heads,
            change,
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
    """The badge: inside the range of the control, or outside it."""
    words = f"{what}: {min(span):+.3f} to {max(span):+.3f}"
    if inside:
        exports.badge(f"not better than random ({words})", color="gray")
    else:
        exports.badge(f"outside the random range ({words})", color="green")
