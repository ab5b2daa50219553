"""Which documents of an index hold what the model answered, together with its prompt? No page here.

An answer of a word or two stands in countless documents. What is looked up is therefore the
prompt with the first sentence of the answer behind it, and only stretches that reach into the
answer count.
"""

from __future__ import annotations

from dataclasses import dataclass

from ..cli.tracing_sources import OpenIndex
from ..probes.provenance import BYTES_PER_TOKEN, TraceRules
from ..probes.traced_spans import TracedSpan
from .ask_scene import answer_sentence
from .trace_answers import Written, traced

SHORTEST = 5
"""Tokens of a stretch at least, so that "The capital of France is Paris" is one."""


@dataclass(frozen=True, eq=False)
class AnswerSpans:
    """The text that was looked up, and the stretches of it that reach into the answer, those that
    hold most of the answer first, then the longer ones."""

    text: str
    spans: tuple[TracedSpan, ...]


def answer_spans(
    found: OpenIndex, prompt: str, said: str, sha256: str, *, hidden: bool
) -> AnswerSpans:
    """Look prompt and answer up; with `hidden` the documents' text stays on the disk.

    `sha256` is that of the tokenizer of the model. Raises what `trace_text` raises.
    """
    unit = BYTES_PER_TOKEN if found.info.mode == "bytes" else 1
    rules = TraceRules(min_length=SHORTEST * unit, max_count=None)
    if hidden:
        rules = TraceRules(min_length=SHORTEST * unit, max_count=None, snippet=0)
    text = prompt + answer_sentence(said)
    trace = traced(found, None, Written(text), rules, sha256)
    reaching = [span for span in trace.spans if span.stop > len(prompt)]
    reaching.sort(key=lambda span: (-span.stop, span.start))
    return AnswerSpans(text, tuple(reaching))
