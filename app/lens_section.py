"""Layer by layer: what the stream would say after each layer, and where the answers come up."""

from __future__ import annotations

from typing import Any

import altair as alt
import polars
import streamlit as st

from . import cached, exports
from .charts import CONTEXT, MEMORY, WEIGHT_COLOURS, WEIGHT_INK
from .forecast import LONGEST_WAIT, lens_seconds, reading_seconds
from .lens import SHUFFLES, Lens, answer_table, lens_table, shuffled_table
from .plain import told
from .scene import Scene, shown_text

FEWEST, USUAL, MOST = 2, 8, 24
"""Positions on show."""
_ROLE = alt.Scale(domain=["memory answer", "context answer"], range=[MEMORY, CONTEXT])


def show_lens(scene: Scene) -> None:
    """The logit lens of the text on show, in a fragment of its own."""
    exports.header("What would each layer say?")
    st.fragment(show_layers)(scene)


def show_layers(scene: Scene) -> None:
    """Layers by positions, and the two answers along the layers, with their own errors."""
    with exports.section("lens"), told():
        last = st.slider(
            "Positions, up to END", FEWEST, MOST, USUAL, key="lens", bind="query-params"
        )
        name, text = shown_text(scene)
        found = read_lens(scene, text, last)
        if found is not None:
            show_found(found, name)


def read_lens(scene: Scene, text: str, last: int) -> Lens | None:
    """The lens, or None while long work waits for a click."""
    loaded, answers = scene.loaded, scene.answers
    model = loaded.model
    seconds = lens_seconds(model, last + SHUFFLES) + reading_seconds(model, [text] * SHUFFLES)
    asked = (loaded.key, text, last)
    if seconds > LONGEST_WAIT and st.session_state.get("lens_of") != asked:
        if not st.button(f"Read all layers (about {seconds:.0f} s)"):
            return None
        st.session_state["lens_of"] = asked
    with st.spinner("Reading every layer …"):
        return cached.lens_of(loaded, loaded.key, text, last, answers.memory, answers.context)


def show_found(found: Lens, name: str) -> None:
    """The grid on the left, the answers on the right."""
    theme = st.context.theme.type or "light"
    left, right = st.columns([3, 2], gap="large")
    with left:
        exports.chart(
            lens_chart(lens_table(found), theme),
            name=f"logit lens {name}",
            alt=f"Most probable token after each layer at the last positions, {name}.",
        )
        exports.caption(
            f"Logit lens, {name}: after each layer the stream goes through the model's own final "
            "norm and unembedding. Layer 0 is the embedding, the top row the model's prediction; "
            "each column predicts the token after its label. Colour: probability of the token."
        )
    with right:
        rows = answer_table(found)
        if rows.is_empty():
            exports.info("No answer to follow: type a memory answer on the left.")
            return
        control = shuffled_table(found)
        exports.chart(
            answer_lines(rows, control),
            name=f"answers along the layers {name}",
            alt=f"Probability of the answers at END after each layer, {name}, and the same with "
            "the tokens in random order.",
        )
        exports.caption(
            "Probability of each answer's first token at END after each layer. "
            f"{control_words(control)} A lens reads early layers badly in every model: what it "
            "does not show may be there all the same."
        )


def lens_chart(table: polars.DataFrame, theme: str = "light") -> Any:
    """Positions across, layers up; colour is the probability of the token that is written."""
    order = table.sort("position")["label"].unique(maintain_order=True).to_list()
    # Vega draws no text shorter than its cell: what does not fit is cut here.
    room = max(3, 72 // len(order))
    shown = table.with_columns(polars.col("token").str.slice(0, room).alias("shown"))
    base = alt.Chart(shown, height=alt.Step(18)).encode(
        x=alt.X(
            "label:N",
            sort=order,
            title="token read",
            axis=alt.Axis(labelAngle=-40, labelLimit=90, labelFlush=False, labelOverlap=False),
        ),
        y=alt.Y(
            "layer:O",
            sort="descending",
            title="after layer",
            axis=alt.Axis(labelOverlap=False, labelFlush=False, labelBound=False),
        ),
    )
    cells = base.mark_rect().encode(
        color=alt.Color(
            "probability:Q",
            scale=alt.Scale(
                domain=[0, 0.5, 1], range=list(WEIGHT_COLOURS[theme]), interpolate="lab"
            ),
            legend=alt.Legend(orient="top", title=None, gradientLength=160, gradientThickness=10),
        ),
        tooltip=[
            "layer:O",
            alt.Tooltip("label:N", title="at"),
            "token:N",
            alt.Tooltip("probability:Q", format=".4f"),
        ],
    )
    strong, weak, share = WEIGHT_INK[theme]
    texts = base.mark_text(fontSize=11).encode(
        text="shown:N",
        color=alt.condition(f"datum.probability > {share}", alt.value(strong), alt.value(weak)),
    )
    return alt.layer(cells, texts)


def control_words(control: polars.DataFrame) -> str:
    """What the dashes are, or why there are none."""
    if control.is_empty():
        return "The text is too short for a control of its tokens in random order."
    return (
        f"Dashes, the control: the same tokens in {SHUFFLES} random orders (the first and the last "
        "stay), mean and range; what an answer gets there it owes to the words, not to their order."
    )


def answer_lines(rows: polars.DataFrame, control: polars.DataFrame) -> Any:
    """One line an answer; its control in dashes, with the range as a band."""
    x = alt.X("layer:Q", title="after layer", axis=alt.Axis(tickMinStep=1))
    scale = alt.Scale(domain=[0, 1])
    colour = alt.Color(
        "answer:N",
        scale=_ROLE,
        legend=alt.Legend(orient="bottom", direction="vertical", title=None, symbolOpacity=1),
    )
    lines = (
        alt.Chart(rows, height=300)
        .mark_line(point=True)
        .encode(
            x=x,
            y=alt.Y("probability:Q", title="probability at END", scale=scale),
            color=colour,
            tooltip=["answer:N", "layer:Q", alt.Tooltip("probability:Q", format=".4f")],
        )
    )
    if control.is_empty():
        return lines
    ends = [alt.Tooltip(f"{end}:Q", format=".4f") for end in ("mean", "low", "high")]
    base = alt.Chart(control).encode(x=x, color=colour, tooltip=["answer:N", "layer:Q", *ends])
    band = base.mark_area(opacity=0.2).encode(y=alt.Y("low:Q", scale=scale), y2="high:Q")
    mean = base.mark_line(strokeDash=[4, 3]).encode(y=alt.Y("mean:Q", scale=scale))
    return alt.layer(band, mean, lines)
