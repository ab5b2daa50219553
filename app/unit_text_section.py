"""A unit over any text: each token coloured by what the unit does there."""

from __future__ import annotations

import streamlit as st

from ..data.facts.designs import Prompt
from ..models.errors import MnemoscopeError
from ..models.types import NeuronId
from . import exports, neuron_cached
from .forecast import LONGEST_WAIT, reading_seconds
from .neuron_scene import NeuronScene
from .neuron_switch_section import usual_prompt
from .plain import told
from .token_strip import draw_values
from .unit_text import token_table

KEY = "over"
LISTED = 20


def show_over_text(scene: NeuronScene, unit: NeuronId) -> None:
    """Type a text; the fragment reads the unit on it, with its own errors."""
    exports.subheader(f"{unit} over a text")
    st.fragment(show_text)(scene, unit)


def show_text(scene: NeuronScene, unit: NeuronId) -> None:
    """The strip, and the tokens with the largest values."""
    with exports.section("unit over text"), told():
        start_text(scene)
        text = st.text_area("Text", key=KEY, bind="query-params", height=90)
        seconds = reading_seconds(scene.loaded.model, [text])
        if seconds > LONGEST_WAIT and not st.button(f"Read the text (about {seconds:.0f} s)"):
            return
        with st.spinner("Reading the text …"):
            tokens, values = neuron_cached.unit_text_of(scene.loaded, scene.loaded.key, text, unit)
        draw_values(values, tokens, key="unit_text", alt=f"Tokens coloured by {unit}.")
        neutral = neuron_cached.neutral_of(scene.loaded, scene.loaded.key, unit.site)
        mean = float(neutral.means[unit.layer, unit.index])
        exports.caption(
            f"Blue: {unit} is above zero, orange: below; full colour at the largest size after the "
            f"first token, whose values may be massive. Its mean on neutral text is {mean:.3g}."
        )
        rows = token_table(tokens, values)
        with st.expander(f"Tokens with the largest values of {unit}"):
            exports.table(
                rows.head(LISTED),
                name=f"activations of {unit} over the text",
                alt=f"Tokens of the text with the largest values of {unit}.",
                columns={"activation": st.column_config.NumberColumn(format="%.3f")},
                whole=rows,
                key="unit_text",
            )


def start_text(scene: NeuronScene) -> None:
    """A prompt of the relation to begin with, and one of another relation to compare."""
    if KEY in st.session_state or KEY in st.query_params:
        return
    try:
        prompts = scene.prompts
    except MnemoscopeError:
        prompts = ()
    names = [scene.relation, *(name for name in scene.run.relations if name != scene.relation)]
    st.session_state[KEY] = "\n".join(_example(prompts, name) for name in names[:3]).strip()


def _example(prompts: tuple[Prompt, ...], relation: str) -> str:
    return usual_prompt([prompt for prompt in prompts if prompt.relation == relation])
