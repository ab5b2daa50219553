"""Third section: heads switched off or scaled, the answers before and after, random heads."""

from __future__ import annotations

import streamlit as st

from . import cached, selection
from .charts import before_after_chart
from .forecast import LONGEST_WAIT, control_seconds
from .plain import told
from .scene import Scene, reading
from .switched_off import CONTROL_DRAWS, FEWER_DRAWS, Control, Reading, no_better_than_random


def show_switch(scene: Scene) -> None:
    """Choose heads and an edit; the answers before and after, beside random heads."""
    st.header("Switch heads off", anchor=False)
    every = [str(head) for head in scene.loaded.model.anatomy.all_heads()]
    left, middle, right = st.columns([4, 2, 2])
    heads = left.multiselect(
        "Heads",
        every,
        key="off",
        bind="query-params",
        on_change=selection.on_list_edited,
        placeholder="click cells of the grid, or choose here",
    )
    left.toggle("The list follows the grid", True, key="follow")
    mode = middle.segmented_control(
        "Edit",
        ("zero", "scale"),
        default="zero",
        required=True,
        key="mode",
        bind="query-params",
    )
    factor = 0.0
    if mode == "scale":
        factor = right.slider("Factor", -2.0, 3.0, 0.5, 0.1, key="factor", bind="query-params")
    if not heads:
        st.info("No head is chosen: click a cell of the grid to switch that head off.")
        return
    with told():
        show_change(scene, tuple(heads), factor)


def show_change(scene: Scene, heads: tuple[str, ...], factor: float) -> None:
    """Before and after for each text, then the same with random heads."""
    with st.spinner("Asking again …"):
        before, after = reading(scene, ()), reading(scene, heads, factor)
    drawn = random_heads(scene, heads, factor)
    for i, (column, (name, _)) in enumerate(
        zip(st.columns(2, gap="large"), scene.named, strict=False)
    ):
        with column:
            show_one_change(name, before[i], after[i], drawn, i)
    if drawn is not None:
        note = f" Matching: {drawn.note}." if drawn.note else ""
        st.caption(
            "Bars: probability of each answer's first token before and after. Grey: range of the "
            f"same edit on {len(drawn.contrast[0])} sets of random heads of the same layers with "
            f"similar output norms; a set that does nothing special falls outside it in "
            f"{drawn.chance_outside:.0%} of cases.{note}"
        )


def random_heads(scene: Scene, heads: tuple[str, ...], factor: float) -> Control | None:
    """The control, or None where it fails (the reason is shown) or waits for a click."""
    model, question, answers = scene.loaded.model, scene.question, scene.answers
    draws = CONTROL_DRAWS
    if control_seconds(model, question, draws) > LONGEST_WAIT:
        draws = FEWER_DRAWS
    seconds = control_seconds(model, question, draws)
    if seconds > LONGEST_WAIT and not st.button(
        f"Compare with {draws} sets of random heads (about {seconds:.0f} s)"
    ):
        return None
    with told(), st.spinner(f"The same with {draws} sets of random heads …"):
        return cached.control_of(
            scene.loaded,
            scene.loaded.key,
            question.prompt,
            question.context,
            answers.memory,
            answers.context,
            heads,
            factor,
            draws,
        )
    return None


def show_one_change(
    name: str, before: Reading, after: Reading, drawn: Control | None, i: int
) -> None:
    """One text: the answer and the probabilities, before and after."""
    st.subheader(name.capitalize(), anchor=False)
    text = f"before: {before.said.strip()!r}\nafter:  {after.said.strip()!r}"
    st.code(text, language=None, wrap_lines=True)
    random = {} if drawn is None else drawn.probability[i]
    st.altair_chart(
        before_after_chart(before.probability, after.probability, random),
        alt=f"Probabilities of the answers {name}, before and after.",
    )
    if before.contrast is None or after.contrast is None:
        return
    change = after.contrast - before.contrast
    words = (
        "log P(memory) − log P(context)" if len(before.probability) == 2 else "log P of the answer"
    )
    st.caption(f"Change of {words}: {change:+.3f}.")
    if drawn is not None:
        span = [contrast - before.contrast for contrast in drawn.contrast[i]]
        show_verdict(no_better_than_random(before, after, drawn.contrast[i]), span)


def show_verdict(inside: bool, span: list[float]) -> None:
    """The badge: inside the range of the random heads, or outside it."""
    words = f"random heads: {min(span):+.3f} to {max(span):+.3f}"
    if inside:
        st.badge(f"not better than random ({words})", color="gray")
    else:
        st.badge(f"outside the random range ({words})", color="green")
