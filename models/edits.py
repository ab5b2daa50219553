"""Interventions as plain data: what to change, where, at which positions and in which phase.

An `Edit` can be stored in a result, compared between back ends and run remotely. The six
operations share one formula for each selected cell: zero -> 0, mean / resample / set -> value,
scale -> x * value, add -> x + value. Mean, resample and set compute the same; the word records
where the value came from.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

import torch
from torch import Tensor

from .anatomy import GATE_SITES, Anatomy
from .errors import MnemoscopeError, UnsupportedSiteError
from .types import HeadId, NeuronId, Site

Op = Literal["zero", "mean", "resample", "scale", "set", "add"]
Phase = Literal["prefill", "decode", "both"]
Offsets = tuple[int, ...]
Positions = Literal["all", "all_but_first", "end"] | Offsets | tuple[Offsets, ...]

UNIT_SITES = (Site.NEURON, *GATE_SITES, Site.MLP_OUT)
"""Where a `NeuronId` can be edited."""

EDITABLE_STREAMS = (Site.RESID_PRE, Site.RESID_POST, Site.ATTN_OUT, Site.MLP_OUT)


@dataclass(frozen=True, order=True, slots=True)
class StreamId:
    """A whole `d_model`-wide stream of one layer: residual, attention output or MLP output."""

    layer: int
    site: Site

    def __str__(self) -> str:
        return f"L{self.layer}.{self.site}"


Unit = HeadId | NeuronId | StreamId


@dataclass(frozen=True, eq=False)
class Edit:
    """One intervention on units of one kind.

    `value` broadcasts over `[batch, pos, unit, d_v]` (heads), `[batch, pos, unit]` (neurons) or
    `[batch, pos, unit, d_model]` (streams): leave out `pos`, or `batch` and `pos`, for values
    that are the same there. `positions` are "all" real tokens, "all_but_first" (spares a row's
    first token, where attention sinks sit), "end", or offsets counted from the row's first token
    (>= 0) or back from END (-1 is END): the same ones for every row, or a tuple of them for each
    row of the batch. "end" and offsets exist in the prompt only, so their phase is "prefill".
    """

    op: Op
    units: tuple[Unit, ...]
    value: Tensor | float | None = None
    positions: Positions = "all"
    phase: Phase = "both"

    @property
    def site(self) -> Site:
        """The site that all units of this edit sit at."""
        first = self.units[0]
        return Site.Z if isinstance(first, HeadId) else first.site

    def describe(self) -> dict[str, Any]:
        """The edit as JSON; a tensor value is named by shape and SHA-256."""
        return {
            "op": self.op,
            "site": str(self.site),
            "units": [str(unit) for unit in self.units],
            "value": described_value(self.value),
            "positions": self.positions,
            "phase": self.phase,
        }


def described_value(value: Tensor | float | None) -> Any:
    """A value as JSON: a tensor by its shape and SHA-256."""
    if not isinstance(value, Tensor):
        return value
    flat = value.detach().cpu().contiguous().flatten()
    digest = hashlib.sha256(flat.view(torch.uint8).numpy().tobytes()).hexdigest()
    return {"shape": list(value.shape), "sha256": digest}


def zero(units: Sequence[Unit], positions: Positions = "all", phase: Phase = "both") -> Edit:
    """Set the units to zero, for example `zero([HeadId(3, 1)])`."""
    return Edit("zero", tuple(units), None, positions, phase)


def scale(
    units: Sequence[Unit], factor: float, positions: Positions = "all", phase: Phase = "both"
) -> Edit:
    """Multiply the units by a constant: 0.5 halves, 2 boosts, -1 flips."""
    return Edit("scale", tuple(units), float(factor), positions, phase)


def mean(
    units: Sequence[Unit], values: Tensor, positions: Positions = "all", phase: Phase = "both"
) -> Edit:
    """Replace the units by their mean over some data, `values` of shape `[unit, width]`."""
    return Edit("mean", tuple(units), values, positions, phase)


def resample(
    units: Sequence[Unit], values: Tensor, positions: Positions = "all", phase: Phase = "both"
) -> Edit:
    """Replace the units by their values on other inputs, `[batch, unit, width]`."""
    return Edit("resample", tuple(units), values, positions, phase)


def check_edit(edit: Edit, anatomy: Anatomy) -> None:
    """Raises before anything runs: wrong words, units, mixed kinds, site, value or positions."""
    for word, known in ((edit.op, get_args(Op)), (edit.phase, get_args(Phase))):
        if word not in known:
            raise MnemoscopeError(f"an edit knows no {word!r}; use one of {', '.join(known)}.")
    if not edit.units:
        raise MnemoscopeError("an edit needs at least one head, neuron or stream.")
    if len({(type(unit), _site(unit)) for unit in edit.units}) > 1:
        raise MnemoscopeError("an edit takes units of one kind; make one edit for each kind.")
    if len(set(edit.units)) < len(edit.units):
        raise MnemoscopeError("an edit names a unit twice; name each once.")
    for unit in edit.units:
        _check_unit(unit, anatomy)
    _check_value(edit, anatomy)
    _check_positions(edit)


def _check_value(edit: Edit, anatomy: Anatomy) -> None:
    if (edit.value is None) != (edit.op == "zero"):
        raise MnemoscopeError(
            f"{edit.op!r} edits {'take no' if edit.op == 'zero' else 'need a'} value."
        )
    if not isinstance(edit.value, Tensor) or edit.value.ndim == 0:
        return
    kinds: dict[type, tuple[int, ...]] = {HeadId: (anatomy.d_v,), NeuronId: ()}
    width = kinds.get(type(edit.units[0]), (anatomy.d_model,))
    last, axes = (len(edit.units), *width), 1 + len(width)
    fits = all(
        size in (1, want) for size, want in zip(edit.value.shape[-axes:], last, strict=False)
    )
    if not axes <= edit.value.ndim <= axes + 2 or edit.value.shape[-axes] != last[0] or not fits:
        raise MnemoscopeError(
            f"the value of a {edit.op!r} edit has shape {tuple(edit.value.shape)}, but its last "
            f"axes must be {last} for {len(edit.units)} units, after [batch, pos] or [batch] or "
            "neither."
        )


def _check_positions(edit: Edit) -> None:
    named = edit.positions in ("all", "all_but_first", "end")
    if not named and not (_are_offsets(edit.positions) or _by_row(edit.positions)):
        raise MnemoscopeError(
            f"positions {edit.positions!r} are unknown: use 'all', 'all_but_first', 'end', a "
            "tuple of offsets, or a tuple of offsets for each row."
        )
    if edit.positions not in ("all", "all_but_first") and edit.phase == "decode":
        raise MnemoscopeError(
            "positions other than 'all' and 'all_but_first' exist in the prompt only: "
            "phase='prefill'."
        )


def _are_offsets(given: object) -> bool:
    return isinstance(given, tuple) and given != () and all(isinstance(one, int) for one in given)


def _by_row(given: object) -> bool:
    return isinstance(given, tuple) and given != () and all(map(_are_offsets, given))


def _check_unit(unit: Unit, anatomy: Anatomy) -> None:
    if isinstance(unit, HeadId):
        anatomy.check_head(unit)
    elif isinstance(unit, NeuronId):
        if unit.site not in UNIT_SITES:
            raise UnsupportedSiteError(
                f"neurons can be edited at {', '.join(UNIT_SITES)}, not {unit.site}."
            )
        anatomy.check_neuron(unit)
    else:
        anatomy.check_layer(unit.layer)
        if unit.site not in EDITABLE_STREAMS:
            raise UnsupportedSiteError(
                f"{unit.site} can be captured but not edited; streams that can be edited: "
                f"{', '.join(EDITABLE_STREAMS)}."
            )


def _site(unit: Unit) -> Site:
    return Site.Z if isinstance(unit, HeadId) else unit.site


def edited(old: Tensor, op: Op, value: Tensor | float | None) -> Tensor:
    """The formula of the module docstring; `value` is already broadcastable to `old`."""
    if op == "zero":
        return torch.zeros_like(old)
    assert value is not None
    if op == "scale" and not isinstance(value, Tensor):
        return old * value
    new = torch.as_tensor(value, device=old.device, dtype=old.dtype)
    if op == "scale":
        return old * new
    return old + new if op == "add" else new.expand_as(old)
