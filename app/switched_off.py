"""What is changed in a model to see what it does: heads, edges into heads, MLP units. Data only.

Heads are zeroed, set to their mean or scaled. Edges are what a head reads: those to chosen tokens
are cut or scaled, or all of a head's edges get the same weight, their mean. Units are zeroed, set
to their mean or scaled. All of a `Switched` holds at once.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from jaxtyping import Float
from torch import Tensor

from ..interventions.head_ablation import AnyEdit, ablation_edits
from ..interventions.neuron_ablation import neuron_edits, values_at
from ..models.anatomy import Anatomy
from ..models.attention_edits import reweigh, uniform
from ..models.edits import scale
from ..models.errors import MnemoscopeError
from ..models.types import HeadId, NeuronId, TokenSpan
from .neuron_switched import Change as UnitOp

Op = Literal["zero", "mean", "scale", "edges off", "edges mean", "edges scale"]
OPS: tuple[Op, ...] = ("zero", "mean", "scale", "edges off", "edges mean", "edges scale")
OF_TOKENS: tuple[Op, ...] = ("edges off", "edges scale")
"""Operations on the edges to chosen tokens of one text."""
_UNIT = re.compile(r"L?(\d+)[.:]N?(\d+)", re.IGNORECASE)


@dataclass(frozen=True)
class HeadChange:
    """What becomes of heads. zero: they put out nothing; mean: their mean on neutral text; scale:
    `factor` times what they do. edges off: they cannot see the tokens at the positions `hidden` of
    the question's text number `text`, all else is as it was; edges scale: what they see of these
    tokens weighs `factor` times as much before the weights are made to sum to 1 again; edges mean:
    they see all tokens alike. `span` names the hidden tokens where other texts have such too."""

    op: Op = "zero"
    factor: float = 0.0
    hidden: tuple[int, ...] = ()
    text: int = 0
    span: str = ""

    def __post_init__(self) -> None:
        """Raises `MnemoscopeError` for an unknown operation."""
        if self.op not in OPS:
            raise MnemoscopeError(f"a change knows no {self.op!r}: use {', '.join(OPS)}.")


OFF = HeadChange()


@dataclass(frozen=True)
class Switched:
    """Everything that is changed at once: heads in one way, units in one way."""

    heads: tuple[HeadId, ...] = ()
    change: HeadChange = OFF
    units: tuple[NeuronId, ...] = ()
    unit_op: UnitOp = "zero"
    unit_factor: float = 0.0

    @property
    def nothing(self) -> bool:
        """Whether the model is left as it is."""
        return not self.heads and not self.units

    @property
    def of_tokens(self) -> bool:
        """Whether heads lose edges to tokens of one text."""
        return bool(self.heads) and self.change.op in OF_TOKENS

    def holds_in(self, text: int) -> bool:
        """Whether anything is changed in the question's text of this number."""
        return bool(self.units) or (bool(self.heads) and self._heads_in(text))

    def _heads_in(self, text: int) -> bool:
        return self.change.op not in OF_TOKENS or self.change.text == text


NOTHING = Switched()


@dataclass(frozen=True, eq=False)
class Means:
    """What "mean" writes: each head's mean output, and each unit's mean, on neutral text."""

    heads: Mapping[HeadId, Float[Tensor, " d_v"]] | None = None
    units: Float[Tensor, "layer unit"] | None = None


def edits_of(
    change: HeadChange,
    heads: Sequence[HeadId],
    means: Mapping[HeadId, Float[Tensor, " d_v"]] | None = None,
) -> tuple[AnyEdit, ...]:
    """The change of heads as edits; prompt and answer alike. `means` are what "mean" writes.

    Raises `MnemoscopeError` where a change lacks what it needs.
    """
    if change.op == "scale":
        return (scale(heads, change.factor),)
    if change.op == "edges mean":
        return (uniform(heads),)
    if change.op in OF_TOKENS:
        if not change.hidden:
            raise MnemoscopeError("no token is chosen yet: choose at least one.")
        spans = [TokenSpan(key, key + 1) for key in change.hidden]
        if change.op == "edges scale":
            return (reweigh(heads, spans, change.factor),)
        return ablation_edits("knock_out", heads, spans=spans)
    mode: Literal["zero", "mean"] = "mean" if change.op == "mean" else "zero"
    return ablation_edits(mode, heads, values=means if mode == "mean" else None)


def edits_in(switched: Switched, text: int, means: Means) -> tuple[AnyEdit, ...]:
    """All that holds in the question's text of this number. Raises as `edits_of`."""
    edits: tuple[AnyEdit, ...] = ()
    if switched.heads and switched._heads_in(text):
        edits = edits_of(switched.change, switched.heads, means.heads)
    if switched.units:
        values = None
        if switched.unit_op == "mean":
            if means.units is None:
                raise MnemoscopeError("the means of the units are unknown: measure them first.")
            values = values_at(means.units, switched.units)
        factor = switched.unit_factor
        edits += neuron_edits(switched.units, switched.unit_op, factor=factor, values=values)
    return edits


def parse_units(text: str, anatomy: Anatomy) -> tuple[NeuronId, ...]:
    """Units such as `L3.N17, 5.2`, each once, in the order of the text; empty for no text.

    Raises `MnemoscopeError` for what is no unit, `UnitOutOfRangeError` for one that is not there.
    """
    found = []
    for part in re.split(r"[\s,;]+", text.strip()):
        match = _UNIT.fullmatch(part) if part else None
        if part and match is None:
            raise MnemoscopeError(
                f"cannot read {part!r} as a unit: write layer and number, for example L3.N17."
            )
        if match is not None:
            unit = NeuronId(int(match[1]), int(match[2]))
            anatomy.check_neuron(unit)
            found.append(unit)
    return tuple(dict.fromkeys(found))
