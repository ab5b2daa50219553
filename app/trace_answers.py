"""A text to trace: typed, or what a model answers to a prompt. No page here."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from ..cli.tracing_sources import OpenIndex
from ..models.errors import MnemoscopeError
from ..models.hooked import HookedModel
from ..models.tokens import encode
from ..probes.belief_conflict import belief_index
from ..probes.index_spelling import SpelledText, spelled_ids, token_spelling
from ..probes.provenance import Evidence, Trace, TraceRules, trace_ids, trace_text
from ..probes.span_significance import unigram_background
from ..probes.traced_spans import TracedSpan
from .trace_activity import Said, said_span

Source = Literal["a text", "an answer"]
SOURCES: tuple[Source, ...] = ("a text", "an answer")


@dataclass(frozen=True)
class Asked:
    """What is traced: the text, or the model's greedy answer to the prompt (then `text` is "")."""

    source: Source
    text: str
    prompt: str
    new_tokens: int


@dataclass(frozen=True)
class Written:
    """The text, the tokens it has in the model, and the prompt's, which came before it."""

    text: str
    prompt: str = ""
    ids: tuple[int, ...] = ()
    prompt_ids: tuple[int, ...] = ()


def written(model: HookedModel, asked: Asked) -> Written:
    """The text as typed, or the answer of the model.

    Raises `MnemoscopeError` for an empty text, and where the model writes nothing.
    """
    if asked.source == "a text":
        if not asked.text.strip():
            raise MnemoscopeError("there is nothing to trace: type a text on the left.")
        return Written(asked.text)
    prompt = asked.prompt.rstrip()
    batch = model.tokens(prompt)
    (ids,) = model.generate(batch, asked.new_tokens)
    text = str(model.text_tokenizer.decode(ids))
    if not text.strip():
        raise MnemoscopeError("the model wrote nothing behind this prompt: use another one.")
    return Written(text, prompt, tuple(ids), tuple(batch.row(0).tolist()))


def traced(
    found: OpenIndex, benign: OpenIndex | None, said: Written, rules: TraceRules, sha256: str
) -> Trace:
    """The trace of what was written; `sha256` is that of the tokenizer that wrote it.

    Raises what `trace_text` raises.
    """
    evidence = Evidence(
        benign=None if benign is None else benign.index,
        background=unigram_background(found.index),
        belief=belief_index(found.index),
    )
    if said.ids and found.spelling.sha256 == sha256:
        return trace_ids(
            found.index,
            said.ids,
            found.spelling,
            prompt_ids=said.prompt_ids,
            rules=rules,
            evidence=evidence,
        )
    return trace_text(
        found.index, said.text, found.spelling, prompt=said.prompt, rules=rules, evidence=evidence
    )


def span_in_model(model: HookedModel, said: Written, span: TracedSpan) -> Said:
    """The span among the tokens that the model reads. Raises as `said_span` does."""
    tokenizer = model.text_tokenizer
    if said.ids:
        decode = token_spelling(tokenizer).decode
        return said_span(
            model, said.prompt_ids, spelled_ids(decode, said.ids), span.start, span.stop
        )
    spelled: SpelledText = token_spelling(tokenizer).spell(said.text)
    opening = encode(tokenizer, said.text)
    return said_span(
        model, opening[: len(opening) - len(spelled.ids)], spelled, span.start, span.stop
    )
