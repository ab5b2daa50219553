"""A hand-set transformer that binds by index, and one that does not bind.

It reads "facts : alice has red . bob has blue . who has : bob" and answers "blue", in two heads of
the frame of `frame.py`. In its residual stream:

    token     what the word is                                   embedding
    kind      whether it is an attribute                         embedding
    place     first word; word of a statement; and the index     position embedding
              of its statement, i, on a line: i u + i^2 w
    found     index of the asked name, and that one was found    L0.H1
    answer    evidence for each attribute                        L1.H2 (only this is unembedded)

- L0.H1 at the last word finds the same word in a statement and copies its index;
- L1.H2 finds the attribute whose index is nearest (score 2ij - j^2) and writes its answer.

So names and attributes are bound through an index that is a vector of its own: their states factor,
adding the difference of two indices moves a binding, one step along the line moves it by one, and
what the last word carries is first the name, then the index, then the answer. All other heads are
noise, and a head that finds nothing rests on the first word.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor
from transformers import GPT2LMHeadModel, PreTrainedTokenizerFast

from ..data.facts.binding_contexts import Attribute, BindingTask
from ..models.errors import MnemoscopeError
from ..models.types import HeadId
from . import frame
from .frame import SHARPNESS, Association, HeadPlan
from .world import PAD, UNKNOWN, world_tokenizer

FINDER, FETCHER = HeadId(0, 1), HeadId(1, 2)
MOST_SLOTS = 6
_OPENING, _STATEMENT_TOKENS = ("facts", ":"), 4
_NAMES = (
    "alice bob carol david emma frank grace henry iris jack kate laura mark nina oscar peter "
    "quinn rosa simon tom uma victor wendy xenia"
)
_THINGS = (
    "amber black coral denim ebony flax green hazel ivory jade khaki lilac mauve navy olive "
    "pink ruby sand teal umber violet white yellow zinc"
)
_LOGITS_PER_CODE, _ANSWER_LOGIT = 50.0, 10.0


@dataclass(frozen=True, eq=False)
class PlantedBinding:
    """A plain Hugging Face module in eval mode, its tokenizer, and the task that it can do."""

    module: GPT2LMHeadModel
    tokenizer: PreTrainedTokenizerFast
    task: BindingTask
    slots: int


def planted_binding(
    slots: int = 2, *, binds: bool = True, dtype: torch.dtype = torch.float32, seed: int = 0
) -> PlantedBinding:
    """A model for contexts of `slots` statements; `binds=False` has noise heads only.

    `seed` draws the noise. Raises `MnemoscopeError` for fewer than two slots or more than
    `MOST_SLOTS`.
    """
    if not 2 <= slots <= MOST_SLOTS:
        raise MnemoscopeError(f"{slots} slots cannot be planted: use 2 to {MOST_SLOTS}.")
    names, things = _NAMES.split(), _THINGS.split()
    words = (PAD, UNKNOWN, *names, *things, *_OPENING, "has", "who", ".")
    codes = frame.lay_out(
        {"token": len(words), "kind": 1, "place": 4, "found": 2, "answer": len(things)}
    )
    token = codes["token"].clone()
    rows = [words.index(thing) for thing in things]
    token[rows] += codes["kind"]
    unembedding = torch.zeros(len(words), frame.D_MODEL, dtype=torch.float64)
    unembedding[rows] = _LOGITS_PER_CODE * codes["answer"]
    module = frame.bare_module(
        token, _places(codes["place"], slots), unembedding, pad_id=words.index(PAD), seed=seed
    )
    if binds:
        frame.plant(module, FINDER, _finder(codes, [words.index(name) for name in names]))
        frame.plant(module, FETCHER, _fetcher(codes, rows, slots))
    task = BindingTask(
        "planted",
        ("{e} has {a}.",),
        "who has: {e}",
        tuple(names),
        tuple(Attribute(thing, thing) for thing in things),
        "facts:",
    )
    return PlantedBinding(module.to(dtype), world_tokenizer(words), task, slots)


def _places(codes: Float[Tensor, "four d_model"], slots: int) -> Float[Tensor, "pos d_model"]:
    """Codes of every position: first, in a statement, u and w (at most 1 long for the last)."""
    first, told, u, w = codes
    places = torch.zeros(frame.N_POSITIONS, frame.D_MODEL, dtype=torch.float64)
    places[0] = first
    for slot in range(slots):
        start = len(_OPENING) + slot * _STATEMENT_TOKENS
        index = (slot + 1) / slots
        places[start : start + _STATEMENT_TOKENS] = told + index * u + index**2 * w
    return places


def _finder(codes: Mapping[str, Tensor], names: list[int]) -> HeadPlan:
    """The same word in a statement scores 2 x SHARPNESS, itself half of it; the first word 1.5."""
    first, told, u, _ = codes["place"].split(1)
    token = codes["token"][names]
    match = (
        Association(token * SHARPNESS, token),
        Association(frame.CONSTANT * SHARPNESS, told),
        Association(frame.CONSTANT * (1.5 * SHARPNESS), first),
    )
    return HeadPlan(match, (Association(torch.cat([u, told]), codes["found"]),))


def _fetcher(codes: Mapping[str, Tensor], things: list[int], slots: int) -> HeadPlan:
    """An attribute of the found index wins by SHARPNESS over its neighbours and by more over
    other words of its statement; the first word wins where no name was found."""
    first, _, u, w = codes["place"].split(1)
    index, known = codes["found"].split(1)
    unit = SHARPNESS * slots**2  # the score of one step squared
    match = (
        Association(index * (2 * unit), u),
        Association(frame.CONSTANT * -unit, w),
        Association(frame.CONSTANT * (unit / 2), codes["kind"]),
        Association(frame.CONSTANT * (2 * unit), first),
        Association(known * (-4 * unit), first),
    )
    moved = codes["answer"] * (_ANSWER_LOGIT / _LOGITS_PER_CODE)
    return HeadPlan(match, (Association(codes["token"][things], moved),))
