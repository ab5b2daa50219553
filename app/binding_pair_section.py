"""The pair browser: one pair asked both ways, and all pairs in a table."""

from __future__ import annotations

from collections.abc import Sequence

import polars
import streamlit as st

from ..data.facts.pairs import WAYS, Way
from . import binding_cached, exports
from .binding_charts import names_chart, recall_chart
from .binding_pairs import TOLD
from .binding_recall import AskedWay, recall_frame, recall_lines
from .binding_scene import BindingScene, from_address, may_start
from .needle_scene import forget_unless
from .plain import as_text

ALL = "all"
_ASKS = {"forward": "Forward: names A, asks for B", "reverse": "Reverse: names B, asks for A"}
_TABLE = "pair_table"
_MEASURES = {"share said": "exact", "MRR": "mrr"}
_SHORT: dict[Way, str] = {"forward": "fwd", "reverse": "rev"}


def show_pair(scene: BindingScene) -> int:
    """Choose a pair and a wording; each direction in a column. Returns the pair's place."""
    exports.header("One pair, both ways")
    labels = scene.pairs.labels()
    forget_unless("pair", labels)
    left, right = st.columns([5, 2])
    label = left.selectbox("Pair (A – B)", labels, key="pair", bind="query-params")
    relation = scene.pairs.relation
    numbers = range(1, min(len(relation.wordings(way)) for way in WAYS) + 1)
    forget_unless("wording", numbers)
    wording = right.selectbox("Wording", numbers, key="wording", bind="query-params")
    place = labels.index(label)
    pair = relation.pairs[place]
    heard = f", {pair.group} times in all" if pair.group else ""
    if pair.told:
        exports.badge(as_text(f"told {TOLD[pair.told]}{heard}"), color="blue")
    for column, way in zip(st.columns(2, gap="large"), WAYS, strict=True):
        with column:
            with st.spinner("Asking …"):
                asked = binding_cached.asked_of(
                    scene.loaded, relation, scene.stamp, place, way, int(wording) - 1
                )
            show_way(way, asked)
    return place


def show_way(way: Way, asked: AskedWay) -> None:
    """Prompt, answer, the right name's probability and rank, the likeliest names."""
    exports.subheader(_ASKS[way])
    exports.quote(asked.prompt)
    exports.caption(f"The model goes on; right is *{as_text(asked.right)}*:")
    exports.quote(asked.said.strip() or "(nothing)")
    words, colour = ("says it", "green") if asked.exact else ("does not say it", "orange")
    exports.badge(words, color=colour)
    first, second = st.columns(2)
    exports.metric(
        first,
        "P of the right name",
        percent(asked.probability),
        "Of the whole name, all its tokens.",
    )
    exports.metric(
        second,
        "Rank among all names",
        f"{asked.rank} of {asked.n_names}",
        "Of the names of all pairs on show; 1 is the likeliest. A tie counts against it.",
    )
    exports.chart(
        names_chart(asked.names),
        name=f"likeliest names {way}",
        alt=f"{way}: the likeliest names after the prompt; the right one, {asked.right}, has rank "
        f"{asked.rank} of {asked.n_names}.",
    )


def show_all(scene: BindingScene) -> None:
    """The table of all pairs, what recall says by told, and the file."""
    exports.header("All pairs")
    seconds = binding_cached.recall_seconds(scene.loaded.model, scene.pace, scene.pairs.relation)
    n = len(scene.pairs.pairs)
    if not may_start(scene, f"Ask all {n} pairs both ways", seconds):
        exports.caption(
            "Two prompts a pair, an answer each, and every other pair’s name as its rival."
        )
        return
    with st.spinner(f"Asking {n} pairs both ways (about {seconds:.0f} s) …"):
        found = binding_cached.recall_of(scene.loaded, scene.pairs.relation, scene.stamp)
    show_recall(recall_lines(found))
    frame = recall_frame(found)
    show_table(scene, chosen_rows(scene, frame), frame)


def show_recall(lines: polars.DataFrame) -> None:
    """Recall in both directions by how the pairs were told."""
    left, right = st.columns([3, 2], gap="large")
    with right:
        from_address("recall", tuple(_MEASURES))
        chosen = st.segmented_control(
            "Recall",
            list(_MEASURES),
            default="share said",
            required=True,
            key="recall",
            bind="query-params",
        )
        measure = _MEASURES[chosen]
        chance = f" Dashed: chance, {lines['chance'][0]:.2f}." if measure == "mrr" else ""
        what = (
            "Share of pairs whose whole name the model says."
            if measure == "exact"
            else "Mean reciprocal rank of the right name among those of all pairs."
        )
        exports.caption(f"{what} First wording; 95 % intervals over pairs.{chance}")
        if lines.height > len(WAYS):
            exports.caption(
                "Pairs told one way only that are not given the other way: that is the reversal "
                "curse."
            )
    with left:
        exports.chart(recall_chart(lines, measure), name="recall", alt=recall_alt(lines, measure))


def chosen_rows(scene: BindingScene, frame: polars.DataFrame) -> polars.DataFrame:
    """The rows told as the filter says."""
    if not scene.pairs.told:
        return frame
    words = (ALL, *(TOLD[name] for name in ("both", "forward", "reverse")))
    from_address("told", words)
    told = st.segmented_control(
        "Told", words, default=ALL, required=True, key="told", bind="query-params"
    )
    return frame if told == ALL else frame.filter(polars.col("told") == told)


def show_table(scene: BindingScene, shown: polars.DataFrame, whole: polars.DataFrame) -> None:
    """Sortable by a click on a column; a row that is chosen becomes the pair above. Files of it
    hold the whole."""
    if shown.is_empty():
        exports.info("No pair on show was told so: choose another filter, or more pairs.")
        return
    key = f"{_TABLE}-{hash((scene.stamp, tuple(shown['a']))):x}"
    st.session_state[_TABLE] = (
        key,
        tuple(shown.select(polars.format("{} – {}", "a", "b")).to_series()),
    )
    exports.table(
        table_rows(shown, scene.pairs.told),
        name="all pairs both ways",
        height=min(420, 38 + 35 * shown.height),
        columns={
            name: st.column_config.NumberColumn(format="%.2f" if "log P" in name else "%.0f")
            for way in _SHORT.values()
            for name in (f"{way} rank", f"{way} log P")
        },
        on_select=on_row,
        selection_mode="single-row",
        key=key,
        alt=table_alt(shown),
        whole=whole,
    )
    exports.caption(
        "Said: greedy decoding gives the whole name. Click a column to sort, a row’s box to show "
        "that pair above."
    )


def table_rows(frame: polars.DataFrame, told: bool) -> polars.DataFrame:
    """The table as it is read: ticks for what is said, columns without content left out."""
    shown = frame.with_columns(
        polars.when(f"{way} said")
        .then(polars.lit("✓"))
        .otherwise(polars.lit("–"))
        .alias(f"{way} said")
        for way in WAYS
    )
    names = {"a": "A", "b": "B", "group": "times told"}
    names |= {
        f"{way} {what}": f"{short} {what}"
        for way, short in _SHORT.items()
        for what in ("said", "rank", "log P")
    }
    if frame["group"].str.contains(r"^\d+$").all():
        shown = shown.with_columns(polars.col("group").cast(polars.Int64))
    empty = [] if told else ["told"]
    if not any(frame["group"]):
        empty.append("group")
    return shown.drop(empty).rename(names, strict=False)


def on_row() -> None:
    """A row was chosen: its pair is shown."""
    key, labels = st.session_state[_TABLE]
    rows: Sequence[int] = st.session_state[key]["selection"]["rows"]
    if rows:
        st.session_state["pair"] = labels[rows[0]]


def table_alt(frame: polars.DataFrame) -> str:
    """The table in words."""
    said = [f"{int(frame[f'{way} said'].sum())} {way}" for way in WAYS]
    return f"Table of {frame.height} pairs; said whole: {' and '.join(said)}."


def recall_alt(lines: polars.DataFrame, measure: str) -> str:
    """The chart in words."""
    parts = [
        f"told {row['pairs told']}, {row['way']}: {row[measure]:.2f}"
        for row in lines.iter_rows(named=True)
    ]
    return f"{'Share said' if measure == 'exact' else 'MRR'} by how pairs were told. " + "; ".join(
        parts
    )


def percent(p: float) -> str:
    """A probability in a few characters."""
    return f"{p:.1%}" if p >= 0.001 else f"{p:.0e}"
