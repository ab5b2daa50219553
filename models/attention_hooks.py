"""Attention edits installed, together with plain edits, and removed again."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from jaxtyping import Bool
from torch import Tensor

from .anatomy import Anatomy
from .attention import AttentionCall
from .attention_edits import AttentionEdit
from .backends import Places
from .edited_attention import Columns, Rule, edited_outputs
from .edits import Edit
from .errors import MnemoscopeError
from .hooks import Change, InstalledEdit, RunningBatch, edit_hooks, raise_if_silent


@contextmanager
def intervention_hooks(
    places: Places, anatomy: Anatomy, edits: Sequence[Edit | AttentionEdit]
) -> Iterator[tuple[InstalledEdit, ...]]:
    """Install edits of both kinds and yield them in their order; see `HookedModel.intervene`."""
    inside = tuple(edit for edit in edits if isinstance(edit, AttentionEdit))
    plain = tuple(edit for edit in edits if isinstance(edit, Edit))
    with ExitStack() as stack:
        in_attention = iter(stack.enter_context(attention_edit_hooks(places, anatomy, inside)))
        others = iter(stack.enter_context(edit_hooks(places, plain)))
        yield tuple(
            next(in_attention if isinstance(edit, AttentionEdit) else others) for edit in edits
        )


@contextmanager
def attention_edit_hooks(
    places: Places, anatomy: Anatomy, edits: tuple[AttentionEdit, ...]
) -> Iterator[tuple[InstalledEdit, ...]]:
    """Install attention edits, remove them on any exit, raise `EditNeverFiredError` for a silent
    one. A hiding edit fires at a query that could see one of its keys."""
    installed = tuple(InstalledEdit(edit) for edit in edits)
    pairs = list(zip(edits, installed, strict=True))
    _check_widths(places, edits)
    with ExitStack() as stack:
        running = stack.enter_context(places.batch()) if edits else RunningBatch()
        for edit, one in pairs:
            if edit.op == "mean_query":
                for layer in sorted({head.layer for head in edit.heads}):
                    heads = [head.head for head in edit.heads if head.layer == layer]
                    ask = _asking(edit, one, layer, running)
                    stack.enter_context(places.queries(layer, heads, ask, into=(one,)))
        ruled = [(edit, one) for edit, one in pairs if edit.op != "mean_query"]
        if ruled:
            by_layer = _by_layer(ruled, anatomy.n_heads)
            answer, into = _answering(by_layer, running), [one for _, one in ruled]
            stack.enter_context(places.attention(answer, sorted(by_layer), into))
        yield installed
    raise_if_silent(installed)


def _check_widths(places: Places, edits: Sequence[AttentionEdit]) -> None:
    for edit in edits:
        if edit.value is not None and edit.value.shape[1] != places.query_width():
            raise MnemoscopeError(
                f"mean queries must be [head, d_head] with d_head = "
                f"{places.query_width()}, got {tuple(edit.value.shape)}."
            )


# -- queries --------------------------------------------------------------------------------------


def _asking(edit: AttentionEdit, one: InstalledEdit, layer: int, running: RunningBatch) -> Change:
    chosen = [i for i, head in enumerate(edit.heads) if head.layer == layer]
    heads = [edit.heads[i].head for i in chosen]
    assert edit.value is not None
    value = edit.value[chosen]

    def ask(queries: Tensor) -> Tensor | None:
        cells = torch.ones(queries.shape[:2], dtype=torch.bool, device=queries.device)
        if running.mask is not None:
            cells &= running.mask.to(cells.device)
        cells &= _row_cells(edit, len(cells)).to(cells.device)[:, None]
        one.fired += int(cells.sum())
        new = queries.clone()
        mean = value.to(device=queries.device, dtype=queries.dtype)
        new[:, :, heads] = torch.where(cells[:, :, None, None], mean, queries[:, :, heads])
        return new

    return ask


# -- keys and weights -----------------------------------------------------------------------------

_Ruled = tuple[AttentionEdit, InstalledEdit, Rule, Bool[Tensor, " head"]]
"""An edit in one layer, with its rule and heads there."""


def _by_layer(
    edits: Sequence[tuple[AttentionEdit, InstalledEdit]], n_heads: int
) -> dict[int, list[_Ruled]]:
    layers: dict[int, list[_Ruled]] = {}
    for edit, one in edits:
        rule = Rule(edit.op, edit.spans, edit.sink, edit.recent, edit.factor)
        for layer in sorted({head.layer for head in edit.heads}):
            heads = torch.zeros(n_heads, dtype=torch.bool)
            heads[[head.head for head in edit.heads if head.layer == layer]] = True
            layers.setdefault(layer, []).append((edit, one, rule, heads))
    return layers


def _answering(
    layers: dict[int, list[_Ruled]], running: RunningBatch
) -> Callable[[AttentionCall, Callable[[], Any]], Any]:
    def answer(call: AttentionCall, own: Callable[[], Any]) -> Any:
        here = layers.get(call.layer)
        if here is None:
            return own()
        output = own()[0]
        rows, device = len(output), output.device
        cells = _cells(here, rows, device)
        starts = running.starts
        if starts is None:
            starts = torch.zeros(rows, dtype=torch.long)
        new, counts = edited_outputs(call, output, cells, Columns(running.past, starts))
        for edit, one, rule, _ in here:
            one.fired += int(counts[rule][_row_cells(edit, rows)].sum())
        return new, None  # the kernel's weights are not those of the edited heads

    return answer


def _cells(
    here: Sequence[_Ruled], rows: int, device: torch.device
) -> dict[Rule, Bool[Tensor, "batch head"]]:
    cells: dict[Rule, Tensor] = {}
    for edit, _, rule, heads in here:
        asked = _row_cells(edit, rows)[:, None] & heads
        cells[rule] = cells[rule] | asked if rule in cells else asked
    return {rule: asked.to(device) for rule, asked in cells.items()}


def _row_cells(edit: AttentionEdit, rows: int) -> Bool[Tensor, " batch"]:
    if edit.rows is None:
        return torch.ones(rows, dtype=torch.bool)
    if max(edit.rows) >= rows:
        raise MnemoscopeError(
            f"an attention edit is for batch row {max(edit.rows)}, but {rows} rows ran: name rows "
            f"0 to {rows - 1}."
        )
    cells = torch.zeros(rows, dtype=torch.bool)
    cells[list(edit.rows)] = True
    return cells
