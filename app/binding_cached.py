"""What the page about binding keeps between reruns (see `cached`), and how long each part takes."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import polars
import streamlit as st

from ..data.facts.pairs import WAYS, PairRelation, Way
from ..models.hooked import HookedModel
from ..models.tokens import encode
from ..probes.reversal_recall import ReversalRecall, reversal_recall
from ..probes.role_prompts import role_prompts
from ..probes.role_states import RoleStates, role_states
from .binding_curves import RoleCurves, measured_curves, run_curves
from .binding_pairs import PairSet, pair_set
from .binding_recall import AskedWay, ask_pair
from .binding_swaps import PairSwap, Swap, swap_all, swap_pair
from .cached import OF_A_SESSION, Loaded, kept
from .forecast import Pace

_GREEDY = 10
"""New tokens of an answer."""
_READ = 0.5
"""Share of the other names that are read whole to rank a name."""

Stamp = tuple[str, str, int]
"""The load, the relation, and how many pairs."""


def _pairs(_loaded: Loaded, key: str, place: str, name: str, most: int) -> PairSet:
    return pair_set(_loaded.model, place, name, most)


def _recall(_loaded: Loaded, _relation: PairRelation, stamp: Stamp) -> ReversalRecall:
    return reversal_recall(_loaded.model, _relation)


def _asked(
    _loaded: Loaded, _relation: PairRelation, stamp: Stamp, place: int, way: Way, wording: int
) -> AskedWay:
    return ask_pair(_loaded.model, _relation, place, way, wording)


def _curves(_loaded: Loaded, _pairs: PairSet, stamp: Stamp) -> RoleCurves:
    return measured_curves(_loaded.model, _pairs)


def _run(folder: str, updated: str) -> RoleCurves:
    return run_curves(Path(folder))


def _states(_loaded: Loaded, _relation: PairRelation, stamp: Stamp) -> RoleStates:
    return role_states(_loaded.model, role_prompts(_loaded.model, _relation))


def _pair_swap(_loaded: Loaded, _states: RoleStates, stamp: Stamp, swap: Swap) -> PairSwap:
    return swap_pair(_loaded.model, _states, swap)


def _all_swaps(
    _loaded: Loaded, _states: RoleStates, stamp: Stamp, cell: tuple[object, ...]
) -> polars.DataFrame:
    return swap_all(_loaded.model, _states, cell)  # type: ignore[arg-type]


pairs_of: Callable[[Loaded, str, str, str, int], PairSet] = kept(_pairs)
recall_of: Callable[..., ReversalRecall] = kept(_recall, 4)
asked_of: Callable[..., AskedWay] = kept(_asked, 64)
curves_of: Callable[..., RoleCurves] = kept(_curves, 4)
curves_of_run: Callable[[str, str], RoleCurves] = kept(_run, 4)
# The states of 128 pairs on a model of 30 layers take 0.3 GB: one set a session, never copied.
_kept_states = st.cache_resource(max_entries=1, scope="session", show_spinner=False)(_states)
OF_A_SESSION.append(_kept_states.clear)
states_of: Callable[..., RoleStates] = _kept_states
pair_swap_of: Callable[..., PairSwap] = kept(_pair_swap, 64)
all_swaps_of: Callable[..., polars.DataFrame] = kept(_all_swaps, 32)


def recall_seconds(model: HookedModel, pace: Pace, relation: PairRelation) -> float:
    """Each prompt once, its answer, and the names that could be likelier than the right one."""
    n = len(relation.pairs)
    prompt, name = _lengths(model, relation)
    tokens = 2 * n * (prompt + _GREEDY + _READ * n * name)
    return tokens * pace.token + 2 * _GREEDY * pace.step


def curves_seconds(model: HookedModel, pace: Pace, relation: PairRelation) -> float:
    """States, those of random weights and with the fact in front, and which pairs are known."""
    n = len(relation.pairs)
    _, name = _lengths(model, relation)
    known = 2 * n * _READ * n * name * pace.token
    return known + 4 * states_seconds(model, pace, relation)


def states_seconds(model: HookedModel, pace: Pace, relation: PairRelation) -> float:
    """Each prompt with its answer, in every wording of both directions."""
    prompt, name = _lengths(model, relation)
    rows = len(relation.pairs) * sum(len(relation.wordings(way)) for way in WAYS)
    return rows * (prompt + name) * pace.token


def swaps_seconds(model: HookedModel, pace: Pace, relation: PairRelation, arms: int) -> float:
    """One prompt with its answer a pair and arm."""
    prompt, name = _lengths(model, relation)
    return len(relation.pairs) * (arms + 1) * (prompt + name) * pace.token


def _lengths(model: HookedModel, relation: PairRelation) -> tuple[float, float]:
    """Mean tokens of a prompt and of a name, from a few pairs."""
    few, tokenizer = relation.pairs[:8], model.text_tokenizer
    prompts = [relation.prompt(pair, way) for pair in few for way in WAYS]
    names = [f" {pair.asked(way)}" for pair in few for way in WAYS]
    prompt, name = (
        sum(len(encode(tokenizer, text)) for text in texts) / len(texts)
        for texts in (prompts, names)
    )
    return prompt, name
