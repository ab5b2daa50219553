"""A design of retrieval trials that suits a model: its chat template, what it was taught, its room.

A model that was trained on chats retrieves far better when it is asked in one. The answer is begun
for it (`Answer:`), so that it continues with the answer itself, behind a space as in the needle.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Literal

from ..data.facts.needle_templates import WORDY
from ..data.facts.needles import (
    Needle,
    NeedleDesign,
    NeedleKind,
    build_needle_design,
    make_needles,
    reordered,
)
from ..models.errors import MnemoscopeError, PromptError
from ..models.hooked import HookedModel
from ..models.tokens import encode

TAUGHT: Mapping[str, tuple[str, ...]] = {"engram": ("password", "present", "charm")}
"""Topics of literal needles for a model that was taught only these, by its name. It never read more
statements at once than it has topics, so no more stand in one haystack."""

Kinds = NeedleKind | Literal["both"]
ASKED = "\nQuestion: {question}"
ANSWERING = " Answer:"
_PLACE = "\N{REPLACEMENT CHARACTER}"


def design_for(
    model: HookedModel,
    *,
    lengths: Sequence[int],
    needles: int = 40,
    kind: Kinds = "literal",
    depths: int = 5,
    needles_per_haystack: int | None = None,
    rounds: int = 1,
    seed: int = 0,
    distractors: int = 0,
    paraphrased: bool = False,
    text: str | None = None,
    topics: Sequence[str] | None = None,
    chat: bool | None = None,
    shuffled: bool = False,
) -> NeedleDesign:
    """`build_needle_design` for a model: needles made, tokenizer, chat template and topics filled
    in.

    `needles` is rounded up to what fills haystacks of `needles_per_haystack` (None: 5, or what the
    model was taught) at all `lengths` evenly. `kind` "both" makes half of them non-literal.
    `distractors` more of the same kinds stand beside those asked about. `topics` of the literal
    needles: None for what the model was taught (`TAUGHT`), or all. `chat` asks within the
    tokenizer's chat template (None: where there is one). `shuffled` tells answers with their words
    in reverse order (`reordered`; all topics are then those whose answers have two words). All else
    as in `build_needle_design`.

    Raises `MnemoscopeError` for numbers, topics or lengths that do not fit (its message says which
    do), and `PromptError` when the longest prompt passes the model's context.
    """
    opening, asking = chat_frame(model) if _chats(model, chat) else ("", f"{ASKED}{ANSWERING}")
    chosen = TAUGHT.get(model.name, WORDY if shuffled else None) if topics is None else topics
    each = needles_per_haystack or min(5, depths, len(TAUGHT.get(model.name, range(5))))
    evenly = max(1, each * len(lengths))
    count = math.ceil(needles / evenly) * evenly
    try:
        made, beside = _needles(count, distractors, kind, seed, chosen)
        if shuffled:
            made = reordered(made)
        design = build_needle_design(
            made,
            lambda text: encode(model.text_tokenizer, text),
            lambda ids: str(model.text_tokenizer.decode(list(ids))),
            lengths=lengths,
            depths=depths,
            needles_per_haystack=each,
            rounds=rounds,
            seed=seed,
            text=text,
            distractors=beside,
            paraphrased=paraphrased,
            opening=opening,
            asking=asking,
        )
    except ValueError as error:
        raise MnemoscopeError(str(error)) from error
    limit = model.anatomy.max_context
    if limit is not None and design.longest_prompt > limit:
        raise PromptError(
            f"the longest prompt has {design.longest_prompt} tokens but {model.name} reads at most "
            f"{limit}: use shorter lengths."
        )
    return design


def chat_frame(model: HookedModel) -> tuple[str, str]:
    """`opening` and `asking` of a design within the tokenizer's chat template.

    The haystack stands in the user's turn, the question behind it, and the model's turn begins with
    `Answer:`. Special tokens that the tokenizer adds by itself are not written twice. Raises
    `MnemoscopeError` for a tokenizer without a template or one that changes what the user says.
    """
    tokenizer = model.text_tokenizer
    if not tokenizer.chat_template:
        raise MnemoscopeError(f"{model.name} has no chat template: leave chat away.")
    turn = [{"role": "user", "content": _PLACE}]
    whole = str(tokenizer.apply_chat_template(turn, tokenize=False, add_generation_prompt=True))
    if whole.count(_PLACE) != 1:
        raise MnemoscopeError(
            f"the chat template of {model.name} does not repeat what a user says once: ask without "
            "chat."
        )
    opening, closing = whole.split(_PLACE)
    bos = tokenizer.bos_token
    if bos and opening.startswith(bos) and encode(tokenizer, "a")[0] == tokenizer.bos_token_id:
        opening = opening.removeprefix(bos)
    return opening, f"{ASKED}{closing}{ANSWERING.strip()}"


def _chats(model: HookedModel, chat: bool | None) -> bool:
    return bool(model.text_tokenizer.chat_template) if chat is None else chat


def _needles(
    asked: int, beside: int, kind: Kinds, seed: int, topics: Sequence[str] | None
) -> tuple[tuple[Needle, ...], tuple[Needle, ...]]:
    """The needles to ask about and the distractors beside them, of one kind or half of each."""
    if kind == "both":
        literal = _needles(asked - asked // 2, beside - beside // 2, "literal", seed, topics)
        other = _needles(asked // 2, beside // 2, "non-literal", seed, None)
        return literal[0] + other[0], literal[1] + other[1]
    if kind == "non-literal":
        topics = None
    if beside < 0:
        raise ValueError(f"{beside} distractors asked for: ask for 0 or more.")
    made = make_needles(kind, asked + beside, seed, topics=topics)
    return made[:asked], made[asked:]
