"""What the page about binding is about: model, relation, pairs and source of the sidebar."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from dataclasses import dataclass

import streamlit as st

from ..results.run_reading import RunInfo
from . import binding_cached, cached, selection
from .binding_curves import finished_probe_runs
from .binding_pairs import MOST, USUAL, PairSet, relation_names
from .forecast import LONGEST_WAIT, Pace
from .needle_cached import pace_of
from .needle_scene import forget_unless
from .plain import as_text
from .settings import Settings

HERE = "this page"
_ADDRESS = "binding_address"
_COUNTS = (32, USUAL, 64, 96, MOST)


@dataclass(frozen=True, eq=False)
class BindingScene:
    """What the whole page is about; `run` is the finished run whose curves are shown, if any."""

    settings: Settings
    label: str
    loaded: cached.Loaded
    name: str
    pairs: PairSet
    most: int
    run: RunInfo | None

    @property
    def stamp(self) -> binding_cached.Stamp:
        """What results of these pairs are kept by."""
        return self.loaded.key, self.name, self.most

    @property
    def pace(self) -> Pace:
        """How fast the machine is, timed once for these pairs."""
        return pace_of(self.loaded, self.loaded.key, self.stamp)  # type: ignore[arg-type]

    def command(self, verb: str) -> str:
        """A `binding` command on this relation, quoted for a shell."""
        parts = ("mnemoscope", "binding", verb, self.settings.models[self.label])
        options = ("--pairs", self.name, "--runs", str(self.settings.runs_root))
        return shlex.join([*parts, *options])


def binding_sidebar(settings: Settings) -> BindingScene:
    """Model, relation, number of pairs and source of the curves, each part of the address."""
    keep_address()
    with st.sidebar:
        label = selection.choose_model(settings)
    loaded, place = cached.loaded_model(settings.models[label]), settings.models[label]
    names = relation_names(place)
    forget_unless("pairs", names)
    runs = {run.id: run for run in finished_probe_runs(settings.runs_root, loaded.model.name)}
    sources = (HERE, *runs)
    forget_unless("curves", sources)
    with st.sidebar:
        name = st.selectbox("Relation of pairs", names, key="pairs", bind="query-params")
        most = st.select_slider(
            "Pairs, at the most",
            _COUNTS,
            USUAL,
            key="most_pairs",
            bind="query-params",
            help="The work grows with the square of this number. More pairs: `mnemoscope binding`.",
        )
        source = st.selectbox(
            "Curves measured by",
            sources,
            key="curves",
            bind="query-params",
            help="This page, or a finished run of `mnemoscope binding probe` of this model.",
        )
    with st.spinner("Reading the pairs …"):
        pairs = binding_cached.pairs_of(loaded, loaded.key, place, name, int(most))
    return BindingScene(settings, label, loaded, name, pairs, int(most), runs.get(source))


def keep_address() -> None:
    """Note what the address asked for: parts of the page that wait for a click drop out of it."""
    if _ADDRESS not in st.session_state:
        query = st.query_params
        st.session_state[_ADDRESS] = {name: query.get_all(name) for name in query}


def from_address(key: str, options: Sequence[object], *, several: bool = False) -> None:
    """Before a widget is first shown: what the address asked for when the page was opened."""
    asked = st.session_state[_ADDRESS].pop(key, None)
    if asked is None or key in st.session_state:
        return
    found = [option for option in options if str(option) in asked]
    if found:
        st.session_state[key] = found if several else found[0]


def may_start(scene: BindingScene, what: str, seconds: float) -> bool:
    """Whether a part of the page is short, was asked for, or is asked for now by a click."""
    key = f"asked for {what}"
    place = st.empty()  # always there: what moves down the page loses its place in the address
    if seconds <= LONGEST_WAIT or st.session_state.get(key) == scene.stamp:
        return True
    if not place.button(
        f"{what} (about {seconds:.0f} s at the present pace)", type="primary", key=f"go {what}"
    ):
        return False
    st.session_state[key] = scene.stamp
    place.empty()
    return True


def show_pair_count(scene: BindingScene) -> None:
    """How many pairs are on show, of how many, and why the others are not."""
    pairs = scene.pairs
    dropped = ", ".join(f"{n} {why}" for why, n in pairs.dropped.items())
    told = (
        " The corpus that it learned from says how each pair was told."
        if pairs.told
        else " Nobody knows how these pairs were told."
    )
    st.caption(
        as_text(
            f"{len(pairs.pairs)} of {pairs.whole} pairs of {scene.name}, drawn at random"
            + (f"; cannot be asked both ways: {dropped}." if dropped else ".")
            + told
        )
        + " *Forward* names A and asks for B, *reverse* names B and asks for A."
    )
