"""`intervene`: every edit equals a hand-written hook, in every family, padded or not."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import plain
import pytest
import torch
from families import FAMILIES, ids
from mnemoscope.models import (
    Edit,
    HeadId,
    HookedModel,
    NeuronId,
    Site,
    StreamId,
    TokenBatch,
    mean,
    resample,
    scale,
    zero,
)
from plain import close, noise
from torch import Tensor

IDS = ids()
FULL = TokenBatch(IDS, torch.ones_like(IDS, dtype=torch.bool))
BY_HAND: dict[str, Callable[[Tensor, Any], Tensor]] = {
    "zero": lambda x, _: x * 0,
    "mean": lambda x, v: x * 0 + v,
    "resample": lambda x, v: x * 0 + v,
    "set": lambda x, v: x * 0 + v,
    "scale": lambda x, v: x * v,
    "add": lambda x, v: x + v,
}
OPS = list(BY_HAND)
KINDS = ["head", "neuron", *(str(s) for s in (Site.RESID_PRE, Site.RESID_POST))]
KINDS += [str(Site.ATTN_OUT), str(Site.MLP_OUT)]
GQA = [f for f in FAMILIES if plain.kv_heads(f) != plain.HEADS]


# -- one edit is one hook -------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("family", list(FAMILIES))
def test_an_edit_equals_a_hook_by_hand(family: str, kind: str) -> None:
    if kind == "neuron" and plain.parts_of(family).down is None:
        pytest.skip("fused experts have no neurons")
    model = plain.model_of(family)
    unedited = plain.forward(model.module, IDS).logits
    for op in OPS:
        edit, hook = _edit_and_hook(model, family, kind, op)
        with hook:
            want = plain.forward(model.module, IDS).logits
        with model.intervene([edit]) as installed:
            got = model.logits(FULL)
        close(got, want)
        assert installed[0].fired == IDS.numel()
        assert (want - unedited).abs().max() > 1e-6  # the edit matters


def _edit_and_hook(model: HookedModel, family: str, kind: str, op: str) -> tuple[Edit, Any]:
    """An edit in layer 1, and the same thing as a hook of torch's own."""
    module, width = model.module, model.anatomy.d_v
    units: Sequence[Any]
    if kind == "head":
        units, value = [HeadId(1, 2), HeadId(1, 0)], noise(2, width)
    elif kind == "neuron":
        units, value = [NeuronId(1, 7), NeuronId(1, 3)], noise(2)
    else:
        units, value = [StreamId(1, Site(kind))], noise(1, model.anatomy.d_model)
    edit = Edit(op, tuple(units), None if op == "zero" else value)  # type: ignore[arg-type]
    formula = BY_HAND[op]

    def heads(x: Tensor) -> Tensor:
        x = x.clone()
        x[..., 2 * width : 3 * width] = formula(x[..., 2 * width : 3 * width], value[0])
        x[..., :width] = formula(x[..., :width], value[1])
        return x

    def neurons(x: Tensor) -> Tensor:
        x = x.clone()
        x[..., 7], x[..., 3] = formula(x[..., 7], value[0]), formula(x[..., 3], value[1])
        return x

    def stream(x: Tensor) -> Tensor:
        return formula(x, value[0])

    block = plain.block(module, family, 1)
    if kind == "head":
        return edit, plain.input_changed(plain.o_proj(module, family, 1), heads)
    if kind == "neuron":
        return edit, plain.input_changed(plain.down(module, family, 1), neurons)
    if kind == Site.RESID_PRE:
        return edit, plain.input_changed(block, stream)
    target = {
        Site.RESID_POST: block,
        Site.ATTN_OUT: plain.o_proj(module, family, 1),
        Site.MLP_OUT: plain.mlp(module, family, 1),
    }[Site(kind)]
    return edit, plain.output_changed(target, stream)


@pytest.mark.parametrize("family", list(FAMILIES))
def test_one_edit_may_span_layers(family: str) -> None:
    model = plain.model_of(family)
    value = noise(2, model.anatomy.d_v)
    width = model.anatomy.d_v

    def put(cells: slice, new: Tensor) -> Callable[[Tensor], Tensor]:
        def change(x: Tensor) -> Tensor:
            x = x.clone()
            x[..., cells] = new
            return x

        return change

    first, last = (plain.o_proj(model.module, family, layer) for layer in (0, 2))
    with (
        plain.input_changed(first, put(slice(0, width), value[1])),
        plain.input_changed(last, put(slice(3 * width, 4 * width), value[0])),
    ):
        want = plain.forward(model.module, IDS).logits
    with model.intervene([mean([HeadId(2, 3), HeadId(0, 0)], value)]):
        close(model.logits(FULL), want)


@pytest.mark.parametrize("shape", ["unit", "batch-unit", "batch-pos-unit", "number"])
def test_values_may_leave_out_leading_axes(shape: str) -> None:
    model = plain.model_of("llama")
    full = noise(3, 9, 1, 8)
    value: Any = {
        "unit": full[0, 0],
        "batch-unit": full[:, 0],
        "batch-pos-unit": full,
        "number": 0.25,
    }[shape]
    per_cell = {
        "unit": full[:1, :1, 0],
        "batch-unit": full[:, :1, 0],
        "batch-pos-unit": full[:, :, 0],
        "number": torch.tensor(0.25),
    }[shape]

    def change(x: Tensor) -> Tensor:
        x = x.clone()
        x[..., 8:16] = per_cell
        return x

    with plain.input_changed(plain.o_proj(model.module, "llama", 1), change):
        want = plain.forward(model.module, IDS).logits
    with model.intervene([Edit("set", (HeadId(1, 1),), value)]):
        close(model.logits(FULL), want)


def test_resampling_a_prompt_by_itself_changes_nothing() -> None:
    model = plain.model_of("llama")
    z = model.capture(FULL, [Site.Z], at="end")[Site.Z, 1][:, 0]
    heads = [HeadId(1, h) for h in range(4)]
    with model.intervene([resample(heads, z, "end")]):
        close(model.logits(FULL), plain.forward(model.module, IDS).logits)


@pytest.mark.parametrize("family", GQA)
def test_zeroing_a_value_head_equals_zeroing_its_query_heads(family: str) -> None:
    model = plain.model_of(family)
    width = model.anatomy.d_v
    attn = plain.block(model.module, family, 1).self_attn

    def without_second(x: Tensor) -> Tensor:
        x = x.clone()
        x[..., -width:] = 0  # values are the last columns of Phi-3's joint projection too
        return x

    projection = attn.qkv_proj if family == "phi3" else attn.v_proj
    with plain.output_changed(projection, without_second):
        want = plain.forward(model.module, IDS).logits
    with model.intervene([zero([HeadId(1, 2), HeadId(1, 3)])]):
        close(model.logits(FULL), want)
    assert model.anatomy.sharing(HeadId(1, 3)) == (HeadId(1, 2), HeadId(1, 3))


# -- several edits --------------------------------------------------------------------------------


def test_edits_compose_in_order_listed_or_nested() -> None:
    model = plain.model_of("llama")
    halve = scale([HeadId(1, 1)], 0.5)
    shift = Edit("add", (HeadId(1, 1),), 3.0)
    later = zero([StreamId(2, Site.MLP_OUT)])

    def by_hand(change: Callable[[Tensor], Tensor]) -> Tensor:
        def head(x: Tensor) -> Tensor:
            x = x.clone()
            x[..., 8:16] = change(x[..., 8:16])
            return x

        with (
            plain.input_changed(plain.o_proj(model.module, "llama", 1), head),
            plain.output_changed(plain.mlp(model.module, "llama", 2), lambda x: x * 0),
        ):
            return plain.forward(model.module, IDS).logits

    listed, nested = by_hand(lambda z: 0.5 * z + 3.0), by_hand(lambda z: 0.5 * (z + 3.0))
    with model.intervene([halve, shift, later]):
        close(model.logits(FULL), listed)
    with model.intervene([shift, later]), model.intervene([halve]):
        close(model.logits(FULL), nested)


def test_capture_inside_an_edit_sees_the_edited_values() -> None:
    model = plain.model_of("llama")
    with model.intervene([zero([HeadId(1, 1)])]):
        z = model.capture(FULL, [Site.Z])[Site.Z, 1]
    assert (z[:, :, 1] == 0).all()
    assert (z[:, :, 0] != 0).all()


# -- positions and padding ------------------------------------------------------------------------

BY_ROW = ((0, 2), (-1,), (1, -2, 40))
POSITIONS: list[Any] = ["all", "end", (0,), (1, -1), (-2, 4), BY_ROW]


def _columns(positions: Any, first: int, length: int) -> list[int]:
    """Columns of a row that starts at `first`: offsets from its start, or back from its end."""
    if positions == "all":
        return list(range(first, first + length))
    offsets = (-1,) if positions == "end" else positions
    relative = [p if p >= 0 else length + p for p in offsets]
    return [first + p for p in sorted(set(relative)) if 0 <= p < length]


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("family", list(FAMILIES))
def test_positions_are_counted_in_real_tokens(family: str, side: str) -> None:
    model = plain.padded_model_of(family)
    tokens, mask = plain.padded(side)
    width = model.anatomy.d_v
    value = noise(3, 1, width).to(model.dtype)
    starts = [9 - n if side == "left" else 0 for n in plain.LENGTHS]
    for positions in POSITIONS:
        cells = [
            (row, column)
            for row, (start, length) in enumerate(zip(starts, plain.LENGTHS, strict=True))
            for column in _columns(BY_ROW[row] if positions == BY_ROW else positions, start, length)
        ]

        def change(x: Tensor, cells: list[tuple[int, int]] = cells) -> Tensor:
            x = x.clone()
            for row, column in cells:
                x[row, column, 2 * width : 3 * width] = value[row, 0]
            return x

        with plain.input_changed(plain.o_proj(model.module, family, 0), change):
            want = plain.forward(model.module, tokens, mask).logits
        with model.intervene([resample([HeadId(0, 2)], value, positions)]) as installed:
            got = model.logits(TokenBatch(tokens, mask.bool()))
        close(got[mask.bool()], want[mask.bool()], plain.tolerance(model.dtype))
        assert installed[0].fired == len(cells)


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("family", list(FAMILIES))
def test_a_padded_batch_equals_its_prompts_one_by_one(family: str, side: str) -> None:
    model = plain.padded_model_of(family)
    tokens, mask = plain.padded(side)
    batch = TokenBatch(tokens, mask.bool())

    def edits(row: slice) -> list[Edit]:
        z, x = noise(3, 1, model.anatomy.d_v), noise(1, model.anatomy.d_model)
        return [
            resample([HeadId(1, 3)], z.to(model.dtype)[row], (0, -1)),
            Edit("add", (StreamId(0, Site.RESID_POST),), x.to(model.dtype), "end"),
            scale([HeadId(2, 0)], -1.0),
        ]

    with model.intervene(edits(slice(None))):
        together = model.logits(batch, at="end")
    for row in range(3):
        single = model.batch([batch.row(row).tolist()])
        with model.intervene(edits(slice(row, row + 1))):
            alone = model.logits(single, at="end")
        # One prompt runs unmasked through another kernel path, which sums in another order.
        close(together[row], alone[0], max(plain.SINGLE, plain.tolerance(model.dtype)))
