"""Second card: which relation the units of a finished run hear in the prompt."""

from __future__ import annotations

import polars
import streamlit as st

from ..results.run_reading import RunInfo
from . import ask_cached, exports, neuron_cached
from .ask_charts import relation_chart
from .ask_links import may_start, onward
from .ask_relation import FOUND, HeardRelations
from .ask_scene import AskScene
from .forecast import reading_seconds
from .neuron_runs import check_run_fits, finished_neuron_runs
from .neuron_scene import find_command
from .plain import as_text

UNITS = 5


def fill_units(asked: AskScene) -> None:
    """From the latest finished run of this model; without one, how to start it."""
    runs = finished_neuron_runs(asked.settings.runs_root, asked.loaded.model.name)
    if not runs:
        show_no_run(asked)
        return
    found = heard(asked, runs[0])
    if found is None:
        return
    first = found.first
    name = as_text(first.replace("_", " "))
    wording = {
        None: "The prompt has no wording of a relation of the run.",
        first: "The prompt has a wording of it.",
    }.get(found.asked, f"The prompt has a wording of {as_text(str(found.asked))}.")
    exports.markdown(f"The units of **{name}** stand out most. {wording}")
    verdict = found.relations["verdict"][0]
    if verdict != FOUND:
        exports.badge(f"by the run: {as_text(verdict)}", color="gray")
    exports.chart(
        relation_chart(found.relations),
        name="relations by their units",
        alt=f"Relations by how their units stand out, {name} first.",
    )
    exports.caption(
        f"Run {as_text(runs[0].id)}. Mean over a relation's units of the share of prompts of other "
        "relations on which the unit is further from telling it; 0.5 is chance. Grey relations "
        "were not found to have units of their own. The prompt is read without the context."
    )
    show_best(found)
    address = {
        **asked.address,
        "neuron_run": runs[0].id,
        "relation": first,
        "ask": asked.question.closed,
    }
    onward("neurons", f"The units of {name}, and the answer without them", address)


def show_no_run(asked: AskScene) -> None:
    """Where to start a run: on its page, or in a terminal."""
    exports.info(
        as_text(f"No finished run has looked for the relation units of {asked.label} yet.")
        + " Start one on the page below, or in a terminal:"
    )
    st.code(find_command(asked.settings, asked.label), language="bash", wrap_lines=True)
    onward("neurons", "Start a run", asked.address)


def heard(asked: AskScene, info: RunInfo) -> HeardRelations | None:
    """The measurement; None while a long one waits for a click."""
    loaded = asked.loaded
    run = neuron_cached.run_of(str(info.folder), info.updated)
    check_run_fits(run, loaded.model)
    stamp = f"{info.folder} {info.updated}"
    texts = [prompt.text for prompt in neuron_cached.prompts_of(run, stamp)]
    seconds = reading_seconds(loaded.model, texts)
    if not may_start(asked, f"Read the run's {len(texts)} prompts", seconds):
        return None
    with st.spinner("Listening to the units …"):
        return ask_cached.heard_of(loaded, run, (loaded.key, stamp), asked.question.closed)


def show_best(found: HeardRelations) -> None:
    """The first units of the relation that stands out most."""
    rows = found.units.filter(polars.col("relation") == found.first).head(UNITS)
    exports.table(
        rows.select("unit", "direction", "activation", "standing"),
        name="first units",
        columns={
            name: st.column_config.NumberColumn(name, format="%.3f")
            for name in ("activation", "standing")
        },
        alt=f"The first {UNITS} units of {found.first}: activation on this prompt and standing.",
    )
