"""The same change over many facts: how often the model recalls, and follows a context."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import altair as alt
import polars
import streamlit as st

from ..data.facts.conflicts import ConflictItem
from ..data.facts.items import relation_names
from . import background, exports
from .background import Tell
from .cached import Loaded, kept
from .charts import OTHER
from .fact_rates import (
    CONDITIONS,
    FACTS,
    NEW_TOKENS,
    OUTSIDE,
    FactRates,
    fact_answers,
    known_facts,
    rate_table,
)
from .forecast import prompt_seconds
from .plain import as_text, told
from .scene import Scene
from .switched_cached import draws_of, means_for
from .switched_off import NOTHING, Switched

DRAWS = 5
TOKENS = 60
"""Of a prompt with demonstrations and context, roughly."""
_FIFTHS = alt.Axis(values=[0, 0.2, 0.4, 0.6, 0.8, 1])
_COLOURS = {"unchanged": "#56606E", "changed": "#CC79A7"}


def show_rates(scene: Scene, switched: Switched) -> None:
    """Choose a relation; shares of answers before and after, beside random changes, with their own
    errors; asked for by a click."""
    exports.subheader("Over many facts")
    with told():
        if switched.of_tokens:
            exports.info(
                "Edges to tokens of one text are no change of another text: choose the mean of "
                "edges, or what the heads put out, to see rates over many facts."
            )
            return
        names = list(relation_names())
        first = names.index("capital") if "capital" in names else 0
        relation = st.selectbox("Facts about", names, first, key="facts", bind="query-params")
        found = rates_for(scene.loaded, relation, switched)
        if found is not None:
            show_found(found, relation)


def rates_for(loaded: Loaded, relation: str, switched: Switched) -> FactRates | None:
    """Answers unchanged, changed and under random changes; None until a click, and while it goes
    on."""
    key = (loaded.key, relation, switched)
    if st.session_state.get("rates_of") != key and background.work_of("rates", key) is None:
        about = f"about {rates_seconds(loaded):.0f} s"
        if not st.button(f"Ask {FACTS} facts, with and without a context ({about})"):
            return None
        st.session_state["rates_of"] = key
    with st.spinner("Seeing what the model knows …"):
        items = known_of(loaded, loaded.key, relation)
    means = means_for(loaded, switched)
    sets = (NOTHING, switched, *draws_of(loaded, loaded.key, switched, DRAWS, 0).sets)

    def make(tell: Tell) -> FactRates:
        given = []
        for number, one in enumerate(sets):
            tell(number / len(sets), f"change {number + 1} of {len(sets)}")
            given.append(fact_answers(loaded.model, items, one, means))
        return FactRates(given[0], given[1], tuple(given[2:]))

    if not background.watched("rates", key, make, f"Asking {len(items)} facts"):
        return None
    return rates_of(make, *key)


def rates_seconds(loaded: Loaded) -> float:
    """Every fact is asked in each condition, unchanged, changed, and under each random change."""
    tokens = FACTS * len(CONDITIONS) * (TOKENS + NEW_TOKENS)
    return prompt_seconds(loaded.model, tokens) * (2 + DRAWS)


def show_found(found: FactRates, relation: str) -> None:
    """Shares as dots with their change, and in numbers."""
    table = rate_table(found)
    beyond = table.filter(polars.col("verdict") == OUTSIDE)["share of answers"].to_list()
    if beyond:
        exports.badge(f"outside the random range: {'; '.join(beyond)}", color="green")
    else:
        exports.badge("not better than random in any of these shares", color="gray")
    exports.chart(
        rate_chart(table),
        name="shares of answers",
        alt="Shares of answers of the unchanged and the changed model, beside random changes.",
    )
    exports.table(
        table,
        name="shares of answers in numbers",
        alt="Shares of answers before and after, their change, interval, test and random range.",
        columns={
            name: st.column_config.NumberColumn(name, format="%.3f")
            for name in table.columns
            if table[name].dtype == polars.Float64
        },
    )
    exports.caption(
        as_text(
            f"{found.items} facts about {relation} that the model knows by itself, with three "
            "demonstrations, each asked alone and behind a sentence that says otherwise. Grey: "
            f"range of {DRAWS} sets of random heads or units of the same layers. Change: with its "
            "95 % interval over subjects; p: paired sign flips. "
            "`mnemoscope prune run --eval` asks more facts and writes them down."
        )
    )


def rate_chart(table: polars.DataFrame) -> Any:
    """A row a share: where it was, where it is, and what random changes make of it."""
    order = table["share of answers"].to_list()
    y = alt.Y("share of answers:N", sort=order, title=None, axis=alt.Axis(labelLimit=260))
    x = alt.X("share:Q", title="share of answers", scale=alt.Scale(domain=[0, 1]), axis=_FIFTHS)
    dots = table.unpivot(
        ["unchanged", "changed"], index="share of answers", variable_name="model",
        value_name="share",
    )  # fmt: skip
    spans = table.select(
        "share of answers",
        (polars.col("unchanged") + polars.col("random, low")).alias("low"),
        (polars.col("unchanged") + polars.col("random, high")).alias("high"),
    )
    band = (
        alt.Chart(spans)
        .mark_bar(height=8, color=OTHER, opacity=0.5, minBandSize=3)
        .encode(x=alt.X("low:Q", title="share of answers"), x2="high:Q", y=y)
    )
    points = (
        alt.Chart(dots, height=alt.Step(34))
        .mark_point(size=120, filled=True, opacity=1)
        .encode(
            x=x,
            y=y,
            color=alt.Color(
                "model:N",
                scale=alt.Scale(domain=list(_COLOURS), range=list(_COLOURS.values())),
                sort=list(_COLOURS),
                legend=alt.Legend(orient="top", title=None),
            ),
            shape=alt.Shape("model:N", legend=None),
            tooltip=["model:N", "share of answers:N", alt.Tooltip("share:Q", format=".3f")],
        )
    )
    return alt.layer(band, points)


def _known(_loaded: Loaded, key: str, relation: str) -> tuple[ConflictItem, ...]:
    return known_facts(_loaded.model, relation, FACTS)


def _rates(
    _make: Callable[[Tell], FactRates], key: str, relation: str, switched: Switched
) -> FactRates:
    return background.made("rates", (key, relation, switched), _make)


known_of: Callable[..., tuple[ConflictItem, ...]] = kept(_known, 4)
rates_of: Callable[..., FactRates] = kept(_rates)
