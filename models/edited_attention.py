"""Head outputs under attention edits, computed beside the model's own kernel.

The edited heads of a call are computed once more from its q, k, v and mask, in blocks of queries,
and take the place of the kernel's. All edits of a call hold in one computation, each for its own
batch rows and heads. Memory: `WORKING_BYTES` of scores, and the edited groups' keys and values once
more where they are not float32 already, whatever the length.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from .attention import AttentionCall
from .attention_edits import AttentionOp
from .errors import UnsupportedModelError
from .row_folding import WORKING_BYTES, HiddenKeys
from .types import TokenSpan

_COPIES = 4
"""Tensors of the size of the scores that are alive at once: scores, weights and their masks."""


@dataclass(frozen=True)
class Rule:
    """What an edit says of every query of its heads; equal rules of several edits are one."""

    op: AttentionOp
    spans: tuple[TokenSpan, ...]
    sink: int
    recent: int
    factor: float = 1.0

    def touches(
        self, query: Int[Tensor, "row query"], key: Int[Tensor, "row key"]
    ) -> Bool[Tensor, "row query_or_one key"]:
        """Keys that the rule is about; both axes counted from the row's first real token."""
        at = key[:, None, :]
        if self.op == "streaming":
            return (at >= self.sink) & (at <= query[..., None] - self.recent)
        inside = torch.zeros_like(at, dtype=torch.bool)
        for span in self.spans:
            inside |= (at >= span.start) & (at < span.stop)
        return inside


Cells = Mapping[Rule, Bool[Tensor, "batch head"]]
"""For which batch rows and heads each rule holds."""


@dataclass(frozen=True, eq=False)
class Columns:
    """Where the call stands: `past` columns before its queries, rows starting at `starts`."""

    past: int
    starts: Int[Tensor, " batch"]


def edited_outputs(
    call: AttentionCall, output: Float[Tensor, "batch pos head d_v"], cells: Cells, columns: Columns
) -> tuple[Float[Tensor, "batch pos head d_v"], dict[Rule, Int[Tensor, " batch"]]]:
    """`output` with the edited rows and heads replaced, and how many queries each rule changed.

    A rule about keys changes a query that could see one of them. Queries that see nothing by the
    model's own mask (padding) keep the kernel's output.
    """
    if not (call.mask is None or isinstance(call.mask, Tensor)):
        raise UnsupportedModelError(
            f"attention masks of type {type(call.mask).__name__} cannot be read: load the model "
            "with the attention implementation 'sdpa' or 'eager'."
        )
    edited = torch.stack(list(cells.values())).any(0)
    new = output.clone()
    counts = {rule: torch.zeros(len(edited), dtype=torch.long) for rule in cells}
    for rows, heads, groups in _row_blocks(call, edited):
        block = _Block(call, rows, heads, groups, columns)
        for queries in block.query_blocks():
            z, seen, changed = block.attend(queries, cells)
            part = new[:, queries]
            at = (rows[:, None], slice(None), heads[None])  # indexes as [row, head, query, d_v]
            kept = edited[rows][:, heads, None] & seen
            part[at] = torch.where(kept[..., None], z.to(output.dtype), part[at])
            for rule, found in changed.items():
                counts[rule][rows.cpu()] += found.cpu()
    return new, counts


def _row_blocks(
    call: AttentionCall, edited: Bool[Tensor, "batch head"]
) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """Batch rows, query heads and their key/value heads: of each of these equally many heads, the
    edited ones first, and as many rows at once as leave room for one query each."""
    grouped = edited.any(0).view(call.key.shape[1], -1)
    groups = grouped.any(1).nonzero()[:, 0]
    most = int(grouped.sum(1).max())
    first = grouped[groups].int().argsort(dim=1, descending=True, stable=True)[:, :most]
    heads = (groups[:, None] * grouped.shape[1] + first).flatten()
    numbers = WORKING_BYTES // (_COPIES * _wide(call).itemsize)
    rows = edited.any(1).nonzero()[:, 0]
    for some in rows.split(max(1, numbers // (len(heads) * call.key.shape[2]))):
        yield some, heads, groups


def _wide(call: AttentionCall) -> torch.dtype:
    return torch.promote_types(call.query.dtype, torch.float32)


class _Block:
    """Some batch rows of one call, restricted to the key/value heads that are edited."""

    def __init__(
        self, call: AttentionCall, rows: Tensor, heads: Tensor, groups: Tensor, columns: Columns
    ) -> None:
        wide, options = _wide(call), dict(call.options)
        self.rows, self.heads, self.options = rows, heads, options
        self.positions, self.n_keys = call.query.shape[2], call.key.shape[2]
        scaling = options.get("scaling")
        scaling = call.query.shape[-1] ** -0.5 if scaling is None else scaling
        query = _some(_some(call.query, rows, 0), heads, 1).to(wide) * scaling
        self.query = query.unflatten(1, (len(groups), -1))
        self.key = _some(_some(call.key, rows, 0), groups, 1).to(wide)
        self.value = _some(_some(call.value, rows, 0), groups, 1).to(wide)
        mask = call.mask
        if mask is not None and len(mask) > 1:
            mask = _some(mask, rows, 0)
        if mask is not None and mask.ndim == 4 and mask.shape[1] > 1:
            mask = _some(mask, heads, 1)
        self.mask = mask
        sinks = options.get("s_aux")
        self.sinks = None if sinks is None else sinks.to(wide)[heads][:, None, None]
        starts = columns.starts.to(rows.device)[rows][:, None]
        first = max(0, columns.past + self.positions - self.n_keys)  # a window holds the last keys
        self.key_at = first + torch.arange(self.n_keys, device=rows.device) - starts
        self.query_at = columns.past + torch.arange(self.positions, device=rows.device) - starts

    def query_blocks(self) -> Iterator[slice]:
        """Slices of queries whose scores fit `WORKING_BYTES`."""
        numbers = WORKING_BYTES // (_COPIES * self.query.dtype.itemsize)
        step = max(1, numbers // (len(self.rows) * len(self.heads) * self.n_keys))
        for first in range(0, self.positions, step):
            yield slice(first, min(first + step, self.positions))

    def attend(
        self, queries: slice, cells: Cells
    ) -> tuple[
        Float[Tensor, "row head query d_v"],
        Bool[Tensor, "row head query"],
        dict[Rule, Int[Tensor, " row"]],
    ]:
        """Outputs of a block of queries, which of them see a key, and queries changed by rule."""
        scores, visible = self._scores(queries)
        changed, level, seen = {}, None, visible.any(-1)
        for rule, everywhere in cells.items():
            here = everywhere[self.rows][:, self.heads, None, None]
            touched = seen
            if rule.op == "uniform":
                level = here if level is None else level | here
            else:
                keys = self.key_at[:, : scores.shape[-1]]
                meant = rule.touches(self.query_at[:, queries], keys)[:, None]
                touched = (meant & visible).any(-1)
                if rule.op == "reweigh":
                    scores = torch.where(meant & here, scores + math.log(rule.factor), scores)
                else:
                    scores = scores.masked_fill_(meant & here, -torch.inf)
            changed[rule] = (touched & here[..., 0]).any(1).sum(-1)
        weights = _weights(scores, level, self.sinks)
        grouped = weights.unflatten(1, (self.key.shape[1], -1)).flatten(2, 3)
        z = grouped @ self.value[:, :, : scores.shape[-1]]
        return z.view(*scores.shape[:3], -1), seen.expand(scores.shape[:3]), changed

    def _scores(self, queries: slice) -> tuple[Tensor, Tensor]:
        """Scores `[row, head, query, key]` up to the last key that a query can see, hidden ones
        -inf, and which are visible."""
        reach = slice(0, self.n_keys - self.positions + queries.stop)
        asking = self.query[:, :, :, queries].flatten(2, 3)
        scores = asking @ self.key[:, :, reach].mT
        scores = scores.view(len(self.rows), len(self.heads), -1, scores.shape[-1])
        softcap = self.options.get("softcap")
        if softcap is not None:
            scores = softcap * torch.tanh(scores / softcap)
        columns = torch.arange(queries.start, queries.stop, device=scores.device)
        columns = columns.expand(len(self.rows), -1)
        hidden = HiddenKeys(self.mask, columns, self.positions, self.n_keys, self.options)
        return scores, hidden.hide(scores, reach)


def _weights(scores: Tensor, level: Tensor | None, sinks: Tensor | None) -> Tensor:
    """Softmax over keys and the learned sink; even over visible keys where `level`; 0 for none."""
    if level is not None:
        scores = torch.where(level & (scores > -torch.inf), 0.0, scores)
    empty = scores.amax(-1, keepdim=True) == -torch.inf
    if sinks is None:
        weights = torch.softmax(scores, dim=-1)
    else:
        sink = sinks.expand(*scores.shape[:-1], 1)
        sink = sink if level is None else torch.where(level, -torch.inf, sink)
        weights = torch.softmax(torch.cat([scores, sink], dim=-1), dim=-1)[..., :-1]
    return weights.masked_fill(empty, 0.0) if bool(empty.any()) else weights  # not NaN


def _some(x: Tensor, which: Tensor, axis: int) -> Tensor:
    """Entries along an axis; no copy where they are all."""
    return x if len(which) == x.shape[axis] else x.index_select(axis, which)
