"""A unit over any text: each token coloured by what the unit does there. It needs no run."""

from __future__ import annotations

import streamlit as st

from ..data.facts.designs import Prompt
from ..models.errors import MnemoscopeError
from ..models.types import NeuronId, Site
from . import exports, neuron_cached
from .cached import Loaded
from .forecast import LONGEST_WAIT, reading_seconds
from .neuron_scene import NeuronScene
from .neuron_switch_section import usual_prompt
from .plain import told
from .token_strip import draw_values
from .unit_text import token_table

KEY = "over"
START = "The capital of France is Paris. The capital of Japan is Tokyo."
"""The text to begin with where there is no run."""
LISTED = 20


def show_over_text(scene: NeuronScene, unit: NeuronId) -> None:
    """The unit of the run, or any other one, over a text; the fragment has its own errors."""
    exports.subheader("A unit over a text")
    if KEY not in st.session_state and KEY not in st.query_params:
        st.session_state[KEY] = examples(scene)
    other = st.toggle(
        "Another unit", key="other", bind="query-params", help="Any unit of the MLPs, by number."
    )
    st.fragment(show_text)(scene.loaded, choose_unit(scene.loaded) if other else unit)


def show_any_unit(loaded: Loaded) -> None:
    """Without a run: any unit of the model over a text."""
    exports.about(
        {"model": loaded.model.name}, exports.measured_on(loaded.model, "one unit over a text")
    )
    exports.header("A unit over a text")
    if KEY not in st.session_state and KEY not in st.query_params:
        st.session_state[KEY] = START
    st.fragment(show_text)(loaded, choose_unit(loaded))


def choose_unit(loaded: Loaded) -> NeuronId:
    """A hidden unit by its numbers, part of the address. Raises `UnsupportedSiteError` where the
    model has none."""
    anatomy = loaded.model.anatomy
    sizes = (
        ("Layer", "unit_layer", anatomy.n_layers),
        ("Unit of the layer", "unit_index", anatomy.n_units(Site.NEURON)),
    )
    layer, index = (
        place.number_input(words, 0, count - 1, 0, key=key, bind="query-params")
        for place, (words, key, count) in zip(st.columns(2), sizes, strict=True)
    )
    return NeuronId(layer, index)


def show_text(loaded: Loaded, unit: NeuronId) -> None:
    """The strip, and the tokens with the largest values."""
    with exports.section("unit over text"), told():
        text = st.text_area("Text", key=KEY, bind="query-params", height=90)
        seconds = reading_seconds(loaded.model, [text])
        if seconds > LONGEST_WAIT and not st.button(f"Read the text (about {seconds:.0f} s)"):
            return
        with st.spinner("Reading the text …"):
            tokens, values = neuron_cached.unit_text_of(loaded, loaded.key, text, unit)
        draw_values(values, tokens, key="unit_text", alt=f"Tokens coloured by {unit}.")
        neutral = neuron_cached.neutral_of(loaded, loaded.key, unit.site)
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


def examples(scene: NeuronScene) -> str:
    """A prompt of the relation to begin with, and two of other relations to compare."""
    try:
        prompts = scene.prompts
    except MnemoscopeError:
        prompts = ()
    names = [scene.relation, *(name for name in scene.run.relations if name != scene.relation)]
    return "\n".join(_example(prompts, name) for name in names[:3]).strip()


def _example(prompts: tuple[Prompt, ...], relation: str) -> str:
    return usual_prompt([prompt for prompt in prompts if prompt.relation == relation])
