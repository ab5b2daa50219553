"""The fields that say what is changed: heads, edges into them, units. Pages share them."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import streamlit as st

from ..models.errors import MnemoscopeError
from ..models.hooked import HookedModel
from ..models.types import HeadId, NeuronId
from . import exports, selection
from .neuron_switched import CHANGES
from .neuron_switched import Change as UnitOp
from .plain import as_text
from .switched_off import HeadChange, Op, Switched, parse_units

_OUTPUT, _EDGES = "output", "edges"
_HOW = {
    _OUTPUT: "zero: the heads put out nothing. mean: their mean on neutral text. scale: what they "
    "do, times a factor.",
    _EDGES: "zero: the heads no longer see the chosen tokens. mean: they see all tokens alike. "
    "scale: the chosen tokens weigh more or less.",
}
_EDGE_OPS: Mapping[UnitOp, Op] = {
    "zero": "edges off",
    "mean": "edges mean",
    "scale": "edges scale",
}


def choose_switched(
    model: HookedModel, change_of: Callable[[tuple[HeadId, ...]], HeadChange]
) -> Switched:
    """Heading and all fields; says so where nothing is changed. `change_of` shows the fields for
    what becomes of the heads, with `choose_op` and those of its page."""
    exports.header("Switch heads, edges or units off")
    left, right = st.columns([2, 3], gap="medium")
    with left:
        heads = choose_heads(model)
    with right:
        change = change_of(heads)
    switched = Switched(heads, change, *choose_units(model))
    if switched.nothing:
        exports.info(
            "Nothing is changed: click a cell of the grid to switch that head off, or name units."
        )
    return switched


def choose_heads(model: HookedModel) -> tuple[HeadId, ...]:
    """The list of heads, part of the address, and whether clicks in the grid fill it."""
    heads = st.multiselect(
        "Heads",
        [str(head) for head in model.anatomy.all_heads()],
        key="off",
        bind="query-params",
        on_change=selection.on_list_edited,
        placeholder="click cells of the grid, or choose here",
    )
    st.toggle("The list follows the grid", True, key="follow")
    return tuple(map(HeadId.parse, heads))


def choose_op() -> tuple[Op, float]:
    """What becomes of the heads, and the factor where it has one."""
    left, right = st.columns([2, 3])
    of = left.segmented_control(
        "Change",
        [*_HOW],
        default=_OUTPUT,
        required=True,
        key="of",
        bind="query-params",
        help="What the heads put out, or edges: what they see.",
    )
    how: UnitOp = right.segmented_control(
        "Edit",
        [*_EDGE_OPS],
        default="zero",
        required=True,
        key="mode",
        bind="query-params",
        help=_HOW[of],
    )
    op: Op = how if of == _OUTPUT else _EDGE_OPS[how]
    if op == "scale":
        return op, st.slider("Factor", -2.0, 3.0, 0.5, 0.1, key="factor", bind="query-params")
    if op == "edges scale":
        return op, st.slider("Times", 0.1, 10.0, 2.0, 0.1, key="times", bind="query-params")
    return op, 0.0


def choose_units(model: HookedModel) -> tuple[tuple[NeuronId, ...], UnitOp, float]:
    """Units typed by name, and what becomes of them; part of the address."""
    left, right = st.columns(2)
    text = left.text_input(
        "MLP units",
        key="units",
        bind="query-params",
        placeholder="for example L3.N17 L5.N2; the page about relations finds some",
    )
    units: tuple[NeuronId, ...] = ()
    try:
        units = parse_units(text, model.anatomy)
    except MnemoscopeError as error:
        left.error(as_text(str(error)))
    if not units:
        return (), "zero", 0.0
    with right:
        op: UnitOp = st.segmented_control(
            "Set them to",
            CHANGES,
            default="zero",
            required=True,
            key="unit_mode",
            bind="query-params",
            help="mean: their mean on neutral text; zero: 0; scale: what they are times a factor. "
            "The first token of a prompt is spared.",
        )
        factor = 0.0
        if op == "scale":
            factor = choose_unit_factor("Factor of the units")
    return units, op, factor


def choose_unit_factor(label: str) -> float:
    """What units are multiplied by, part of the address."""
    return st.slider(label, -2.0, 5.0, 2.0, 0.5, key="unit_factor", bind="query-params")
