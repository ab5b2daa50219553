"""Per-layer curves: is an entity that is read the same vector as one about to be said?"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import polars
import streamlit as st

from ..cli.binding_probe_report import WORDS
from ..results.role_figures import role_curves_alt
from ..results.run_reading import RunInfo, load_run
from . import binding_cached, exports
from .binding_charts import curve_chart, readout_chart
from .binding_curves import QUANTITIES, READOUT, ROLES, RoleCurves
from .binding_scene import BindingScene, from_address, may_start
from .plain import as_text, told

_NOT_MAIN = re.compile(r"^Not made:| against .*, difference ")
"""Sentences about contrasts, and about what could not be made."""
_COLOURS = {"consistent": "green", "rotated": "blue", "absent": "gray"}


def show_curves(scene: BindingScene) -> None:
    """Choose a quantity; the curve with its bands, the reading in words, the files."""
    exports.header("Is it one code, layer by layer?")
    exports.caption(
        "B is *read* in the reverse prompt (S) and *about to be said* at the end of the forward "
        "prompt (P). Where the two are one vector, or one vector up to a linear map, what was "
        "learned one way could be found the other way too. Likeness is no cause: for that, swap "
        "below."
    )
    with told():
        curves = curves_for(scene)
        if curves is None:
            return
        show_reading(curves)
        show_quantity(curves)
        show_words(curves)
        show_files(scene, curves)


def curves_for(scene: BindingScene) -> RoleCurves | None:
    """Of the chosen run, or measured here once it was asked for; None while it waits."""
    if scene.run is not None:
        warn_of_other_weights(scene, scene.run)
        return binding_cached.curves_of_run(str(scene.run.folder), scene.run.updated)
    relation = scene.pairs.relation
    seconds = binding_cached.curves_seconds(scene.loaded.model, scene.pace, relation)
    n = len(scene.pairs.pairs)
    if not may_start(scene, f"Compare the roles of {n} pairs", seconds):
        exports.caption(
            "All pairs, more draws, and a run folder that this page opens, in a terminal:"
        )
        st.code(scene.command("probe"), language="bash", wrap_lines=True)
        return None
    with st.spinner(f"Reading {n} pairs in all roles and wordings (about {seconds:.0f} s) …"):
        return binding_cached.curves_of(scene.loaded, scene.pairs, scene.stamp)


def warn_of_other_weights(scene: BindingScene, run: RunInfo) -> None:
    """A run may be older than the checkpoint that is loaded."""
    if load_run(run.folder).config.get("weights_sha256") != scene.loaded.model.weights_sha256:
        exports.warning(
            "This run measured other weights, or other number types, than the model that is "
            "loaded: choose “this page” or another run, or measure again."
        )


def show_reading(curves: RoleCurves) -> None:
    """Verdict, gap, and how many pairs they rest on."""
    summary = curves.summary
    reading, gap = summary["reading"], summary["binding_gap"]
    name = f"{summary['n_pairs']} pairs of {summary['relation']}, {curves.source}"
    exports.badge(
        as_text(f"{reading['word']}: {WORDS[reading['word']]}"), color=_COLOURS[reading["word"]]
    )
    first, second, third, fourth = st.columns(4)
    exports.metric(
        first,
        "Binding gap",
        f"{gap['gap']:+.2f}",
        "Mapped less raw MRR, where the mapped one is highest: what a linear map finds beyond "
        "the raw states.",
        beside=f"{gap['low']:+.2f} to {gap['high']:+.2f}, layer {gap['layer']}",
    )
    exports.metric(
        second,
        f"Best MRR, layer {reading['layer']}",
        f"{reading['mrr']:.2f}",
        beside=f"{reading['mrr_low']:.2f} to {reading['mrr_high']:.2f}",
    )
    exports.metric(third, "p over all layers", f"{reading['p']:.2g}", "Against shuffled pairs.")
    exports.metric(
        fourth, "Pairs it rests on", f"{summary['n_pairs']}", as_text(dropped_words(summary))
    )
    exports.caption(as_text(f"Rests on {name}. {dropped_words(summary)}"))


def dropped_words(summary: Mapping[str, Any]) -> str:
    """What fell away."""
    dropped = ", ".join(f"{n} {why}" for why, n in summary["dropped"].items() if n)
    return f"Left out: {dropped}." if dropped else "None left out."


def show_quantity(curves: RoleCurves) -> None:
    """One quantity over the layers."""
    from_address("quantity", tuple(QUANTITIES))
    quantity: str = st.segmented_control(
        "Quantity",
        list(QUANTITIES),
        default="raw MRR",
        required=True,
        key="quantity",
        bind="query-params",
    )
    if quantity == READOUT:
        show_readout(curves.readout)
        return
    column, words = QUANTITIES[quantity]
    left, right = st.columns([2, 3])
    from_address("roles", tuple(ROLES))
    roles: str = left.segmented_control(
        "Roles",
        list(ROLES),
        default="S-P",
        required=True,
        key="roles",
        bind="query-params",
        help="; ".join(f"{name}: {what}" for name, what in ROLES.items()),
    )
    strata = curves.strata(column, roles)
    from_address("beside", strata, several=True)
    state = st.session_state
    if "beside" in state:
        state["beside"] = [name for name in state["beside"] if name in strata]
    beside: list[str] = []
    if strata:
        beside = right.multiselect(
            "Also show",
            strata,
            key="beside",
            bind="query-params",
            help="The fact in the prompt; pairs by how they were told or are known; candidates by "
            "overlap of names. The number of pairs is in brackets.",
        )
    rows = curves.rows(column, roles, tuple(beside))
    exports.chart(curve_chart(rows, quantity), name=quantity, alt=role_curves_alt(rows, column))
    missing = [name for name in ("ceiling", "floor", "null") if rows[name].is_null().all()]
    note = f" Not measured: {', '.join(missing)}." if missing else ""
    exports.caption(
        f"{words[0].upper()}{words[1:]}; {ROLES[roles]}. Band: 95 % over pairs. Ceiling: the same "
        "role in other wordings. Floor: pairs permuted. Random weights: the same prompts in a "
        f"model that learned nothing, so what rises there comes from the tokens alone.{note}"
    )


def show_readout(readout: polars.DataFrame) -> None:
    """Where along the layers the answer can be read out, in both directions."""
    exports.chart(readout_chart(readout), name="vocabulary read-out", alt=readout_alt(readout))
    exports.caption(
        "The state at the prompt’s last token through the final norm and the unembedding (logit "
        "lens): geometric mean of the rank of the right answer’s first token. Dashed: another "
        "pair’s answer in the same states. A reverse line that stays on its dashed one carries no "
        "answer."
    )


def readout_alt(readout: polars.DataFrame) -> str:
    """The read-out in words."""
    said = []
    for (way,), rows in readout.group_by("way", maintain_order=True):
        last = rows.sort("layer").row(-1, named=True)
        said.append(
            f"{way}: rank {10 ** last['log10_rank']:.0f} at the output, another pair’s answer "
            f"{10 ** last['null']:.0f}"
        )
    return f"Vocabulary read-out over layers. {'; '.join(said)}."


def show_words(curves: RoleCurves) -> None:
    """The findings in sentences: gap, reading, embedding tie; contrasts on demand."""
    exports.subheader("In words")
    main = [note for note in curves.notes if not _NOT_MAIN.search(note)]
    rest = [note for note in curves.notes if _NOT_MAIN.search(note)]
    exports.markdown("\n".join(f"- {as_text(note)}" for note in main))
    if rest:
        with st.expander("Pairs told, or known, both ways against one way: what carries the claim"):
            exports.markdown("\n".join(f"- {as_text(note)}" for note in rest))


def show_files(scene: BindingScene, curves: RoleCurves) -> None:
    """Every curve as a table, and the whole as a page; the curve on show has its own menu."""
    stem = f"{scene.loaded.model.name}-{curves.summary['relation']}-roles"
    left, right = st.columns(2)
    with left:
        exports.file_button("Every curve (CSV)", curves.table.write_csv, f"{stem}.csv", "text/csv")
    with right:
        exports.file_button("Report (HTML)", curves.report.encode, f"{stem}.html", "text/html")
