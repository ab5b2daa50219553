"""The hooks themselves: thin, installed late, always removed.

Everything a hook needs to know about the running batch (which cells are real tokens, where END
is, prefill or decode) is read from the arguments of the model's own forward by `watch_batch`, so
that edits work alike under `HookedModel.capture`, under `generate` and under a plain call of the
module.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import torch
from jaxtyping import Bool, Int
from torch import Tensor, nn

from .anatomy import GATE_SITES, Anatomy, part, why_no_units
from .attention_edits import AttentionEdit
from .edits import Edit, Offsets, edited
from .errors import EditNeverFiredError, MnemoscopeError, UnsupportedSiteError
from .tokens import TokenBatch
from .types import HeadId, NeuronId, Site

if TYPE_CHECKING:
    from .backends import Places

Change = Callable[[Tensor], Tensor | None]
"""Sees a site's tensor; returns its replacement, or None to leave it alone."""


@dataclass
class RunningBatch:
    """What hooks know of the forward pass in progress; one object a model, rewritten each pass."""

    shape: tuple[int, int] = (0, 0)
    mask: Tensor | None = None
    decoding: bool = False
    fresh: bool = True
    """Nothing is in the cache yet: the rows' first tokens are here."""
    past: int = 0
    """Columns that are in the cache already."""
    starts: Tensor | None = None
    """Column of each row's first real token, the cache's columns counted; None for no padding."""


@contextmanager
def watch_batch(module: nn.Module) -> Iterator[RunningBatch]:
    """Keep a `RunningBatch` up to date while the module runs."""
    running = RunningBatch()

    def note(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        ids: Any = kwargs.get("input_ids", args[0] if args else None)
        ids = kwargs.get("inputs_embeds") if ids is None else ids
        if ids is None:
            raise MnemoscopeError("the model was called without input_ids or inputs_embeds.")
        cache = kwargs.get("past_key_values")
        past = cache.get_seq_length() if cache is not None else 0
        note_pass(running, (ids.shape[0], ids.shape[1]), kwargs.get("attention_mask"), past)

    handle = module.register_forward_pre_hook(note, with_kwargs=True)
    try:
        yield running
    finally:
        handle.remove()


def note_pass(running: RunningBatch, shape: tuple[int, int], mask: Any, past: int) -> None:
    """Write down the pass that begins: its tokens, its mask, and what the cache holds already."""
    running.shape = shape
    running.decoding = past > 0 and shape[1] == 1
    running.fresh, running.past = past == 0, past
    plain = isinstance(mask, Tensor) and mask.ndim == 2
    running.mask = mask[:, -shape[1] :].bool() if plain else None
    running.starts = mask.int().argmax(1) if plain else None


@contextmanager
def site_hook(
    module: nn.Module, anatomy: Anatomy, site: Site, layer: int, change: Change
) -> Iterator[None]:
    """Call `change` with the tensor at a site, in the shape of the design's table of sites."""
    handle = install(module, anatomy, site, layer, change)
    try:
        yield
    finally:
        handle.remove()


def install(
    module: nn.Module, anatomy: Anatomy, site: Site, layer: int, change: Change
) -> torch.utils.hooks.RemovableHandle:
    """Register one hook; prefer `site_hook`, which removes it.

    Raises `UnsupportedSiteError` where the architecture has no such site.
    """
    place = place_of(anatomy, site)
    block = part(module, anatomy.spec.blocks)[layer]
    target = part(block, place.path) if place.path else block
    on_side = _on_input if place.side == "input" else _on_output
    return on_side(target, place.adapted(change))


@dataclass(frozen=True)
class Place:
    """Where in a block a site is: the first input or the (first) output of a module of it."""

    path: str
    """Below the block; empty for the block itself."""
    side: Literal["input", "output"]
    adapted: Callable[[Change], Change] = lambda change: change
    """From a change of the site's tensor to one of what stands at the place."""


def place_of(anatomy: Anatomy, site: Site) -> Place:
    """Raises `UnsupportedSiteError` where the architecture has no such site."""
    spec = anatomy.spec
    if site is Site.RESID_PRE:
        return Place("", "input")
    if site is Site.RESID_POST:
        return Place("", "output")
    if site is Site.Z:
        return Place(spec.o_proj, "input", lambda change: _per_head(change, anatomy.n_heads))
    if site is Site.ATTN_OUT:
        return Place(spec.o_proj, "output")
    if site is Site.MLP_OUT:
        return Place(spec.mlp_out, "output")
    if site is Site.NEURON and spec.down is not None:
        return Place(spec.down, "input")
    if site in GATE_SITES and spec.gate is not None and spec.up is not None:
        path = spec.gate if site is Site.GATE_PRE else spec.up
        if spec.gate == spec.up:
            return Place(path, "output", lambda change: _half(change, second=site is Site.UP))
        return Place(path, "output")
    has_middle = spec.resid_mid is not None and not (anatomy.parallel or anatomy.post_ln)
    if site is Site.RESID_MID and has_middle:
        return Place(str(spec.resid_mid), "input")
    raise UnsupportedSiteError(_why_not(site, anatomy))


def _why_not(site: Site, anatomy: Anatomy) -> str:
    if site in (Site.NEURON, *GATE_SITES):
        return why_no_units(site, anatomy.model_type, anatomy.d_mlp)
    if site is Site.RESID_MID and anatomy.post_ln:
        return f"{anatomy.model_type} normalises each sum here: there is no {site}; use resid_post."
    if site is Site.RESID_MID:
        return f"{anatomy.model_type} blocks are parallel here: there is no {site}; use resid_post."
    return f"{anatomy.model_type} does not show {site}: it is hidden inside attention."


def _on_input(target: nn.Module, change: Change) -> torch.utils.hooks.RemovableHandle:
    def hook(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if args:
            new = change(args[0])
            return None if new is None else ((new, *args[1:]), kwargs)
        new = change(kwargs["hidden_states"])
        return None if new is None else (args, {**kwargs, "hidden_states": new})

    return target.register_forward_pre_hook(hook, with_kwargs=True)


def _on_output(target: nn.Module, change: Change) -> torch.utils.hooks.RemovableHandle:
    def hook(_: nn.Module, __: tuple[Any, ...], output: Any) -> Any:
        # GPT-J's blocks and all attention modules return tuples, the other blocks bare tensors.
        first = output[0] if isinstance(output, tuple) else output
        new = change(first)
        if new is None:
            return None
        return (new, *output[1:]) if isinstance(output, tuple) else new

    return target.register_forward_hook(hook)


def _half(change: Change, *, second: bool) -> Change:
    """One half of a fused projection, the gate's half first."""

    def on_half(x: Tensor) -> Tensor | None:
        halves = list(x.chunk(2, dim=-1))
        new = change(halves[second])
        if new is None:
            return None
        halves[second] = new
        return torch.cat(halves, dim=-1)

    return on_half


def _per_head(change: Change, n_heads: int) -> Change:
    def per_head(x: Tensor) -> Tensor | None:
        new = change(x.unflatten(-1, (n_heads, -1)))
        return None if new is None else new.flatten(-2)

    return per_head


def in_batch_shape(x: Tensor, running: RunningBatch) -> Tensor:
    """OPT's MLP works on `[batch * pos, width]`; give it back its batch axis."""
    return x.unflatten(0, running.shape) if x.ndim == 2 else x


@dataclass
class InstalledEdit:
    """An edit with the count of cells (row x position) that it has changed so far."""

    edit: Edit | AttentionEdit
    fired: int = 0


@contextmanager
def edit_hooks(places: Places, edits: tuple[Edit, ...]) -> Iterator[tuple[InstalledEdit, ...]]:
    """Install edits, remove them on any exit, and raise `EditNeverFiredError` for a silent one."""
    installed = tuple(InstalledEdit(edit) for edit in edits)
    with ExitStack() as stack:
        running = stack.enter_context(places.batch())
        for edit, one in zip(edits, installed, strict=True):
            for layer in sorted({unit.layer for unit in edit.units}):
                change = _apply_in_layer(edit, one, layer, running)
                stack.enter_context(places.site(edit.site, layer, change, into=(one,)))
        yield installed
    raise_if_silent(installed)


def raise_if_silent(installed: Sequence[InstalledEdit]) -> None:
    """Raises `EditNeverFiredError` naming the edits that changed nothing."""
    silent = [str(one.edit.describe()) for one in installed if one.fired == 0]
    if silent:
        raise EditNeverFiredError(
            f"edits that never changed anything: {'; '.join(silent)}. Was the model run inside the "
            "block, in the edit's phase, and does every prompt have these positions or keys?"
        )


def _apply_in_layer(edit: Edit, one: InstalledEdit, layer: int, running: RunningBatch) -> Change:
    chosen = [j for j, unit in enumerate(edit.units) if unit.layer == layer]
    columns = [_column(edit.units[j]) for j in chosen]

    def change(x: Tensor) -> Tensor | None:
        cells = selected_cells(edit, running, x.device)
        if cells is None or not bool(cells.any()):
            return None
        one.fired += int(cells.sum())
        shaped = in_batch_shape(x, running)
        if columns == [None]:  # a whole stream: give it the unit axis that values have
            old = shaped.unsqueeze(2)
            return _edit_cells(edit, chosen, old, cells).squeeze(2).view_as(x)
        new = shaped.clone()
        new[:, :, columns] = _edit_cells(edit, chosen, shaped[:, :, columns], cells)
        return new.view_as(x)

    return change


def _edit_cells(edit: Edit, chosen: list[int], old: Tensor, cells: Tensor) -> Tensor:
    new = edited(old, edit.op, _value_for(edit, chosen, old))
    if bool(cells.all()):
        return new
    return torch.where(cells.reshape(*cells.shape, *[1] * (old.ndim - 2)), new, old)


def _column(unit: Any) -> int | None:
    if isinstance(unit, HeadId):
        return unit.head
    return unit.index if isinstance(unit, NeuronId) else None


def _value_for(edit: Edit, chosen: list[int], old: Tensor) -> Tensor | float | None:
    """The value's slice for one layer's units, with batch and pos axes put in where left out."""
    value = edit.value
    if not isinstance(value, Tensor) or value.ndim == 0:
        return value
    unit_axes = old.ndim - 2  # axes from the unit axis on; `check_edit` has seen that they fit
    value = value.index_select(value.ndim - unit_axes, torch.tensor(chosen, device=value.device))
    if value.ndim == old.ndim - 1:  # [batch, unit, ...]: one value for all positions of a row
        value = value.unsqueeze(1)
    leading = value.shape[:-unit_axes]
    if any(size not in (1, have) for size, have in zip(leading, old.shape, strict=False)):
        raise MnemoscopeError(
            f"the value of a {edit.op!r} edit is for [batch, pos] = {list(leading)} but the model "
            f"runs {list(old.shape[:2])}: give values for the batch that runs, or leave axes out."
        )
    return value


def selected_cells(
    edit: Edit, running: RunningBatch, device: torch.device
) -> Bool[Tensor, "batch pos"] | None:
    """Which cells of the running batch an edit selects; None when it is not its phase."""
    if edit.phase != "both" and (edit.phase == "decode") != running.decoding:
        return None
    if running.mask is None and edit.positions != "all":
        raise MnemoscopeError("edits at chosen positions need a two-dimensional attention mask.")
    full = torch.ones(running.shape, dtype=torch.bool, device=device)
    mask = full if running.mask is None else running.mask.to(device)
    if edit.positions == "all":
        return mask
    if edit.positions == "all_but_first":
        first = position_cells(TokenBatch(mask.long(), mask), (0,))
        return mask & ~first if running.fresh else mask
    if running.decoding:
        return None
    return position_cells(TokenBatch(mask.long(), mask), edit.positions)


def position_cells(
    batch: TokenBatch, positions: Literal["end"] | Offsets | tuple[Offsets, ...]
) -> Bool[Tensor, "batch pos"]:
    """Cells at "end" or at offsets from a row's start (>= 0) or END (< 0), padding-aware.

    Raises `MnemoscopeError` for offsets by row that are not one tuple a row.
    """
    offsets = _offsets_by_row(positions, len(batch)).to(batch.mask.device)
    starts, ends = batch.starts[:, None], batch.ends[:, None]
    columns = torch.where(offsets >= 0, starts + offsets, ends + 1 + offsets)
    n_columns = batch.mask.shape[1]
    real = (columns >= 0) & (columns < n_columns) & (offsets != _NO_OFFSET)
    cells = torch.zeros(len(batch), n_columns + 1, dtype=torch.bool, device=batch.mask.device)
    cells.scatter_(1, torch.where(real, columns, n_columns), True)
    return cells[:, :-1] & batch.mask


_NO_OFFSET = torch.iinfo(torch.int64).min


def _offsets_by_row(
    positions: Literal["end"] | Offsets | tuple[Offsets, ...], n_rows: int
) -> Int[Tensor, "batch k"]:
    """One row of offsets for each row of the batch, filled up with `_NO_OFFSET`."""
    if positions == "end" or not isinstance(positions[0], tuple):
        same = (-1,) if positions == "end" else positions
        return torch.tensor([same]).expand(n_rows, -1)
    if len(positions) != n_rows:
        raise MnemoscopeError(
            f"an edit names offsets for {len(positions)} rows but the model runs {n_rows}: give "
            "one tuple for each row of the batch."
        )
    width = max(map(len, positions))
    filled = [[*row, *[_NO_OFFSET] * (width - len(row))] for row in positions]
    return torch.tensor(filled)
