"""Fourth section: the first units of a relation changed, and the answers before and after."""

from __future__ import annotations

from dataclasses import dataclass

import streamlit as st

from ..data.facts.designs import Prompt
from ..models.errors import MnemoscopeError
from ..models.types import NeuronId
from . import exports, neuron_cached
from .answers import token_label
from .change_section import choose_unit_factor
from .forecast import LONGEST_WAIT, reading_seconds
from .neuron_charts import log_p_chart, unit_token_chart
from .neuron_scene import NeuronScene
from .neuron_switched import (
    CHANGES,
    DRAWS,
    FEWER_DRAWS,
    Change,
    Neutral,
    UnitControl,
    UnitReading,
)
from .plain import as_text, told
from .scene import PROMPT

USUAL = 10
"""How many units are changed unless somebody moves the slider."""


@dataclass(frozen=True)
class UnitChange:
    """Which units are changed, how, and what is asked."""

    units: tuple[NeuronId, ...]
    change: Change
    factor: float
    prompt: str


def show_unit_switch(scene: NeuronScene) -> UnitChange | None:
    """Choose units, a change and a prompt; answers before, after and with random units."""
    exports.header("Without these units")
    known = neuron_cached.neutral_of(scene.loaded, scene.loaded.key, scene.run.site)
    pool = tuple(unit for unit in scene.set_units if unit not in known.massive)
    if not pool:
        exports.info("Every unit of this set has massive activations: none is left to change.")
        return None
    chosen = choose_change(scene, pool)
    names = ", ".join(map(str, chosen.units[:12])) + (" …" if len(chosen.units) > 12 else "")
    left_out = len(scene.set_units) - len(pool)
    also = f" {left_out} with massive activations are left out." if left_out else ""
    exports.caption(f"Changed: {names}.{also} {words_for(chosen)}")
    with told():
        show_readings(scene, chosen, known)
    return chosen


def choose_change(scene: NeuronScene, pool: tuple[NeuronId, ...]) -> UnitChange:
    """The prompt on the left; number of units and change on the right."""
    left, middle, right = st.columns([4, 3, 3])
    start_prompt(scene)
    prompt = left.text_area("Prompt", key="ask", bind="query-params", height=90)
    many, state = 1, st.session_state
    if "top" in state:  # another set may be smaller
        state["top"] = min(len(pool), state["top"])
    if len(pool) > 1:
        usual = min(USUAL, len(pool))
        many = middle.slider(
            "First units of the set", 1, len(pool), usual, key="top", bind="query-params"
        )
    change = right.segmented_control(
        "Set them to",
        CHANGES,
        default="mean",
        required=True,
        key="change",
        bind="query-params",
        help="mean: their mean on neutral text; zero: 0; scale: what they are times a factor.",
    )
    factor = 0.0
    if change == "scale":
        with right:
            factor = choose_unit_factor("Factor")
    return UnitChange(pool[:many], change, factor, prompt)


def start_prompt(scene: NeuronScene) -> None:
    """A prompt of the relation to begin with; another relation brings its own, unless somebody
    has typed."""
    state = st.session_state
    try:
        prompts = scene.prompts
    except MnemoscopeError:
        prompts = ()
    ours = [prompt for prompt in prompts if prompt.relation == scene.relation]
    new = "ask" not in state and "ask" not in st.query_params
    other = state.get("ask_about", scene.relation) != scene.relation
    if new or (other and state.get("ask") in {prompt.text for prompt in prompts}):
        state["ask"] = usual_prompt(ours)
    state["ask_about"] = scene.relation


def usual_prompt(ours: list[Prompt]) -> str:
    """The plainest wording about a subject that found no unit: those come last in a design."""
    plain = [prompt.text for prompt in ours if prompt.wording == ours[0].wording]
    return plain[-1] if plain else PROMPT


def words_for(chosen: UnitChange) -> str:
    """The change in words."""
    how = {
        "mean": "set to their mean on neutral text",
        "zero": "set to zero",
        "scale": f"multiplied by {chosen.factor:g}",
    }[chosen.change]
    return f"They are {how} in the prompt and in the answer; the first token is spared."


def show_readings(scene: NeuronScene, chosen: UnitChange, known: Neutral) -> None:
    """Three columns: unchanged, changed, and as many random units changed."""
    about = (scene.loaded, scene.loaded.key, known, chosen.prompt)
    with st.spinner("Asking again …"):
        before = neuron_cached.unit_reading_of(*about, (), chosen.change, 0.0)
        after = neuron_cached.unit_reading_of(*about, chosen.units, chosen.change, chosen.factor)
    first = before.first
    columns = st.columns(3, gap="small")
    with columns[0]:
        show_reading("Unchanged", before, first)
    with columns[1]:
        show_reading("These units", after, first)
    with columns[2]:
        drawn = matched(scene, chosen, known, first)
        if drawn is not None:
            show_reading("Random units", drawn.reading, first)
    exports.caption(
        "The ten most probable next tokens, in blue the one that the unchanged model says next; ␣ "
        "marks a space."
    )
    if drawn is not None:
        token = token_label(scene.loaded.model.pieces([first])[0])
        show_comparison(token, before, after, drawn)


def matched(
    scene: NeuronScene, chosen: UnitChange, known: Neutral, token: int
) -> UnitControl | None:
    """The control, or None where it fails (the reason is shown) or waits for a click."""
    once, draws = reading_seconds(scene.loaded.model, [chosen.prompt]), DRAWS
    if once * draws > LONGEST_WAIT:
        draws = FEWER_DRAWS
    if once * draws > LONGEST_WAIT and not st.button(
        f"Compare with {draws} sets of random units (about {once * draws:.0f} s)"
    ):
        return None
    spared = tuple(unit for unit in scene.set_units if unit not in chosen.units)
    with told(), st.spinner(f"The same with {draws} sets of random units …"):
        return neuron_cached.unit_control_of(
            scene.loaded,
            scene.loaded.key,
            known,
            chosen.prompt,
            chosen.units,
            chosen.change,
            chosen.factor,
            token,
            spared,
            draws,
        )
    return None


def show_reading(name: str, reading: UnitReading, first: int) -> None:
    """What is said, and the next tokens."""
    exports.subheader(name)
    exports.quote(reading.said.strip("\n") or "(nothing)")
    exports.chart(
        unit_token_chart(reading.table, first),
        name=f"next tokens {name}",
        alt=f"Ten most probable next tokens, {name}.",
    )


def show_comparison(
    token: str, before: UnitReading, after: UnitReading, drawn: UnitControl
) -> None:
    """How much the first token of the unchanged answer loses, beside the random sets."""
    first = before.first
    start, end = float(before.log_p[first]), float(after.log_p[first])
    low, high = min(drawn.log_p) - start, max(drawn.log_p) - start
    exports.markdown(f"Change of log P of **{as_text(token)}**:")
    words = f"{end - start:+.3f}; random units: {low:+.3f} to {high:+.3f}"
    if drawn.holds(end):
        exports.badge(f"not better than random ({words})", color="gray")
    else:
        exports.badge(f"outside the random range ({words})", color="green")
    exports.chart(
        log_p_chart({"unchanged": start, "these units": end}, drawn.log_p),
        name="log P beside random units",
        alt="Log probability of the token before, after, and with each random set.",
    )
    note = f" Matching: {as_text(drawn.note)}." if drawn.note else ""
    exports.caption(
        f"{len(drawn.log_p)} sets of as many random units of the same layers that write as much on "
        "neutral text; the first is the third column above. A set that does nothing special falls "
        f"outside their range in {drawn.chance_outside:.0%} of cases. One prompt shows, it does "
        f"not prove: `mnemoscope neurons ablate` asks many facts.{note}"
    )
