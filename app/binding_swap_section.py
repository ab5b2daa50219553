"""The swap console: what predicts B is written over B's name; does the model now say A?"""

from __future__ import annotations

import polars
import streamlit as st

from ..probes.role_states import RoleStates
from . import binding_cached, exports
from .binding_charts import names_chart, swap_chart
from .binding_scene import BindingScene, from_address, may_start
from .binding_swaps import (
    CLEAN,
    FORMS,
    LEAK,
    NOISE,
    OTHER,
    PREDICTED,
    RANKS,
    REWORDED,
    WITHOUT,
    PairSwap,
    Swap,
)
from .needle_scene import forget_unless
from .plain import as_text, told

ORDER = (PREDICTED, WITHOUT, OTHER, NOISE, REWORDED, LEAK)
OWN = "this pair’s own B"
ALPHA = 0.05


def show_swap(scene: BindingScene, place: int) -> None:
    """States first; then the console on the left, what it did on the right."""
    exports.header("Swap: does the prediction bring out the answer?")
    exports.caption(
        "The state that is about to say B, at the end of the forward prompt, is written over B’s "
        "name in the reverse prompt. If A now comes out, more than with another entity’s state, "
        "the fact is stored but cannot be reached from the name."
    )
    relation, model = scene.pairs.relation, scene.loaded.model
    seconds = binding_cached.states_seconds(model, scene.pace, relation)
    n = len(scene.pairs.pairs)
    if not may_start(scene, f"Read the states of {n} pairs", seconds):
        return
    with told():
        with st.spinner(f"Reading the states of {n} pairs (about {seconds:.0f} s) …"):
            states = binding_cached.states_of(scene.loaded, relation, scene.stamp)
        left, right = st.columns([3, 6], gap="large")
        with left:
            swap = choose_swap(scene, place)
        with right:
            pair, every = show_effect(scene, states, swap)
        with left:
            show_names(scene, pair, swap)
        show_rows(scene, pair, every)
        exports.caption(
            "A whole grid of layers with tests over all cells, and states read from another "
            "relation:"
        )
        st.code(scene.command("swap"), language="bash", wrap_lines=True)


def choose_swap(scene: BindingScene, place: int) -> Swap:
    """Layers, part of the state, and whose it is; each part of the address."""
    n = scene.loaded.model.anatomy.n_layers
    labels = scene.pairs.labels()
    others = [label for i, label in enumerate(labels) if i != place]
    for name, options in (
        *(("from", range(n + 1)), ("into", range(n))),
        *(("form", FORMS), ("rank", RANKS), ("whose", (OWN, *others))),
    ):
        from_address(name, tuple(options))
        forget_unless(name, options)
    exports.caption(f"Asked: {as_text(labels[place])} (chosen above)")
    source = st.slider(
        "Read at layer",
        0,
        n,
        round(2 * n / 3),
        key="from",
        bind="query-params",
        help=f"The input of a block; {n} is the output of the last one.",
    )
    target = st.slider("Written at layer", 0, n - 1, round(n / 3), key="into", bind="query-params")
    form = st.segmented_control(
        "Form",
        list(FORMS),
        default="raw",
        required=True,
        key="form",
        bind="query-params",
        help="mapped: through the linear map from predicted to read states, fitted on the other "
        "half of the pairs.",
    )
    rank = st.segmented_control(
        "Rank",
        list(RANKS),
        default="full",
        required=True,
        key="rank",
        bind="query-params",
        help="How many directions of the state are replaced; full: all of it.",
    )
    whose = st.selectbox("Whose prediction", (OWN, *others), key="whose", bind="query-params")
    owner = place if whose == OWN else labels.index(whose)
    return Swap(int(source), int(target), FORMS[form], RANKS[rank], place, owner)


def show_effect(
    scene: BindingScene, states: RoleStates, swap: Swap
) -> tuple[PairSwap, polars.DataFrame | None]:
    """This pair beside the mean of all pairs, and what may be believed of it."""
    with st.spinner("Swapping …"):
        pair = binding_cached.pair_swap_of(scene.loaded, states, scene.stamp, swap)
    every = mean_of_all(scene, states, swap)
    exports.chart(swap_chart(pair.rows, every, ORDER), name="swap", alt=swap_alt(pair, every))
    if every is not None:
        show_verdict(every)
    show_leakage(pair, swap)
    return pair, every


def show_names(scene: BindingScene, pair: PairSwap, swap: Swap) -> None:
    """Which names are now likeliest."""
    words = as_text(scene.pairs.pairs[swap.whose].b)
    exports.caption(f"Likeliest answers with the prediction of {words} written in; blue: A.")
    exports.chart(
        names_chart(pair.names),
        name="likeliest names after the swap",
        alt=f"Likeliest names after the swap of {words}.",
    )


def mean_of_all(scene: BindingScene, states: RoleStates, swap: Swap) -> polars.DataFrame | None:
    """The same swap of every pair; None while it waits for a click."""
    seconds = binding_cached.swaps_seconds(
        scene.loaded.model, scene.pace, scene.pairs.relation, len(ORDER) + 2
    )
    if not may_start(scene, f"Swap in all {len(scene.pairs.pairs)} pairs", seconds):
        return None
    with st.spinner("The same in all pairs …"):
        return binding_cached.all_swaps_of(scene.loaded, states, scene.stamp, swap.cell)


def show_verdict(every: polars.DataFrame) -> None:
    """Whether the prediction does more than another entity's, over all pairs."""
    row = every.filter(polars.col("what") == PREDICTED).row(0, named=True)
    if row["beyond"] is None:
        return
    if row["beyond_low"] > 0 and row["p"] < ALPHA:
        exports.badge("brings out A", color="green")
    else:
        exports.badge("not better than another entity’s", color="gray")
    exports.caption(
        as_text(
            f"B’s prediction beyond another entity’s, mean of {row['pairs']} pairs: "
            f"{row['beyond']:+.2f} nats ({row['beyond_low']:+.2f} to {row['beyond_high']:+.2f}), "
            f"p = {row['p']:.2g}; one cell of the grid, chosen by you."
        )
    )


def show_leakage(pair: PairSwap, swap: Swap) -> None:
    """The prediction was read from a prompt that names A: it may carry A itself."""
    whole, without = pair.change(PREDICTED), pair.change(WITHOUT)
    if swap.whose != swap.place or whole is None or without is None:
        return
    kept = (
        f" Here: {whole:+.2f} nats with it, {without:+.2f} without what it has of A."
        if abs(whole) > 0.005
        else ""
    )
    exports.warning(
        "Leakage: this state was read from a prompt that names A, and may carry A itself. Believe "
        f"a gain only as far as *{as_text(WITHOUT)}* shows it too, and compare it with "
        f"*{as_text(LEAK)}*.{kept}"
    )


def show_rows(scene: BindingScene, pair: PairSwap, every: polars.DataFrame | None) -> None:
    """The numbers behind the chart, and the file."""
    rows = pair.rows
    if every is not None:
        rows = rows.join(
            every.select("what", "gain", "beyond", "p"),
            on="what",
            how="left",
            maintain_order="left",
        ).rename({"gain": "mean change"})
    signed = st.column_config.NumberColumn
    exports.table(
        rows,
        name="numbers of the swap",
        columns={
            "log P": signed(format="%.2f"),
            "rank": signed(format="%.0f"),
            "p": signed(format="%.3f"),
            **{name: signed(name, format="%+.2f") for name in ("change", "mean change", "beyond")},
        },
        alt=f"Numbers of the swap; {CLEAN}: rank {rows['rank'][0]:.0f}.",
    )


def swap_alt(pair: PairSwap, every: polars.DataFrame | None) -> str:
    """The chart in words."""
    rows = {row["what"]: row["change"] for row in pair.rows.iter_rows(named=True)}
    own = "; ".join(f"{what} {rows[what]:+.2f}" for what in ORDER if what in rows)
    said = f"Change of log P(A) in nats for this pair: {own}."
    if every is None:
        return said
    means = "; ".join(f"{row['what']} {row['gain']:+.2f}" for row in every.iter_rows(named=True))
    return f"{said} Mean of all pairs: {means}."
