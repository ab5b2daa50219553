"""Rows of made-up facts for tiny models without a tokenizer."""

from __future__ import annotations

import torch
from mnemoscope.data.facts.pairs import Pair, PairRelation
from mnemoscope.models import HookedModel
from mnemoscope.probes.role_prompts import RolePrompts, RoleRow

CARRIER = (5, 9)


def fact(name: tuple[int, ...], answer: tuple[int, ...]) -> RoleRow:
    """BOS, a carrier, the name, the carrier again, the answer."""
    ids = (1, *CARRIER, *name, *CARRIER, *answer)
    start = 1 + len(CARRIER)
    return RoleRow(ids, (start, start + len(name)), len(ids) - len(answer) - 1)


def some_facts() -> tuple[RoleRow, ...]:
    """Names of one to three tokens, two of which end alike, and answers of one or two."""
    return (
        fact((11,), (30, 31)),
        fact((12, 13), (32,)),
        fact((14, 13), (33, 34)),
        fact((15, 16, 17), (35,)),
        fact((18,), (36, 37)),
    )


def prompts_of(*wordings: tuple[RoleRow, ...]) -> RolePrompts:
    """Prompts of these wordings, the same in both directions."""
    n = len(wordings[0])
    pairs = tuple(Pair(f"a{i}", f"b{i}") for i in range(n))
    text = tuple(f"{w}" for w in range(len(wordings)))
    relation = PairRelation(
        "made up",
        tuple(f"{w} {{a}} is" for w in text),
        tuple(f"{w} {{b}} is" for w in text),
        pairs,
    )
    return RolePrompts(relation, tuple(range(n)), {}, wordings, wordings)


def loss_of(model: HookedModel, row: RoleRow) -> torch.Tensor:
    """Minus the log-probability of the answer, one row alone, by the plain module."""
    logits = model.module(torch.tensor([row.ids])).logits[0].double()
    told = torch.tensor(row.answer)
    places = torch.arange(len(row.ids))[row.end : -1]
    return -logits.log_softmax(-1)[places, told].sum()
