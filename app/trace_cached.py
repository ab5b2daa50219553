"""What the page about provenance keeps between reruns (see `cached`)."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import streamlit as st

from ..cli.tracing_sources import OpenIndex
from ..probes.provenance import Trace, TraceRules
from .cached import Loaded, kept
from .trace_activity import Activity, Said, Usual, activity, usual_writes
from .trace_answers import Asked, Written, traced, written
from .trace_corpus import opened


def _index(folder: str, changed: int, place: str, tokenizer_sha256: str) -> OpenIndex:
    return opened(Path(folder), place, tokenizer_sha256)


def _written(_loaded: Loaded, key: str, asked: Asked) -> Written:
    return written(_loaded.model, asked)


def _trace(
    _loaded: Loaded,
    _found: OpenIndex,
    _benign: OpenIndex | None,
    key: tuple[str, ...],
    said: Written,
    rules: TraceRules,
) -> Trace:
    return traced(_found, _benign, said, rules, _loaded.model.tokenizer_sha256)


def _usual(_loaded: Loaded, key: str) -> Usual:
    return usual_writes(_loaded.model)


def _activity(_loaded: Loaded, _usual: Usual, key: str, said: Said) -> Activity:
    return activity(_loaded.model, said, _usual)


# Indexes are mappings of files: by reference and never copied.
index_of: Callable[[str, int, str, str], OpenIndex] = st.cache_resource(
    max_entries=8, show_spinner="Opening the index …"
)(_index)
written_of: Callable[[Loaded, str, Asked], Written] = kept(_written)
trace_of: Callable[..., Trace] = kept(_trace)
usual_of: Callable[[Loaded, str], Usual] = kept(_usual, 2)
activity_of: Callable[[Loaded, Usual, str, Said], Activity] = kept(_activity)
