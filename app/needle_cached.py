"""What the page about retrieval keeps between reruns (see `cached`): one trial and its pictures."""

from __future__ import annotations

from collections.abc import Callable

import polars
import streamlit as st

from ..models.types import HeadId
from ..probes.retrieval_readings import SINK
from .atlas_maps import Atlas, Window, WindowMap, atlas, window_map
from .background import made
from .cached import OF_A_SESSION, Loaded, kept
from .edges import Edges, top_edges
from .forecast import Pace, measured_pace
from .needle_trial import Hay, Mode, NeedleTrial, run_trial, step_table


def _trial(_loaded: Loaded, key: str, asked: Hay) -> NeedleTrial:
    return made("trial", (key, asked), lambda tell: run_trial(_loaded.model, asked, tell))


def _pace(_loaded: Loaded, key: str, asked: Hay) -> Pace:
    return measured_pace(_loaded.model)


def _atlas(_found: NeedleTrial, key: str, asked: Hay, mode: Mode) -> Atlas:
    return made("atlas", (key, asked, mode), lambda tell: atlas(_found, mode, tell))


def _window(
    _loaded: Loaded,
    _found: NeedleTrial,
    key: str,
    asked: Hay,
    mode: Mode,
    head: HeadId,
    window: Window,
    sink: bool,
) -> WindowMap:
    return window_map(_loaded.model, _found, mode, head, window, sink=sink)


def _edges(
    _found: NeedleTrial, key: str, asked: Hay, mode: Mode, head: HeadId, without_sink: bool
) -> Edges:
    return top_edges(_found.head_scores(mode, head), sinks=SINK, without_sink=without_sink)


def _steps(
    _loaded: Loaded, _found: NeedleTrial, key: str, asked: Hay, mode: Mode, head: HeadId
) -> polars.DataFrame:
    return step_table(_loaded.model, _found, mode, head)


# Measured anew for every trial, since a machine may be busier than it was.
pace_of: Callable[[Loaded, str, Hay], Pace] = kept(_pace)
# A trial holds the model's queries and keys: one a session, by reference and never copied.
_trials = st.cache_resource(
    max_entries=1, scope="session", show_spinner="Hiding the needle and asking for it …"
)(_trial)
OF_A_SESSION.append(_trials.clear)
trial_of: Callable[[Loaded, str, Hay], NeedleTrial] = _trials
atlas_of: Callable[[NeedleTrial, str, Hay, Mode], Atlas] = kept(_atlas, 2)
window_of: Callable[..., WindowMap] = kept(_window, 64)
edges_of: Callable[..., Edges] = kept(_edges, 16)
steps_of: Callable[..., polars.DataFrame] = kept(_steps, 64)
