"""Third section: one unit of a relation's set, its numbers and the prompts at its top."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import polars
import streamlit as st

from ..models.types import NeuronId
from ..probes.unit_prompts import strongest
from . import exports, neuron_cached
from .forecast import LONGEST_WAIT, reading_seconds
from .neuron_charts import precision_chart
from .neuron_runs import precision_table
from .neuron_scene import NeuronScene, repair
from .plain import as_text, told
from .unit_text_section import show_over_text

MOST_PROMPTS = 15


def show_unit(scene: NeuronScene) -> None:
    """Choose a unit of the set; its numbers on the left, its prompts on the right."""
    exports.header("One unit")
    verdict = scene.run.verdict(scene.relation)
    if not verdict["found"]:
        best = "What follows are the best of all units"
        worth = ", no better than a pseudo-relation's" if verdict["n_pseudo"] else ""
        exports.warning(as_text(f"{scene.relation}: {verdict['text']}. {best}{worth}."))
    units = {str(unit): unit for unit in scene.set_units}
    repair("unit", list(units))
    name = st.selectbox(
        f"Unit of the set of {as_text(scene.relation)}, best first",
        list(units),
        key="unit",
        bind="query-params",
    )
    unit = units[name]
    row = scene.run.unit(scene.relation, unit)
    show_numbers(row)
    left, right = st.columns([4, 6], gap="medium")
    with left:
        exports.subheader("How well it tells")
        show_precisions(scene, row)
    with right, told():
        exports.subheader("Its strongest prompts")
        show_prompts(scene, unit, int(row["sign"]))
    show_over_text(scene, unit)
    with st.expander(f"All {len(units)} units of the set"):
        show_set(scene)


def show_numbers(row: Mapping[str, Any]) -> None:
    """Direction, score, the p-values and how often the unit is chosen."""
    shown = (
        (
            "Direction",
            "up" if row["sign"] > 0 else "down",
            "Whether the unit is higher or lower on prompts of the relation than on others.",
        ),
        ("Score", f"{row['score']:.3f}", "Average precision in the worst detection wording."),
        ("p", small(row["p"]), "Against shuffled labels, doubled for the choice of a direction."),
        ("q", small(row["q"]), "p after Benjamini and Hochberg over all units."),
        (
            "pseudo p",
            small(row["p_pseudo"]),
            "Share of the pseudo-relations, and of this one, whose unit of the same rank scores "
            "as high.",
        ),
        (
            "Resamples",
            "–" if row["selected"] is None else f"{row['selected']:.0%}",
            "In what share of subsamples of the subjects the unit is in the set.",
        ),
    )
    for place, (label, value, why) in zip(st.columns(len(shown)), shown, strict=True):
        exports.metric(place, label, value, why)


def show_precisions(scene: NeuronScene, row: Mapping[str, Any]) -> None:
    """Bars of every average precision of the unit."""
    exports.chart(
        precision_chart(precision_table(row)),
        name="precision of the unit",
        alt="Average precision of the unit in each wording and on new subjects.",
    )
    exports.caption(
        f"Average precision. Blue: wordings that found it; green: new subjects, then new wordings "
        f"too; chance is about {1 / len(scene.run.relations):.2f}. Grey: the same unit as a "
        "detector of one wording against another, or of long names against short ones, within the "
        "relation; chance is a little above 0.5. Long grey bars warn that it hears something else."
    )


def show_prompts(scene: NeuronScene, unit: NeuronId, sign: int) -> None:
    """The prompts of the run on which the unit is strongest in its direction."""
    prompts, key = scene.prompts, (scene.loaded.key, scene.stamp)
    seconds = reading_seconds(scene.loaded.model, [prompt.text for prompt in prompts])
    if seconds > LONGEST_WAIT and st.session_state.get("read") != key:
        if not st.button(f"Read all {len(prompts):,} prompts (about {seconds:.0f} s)"):
            return
        st.session_state["read"] = key
    with st.spinner(f"Reading the {len(prompts):,} prompts of the run …"):
        values = neuron_cached.activations_of(scene.loaded, scene.run, prompts, key)
    row = values[scene.run.units.index(unit)]
    top = strongest(prompts, row, MOST_PROMPTS, sign=sign)
    exports.table(
        top.select("activation", "relation", "prompt"),
        name="strongest prompts of the unit",
        height=38 + 35 * top.height,
        columns={
            "activation": st.column_config.NumberColumn(format="%.2f", width="small"),
            "prompt": st.column_config.TextColumn(width="large"),
        },
        alt="The prompts on which the unit is strongest.",
    )
    ours = int((top["relation"] == scene.relation).sum())
    share = sum(prompt.relation == scene.relation for prompt in prompts) / len(prompts)
    exports.caption(
        f"The {top.height} of all {len(prompts):,} prompts of the run on which {unit} is "
        f"{'highest' if sign > 0 else 'lowest'} (pooled as in the run); {ours} of them ask about "
        f"{as_text(scene.relation)}, as many drawn at random would be about "
        f"{share * top.height:.1f}. It was chosen on prompts among these: only new subjects and "
        "wordings, on the left, test it."
    )


def show_set(scene: NeuronScene) -> None:
    """The rows of the set as the run has them."""
    rows = scene.run.table.filter(polars.col("relation") == scene.relation, "in_set").sort("rank")
    exports.table(rows, name="units of the set", alt="All units of the set with their numbers.")


def small(p: float | None) -> str:
    """A probability in at most a few characters."""
    if p is None:
        return "–"
    return f"{p:.0e}" if p < 0.001 else f"{p:.3f}"
