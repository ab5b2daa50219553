"""The trial again with heads, edges or units changed: answers, probabilities, controls, rates."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import altair as alt
import polars
import streamlit as st

from ..data.facts.needles import Verdict
from . import background, exports
from .background import Tell
from .cached import kept
from .change_section import choose_op, choose_switched
from .charts import CONTEXT, MEMORY, OTHER
from .forecast import LONGEST_WAIT, trial_seconds
from .needle_cached import pace_of
from .needle_rates_section import show_rates
from .needle_scene import NeedleScene
from .needle_switched import (
    NeedleControl,
    NeedleReading,
    needle_control,
    needle_pair,
)
from .needle_trial import NEW_TOKENS, Hay
from .plain import told
from .switch_section import compared_with, control_words, show_verdict
from .switched_cached import draws_of, means_for
from .switched_off import OF_TOKENS, HeadChange, Switched

DRAWS, FEWER_DRAWS = 20, 5


def show_needle_switch(scene: NeedleScene) -> Switched:
    """Choose what is changed; the trial before and after, beside a control. Returns the change."""
    switched = choose_switched(scene.loaded.model, lambda heads: choose_change(scene))
    if switched.nothing:
        return switched
    with told():
        show_trials(scene, switched)
    return switched


def choose_change(scene: NeedleScene) -> HeadChange:
    """What becomes of the heads; edges are those to a span of the haystack."""
    op, factor = choose_op()
    if op not in OF_TOKENS:
        return HeadChange(op, factor)
    spans = {name: span for name, span in scene.found.spans.items() if name != "question"}
    name = st.segmented_control(
        "Edges to the",
        list(spans),
        default="needle",
        required=True,
        key="edges_to",
        bind="query-params",
    )
    return HeadChange(op, factor, tuple(range(*spans[name])), span=name)


def once_seconds(scene: NeedleScene) -> float:
    """One trial at the pace of the machine just now, or half of what the one on show took, which
    was replayed twice."""
    tokens = len(scene.found.forced.asked.ids)
    pace = pace_of(scene.loaded, scene.loaded.key, scene.asked)
    forecast = trial_seconds(scene.loaded.model, pace, tokens, NEW_TOKENS)
    return max(forecast, scene.found.seconds / 2)


def show_trials(scene: NeedleScene, switched: Switched) -> None:
    """Unchanged on the left, changed on the right; then the control, then rates."""
    both = pair_for(scene, switched)
    if both is None:
        return
    before, after = both
    for column, name, one in zip(
        st.columns(2, gap="large"), ("Unchanged", "Changed"), (before, after), strict=True
    ):
        with column:
            exports.subheader(name)
            exports.quote(one.said.strip("\n") or "(nothing)")
            exports.caption(
                f"{_WORDS[one.verdict]}. First token of the gold answer: P = {one.first:.3f}."
            )
    drawn = control_for(scene, switched)
    span = [] if drawn is None else [value - before.log_p for value in drawn.log_p]
    change = after.log_p - before.log_p
    exports.caption(f"Change of log P of the gold answer, all tokens: {change:+.3f}.")
    if drawn is not None:
        show_verdict(min(span) <= change <= max(span), span, compared_with(switched))
    exports.chart(
        first_chart(before, after, drawn),
        name="gold answer before and after",
        alt="Probability of the gold answer's first token, unchanged, changed, and random changes.",
    )
    if drawn is not None:
        note = f" Matching: {drawn.note}." if drawn.note else ""
        exports.caption(
            f"Grey: range of {control_words(switched, len(drawn.log_p))}; a set that does nothing "
            f"special falls outside it in {drawn.chance_outside:.0%} of cases.{note} The change "
            "holds in the whole haystack, the question and the answer."
        )
    show_rates(scene, switched, once_seconds(scene))


_WORDS: dict[Verdict, str] = {
    "needle": "Answered from the needle",
    "rival": "Answered with the rival's words",
    "other": "Not answered",
}


def pair_for(scene: NeedleScene, switched: Switched) -> tuple[NeedleReading, NeedleReading] | None:
    """The trial as it is and changed, or None while it waits for a click, or goes on."""
    model, means = scene.loaded.model, means_for(scene.loaded, switched)
    key = (*scene.stamp[:2], switched)

    def make(tell: Tell) -> tuple[NeedleReading, NeedleReading]:
        return needle_pair(model, scene.found, switched, means, tell)

    if not background.ready(
        "change",
        key,
        lambda: 2 * once_seconds(scene),
        make,
        label="Run the trial with this change",
        words="Running the trial again",
    ):
        return None
    with st.spinner("Running the trial again …"):
        return pair_of(make, *key)


def control_for(scene: NeedleScene, switched: Switched) -> NeedleControl | None:
    """The control, or None where it fails (the reason is shown), waits for a click or goes on."""
    once, model = once_seconds(scene), scene.loaded.model
    draws = DRAWS if once * DRAWS <= LONGEST_WAIT else FEWER_DRAWS
    what = f"{draws} sets of {compared_with(switched)}"
    key = (*scene.stamp[:2], switched, draws)
    with told():
        means = means_for(scene.loaded, switched)
        tokens = scene.found.trial.length
        drawn = draws_of(scene.loaded, scene.loaded.key, switched, draws, tokens)

        def make(tell: Tell) -> NeedleControl:
            return needle_control(model, scene.found, drawn, means, tell)

        if background.ready(
            "control",
            key,
            lambda: once * draws,
            make,
            label=f"Compare with {what}",
            words=f"The same with {what}",
        ):
            with st.spinner(f"The same with {what} …"):
                return control_of(make, *key)
    return None


def first_chart(before: NeedleReading, after: NeedleReading, drawn: NeedleControl | None) -> Any:
    """Bars before and after, and the range of the random changes."""
    rows = [{"model": "unchanged", "p": before.first}, {"model": "changed", "p": after.first}]
    order = ["unchanged", "changed", "random"]
    y = alt.Y("model:N", sort=order, title=None, scale=alt.Scale(domain=order))
    x = alt.X(
        "p:Q",
        title="probability of the gold answer's first token",
        scale=alt.Scale(domain=[0, 1]),
        axis=alt.Axis(values=[0, 0.2, 0.4, 0.6, 0.8, 1]),
    )
    bars = (
        alt.Chart(polars.DataFrame(rows), height=alt.Step(22))
        .mark_bar()
        .encode(
            x=x,
            y=y,
            color=alt.Color(
                "model:N",
                scale=alt.Scale(domain=order[:2], range=[MEMORY, CONTEXT]),
                legend=None,
            ),
            tooltip=["model:N", alt.Tooltip("p:Q", format=".4f")],
        )
    )
    span = [] if drawn is None else [{"low": min(drawn.first), "high": max(drawn.first)}]
    line = (
        alt.Chart(alt.Data(values=[{"model": "random", **one} for one in span]))
        .mark_bar(height=6, minBandSize=3)
        .encode(x=alt.X("low:Q"), x2="high:Q", y=y, color=alt.value(OTHER))
    )
    return alt.layer(bars, line)


def _pair(
    _make: Callable[[Tell], tuple[NeedleReading, NeedleReading]],
    key: str,
    asked: Hay,
    switched: Switched,
) -> tuple[NeedleReading, NeedleReading]:
    return background.made("change", (key, asked, switched), _make)


def _control(
    _make: Callable[[Tell], NeedleControl], key: str, asked: Hay, switched: Switched, draws: int
) -> NeedleControl:
    return background.made("control", (key, asked, switched, draws), _make)


pair_of: Callable[..., tuple[NeedleReading, NeedleReading]] = kept(_pair)
control_of: Callable[..., NeedleControl] = kept(_control)
