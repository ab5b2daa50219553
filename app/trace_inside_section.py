"""Third section: the model on the chosen span, with links to the pages of heads and units."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import polars
import streamlit as st

from ..models.types import HeadId, NeuronId
from . import exports, neuron_cached, trace_cached
from .forecast import LONGEST_WAIT, prompt_seconds
from .neuron_runs import finished_neuron_runs
from .plain import as_text
from .trace_activity import Activity, head_ids, unit_ids
from .trace_answers import span_in_model
from .trace_scene import TraceScene

VIEWS = Path(__file__).with_name("views")
LINK = ":material/arrow_forward:"
LINKED = 5
ROWS = 20


def show_inside(scene: TraceScene) -> None:
    """Which heads and units write more than usual while the model says the span."""
    span = scene.span
    if span is None:
        return
    exports.header("And inside the model?")
    said = span_in_model(scene.loaded.model, scene.said, span)
    seconds = 2 * prompt_seconds(scene.loaded.model, len(said.ids))
    asked = (scene.loaded.key, said)
    if seconds > LONGEST_WAIT and st.session_state.get("inside") != asked:
        if not st.button(f"Read the span in {as_text(scene.label)} (about {seconds:.0f} s)"):
            return
        st.session_state["inside"] = asked
    with st.spinner("Reading the span …"):
        usual = trace_cached.usual_of(scene.loaded, scene.loaded.key)
        found = trace_cached.activity_of(scene.loaded, usual, scene.loaded.key, said)
    exports.markdown(
        f"{as_text(scene.label)} itself would choose **{found.greedy:.0%}** of the span's "
        f"{found.tokens} tokens, each after the text before it; it gives them a mean probability "
        f"of **{found.certainty:.2f}**."
    )
    left, right = st.columns(2, gap="large")
    with left:
        show_heads(scene, found)
    with right:
        show_units(scene, found)
    exports.caption(
        "*write* is the mean length of what a head or unit adds to the residual stream at the "
        "tokens that predict the span, *usual* the same on neutral text; sorted by the difference. "
        "*span* and *before* are a head's attention there: on the span itself, and on the text "
        "before it without its first four tokens. Activity is no cause: switch a head or unit off "
        "on its page to see what it does."
    )


def show_heads(scene: TraceScene, found: Activity) -> None:
    """The table, and the first heads with a link to each."""
    exports.subheader("Heads")
    for head in head_ids(found.heads.head(LINKED)):
        st.page_link(
            VIEWS / "explore.py",
            label=f"{head}: where it looks at the end of this span",
            icon=LINK,
            query_params=head_address(scene, head),
        )
    show_numbers(found.heads, "heads")


def show_units(scene: TraceScene, found: Activity) -> None:
    """The table, and links to units that a run found to tell a relation."""
    exports.subheader("MLP units")
    if found.units.is_empty():
        exports.info("The MLPs of this model are experts, whose units have no names here.")
        return
    told = unit_addresses(scene)
    known = [unit for unit in unit_ids(found.units) if unit in told][:LINKED]
    for unit in known:
        address = told[unit]
        st.page_link(
            VIEWS / "neurons.py",
            label=f"{unit}: tells {as_text(address['relation'])}",
            icon=LINK,
            query_params=address,
        )
    if not known:
        st.page_link(
            VIEWS / "neurons.py",
            label="None of them is in a relation’s set",
            icon=LINK,
            query_params={"model": scene.label},
        )
    show_numbers(found.units, "units")


def show_numbers(frame: polars.DataFrame, what: str) -> None:
    """The first rows of a table of activity."""
    floats = [name for name, kind in frame.schema.items() if kind.is_float()]
    exports.table(
        frame.head(ROWS),
        name=f"{what} on the span",
        height=300,
        columns={name: st.column_config.NumberColumn(name, format="%.2f") for name in floats},
        alt=f"What {what} write on the span and usually.",
        whole=frame,
    )


def head_address(scene: TraceScene, head: HeadId) -> dict[str, str]:
    """The first page about the text up to the end of the span, with this head chosen."""
    span, said = scene.span, scene.said
    assert span is not None
    return {
        "model": scene.label,
        "prompt": said.prompt + said.text[: span.stop],
        "context": "",
        "layer": str(head.layer),
        "head": str(head.head),
    }


def unit_addresses(scene: TraceScene) -> Mapping[NeuronId, dict[str, str]]:
    """Units in the set of a relation by a finished run, with the address of their card."""
    found: dict[NeuronId, dict[str, str]] = {}
    for info in finished_neuron_runs(scene.settings.runs_root, scene.loaded.model.name):
        run = neuron_cached.run_of(str(info.folder), info.updated)
        for relation, one in run.sets.items():
            for unit in one.ids:
                address = {"neuron_run": info.id, "relation": relation, "unit": str(unit)}
                found.setdefault(unit, {"model": scene.label, **address})
    return found
