"""What the entry page keeps between reruns (see `cached`)."""

from __future__ import annotations

from collections.abc import Callable

from ..cli.tracing_sources import OpenIndex
from .answers import Question
from .ask_documents import AnswerSpans, answer_spans
from .ask_reading import ContextReading, read_context
from .ask_relation import HeardRelations, heard_relations
from .ask_reverse import AskedBack, ask_back, scored_tokens
from .cached import Loaded, kept
from .neuron_cached import activations_of, prompts_of
from .neuron_runs import NeuronRun


def _reading(
    _loaded: Loaded, key: str, prompt: str, context: str, answer: str | None
) -> ContextReading:
    return read_context(_loaded.model, Question(prompt, context), answer)


def _heard(_loaded: Loaded, _run: NeuronRun, key: tuple[str, str], text: str) -> HeardRelations:
    prompts = prompts_of(_run, key[1])
    known = activations_of(_loaded, _run, prompts, key)
    return heard_relations(_loaded.model, _run, prompts, known, text)


def _spans(
    _found: OpenIndex, key: tuple[str, ...], prompt: str, said: str, sha256: str, hidden: bool
) -> AnswerSpans:
    return answer_spans(_found, prompt, said, sha256, hidden=hidden)


def _back(_loaded: Loaded, key: str, place: str, prompt: str, said: str) -> AskedBack:
    return ask_back(_loaded.model, place, prompt, said)


def _tokens(_loaded: Loaded, key: str, place: str, prompt: str) -> int:
    return scored_tokens(_loaded.model, place, prompt)


reading_of: Callable[..., ContextReading] = kept(_reading)
heard_of: Callable[..., HeardRelations] = kept(_heard)
spans_of: Callable[..., AnswerSpans] = kept(_spans)
back_of: Callable[..., AskedBack] = kept(_back)
back_tokens_of: Callable[..., int] = kept(_tokens)
