"""Facts as questions: a prompt, the right answers, and wrong answers of the same type.

What every causal measure of relation neurons asks (relation_neurons.md, section 6.4): up to 20
distractors from the relation's own range, so that knowing the type of the answer earns nothing.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass

import numpy as np

from ..data.facts.answers import confusable, leaks, normalise
from ..data.facts.items import Fact, Relation
from ..data.facts.wordings import Wording
from ..models.errors import MnemoscopeError, PromptError
from ..models.hooked import HookedModel

CANDIDATES = 20


@dataclass(frozen=True)
class Asked:
    """A prompt that ends right before the answer, and the answers it is judged by.

    `answers` are the right spellings, of which the first is scored; `candidates` the wrong answers
    it is compared with. `others` are all wrong answers of the relation, in every spelling.
    """

    prompt: str
    answers: tuple[str, ...]
    candidates: tuple[str, ...]
    subject: str
    relation: str
    others: tuple[str, ...] = ()


def asked_facts(
    model: HookedModel,
    relation: Relation,
    facts: Sequence[Fact],
    wording: Wording,
    *,
    n_candidates: int = CANDIDATES,
    seed: int = 0,
    shown: Sequence[Fact] = (),
) -> tuple[Asked, ...]:
    """The facts as questions in one wording, each with wrong answers from the relation's range.

    Candidates are drawn by seed and subject from the objects of the whole relation; none is right
    for the subject, contains a right spelling or is contained in one, or stands in the prompt.
    `shown` are demonstrations, one a line before each prompt, which pin the form of the answer.
    Left out: facts whose answer stands in their own question, facts that are shown, and those whose
    answers merge with the prompt in the tokens of this model. Raises `MnemoscopeError` when none
    is left.
    """
    lines = "".join(_line(wording.prompt(fact.subject), fact.object) for fact in shown)
    right: dict[str, tuple[str, ...]] = {}
    for fact in relation.facts:
        right[fact.subject] = right.get(fact.subject, ()) + fact.answers
    asked = []
    for fact in facts:
        question = wording.prompt(fact.subject)
        hidden = fact.subject in {one.subject for one in shown} or leaks(question, fact.answers)
        if hidden:
            continue
        spellings = tuple(dict.fromkeys(fact.answers + right.get(fact.subject, ())))
        pool = _wrong_answers(relation, spellings, lines + question)
        drawn = _drawn(model, lines + question, fact, list(pool), n_candidates, seed)
        if drawn is not None:
            others = tuple(dict.fromkeys(one for group in pool.values() for one in group))
            names = fact.subject, relation.name
            asked.append(Asked(lines + question, spellings, drawn, *names, others))
    if not asked:
        raise MnemoscopeError(
            f"no fact of {relation.name!r} can be asked as {wording.name!r}: the answers stand in "
            "the prompts, merge with them, or have nothing to be compared with. Try another "
            "relation or wording."
        )
    return tuple(asked)


def answer_tokens(model: HookedModel, prompt: str, answer: str) -> tuple[int, ...]:
    """Token ids of an answer after a prompt, with a space between them unless the prompt ends in
    one. Raises `PromptError` when the answer merges with the prompt."""
    return model.answer_ids(prompt, answer, _separator(prompt))


def fingerprint_of(asked: Sequence[Asked]) -> str:
    """SHA-256 of the asked facts, which a kept measurement is checked against."""
    text = json.dumps([asdict(one) for one in asked], ensure_ascii=False)
    return hashlib.sha256(text.encode()).hexdigest()


def _line(prompt: str, answer: str) -> str:
    text = f"{prompt}{_separator(prompt)}{answer}"
    return f"{text}\n" if text.endswith(".") else f"{text}.\n"


def _separator(prompt: str) -> str:
    return "" if prompt[-1:].isspace() else " "


def _wrong_answers(
    relation: Relation, right: Sequence[str], prompt: str
) -> dict[str, tuple[str, ...]]:
    """Wrong objects of the relation, one for each folded spelling, with all their spellings."""
    pool: dict[str, tuple[str, ...]] = {}
    seen: set[str] = set()
    for fact in relation.facts:
        folded = normalise(fact.object)
        if folded in seen or confusable(fact.object, right) or leaks(prompt, [fact.object]):
            continue
        seen.add(folded)
        pool[fact.object] = tuple(name for name in fact.answers if not confusable(name, right))
    return pool


def _drawn(
    model: HookedModel, prompt: str, fact: Fact, pool: list[str], n: int, seed: int
) -> tuple[str, ...] | None:
    """Up to `n` wrong answers that can be scored after the prompt; None if the right one cannot
    or none is left. The draw depends on seed and subject only."""
    digest = hashlib.sha256(f"{seed}\n{fact.subject}".encode()).digest()
    rng = np.random.default_rng(int.from_bytes(digest[:8], "big"))
    order = [sorted(pool)[i] for i in rng.permutation(len(pool))]
    if not _fits(model, prompt, fact.object):
        return None
    chosen: list[str] = []
    for candidate in order:
        if len(chosen) < n and _fits(model, prompt, candidate):
            chosen.append(candidate)
    return tuple(chosen) or None


def _fits(model: HookedModel, prompt: str, answer: str) -> bool:
    try:
        answer_tokens(model, prompt, answer)
    except PromptError:
        return False
    return True
