"""What does *this* model know, and which answers can be told apart in its tokens?

The memory answer is the model's own: a fact counts as known when the greedy closed-book
continuation holds one of its right spellings (ph3.md 1.3). A list elicited from another model
measures nothing here.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache

from ..data.facts.conflicts import ConflictItem, build_conflicts, classify
from ..data.facts.items import Fact, Relation
from ..models.batching import adaptive, length_buckets
from ..models.errors import MnemoscopeError, PromptError
from ..models.hooked import HookedModel

NEW_TOKENS = 10
Progress = Callable[[int, int], None]
"""Called with (done, total) after each batch."""


def silent(done: int, total: int) -> None:
    """The progress callback that tells nobody."""


@dataclass(frozen=True)
class KnownItems:
    """Items whose closed-book answer the model gives, and what fell away, by reason."""

    items: tuple[ConflictItem, ...]
    dropped: dict[str, int]


def greedy_texts(
    model: HookedModel,
    prompts: Sequence[str],
    *,
    rows: int = 32,
    new_tokens: int = NEW_TOKENS,
    progress: Progress = silent,
) -> list[str]:
    """Greedy continuations in the order of the prompts, generated in batches of one length."""
    lengths = [len(model.text_tokenizer(prompt)["input_ids"]) for prompt in prompts]
    texts = [""] * len(prompts)
    done = 0

    def generate(batch: Sequence[int]) -> list[str]:
        return model.continuations([prompts[i] for i in batch], new_tokens)

    for batch, results in adaptive(length_buckets(lengths, rows), generate):
        for i, text in zip(batch, results, strict=True):
            texts[i] = text
        done += len(batch)
        progress(done, len(prompts))
    return texts


def tellable_apart(model: HookedModel) -> Callable[[str, str, str], bool]:
    """A test for `build_conflicts`: do two answers start with different tokens after a prompt?"""

    # The pool's answers are tried after the same prompts again and again.
    @lru_cache(maxsize=4096)
    def first(prompt: str, answer: str) -> int | None:
        try:
            return model.answer_ids(prompt, answer)[0]
        except PromptError:
            return None

    def compatible(prompt: str, a: str, b: str) -> bool:
        ours, other = first(prompt, a), first(prompt, b)
        return ours is not None and other is not None and ours != other

    return compatible


def known_items(
    model: HookedModel,
    items: Sequence[ConflictItem],
    *,
    rows: int = 32,
    progress: Progress = silent,
) -> KnownItems:
    """The items that the model answers right closed-book, with the spelling it uses.

    `mem_answer` becomes the longest right spelling in the continuation. Raises `MnemoscopeError`
    when none is left.
    """
    prompts = [item.prompt_closed for item in items]
    texts = greedy_texts(model, prompts, rows=rows, progress=progress)
    kept, apart = [], tellable_apart(model)
    dropped = {"not known": 0, "tokens not apart": 0}
    for item, text in zip(items, texts, strict=True):
        said = [a for a in item.mem_aliases if classify(text, [a], []).kind == "memory"]
        answer = max(said, key=len, default=None)
        if answer is None:
            dropped["not known"] += 1
        elif not apart(item.prompt_closed, answer, item.ctx_answer):
            dropped["tokens not apart"] += 1
        else:
            kept.append(replace(item, mem_answer=answer))
    if not kept:
        raise MnemoscopeError(
            f"{model.name} knows none of the {len(items)} facts asked: try another relation, more "
            "demonstrations, or a larger model."
        )
    return KnownItems(tuple(kept), {reason: n for reason, n in dropped.items() if n})


def conflict_items(
    model: HookedModel,
    relation: Relation,
    facts: Sequence[Fact],
    *,
    templates: Sequence[int] = (0,),
    demonstrations: int = 3,
    seed: int = 0,
    rows: int = 32,
    progress: Progress = silent,
) -> KnownItems:
    """Conflict items of the facts that the model knows, over one or more wordings.

    `demonstrations` true statements of other subjects (never among `facts`, where the relation has
    enough rows) go before every prompt: zero-shot errors of small models are mostly form.
    """
    shown = _demonstrations(relation, facts, demonstrations)
    items: list[ConflictItem] = []
    dropped: dict[str, int] = {}
    for template in templates:
        built = build_conflicts(
            relation,
            facts,
            template_id=template,
            seed=seed,
            demonstrations=shown,
            compatible=tellable_apart(model),
        )
        items += built.items
        for reason, n in built.dropped.items():
            dropped[reason] = dropped.get(reason, 0) + n
    if not items:
        raise MnemoscopeError(
            f"no conflict item of {relation.name!r} can be told apart in the tokens of "
            f"{model.name} (dropped: {dropped}): try another relation."
        )
    known = known_items(model, items, rows=rows, progress=progress)
    return KnownItems(known.items, {**dropped, **known.dropped})


def _demonstrations(relation: Relation, facts: Sequence[Fact], n: int) -> tuple[Fact, ...]:
    """The first rows outside `facts`, of different objects; from `facts` only if there are none."""
    asked = {fact.subject for fact in facts}
    outside = [fact for fact in relation.facts if fact.subject not in asked]
    pool = outside if len(outside) >= n else list(relation.facts)
    chosen: list[Fact] = []
    for fact in pool:
        if len(chosen) < n and fact.object not in {c.object for c in chosen}:
            chosen.append(fact)
    return tuple(chosen)
