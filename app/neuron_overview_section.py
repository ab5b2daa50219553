"""First sections: was anything found for each relation, and in which layers does it lie?"""

from __future__ import annotations

from typing import Any

import polars
import streamlit as st

from . import exports
from .neuron_charts import layer_chart
from .neuron_runs import layer_table, verdict_table
from .neuron_scene import NeuronScene
from .plain import as_text

_HELP = {
    "score at k": "Average precision (AP) of the last unit of the set, in the worst of the "
    "wordings that find units.",
    "pseudo limit": "What 95 % of the pseudo-relations stay below at the same rank.",
    "p": "Share of the pseudo-relations, and of this one, that reach the score.",
    "new subjects": "Mean AP of the set on other subjects, in the same wordings.",
    "new wordings": "The same, and in wordings that played no part in the search.",
    "wording tax": "What new wordings cost: AP on new subjects less AP in new wordings.",
}


def show_verdicts(scene: NeuronScene) -> None:
    """The verdict table of all relations."""
    summary = scene.run.summary
    exports.header("Was anything found?")
    exports.caption(
        f"{as_text(scene.run.id)}: {summary['units']:,} units ({as_text(summary['site'])}, pooled "
        f"by {as_text(summary['pooling'])}); a set is the best {summary['k']} of them."
    )
    table = verdict_table(scene.run)
    exports.table(
        table,
        name="verdicts",
        columns={"verdict": st.column_config.TextColumn(width="medium"), **_numbers(table)},
        alt="Verdict of each relation and the numbers behind it.",
    )
    exports.caption(
        "A relation counts as found if the last unit of its set tells it better than the unit of "
        "that rank tells a pseudo-relation, which is glued from halves of two real ones. A set "
        "may pass and still be about words: a high wording tax says so. Whether the model uses "
        "the units is another question, which only switching them off can answer."
    )


def show_layers(scene: NeuronScene) -> None:
    """Relations by layers, coloured and numbered by how many units of the set lie there."""
    exports.header("In which layers?")
    theme = st.context.theme.type or "light"
    exports.chart(
        layer_chart(layer_table(scene.run), theme),
        name="units by layer",
        alt="How many units of each relation's set lie in each layer.",
    )
    exports.caption("Units of each relation's set by layer; point at a cell for those up and down.")


def _numbers(table: polars.DataFrame) -> dict[str, Any]:
    return {
        name: st.column_config.NumberColumn(help=_HELP.get(name), format="%.3f")
        for name, kind in table.schema.items()
        if kind.is_numeric()
    }
