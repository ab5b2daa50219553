"""What the pages keep between reruns: models, and recent results by the text they belong to.

Everything here is a plain function of the library wrapped in a Streamlit cache. Arguments with an
underscore are not hashed; `key` names the loaded weights in their place.
"""

from __future__ import annotations

import gc
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any
from uuid import uuid4

import polars
import streamlit as st
import torch
from streamlit.runtime.scriptrunner import get_script_run_ctx

from ..interventions.end_chain import EndChain
from ..interventions.path_patching import build_chain
from ..models.hooked import HookedModel
from ..models.load import load_model
from ..models.types import HeadId
from .answers import Answers, Question, first_ids, greedy, next_token_table
from .background import drop_all
from .edges import Edges, head_scores, token_labels, top_edges
from .lens import Lens, logit_lens
from .model_shelf import Shelf
from .patterns import Pattern, pattern
from .prompt_scores import prompt_scores
from .run_scores import RunScores, run_scores


@dataclass(frozen=True, eq=False)
class Loaded:
    """A model in memory; `key` differs for each load."""

    model: HookedModel
    key: str

    @cached_property
    def chain(self) -> EndChain:
        """The proven chain for sweeps over heads, built when first asked for."""
        with self.model.lock:
            return build_chain(self.model)


def _session(name: str) -> str:
    return name


def _load(place: str) -> Loaded:
    loaded = Loaded(load_model(place), uuid4().hex)
    collect_garbage()
    return loaded


def collect_garbage() -> None:
    """Let go of what nobody refers to any more, and set aside all that stays.

    Streamlit collects garbage after every run of a script and of each of its parts: looking through
    all of torch and of the models takes a third of a second, and what is set aside is passed over.
    """
    gc.unfreeze()
    gc.collect()
    gc.freeze()


def free_memory() -> None:
    """Give back what nobody refers to any more, on the device too."""
    collect_garbage()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def _gone(old: list[Loaded]) -> None:
    """Nobody shows these models any more: the work on them ends, and their memory is given back."""
    while old:
        drop_all(old.pop().key)
    free_memory()


def loaded_model(place: str) -> Loaded:
    """The model of a place in the allow-list, the same one for all who show it."""
    context = get_script_run_ctx(suppress_warning=True)
    if context is None:
        return _models.take(place, "")
    user = _user(context.session_id)
    if _models.place_of(user) not in (None, place):
        context.fragment_storage.clear()  # parts of the page as it was, and their model
        for forget in OF_A_SESSION:
            forget()
    if place in _models:
        return _models.take(place, user)
    with st.spinner("Loading the model and testing its anatomy …"):
        return _models.take(place, user)


def _texts(_loaded: Loaded, key: str, prompt: str, context: str) -> tuple[str, ...]:
    return greedy(_loaded.model, Question(prompt, context))


def _next(_loaded: Loaded, key: str, text: str) -> polars.DataFrame:
    return next_token_table(_loaded.model, text)


def _scores(
    _loaded: Loaded, key: str, text: str, memory: str | None, context: str | None
) -> polars.DataFrame:
    ids = first_ids(_loaded.model, text, Answers(memory, "", context, ""))
    return prompt_scores(_loaded.chain, text, ids)


def _pattern(_loaded: Loaded, key: str, text: str, layer: int, head: int) -> Pattern:
    return pattern(_loaded.model, text, HeadId(layer, head))


def _edges(
    _loaded: Loaded, key: str, text: str, head: HeadId, without_sink: bool
) -> tuple[Edges, list[str]]:
    model = _loaded.model
    found = top_edges(head_scores(model, text, head), sinks=1, without_sink=without_sink)
    return found, token_labels(model, model.tokens(text).ids[0].tolist())


def _lens(
    _loaded: Loaded, key: str, text: str, last: int, memory: str | None, context: str | None
) -> Lens:
    ids = first_ids(_loaded.model, text, Answers(memory, "", context, ""))
    return logit_lens(_loaded.chain, text, last, ids)


def _run(folder: str, updated: str) -> RunScores | None:
    return run_scores(Path(folder))


def kept(function: Callable[..., Any], entries: int = 32) -> Callable[..., Any]:
    """The function with its last results remembered; arguments with an underscore do not count."""
    return st.cache_data(max_entries=entries, show_spinner=False)(function)


OF_A_SESSION: list[Callable[[], None]] = []
"""What forgets the large results that a session keeps of its model, called when it takes another.
(Streamlit itself calls them when a tab is closed.)"""
_models = Shelf(_load, _gone)
# By session, and released with it: so the shelf learns that a tab was closed.
_user = st.cache_resource(scope="session", show_spinner=False, on_release=_models.leave)(_session)

greedy_texts: Callable[..., tuple[str, ...]] = kept(_texts)
next_tokens: Callable[..., polars.DataFrame] = kept(_next)
scores_of_prompt: Callable[..., polars.DataFrame] = kept(_scores)
pattern_of_head: Callable[..., Pattern] = kept(_pattern)
edges_of_text: Callable[..., tuple[Edges, list[str]]] = kept(_edges)
lens_of: Callable[..., Lens] = kept(_lens)
scores_of_run: Callable[[str, str], RunScores | None] = kept(_run)
