"""What the pages keep between reruns: one model, and recent results by the text they belong to.

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
from torch import Tensor

from ..data.neutral import neutral_passages
from ..interventions.head_means import mean_head_outputs
from ..interventions.path_patching import EndChain, build_chain
from ..models.hooked import HookedModel
from ..models.load import load_model
from ..models.types import HeadId
from .answers import Answers, Question, first_ids, greedy, next_token_table
from .edges import Edges, head_scores, token_labels, top_edges
from .lens import Lens, logit_lens
from .patterns import Pattern, pattern
from .prompt_scores import prompt_scores
from .run_scores import RunScores, run_scores
from .switched_off import Control, HeadChange, Reading, control, edits_of, readings


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


def _load(place: str) -> Loaded:
    return Loaded(load_model(place), uuid4().hex)


def _release(_: Loaded) -> None:
    """The cache lets go of a model: give its memory back once nobody runs it."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


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


def _readings(
    _loaded: Loaded,
    key: str,
    prompt: str,
    context: str,
    memory: str | None,
    claimed: str | None,
    heads: tuple[str, ...],
    change: HeadChange,
) -> tuple[Reading, ...]:
    chosen = [HeadId.parse(head) for head in heads]
    edits = edits_of(change, chosen, _means_for(_loaded, key, change)) if heads else ()
    only = change.text if heads and change.op == "hide tokens" else None
    answers = Answers(memory, "", claimed, "")
    return readings(_loaded.model, Question(prompt, context), answers, edits, only=only)


def _control(
    _loaded: Loaded,
    key: str,
    prompt: str,
    context: str,
    memory: str | None,
    claimed: str | None,
    heads: tuple[str, ...],
    change: HeadChange,
    draws: int,
) -> Control:
    chosen = [HeadId.parse(head) for head in heads]
    means = _means_for(_loaded, key, change)
    asked = Question(prompt, context), Answers(memory, "", claimed, "")
    return control(_loaded.model, *asked, chosen, change, means, draws=draws)


def _means(_loaded: Loaded, key: str) -> dict[HeadId, Tensor]:
    model = _loaded.model
    return mean_head_outputs(model, neutral_passages(), model.anatomy.all_heads())


def _means_for(loaded: Loaded, key: str, change: HeadChange) -> dict[HeadId, Tensor] | None:
    return head_means_of(loaded, key) if change.op == "mean" else None


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


loaded_model: Callable[[str], Loaded] = st.cache_resource(
    max_entries=1, on_release=_release, show_spinner="Loading the model and testing its anatomy …"
)(_load)
"""The model of a place in the allow-list; loading another one lets go of the first."""

greedy_texts: Callable[..., tuple[str, ...]] = kept(_texts)
next_tokens: Callable[..., polars.DataFrame] = kept(_next)
scores_of_prompt: Callable[..., polars.DataFrame] = kept(_scores)
pattern_of_head: Callable[..., Pattern] = kept(_pattern)
edges_of_text: Callable[..., tuple[Edges, list[str]]] = kept(_edges)
lens_of: Callable[..., Lens] = kept(_lens)
readings_of: Callable[..., tuple[Reading, ...]] = kept(_readings)
control_of: Callable[..., Control] = kept(_control)
head_means_of: Callable[[Loaded, str], dict[HeadId, Tensor]] = kept(_means, 2)
"""What every head puts out on average over neutral text."""
scores_of_run: Callable[[str, str], RunScores | None] = kept(_run)
