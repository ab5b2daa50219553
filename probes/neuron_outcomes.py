"""What does the model say by itself? Outcome classes of greedy answers (section 6.4).

An edit can take away the answer, the type of answer, or the form of answering at all. Only the
first two are losses of a relation; a model that echoes the prompt has lost something else.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from ..data.facts.answers import classify, leaks, normalise
from ..models.batching import adaptive, length_buckets
from ..models.edits import Edit
from ..models.errors import MnemoscopeError
from ..models.hooked import HookedModel
from .asked_facts import Asked
from .elicitation import Progress, silent

NEW_TOKENS = 16
PREFIX_TOKENS = 2
ECHOED_WORDS = 3

Outcome = Literal["gold", "type", "other", "degenerate"]
Loss = Literal["unchanged", "answer lost", "type lost", "format lost", "gained"]
OUTCOMES: tuple[Outcome, ...] = ("gold", "type", "other", "degenerate")
LOSSES: tuple[Loss, ...] = ("unchanged", "answer lost", "type lost", "format lost", "gained")

_ARTICLES = frozenset({"a", "an", "the"})
_LOST: dict[Outcome, Loss] = {
    "type": "answer lost",
    "other": "type lost",
    "degenerate": "format lost",
}


@dataclass(frozen=True)
class Said:
    """One greedy answer: its text, its class, and whether its first two tokens are right."""

    relation: str
    subject: str
    text: str
    outcome: Outcome
    prefix_right: bool


def greedy_outcomes(
    model: HookedModel,
    asked: Sequence[Asked],
    edits: Sequence[Edit] = (),
    *,
    rows: int = 32,
    new_tokens: int = NEW_TOKENS,
    progress: Progress = silent,
) -> tuple[Said, ...]:
    """Greedy answers of at most `new_tokens` tokens with the edits in place, in order.

    Raises `MnemoscopeError` without facts, `EditNeverFiredError` when an edit changed nothing.
    """
    if not asked:
        raise MnemoscopeError("no facts to ask: give at least one.")
    tokenizer = model.text_tokenizer
    lengths = [len(tokenizer(one.prompt, verbose=False)["input_ids"]) for one in asked]
    said: dict[int, Said] = {}

    def answer(batch: Sequence[int]) -> list[list[int]]:
        return model.generate(model.tokens([asked[i].prompt for i in batch]), new_tokens)

    with model.intervene(edits):
        for batch, answers in adaptive(length_buckets(lengths, rows), answer):
            for i, ids in zip(batch, answers, strict=True):
                said[i] = _said(
                    asked[i], tokenizer.decode(ids), tokenizer.decode(ids[:PREFIX_TOKENS])
                )
            progress(len(said), len(asked))
    return tuple(said[i] for i in range(len(asked)))


def outcome_of(asked: Asked, text: str) -> Outcome:
    """The class of one answer, read on its first line with something on it.

    Checked in this order: "gold", a right spelling stands there, before any other answer of the
    relation; "degenerate", it is empty, repeats one word, starts with a single letter and a full
    stop, with an article before a small letter, with the subject alone, or with three words in a
    row of the prompt; "type", another answer of the relation stands there; else "other". An answer
    of the relation is never degenerate for its article or letter.
    """
    line = next((part for part in text.splitlines() if part.strip()), "").strip()
    n_words = max(1, len(line.split()))
    kind = classify(line, asked.answers, asked.others or asked.candidates, words=n_words).kind
    if kind == "memory":
        return "gold"
    if _echoes(asked, line):
        return "degenerate"
    if kind == "context":
        return "type"
    return "degenerate" if _formless(asked, line) else "other"


def loss_of(before: Outcome, after: Outcome) -> Loss:
    """What went lost between two answers to one question: nothing, the answer (another of the
    type stands there), the type (something else), or the form; or a better answer was gained."""
    if before == after:
        return "unchanged"
    if OUTCOMES.index(after) < OUTCOMES.index(before):
        return "gained"
    return _LOST[after]


def losses(before: Sequence[Said], after: Sequence[Said]) -> dict[Loss, int]:
    """How often each change occurs. Raises `MnemoscopeError` when the questions differ."""
    names = [[(one.relation, one.subject) for one in said] for said in (before, after)]
    if names[0] != names[1]:
        raise MnemoscopeError("the answers are not to the same questions, in the same order.")
    pairs = zip(before, after, strict=True)
    found = Counter(loss_of(was.outcome, now.outcome) for was, now in pairs)
    return {loss: found[loss] for loss in LOSSES}


def prefix_right(asked: Asked, text: str) -> bool:
    """Whether the start of an answer is the start of a right spelling, or holds it whole, folded
    (case, accents and punctuation aside)."""
    said = normalise(text)
    return bool(said) and any(
        right.startswith(said) or f"{said} ".startswith(f"{right} ")
        for right in map(normalise, asked.answers)
        if right
    )


def _said(asked: Asked, text: str, start: str) -> Said:
    names = asked.relation, asked.subject
    return Said(*names, text, outcome_of(asked, text), prefix_right(asked, start))


def _echoes(asked: Asked, line: str) -> bool:
    words = normalise(line).split()[:ECHOED_WORDS]
    return len(words) == ECHOED_WORDS and leaks(asked.prompt, [" ".join(words)])


def _formless(asked: Asked, line: str) -> bool:
    folded, words = normalise(line).split(), line.split()
    if not folded or len(set(folded)) == 1 < len(folded) or set(folded) <= _ARTICLES:
        return True
    if len(words[0].rstrip(".):")) == 1 and words[0][-1] in ".):":
        return True
    if normalise(line) == normalise(asked.subject):
        return True
    return folded[0] in _ARTICLES and len(words) > 1 and words[1][:1].islower()
