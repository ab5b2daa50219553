"""What the model says next, with and without the context: pure functions, no page."""

from __future__ import annotations

import re
from dataclasses import dataclass

import polars
from jaxtyping import Float
from torch import Tensor

from ..models.errors import MnemoscopeError, PromptError
from ..models.hooked import HookedModel

NEW_TOKENS = 8
_WORD = re.compile(r"[^\s.,;:!?\"“”()\[\]<>]+")


@dataclass(frozen=True)
class Question:
    """A prompt, asked alone (`closed`) and after a context (`given`, None without one)."""

    prompt: str
    context: str

    @property
    def closed(self) -> str:
        """The prompt alone; trailing space is cut, as it would merge with the answer's token."""
        return self.prompt.rstrip()

    @property
    def given(self) -> str | None:
        """Context, one space, prompt; a context that ends with a line break keeps one instead."""
        if not self.context.strip():
            return None
        ends_line = self.context.endswith("\n")
        return f"{self.context.rstrip()}{chr(10) if ends_line else ' '}{self.closed}"

    @property
    def texts(self) -> tuple[str, ...]:
        """The closed prompt, then the one with context if there is one."""
        return (self.closed,) if self.given is None else (self.closed, self.given)


@dataclass(frozen=True)
class Answers:
    """The two answers in question and where each came from, in words.

    `memory` is None when the model says no word; `context` also when there is no context, or
    nothing in it that differs from the memory answer.
    """

    memory: str | None
    memory_from: str
    context: str | None
    context_from: str

    @property
    def both(self) -> tuple[str, str] | None:
        """(memory, context) when both are there."""
        if self.memory is None or self.context is None:
            return None
        return self.memory, self.context


def first_word(text: str) -> str | None:
    """The first run of letters or digits, without surrounding punctuation; None without one."""
    found = _WORD.search(text)
    return None if found is None else found[0]


def last_word(text: str) -> str | None:
    """The last such word of a text."""
    words = _WORD.findall(text)
    return words[-1] if words else None


def greedy(model: HookedModel, question: Question) -> tuple[str, ...]:
    """Greedy continuations of the question's texts, eight tokens each."""
    return tuple(model.continuations(question.texts, NEW_TOKENS))


def resolve_answers(
    question: Question, said: tuple[str, ...], memory: str = "", context: str = ""
) -> Answers:
    """The answers a person typed, else the model's own.

    Memory: the first word of the greedy closed-book continuation. Context: the first word of the
    greedy continuation with context where the context holds it and it is not the memory answer
    (the model followed the context); else the context's last word (the model did not).
    """
    mem, mem_from = memory.strip() or None, "typed"
    if mem is None:
        mem, mem_from = first_word(said[0]), "the model's greedy answer without context"
    ctx, ctx_from = context.strip() or None, "typed"
    if ctx is None and question.given is not None:
        ctx, ctx_from = _claimed(question, said[1], mem)
    if question.given is None and ctx is None:
        ctx_from = "no context given"
    return Answers(mem, mem_from, ctx, ctx_from)


def _claimed(question: Question, said: str, memory: str | None) -> tuple[str | None, str]:
    word = first_word(said)
    if word is not None and not _same(word, memory) and _holds(question.context, word):
        return word, "the model's greedy answer with context"
    word = last_word(question.context)
    if word is None or _same(word, memory):
        return None, "the context claims nothing that differs from the memory answer"
    return word, "the last word of the context, as the model did not follow it"


def _same(word: str, other: str | None) -> bool:
    return other is not None and word.lower() == other.lower()


def _holds(text: str, word: str) -> bool:
    return word.lower() in {found.lower() for found in _WORD.findall(text)}


def first_ids(model: HookedModel, text: str, answers: Answers) -> dict[str, int]:
    """Role to the first token that its answer adds after this text.

    Raises `PromptError` when an answer merges with the prompt, or both start with the same token.
    """
    named = {"memory": answers.memory, "context": answers.context}
    ids = {role: model.answer_ids(text, word)[0] for role, word in named.items() if word}
    if len(ids) == 2 and ids["memory"] == ids["context"]:
        raise PromptError(
            f"{answers.memory!r} and {answers.context!r} start with the same token in "
            f"{model.name}: choose two answers that differ from their first letters."
        )
    return ids


def next_probabilities(model: HookedModel, text: str) -> Float[Tensor, " d_vocab"]:
    """Probabilities of the token after the text, float32."""
    logits = model.logits(model.tokens(text), at="end")[0, 0]
    return logits.float().softmax(-1).cpu()


def next_token_table(model: HookedModel, text: str, k: int = 10) -> polars.DataFrame:
    """The k most probable next tokens: `rank`, `token` (its text), `id`, `probability`."""
    if k < 1:
        raise MnemoscopeError("ask for one next token at least.")
    return top_tokens(model, next_probabilities(model, text), k)


def top_tokens(
    model: HookedModel, probabilities: Float[Tensor, " d_vocab"], k: int = 10
) -> polars.DataFrame:
    """The k most probable tokens of a distribution, as in `next_token_table`."""
    top = probabilities.topk(min(k, len(probabilities)))
    ids = top.indices.tolist()
    return polars.DataFrame(
        {
            "rank": range(1, len(ids) + 1),
            "token": [token_label(piece) for piece in model.pieces(ids)],
            "id": ids,
            "probability": top.values.tolist(),
        }
    )


def answer_probabilities(model: HookedModel, text: str, ids: dict[str, int]) -> dict[str, float]:
    """Role to the probability of its answer's first token after the text."""
    probabilities = next_probabilities(model, text)
    return {role: float(probabilities[i]) for role, i in ids.items()}


def token_label(piece: str) -> str:
    """A token as it is shown: spaces and line breaks made visible, everything else as it is."""
    shown = piece.replace(" ", "␣").replace("\n", "⏎").replace("\t", "⇥")
    return shown or "∅"
