"""Binding contexts as rows of tokens in which every slot stands at the same columns.

States can only be moved between contexts, and averaged over them, when all names are equally wide
in tokens, and so are all attributes (reversal_binding, section 3.1). Words of other widths are
left out and counted, and so are attributes whose answers start with the same token.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Hashable, Sequence
from dataclasses import dataclass, replace
from typing import TypeVar

import torch
from jaxtyping import Int
from torch import Tensor

from ..data.facts.binding_contexts import (
    Attribute,
    BindingContext,
    BindingTask,
    draw_contexts,
    placed,
)
from ..models.errors import MnemoscopeError, PromptError
from ..models.hooked import HookedModel
from ..models.token_cuts import token_cuts

Word = TypeVar("Word", str, Attribute)


@dataclass(frozen=True)
class SlotColumns:
    """Columns of each slot's entity and attribute tokens, `[slot][token]`, and the context's
    length in tokens."""

    entities: tuple[tuple[int, ...], ...]
    attributes: tuple[tuple[int, ...], ...]
    length: int

    @property
    def slots(self) -> int:
        """How many entities a context has."""
        return len(self.entities)

    @property
    def all(self) -> tuple[int, ...]:
        """Every slot's columns: entities slot by slot, then attributes."""
        return tuple(c for part in (self.entities, self.attributes) for span in part for c in span)


@dataclass(frozen=True, eq=False)
class BindingPrompts:
    """Contexts in one wording; all rows have the same columns, nothing is padded."""

    task: BindingTask
    wording: int
    contexts: tuple[BindingContext, ...]
    columns: SlotColumns
    ids: Int[Tensor, "context pos"]
    questions: Int[Tensor, "context slot token"]
    """The tokens that ask about each slot's entity, to be read behind the context."""
    answers: Int[Tensor, "context slot"]
    """First token of each slot's answer; all different within a context."""

    def __len__(self) -> int:
        return len(self.contexts)

    def part(self, rows: Sequence[int]) -> BindingPrompts:
        """Some of the contexts."""
        chosen = torch.tensor(list(rows))
        return replace(
            self,
            contexts=tuple(self.contexts[i] for i in rows),
            ids=self.ids[chosen],
            questions=self.questions[chosen],
            answers=self.answers[chosen],
        )


@dataclass(frozen=True)
class UsableWords:
    """Words of equal width, and how many fell away, by reason."""

    entities: tuple[str, ...]
    attributes: tuple[Attribute, ...]
    dropped: dict[str, int]


def usable_words(model: HookedModel, task: BindingTask, wording: int = 0) -> UsableWords:
    """Entities and attributes of the commonest widths (first, later and in the question).

    Raises `MnemoscopeError` when fewer than two of either are left.
    """
    entities, narrow = _commonest(
        task.entities,
        [_widths(model, task, wording, e, task.attributes[0]) for e in task.entities],
    )
    if not entities:
        raise MnemoscopeError(_too_few(model, task, 0, 0))
    attributes, thin = _commonest(
        task.attributes, [_widths(model, task, wording, entities[0], a) for a in task.attributes]
    )
    told = _first_tokens(model, task, entities[0], attributes)
    apart = {token: attribute for attribute, token in reversed(list(told.items()))}
    kept = tuple(a for a in told if a in set(apart.values()))
    dropped = {
        "entity of another width": narrow,
        "attribute of another width": thin,
        "answer merges with the question": len(attributes) - len(told),
        "answer's first token shared": len(told) - len(kept),
    }
    if min(len(entities), len(kept)) < 2:
        raise MnemoscopeError(_too_few(model, task, len(entities), len(kept)))
    return UsableWords(entities, kept, {why: n for why, n in dropped.items() if n})


def binding_prompts(
    model: HookedModel,
    task: BindingTask,
    n: int,
    *,
    slots: int = 2,
    wording: int = 0,
    seed: int = 0,
) -> BindingPrompts:
    """`n` contexts of random usable words. Raises `MnemoscopeError` for too few words."""
    words = usable_words(model, task, wording)
    try:
        drawn = draw_contexts(words.entities, words.attributes, n, slots, seed)
    except ValueError as error:
        raise MnemoscopeError(f"{model.name}, task {task.name!r}: {error}") from error
    return prompts_of(model, task, drawn, wording)


def source_and_target(
    model: HookedModel, task: BindingTask, n: int, *, slots: int = 2, seed: int = 0
) -> tuple[BindingPrompts, BindingPrompts]:
    """Target contexts c and source contexts c'; row by row they share no word.

    Raises `MnemoscopeError` for too few words.
    """
    both = binding_prompts(model, task, n, slots=2 * slots, seed=seed).contexts
    target, source = (
        [BindingContext(c.entities[cut], c.attributes[cut]) for c in both]
        for cut in (slice(slots), slice(slots, None))
    )
    return prompts_of(model, task, target), prompts_of(model, task, source)


def prompts_of(
    model: HookedModel, task: BindingTask, contexts: Sequence[BindingContext], wording: int = 0
) -> BindingPrompts:
    """Tokens and columns of given contexts.

    Raises `MnemoscopeError` where two rows have other columns (draw from `usable_words`),
    `PromptError` where a name merges with what is around it or a prompt is too long.
    """
    rows = [_row(model, task, context, wording) for context in contexts]
    if len({(columns, len(question)) for columns, _, asks in rows for question in asks}) != 1:
        raise MnemoscopeError(
            f"contexts of {task.name!r} are not equally wide in the tokens of {model.name}: use "
            "words of one width (usable_words)."
        )
    used = {a: c.entities[0] for c in contexts for a in c.attributes}
    first = {
        attribute: token
        for attribute, entity in used.items()
        for token in _first_tokens(model, task, entity, (attribute,)).values()
    }
    columns = rows[0][0]
    model.batch([[*rows[0][1], *rows[0][2][0]]])  # raises where it is too long
    return BindingPrompts(
        task,
        wording,
        tuple(contexts),
        columns,
        torch.tensor([ids for _, ids, _ in rows]),
        torch.tensor([asks for _, _, asks in rows]),
        torch.tensor([[first[a] for a in c.attributes] for c in contexts]),
    )


def _row(
    model: HookedModel, task: BindingTask, context: BindingContext, wording: int
) -> tuple[SlotColumns, list[int], list[list[int]]]:
    """Columns, context tokens, and the tokens of the question about each slot."""
    told = placed(task, context, wording)
    cuts = [end for span in (*told.entities, *told.attributes) for end in span]
    cuts.append(len(told.text))
    texts = [told.text + task.asked(entity) for entity in context.entities]
    read = token_cuts(model.text_tokenizer, texts, [cuts] * len(texts))
    ids, where = read[0]
    if where is None or any(w != where or i[: where[-1]] != ids[: where[-1]] for i, w in read):
        raise PromptError(
            f"names merge with the text around them in {texts[0][-60:]!r}: use other words or "
            "another wording."
        )
    spans = [tuple(range(*pair)) for pair in zip(where[:-1:2], where[1:-1:2], strict=True)]
    half, length = len(spans) // 2, where[-1]
    columns = SlotColumns(tuple(spans[:half]), tuple(spans[half:]), length)
    return columns, ids[:length], [tokens[length:] for tokens, _ in read]


def _widths(
    model: HookedModel, task: BindingTask, wording: int, entity: str, attribute: Attribute
) -> Hashable | None:
    """The layout of a context that tells this twice, once first and once later."""
    try:
        row = _row(model, task, BindingContext((entity,) * 2, (attribute,) * 2), wording)
    except PromptError:
        return None
    return row[0], len(row[2][0])


def _commonest(
    words: Sequence[Word], widths: Sequence[Hashable | None]
) -> tuple[tuple[Word, ...], int]:
    """The words of the commonest layout, and how many are not."""
    counted = Counter(width for width in widths if width is not None).most_common(1)
    kept = tuple(
        w for w, width in zip(words, widths, strict=True) if counted and width == counted[0][0]
    )
    return kept, len(words) - len(kept)


def _first_tokens(
    model: HookedModel, task: BindingTask, entity: str, attributes: Sequence[Attribute]
) -> dict[Attribute, int]:
    """First token of each answer behind the question; those that merge with it are left out."""
    question = task.asked(entity).strip()
    found = {}
    for attribute in attributes:
        try:
            found[attribute] = model.answer_ids(question, attribute.answer)[0]
        except PromptError:
            continue
    return found


def _too_few(model: HookedModel, task: BindingTask, entities: int, attributes: int) -> str:
    return (
        f"only {entities} entities and {attributes} attributes of {task.name!r} are equally wide "
        f"in the tokens of {model.name}: give a task with more words."
    )
