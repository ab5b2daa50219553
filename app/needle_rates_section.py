"""The same change over many needles: how often the answer is found."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import streamlit as st

from ..data.facts.needles import Verdict
from . import background, exports
from .background import Tell
from .cached import kept
from .needle_scene import NeedleScene
from .needle_switched import SEEDS, needle_verdicts, verdict_table
from .needle_trial import Asked
from .own_haystack import DEPTHS
from .plain import told
from .switched_cached import draws_of, means_for
from .switched_off import Switched

DRAWS = 3


def show_rates(scene: NeedleScene, switched: Switched, once: float) -> None:
    """Shares of needles that are found, before and after, beside random changes, with their own
    errors; asked for by a click. `once`: seconds that one trial takes."""
    exports.subheader("Over many needles")
    with told():
        asked = scene.asked
        if not isinstance(asked, Asked):
            exports.info("Rates are taken over made needles: choose a made haystack.")
            return
        many = DEPTHS * SEEDS
        made = verdicts_for(scene, asked, switched, once)
        if made is None:
            return
        before, after, *others = made
        table = verdict_table(before, after, others)
        exports.table(
            table,
            name="needles found",
            alt="Shares of needles by how they were answered, before and after.",
            columns={
                name: st.column_config.NumberColumn(name, format="%.2f")
                for name in table.columns[1:]
            },
        )
        exports.caption(
            f"{many} needles of this kind and length, {SEEDS} at each of {DEPTHS} depths. Random: "
            f"{DRAWS} sets{of_tokens_words(switched)}. A few needles show, they do not prove: "
            "`mnemoscope retrieval score` asks for many."
        )


def verdicts_for(
    scene: NeedleScene, asked: Asked, switched: Switched, once: float
) -> tuple[tuple[Verdict, ...], ...] | None:
    """Verdicts unchanged, changed and under random changes; None until a click, and while it goes
    on."""
    loaded, many = scene.loaded, DEPTHS * SEEDS
    means = means_for(loaded, switched)
    drawn = draws_of(loaded, loaded.key, switched, DRAWS, scene.found.spans["question"][0])
    # Each needle has its own tokens of a span, wherever those of the one on show are.
    key = (loaded.key, replace(asked, depth=0), nowhere(switched))
    words = f"Asking for {many} needles, unchanged, changed and with random sets"

    def make(tell: Tell) -> tuple[tuple[Verdict, ...], ...]:
        return needle_verdicts(loaded.model, asked, switched, drawn.sets, means, tell)

    seconds = once * many * (2 + DRAWS)
    if st.session_state.get("rates_of") != key and background.work_of("rates", key) is None:
        if not st.button(f"Ask for {many} needles at all depths (about {seconds:.0f} s)"):
            return None
        st.session_state["rates_of"] = key
    if not background.watched("rates", key, make, words):
        return None
    return verdicts_of(make, *key)


def nowhere(switched: Switched) -> Switched:
    """The change without the places of its tokens in one text."""
    return replace(switched, change=replace(switched.change, hidden=()))


def of_tokens_words(switched: Switched) -> str:
    """What random sets are sets of, where that is not told above."""
    return " of as many other tokens of each haystack" if switched.of_tokens else ""


def _verdicts(
    _make: Callable[[Tell], tuple[tuple[Verdict, ...], ...]],
    key: str,
    asked: Asked,
    switched: Switched,
) -> tuple[tuple[Verdict, ...], ...]:
    return background.made("rates", (key, asked, switched), _make)


verdicts_of: Callable[..., tuple[tuple[Verdict, ...], ...]] = kept(_verdicts)
