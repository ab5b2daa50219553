"""Hand-set transformers whose circuits are known: the oracles of every probe's tests.

A GPT-2 of two layers with eight heads each, in the frame of `frame.py`. Its residual stream holds
these subspaces (a code is a unit vector of mean 0, all codes orthogonal):

    token            what the word is                       embedding
    position         where it stands                        position embedding
    previous         the word before it (subject or "is")   previous-token head        L0.H1
    before_previous  the subject two words before           two-back head              L0.H4
    subject          the subject just before it             subject carrier            L0.H6
    answer           evidence for each answer               memory and context heads   L1
                                                            (only this is unembedded)

At "The capital of S is" (END) the last layer holds two associative memories side by side:

- *memory head* L1.H2: END looks for a word whose token code is the code in END's `subject`
  space, if END is "is"; it finds S, and the values store `token(S) -> answer(A_S)`, strength
  `c_memory`, a little more for one half of the subjects and a little less for the other.
- *context head* L1.H5: END looks for a word with `before_previous` = END's `previous` and
  `previous` = "is", which is the claimed C in "S is C" (subject-bound induction); the values copy
  `token(C) -> answer(C)`, strength `c_context`.

A head that finds nothing rests on the first word, which stores nothing. The two circuits share no
head: the subject carrier feeds memory only, the previous-token heads feed copying only. In the
superposed variant L1.H2 holds both memories, and a conflict splits its attention. All remaining
heads are noise, each worth less than 2 % of a planted head (in the superposed variant those of the
first layer also shift that split a little). Any word that calls up no answer is followed by ".".

To plant another head, give its subspace a line in `_subspaces`, write its `HeadPlan` and add it to
`_plans`. Plain induction, for example, matches END's `token` with the keys' `previous`; a
retrieval head copies by the same `move` as the context head.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

import torch
from jaxtyping import Float
from torch import Tensor
from transformers import GPT2LMHeadModel, PreTrainedTokenizerFast

from ..data.facts.items import Relation
from ..models.types import HeadId
from . import frame
from .frame import Association, HeadPlan
from .world import FACTS, PAD, QUERY_WORD, TEMPLATES, vocabulary, world_relation, world_tokenizer

PREVIOUS, TWO_BACK, CARRIER = HeadId(0, 1), HeadId(0, 4), HeadId(0, 6)
MEMORY, CONTEXT = HeadId(1, 2), HeadId(1, 5)

_LOGITS_PER_CODE = 50.0  # answers are written short, so noise of a head moves logits too
_FULL_STOP_LOGIT = 3.0


@dataclass(frozen=True, eq=False)
class PlantedModel:
    """A plain Hugging Face module in eval mode, its tokenizer, and the truth about its heads.

    `facts` maps each subject to the answer that the memory heads store; in a null model nothing
    stores it. In the superposed variant one head is both a memory head and a context head.
    `previous_token_heads` serve the context heads and `subject_heads` the memory heads.
    """

    module: GPT2LMHeadModel
    tokenizer: PreTrainedTokenizerFast
    facts: Mapping[str, str]
    templates: tuple[str, ...]
    memory_heads: tuple[HeadId, ...]
    context_heads: tuple[HeadId, ...]
    previous_token_heads: tuple[HeadId, ...]
    subject_heads: tuple[HeadId, ...]
    noise_heads: tuple[HeadId, ...]


def planted_model(
    *,
    facts: Mapping[str, str] = FACTS,
    c_memory: float = 10.0,
    c_context: float = 10.0,
    separate: bool = True,
    dtype: torch.dtype = torch.float32,
    seed: int = 0,
) -> PlantedModel:
    """A model that stores `facts` and copies claims, with known heads (module docstring).

    `c_memory` and `c_context` are the logits that a stored and a copied answer get in a
    substitution conflict. Memory is scaled by 1.1 to 1.3 for every other subject and by 0.9 to
    0.7 for the rest, so at equal strengths half of the conflicts end each way, by 1 to 3 logits.
    `separate=False` puts both memories into one head, whose attention the two sides share in
    proportion to how often the prompt names subject and claim: closed-book the stored answer gets
    twice `c_memory`, and a long passage about the subject helps memory. `seed` draws the noise.

    Raises `MnemoscopeError` for facts that are not distinct single words, fewer than four, or
    more than a head can hold.
    """
    return _build(facts, dtype, seed, _Strengths(c_memory, c_context, separate))


def null_model(
    *, facts: Mapping[str, str] = FACTS, dtype: torch.dtype = torch.float32, seed: int = 0
) -> PlantedModel:
    """The same frame and words with noise heads only: no fact is stored, nothing is copied."""
    return _build(facts, dtype, seed, None)


def planted_relation(planted: PlantedModel) -> Relation:
    """The model's facts as a relation, so that `build_conflicts` can write prompts for it.

    All conditions tokenize without an unknown word, with any seed, template and demonstrations.
    """
    return world_relation(planted.facts, planted.templates)


@dataclass(frozen=True)
class _Strengths:
    memory: float
    context: float
    separate: bool


@dataclass(frozen=True, eq=False)
class _World:
    """The codes of the named subspaces, and rows of the token codes by kind of word."""

    codes: Mapping[str, Float[Tensor, "item d_model"]]
    subjects: Float[Tensor, "fact d_model"]
    answers: Float[Tensor, "fact d_model"]
    query_word: Float[Tensor, "one d_model"]


def _build(
    facts: Mapping[str, str], dtype: torch.dtype, seed: int, strengths: _Strengths | None
) -> PlantedModel:
    words = vocabulary(world_relation(facts))
    codes = frame.lay_out(_subspaces(len(words), len(facts)))
    unembedding = _unembedding(words, codes["answer"], list(facts.values()))
    positions = frame.position_codes(codes["position"])
    module = frame.bare_module(
        codes["token"], positions, unembedding, pad_id=words.index(PAD), seed=seed
    )
    plans = _plans(_world(words, codes, facts), strengths) if strengths else {}
    for head, plan in plans.items():
        frame.plant(module, head, plan)
    context = CONTEXT if CONTEXT in plans else MEMORY
    return PlantedModel(
        module=module.to(dtype),
        tokenizer=world_tokenizer(words),
        facts=MappingProxyType(dict(facts)),
        templates=TEMPLATES,
        memory_heads=(MEMORY,) if plans else (),
        context_heads=(context,) if plans else (),
        previous_token_heads=(PREVIOUS, TWO_BACK) if plans else (),
        subject_heads=(CARRIER,) if plans else (),
        noise_heads=tuple(head for head in _all_heads() if head not in plans),
    )


def _all_heads() -> list[HeadId]:
    return [HeadId(i, h) for i in range(frame.N_LAYERS) for h in range(frame.N_HEADS)]


def _subspaces(n_words: int, n_facts: int) -> dict[str, int]:
    """Name and number of codes of each subspace of the residual stream."""
    return {
        "token": n_words,
        "position": frame.N_POSITIONS // 2,
        "previous": n_facts + 1,
        "before_previous": n_facts,
        "subject": n_facts,
        "answer": n_facts,
    }


def _world(words: tuple[str, ...], codes: Mapping[str, Tensor], facts: Mapping[str, str]) -> _World:
    def rows(names: list[str]) -> Tensor:
        return codes["token"][[words.index(name) for name in names]]

    return _World(codes, rows([*facts]), rows([*facts.values()]), rows([QUERY_WORD]))


def _unembedding(
    words: tuple[str, ...], answer_codes: Float[Tensor, "fact d_model"], answers: list[str]
) -> Float[Tensor, "word d_model"]:
    """Answers read their code, "." a constant, all other words nothing."""
    rows = torch.zeros(len(words), frame.D_MODEL, dtype=torch.float64)
    rows[[words.index(answer) for answer in answers]] = _LOGITS_PER_CODE * answer_codes
    rows[words.index(".")] = _FULL_STOP_LOGIT * frame.CONSTANT[0]
    return rows


def _plans(world: _World, strengths: _Strengths) -> dict[HeadId, HeadPlan]:
    """Every planted head and what it holds."""
    codes = world.codes
    seen = torch.cat([world.subjects, world.query_word])
    early = {
        PREVIOUS: _carry(world, 1, Association(seen, codes["previous"])),
        TWO_BACK: _carry(world, 2, Association(world.subjects, codes["before_previous"])),
        CARRIER: _carry(world, 1, Association(world.subjects, codes["subject"])),
    }
    if not strengths.separate:
        return early | {MEMORY: _superposed(world, strengths)}
    return early | {
        MEMORY: HeadPlan(
            (_match_memory(world), *_rest(world)), (_stored(world, strengths.memory),)
        ),
        CONTEXT: HeadPlan(
            (*_match_context(world), *_rest(world)), (_copied(world, strengths.context),)
        ),
    }


def _superposed(world: _World, strengths: _Strengths) -> HeadPlan:
    """Both memories in one head. A substitution conflict names its subject twice and its claim
    once: log 2 on the claim's score gives the two sides half the attention each."""
    match = (_match_memory(world), *_match_context(world, math.log(2)), *_rest(world))
    move = (_stored(world, 2 * strengths.memory), _copied(world, 2 * strengths.context))
    return HeadPlan(match, move)


def _carry(world: _World, offset: int, move: Association) -> HeadPlan:
    return HeadPlan((frame.offset_match(world.codes["position"], offset),), (move,))


def _match_memory(world: _World) -> Association:
    """The subject that END's `subject` space names scores 2 x SHARPNESS, wherever it stands."""
    return Association(world.codes["subject"] * (2 * frame.SHARPNESS), world.subjects)


def _match_context(world: _World, extra: float = 0.0) -> tuple[Association, Association]:
    """The key's word follows the query word, and stands two words after the subject that is just
    before END: both together score 2 x SHARPNESS + `extra`, either alone half of it."""
    previous = world.codes["previous"]
    return (
        Association(previous[:-1] * frame.SHARPNESS, world.codes["before_previous"]),
        Association(frame.CONSTANT * (frame.SHARPNESS + extra), previous[-1:]),
    )


def _rest(world: _World) -> tuple[Association, Association]:
    """The first word scores 1.5 x SHARPNESS, less than a full match and more than half of one;
    where the query is not the query word it scores 2.5 x SHARPNESS, more than any match."""
    first = world.codes["position"][:1]
    return (
        Association(frame.CONSTANT * (2.5 * frame.SHARPNESS), first),
        Association(world.query_word * -frame.SHARPNESS, first),
    )


def _stored(world: _World, logit: float) -> Association:
    """`token(subject) -> answer(its stored answer)`, with a strength for each subject."""
    n = len(world.subjects)
    side = 1.0 - 2.0 * (torch.arange(n) % 2)
    strength = logit * (1 + side * torch.linspace(0.1, 0.3, n)).double()
    return Association(world.subjects, world.codes["answer"] * strength[:, None] / _LOGITS_PER_CODE)


def _copied(world: _World, logit: float) -> Association:
    """`token(answer) -> answer(the same one)`."""
    return Association(world.answers, world.codes["answer"] * logit / _LOGITS_PER_CODE)
