"""Asked facts as batches through which gradients of their margins flow.

A margin joins all answers of a fact, so its rows have to run together; `neuron_margins`, which only
measures, need not care.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from ..models.hooked import HookedModel
from ..models.tokens import TokenBatch
from .neuron_margins import MarginRows


@dataclass(frozen=True, eq=False)
class FactBatch:
    """The rows of some facts, padded on the right, and the tokens that they are scored by.

    `columns` are those whose logits are needed, `owner` the fact of each row, `counted` the cells
    that edits at "all_but_first" would change. A cell of `cells` is row, place among `columns`,
    token and answer; `slots` names the answers of each fact, the right one first, -1 for none. All
    numbers count within the batch.
    """

    tokens: TokenBatch
    columns: Int[Tensor, "row k"]
    owner: Int[Tensor, " row"]
    counted: Bool[Tensor, "row pos"]
    cells: Int[Tensor, "four cell"]
    slots: Int[Tensor, "fact answer"]


def fact_batches(plan: MarginRows, rows: int) -> list[list[int]]:
    """Facts in batches of at most `rows` token rows (one fact at least), short ones first."""
    owner = _fact_of_row(plan)
    counts = np.bincount(owner)
    longest = np.zeros(len(counts), dtype=np.int64)
    np.maximum.at(longest, owner, [len(row) for row in plan.rows])
    batches: list[list[int]] = []
    held = 0
    for fact in np.argsort(longest, kind="stable").tolist():
        if not batches or held + counts[fact] > rows:
            batches.append([])
            held = 0
        batches[-1].append(fact)
        held += int(counts[fact])
    return batches


def batch_of(model: HookedModel, plan: MarginRows, facts: Sequence[int]) -> FactBatch:
    """The batch of these facts, on the model's device."""
    place = np.full(len(plan.slots), -1)
    place[list(facts)] = np.arange(len(facts))
    owner = place[_fact_of_row(plan)]
    rows = np.flatnonzero(owner >= 0)
    tokens = model.batch([plan.rows[i] for i in rows], side="right")
    lengths = np.array([len(plan.rows[i]) for i in rows])
    k = int(plan.width[rows].max())
    columns = np.maximum(lengths[:, None] - k + np.arange(k), 0)
    at_row, at_column, token, answer = plan.cells[owner[plan.cells[:, 0]] >= 0].T
    row = np.searchsorted(rows, at_row)
    names, local = np.unique(answer, return_inverse=True)
    slots = plan.slots[list(facts)]
    counted = tokens.mask.clone()
    counted[torch.arange(len(tokens), device=counted.device), tokens.starts] = False
    return FactBatch(
        tokens,
        torch.as_tensor(columns, device=model.device),
        torch.as_tensor(owner[rows], device=model.device),
        counted,
        torch.as_tensor(np.stack([row, at_column - (lengths[row] - k), token, local])),
        torch.as_tensor(np.where(slots < 0, -1, np.searchsorted(names, slots))),
    )


def margins_of(logits: Float[Tensor, "row k d_vocab"], batch: FactBatch) -> Float[Tensor, " fact"]:
    """The candidate margin of each fact (`neuron_margins`), nats; gradients flow."""
    row, column, token, answer = batch.cells.to(logits.device)
    slots = batch.slots.to(logits.device)
    told = wide(logits)
    log_probs = told[row, column, token] - told.logsumexp(-1)[row, column]
    n_answers = int(answer.max()) + 1
    total = log_probs.new_zeros(n_answers).index_add(0, answer, log_probs)
    mean = total / torch.bincount(answer, minlength=n_answers)
    scores = torch.where(slots < 0, -torch.inf, mean[slots])
    n_candidates = (slots[:, 1:] >= 0).sum(1)
    return scores[:, 0] - scores[:, 1:].logsumexp(1) + n_candidates.log()


def wide(x: Tensor) -> Tensor:
    """Float32 for narrower numbers, the same otherwise."""
    return x.float() if x.dtype.itemsize < 4 else x


def _fact_of_row(plan: MarginRows) -> Int[np.ndarray, " row"]:
    fact_of_answer = np.empty(int(plan.slots.max()) + 1, dtype=np.int64)
    fact, place = np.nonzero(plan.slots >= 0)
    fact_of_answer[plan.slots[fact, place]] = fact
    owner = np.empty(len(plan.rows), dtype=np.int64)
    owner[plan.cells[:, 0]] = fact_of_answer[plan.cells[:, 3]]
    return owner
