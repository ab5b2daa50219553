"""Put what one role says of an entity into the slot of another role, and read the answer off.

A forward prompt ("A's mother is") ends in a state that predicts B; a reverse prompt ("B's child
is") holds B's name. The swap writes the first state, or a part of it, over the state at the name's
last token and asks whether the model now answers A: if so, what it knows is stored but cannot be
reached from the name (a transplant as in Patchscopes, Ghandeharioun et al. 2024). Vectors here are
`[row, d_model]`; layer l is the residual stream that block l reads.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor

from ..models.batching import adaptive, length_buckets
from ..models.edits import Edit, StreamId
from ..models.errors import MnemoscopeError
from ..models.hooked import HookedModel
from ..models.types import Site
from .end_chain import wide_type


@dataclass(frozen=True)
class AskedRows:
    """Prompts that name an entity, each with an answer behind it.

    `slots` are the offsets of the name's last token, counted from the prompt's first token.
    """

    prompts: tuple[tuple[int, ...], ...]
    slots: tuple[int, ...]
    answers: tuple[tuple[int, ...], ...]

    def __post_init__(self) -> None:
        if not self.prompts:
            raise MnemoscopeError("no prompts to swap in: give one row at least.")
        if not len(self.prompts) == len(self.slots) == len(self.answers):
            raise MnemoscopeError("prompts, slots and answers go together: give one of each a row.")
        if not all(self.answers):
            raise MnemoscopeError("an answer has no tokens: give every row a name to score.")
        for prompt, slot in zip(self.prompts, self.slots, strict=True):
            if not 0 <= slot < len(prompt):
                raise MnemoscopeError(
                    f"slot {slot} lies outside its prompt of {len(prompt)} tokens: count from the "
                    "prompt's first token."
                )

    def __len__(self) -> int:
        return len(self.prompts)

    def take(self, rows: Sequence[int]) -> AskedRows:
        """Some rows, in the order given, repeated where named twice."""
        return AskedRows(
            tuple(self.prompts[i] for i in rows),
            tuple(self.slots[i] for i in rows),
            tuple(self.answers[i] for i in rows),
        )


@dataclass(frozen=True, eq=False)
class AnswerScores:
    """Log-probabilities, nats: of the whole answer, of its first token, and of each candidate's
    first token in the same place."""

    whole: Float[Tensor, " row"]
    first: Float[Tensor, " row"]
    candidates: Float[Tensor, "row candidate"]


def swap_edit(
    layer: int,
    values: Float[Tensor, "row d_model"],
    slots: Sequence[int],
    op: Literal["set", "add"] = "set",
) -> Edit:
    """Write a vector of its own into the slot of each row of a batch, where block `layer` reads."""
    positions = tuple((int(slot),) for slot in slots)
    return Edit(op, (StreamId(layer, Site.RESID_PRE),), values[:, None], positions, "prefill")


@torch.no_grad()
def swapped_scores(
    model: HookedModel,
    asked: AskedRows,
    layer: int = 0,
    values: Float[Tensor, "row d_model"] | None = None,
    *,
    op: Literal["set", "add"] = "set",
    candidates: Int[Tensor, " candidate"] | None = None,
    rows: int = 64,
    done: Callable[[int], None] = lambda n: None,
) -> AnswerScores:
    """What each row says with `values` in its slot at `layer`; without values, unedited.

    Rows run in batches of at most `rows` prompts of like length; the batch gives way when memory
    runs out. Memory: one batch's logits at the answers' positions. `done` is told how many rows
    each batch held. Raises `MnemoscopeError` for values that are not one a row,
    `UnitOutOfRangeError` for a layer that is not there, `PromptError` for rows beyond the context.
    """
    if values is not None and len(values) != len(asked):
        raise MnemoscopeError(f"{len(values)} vectors for {len(asked)} rows: give one a row.")
    wide = wide_type(model.dtype)
    chosen = torch.tensor([], dtype=torch.long) if candidates is None else candidates.cpu()
    whole, first = torch.empty(len(asked), dtype=wide), torch.empty(len(asked), dtype=wide)
    others = torch.empty(len(asked), len(chosen), dtype=wide)
    lengths = [len(p) + len(a) - 1 for p, a in zip(asked.prompts, asked.answers, strict=True)]

    def run(places: Sequence[int]) -> AnswerScores:
        part = None if values is None else values[list(places)]
        return _one_batch(model, asked.take(places), layer, part, op, chosen)

    for places, found in adaptive(length_buckets(lengths, rows), run):
        at = torch.tensor(list(places))
        whole[at], first[at], others[at] = found.whole, found.first, found.candidates
        done(len(places))
    return AnswerScores(whole, first, others)


def _one_batch(
    model: HookedModel,
    asked: AskedRows,
    layer: int,
    values: Tensor | None,
    op: Literal["set", "add"],
    candidates: Tensor,
) -> AnswerScores:
    batch = model.batch([(*p, *a[:-1]) for p, a in zip(asked.prompts, asked.answers, strict=True)])
    width = max(map(len, asked.answers))
    tokens = torch.tensor([[*a, *[-1] * (width - len(a))] for a in asked.answers])
    first = batch.starts.cpu() + torch.tensor([len(p) - 1 for p in asked.prompts])
    columns = (first[:, None] + torch.arange(width)).clamp(max=batch.ids.shape[1] - 1)
    edits = [] if values is None else [swap_edit(layer, values, asked.slots, op)]
    with model.intervene(edits):
        logits = model.logits(batch, columns)
    scores = logits.to(wide_type(logits.dtype)).log_softmax(-1).cpu()
    each = scores.gather(2, tokens.clamp(min=0)[..., None])[..., 0] * (tokens >= 0)
    return AnswerScores(each.sum(1), each[:, 0], scores[:, 0, candidates])


# -- what is written into the slot --------------------------------------------------------------


def replaced_component(
    own: Float[Tensor, "row d_model"],
    new: Float[Tensor, "row d_model"],
    basis: Float[Tensor, "k d_model"] | None,
) -> Float[Tensor, "row d_model"]:
    """`own` with its component in the span of the orthonormal `basis` taken from `new`; None: all
    of `new`."""
    return new if basis is None else own + (new - own) @ basis.T @ basis


def without_directions(
    vectors: Float[Tensor, "row d_model"], directions: Float[Tensor, "row k d_model"]
) -> Float[Tensor, "row d_model"]:
    """Each vector without its projection on the span of its row's directions.

    Directions of no length, or within rounding of the others' span, take nothing away.
    """
    _, lengths, basis = torch.linalg.svd(directions.double(), full_matrices=False)
    real = lengths > lengths[:, :1] * 1e-6 + torch.finfo(torch.float64).tiny
    basis = basis * real[..., None]
    share = torch.einsum("rd,rkd->rk", vectors.double(), basis)
    return (vectors.double() - torch.einsum("rk,rkd->rd", share, basis)).to(vectors.dtype)


def matched_noise(
    own: Float[Tensor, "row d_model"], new: Float[Tensor, "row d_model"], seed: int
) -> Float[Tensor, "row d_model"]:
    """`own` moved as far as `new` is from it, in a random direction."""
    drawn = torch.randn(own.shape, generator=torch.Generator().manual_seed(seed)).to(own)
    length = (new - own).norm(dim=1, keepdim=True)
    return own + drawn / drawn.norm(dim=1, keepdim=True) * length


def principal_directions(
    states: Float[Tensor, "entity d_model"], k: int
) -> Float[Tensor, "k d_model"]:
    """The `k` orthonormal directions (at most as many as entities less one, or as `d_model`) along
    which entities differ most."""
    centred = states.double() - states.double().mean(0)
    k = min(k, len(states) - 1, states.shape[1])
    return torch.linalg.svd(centred, full_matrices=False)[2][:k].to(states.dtype)


def halves_and_others(n: int, seed: int) -> tuple[Int[Tensor, " n"], Int[Tensor, " n"]]:
    """`(half, other)`: a random split of n entities into halves 0 and 1, and for each entity
    another one of its own half.

    Raises `MnemoscopeError` for fewer than four, which have no two halves with another entity.
    """
    if n < 4:
        raise MnemoscopeError(f"{n} pairs are too few for halves with a control: give 4 at least.")
    order = torch.randperm(n, generator=torch.Generator().manual_seed(seed))
    half, other = torch.empty(n, dtype=torch.long), torch.empty(n, dtype=torch.long)
    for number, members in enumerate((order[: n // 2], order[n // 2 :])):
        half[members] = number
        other[members] = members.roll(1)
    return half, other
