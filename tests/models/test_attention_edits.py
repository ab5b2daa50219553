"""Attention edits: each equals its formula written out, in every family, cached and padded too."""

from __future__ import annotations

import json
from typing import Any

import plain
import pytest
import torch
from families import FAMILIES, ids
from mnemoscope.models import (
    AttentionEdit,
    Edit,
    HeadId,
    HookedModel,
    Site,
    StreamId,
    TokenBatch,
    TokenSpan,
    knock_out,
    mean_query,
    reweigh,
    streaming,
    uniform,
    zero,
)
from mnemoscope.models import edited_attention as engine
from mnemoscope.models.attention import AttentionCall
from mnemoscope.models.errors import (
    EditNeverFiredError,
    MnemoscopeError,
    UnitOutOfRangeError,
    UnsupportedModelError,
)
from plain import close, noise
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

INSIDE = [family for family in FAMILIES if family != "gptj"]
WINDOWS = {"mistral": (0, 1, 2), "gemma2": (0, 2), "gemma3": (0, 2)}
WINDOW = 6
IDS = ids(length=11)
FULL = TokenBatch(IDS, torch.ones_like(IDS, dtype=torch.bool))
HEADS = (HeadId(1, 3), HeadId(1, 0))
EDITS = {
    "uniform": uniform(HEADS),
    "knock_out": knock_out(HEADS, [TokenSpan(2, 4), TokenSpan(8, 9)]),
    "reweigh": reweigh(HEADS, [TokenSpan(2, 4), TokenSpan(8, 9)], 3.0),
    "streaming": streaming(HEADS, 2, 3),
    "no sink": streaming(HEADS, 0, 1),
}


# -- the formulas, written out once more ----------------------------------------------------------


def scores(model: HookedModel, family: str, layer: int, batch: TokenBatch) -> tuple[Tensor, Tensor]:
    """Scores `[batch, head, query, key]`, -inf where hidden, and values a query head, float64."""
    seen = model.capture(batch, (Site.ROT_Q, Site.ROT_K, Site.V), layers=[layer])
    groups = plain.HEADS // plain.kv_heads(family)
    q = seen[Site.ROT_Q, layer].transpose(1, 2)
    k, v = (
        seen[site, layer].transpose(1, 2).repeat_interleave(groups, 1)
        for site in (Site.ROT_K, Site.V)
    )
    attn = plain.block(model.module, family, layer).get_submodule(plain.parts_of(family).attn)
    s = q @ k.mT * (1.0 if "opt" in family else attn.scaling)
    if family == "gemma2":
        s = 5.0 * torch.tanh(s / 5.0)
    at = torch.arange(s.shape[-1])
    may = at <= at[:, None]
    if layer in WINDOWS.get(family, ()):
        may = may & (at > at[:, None] - WINDOW)
    return s.masked_fill(~may, -torch.inf), v


def by_formula(edit: AttentionEdit, s: Tensor, v: Tensor) -> Tensor:
    """Head outputs `[batch, pos, head, d_v]` of one edit on all heads."""
    at = torch.arange(s.shape[-1])
    if edit.op == "uniform":
        return mean_of_seen(s, v)
    if edit.op == "reweigh":
        factor = torch.ones_like(s)
        for span in edit.spans:
            factor[..., span.start : span.stop] = edit.factor
        weights = s.softmax(-1) * factor
        return (weights / weights.sum(-1, keepdim=True) @ v).transpose(1, 2)
    gone = torch.zeros_like(s, dtype=torch.bool)
    if edit.op == "knock_out":
        for span in edit.spans:
            gone[..., span.start : span.stop] = True
    if edit.op == "streaming":
        gone |= (at >= edit.sink) & (at[:, None] - at >= edit.recent)
    return (s.masked_fill(gone, -torch.inf).softmax(-1).nan_to_num(0.0) @ v).transpose(1, 2)


def mean_of_seen(s: Tensor, v: Tensor) -> Tensor:
    may = (s > -torch.inf).to(v.dtype)
    return (may @ v / may.sum(-1, keepdim=True)).transpose(1, 2)


# -- one call -------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", EDITS)
@pytest.mark.parametrize("family", INSIDE)
def test_an_edit_equals_its_formula(family: str, name: str) -> None:
    model, edit = plain.model_of(family), EDITS[name]
    want = by_formula(edit, *scores(model, family, 1, FULL))
    before = model.capture(FULL, (Site.Z,))
    with model.intervene([edit]) as installed:
        after = model.capture(FULL, (Site.Z,))
    close(after[Site.Z, 1][:, :, [0, 3]], want[:, :, [0, 3]])
    assert torch.equal(after[Site.Z, 1][:, :, [1, 2]], before[Site.Z, 1][:, :, [1, 2]])
    assert torch.equal(after[Site.Z, 0], before[Site.Z, 0])
    assert (after[Site.Z, 1] - before[Site.Z, 1]).abs().max() > 1e-3
    assert (after.logits - before.logits).abs().max() > 1e-6
    assert installed[0].fired == fired(edit, *scores(model, family, 1, FULL))


def fired(edit: AttentionEdit, s: Tensor, v: Tensor) -> int:
    """Queries that could see a key which the edit hides; all of them when it is uniform."""
    if edit.op == "uniform":
        return s.shape[0] * s.shape[2]
    if edit.op == "reweigh":  # as many queries as hiding the same keys would change
        edit = knock_out(edit.heads, edit.spans)
    ones = torch.zeros_like(s).masked_fill(s == -torch.inf, -torch.inf)
    kept = by_formula(edit, ones, torch.ones_like(v))  # 1, or 0 for a query without a key
    eye = torch.eye(s.shape[-1], dtype=v.dtype).expand(*s.shape[:2], -1, -1)
    before, after = ones.softmax(-1), by_formula(edit, ones, eye).transpose(1, 2)
    assert bool(((kept == 0) | ((kept - 1).abs() < 1e-12)).all())
    return int(((before > 0) & (after == 0))[:, 0].any(-1).sum())


@pytest.mark.parametrize("family", ["llama", "gemma2", "neox"])
def test_edits_of_one_head_hold_together(family: str) -> None:
    model = plain.model_of(family)
    s, v = scores(model, family, 1, FULL)
    hidden = s.clone()
    hidden[..., 8] = hidden[..., 2] = -torch.inf
    with model.intervene(
        [knock_out(HEADS, [TokenSpan(2, 3)]), knock_out(HEADS, [TokenSpan(8, 9)])]
    ):
        both = model.capture(FULL, (Site.Z,))[Site.Z, 1]
    close(both[:, :, 3], (hidden.softmax(-1) @ v).transpose(1, 2)[:, :, 3])
    with model.intervene(
        [uniform(HEADS[:1]), knock_out(HEADS, [TokenSpan(2, 3), TokenSpan(8, 9)])]
    ):
        even = model.capture(FULL, (Site.Z,))[Site.Z, 1]
    close(even[:, :, 3], mean_of_seen(hidden, v)[:, :, 3])
    close(even[:, :, 0], both[:, :, 0])


def test_a_query_without_a_key_writes_zero() -> None:
    model = plain.model_of("llama")
    with model.intervene([knock_out([HeadId(0, 2)], [TokenSpan(0, 3)])]):
        z = model.capture(FULL, (Site.Z,))[Site.Z, 0]
    assert (z[:, :3, 2] == 0).all()
    assert z[:, 3:, 2].abs().min() > 0


def test_an_edit_is_for_its_rows() -> None:
    model = plain.model_of("qwen3")
    edits = [
        knock_out([HeadId(0, 1), HeadId(2, 2)], [TokenSpan(1, 3)], rows=[0]),
        uniform([HeadId(0, 1)], rows=[2]),
        streaming([HeadId(1, 3)], 1, 2, rows=[2, 0]),
    ]
    with model.intervene(edits):
        together = model.logits(FULL)
    for row in range(3):
        mine = [edit for edit in edits if edit.rows is not None and row in edit.rows]
        here = [AttentionEdit(e.op, e.heads, e.spans, e.sink, e.recent) for e in mine]
        with model.intervene(here):
            close(together[row], model.logits(model.batch([IDS[row].tolist()]))[0], 1e-9)


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("family", INSIDE)
def test_padding_does_not_matter(family: str, side: Any) -> None:
    model = plain.padded_model_of(family)
    rows = [IDS[i, :length].tolist() for i, length in enumerate((11, 5, 8))]
    edits = [
        uniform([HeadId(0, 1)]),
        knock_out([HeadId(1, 0)], [TokenSpan(1, 3)]),
        streaming([HeadId(2, 3), HeadId(1, 0)], 1, 2),
        mean_query([HeadId(0, 2)], noise(1, model.anatomy.d_v)),
    ]
    batch = model.batch(rows, side)
    with model.intervene(edits) as installed:
        padded = model.logits(batch, at="end")
    alone = []
    for row in rows:
        with model.intervene(edits):
            alone.append(model.logits(model.batch([row]), at="end")[0])
    atol = 1e-4 if model.dtype == torch.float32 else plain.SINGLE
    close(padded, torch.stack(alone), atol)
    assert installed[3].fired == 24  # real tokens only


def test_an_edit_of_one_row_reads_the_padding_of_that_row() -> None:
    model = plain.padded_model_of("llama")
    rows = [IDS[i, :length].tolist() for i, length in enumerate((11, 5, 8))]
    with model.intervene([streaming([HeadId(1, 0)], 1, 2, rows=[1])]):
        padded = model.logits(model.batch(rows), at="end")
    with model.intervene([streaming([HeadId(1, 0)], 1, 2)]):
        alone = model.logits(model.batch([rows[1]]), at="end")
    close(padded[1], alone[0], plain.SINGLE)
    close(padded[::2], model.logits(model.batch(rows), at="end")[::2])


def test_equal_edits_of_different_rows_are_counted_apart() -> None:
    model = plain.model_of("llama")
    edits = [knock_out(HEADS, [TokenSpan(4, 5)], rows=rows) for rows in ([0], [1, 2], [2])]
    with model.intervene([*edits, uniform(HEADS[:1], rows=[1])]) as installed:
        model.logits(FULL)
    assert [one.fired for one in installed] == [7, 14, 7, 11]  # positions 4 to 10; all of one row


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_computed_in_float32(dtype: torch.dtype) -> None:
    q, k, v = noise(1, 4, 9, 6), noise(1, 2, 9, 6, seed=4), noise(1, 2, 9, 5, seed=5)
    half = AttentionCall(0, q.to(dtype), k.to(dtype), v.to(dtype), None, {})
    exact = AttentionCall(0, *(x.to(dtype).double() for x in (q, k, v)), None, {})
    cells = {engine.Rule("streaming", (), 1, 3): torch.ones(1, 4, dtype=torch.bool)}
    columns = engine.Columns(0, torch.zeros(1, dtype=torch.long))
    old = torch.zeros(1, 9, 4, 5, dtype=dtype)
    got, _ = engine.edited_outputs(half, old, cells, columns)
    want, _ = engine.edited_outputs(exact, old.double(), cells, columns)
    assert got.dtype == dtype
    torch.testing.assert_close(got.double(), want, atol=1e-6, rtol=torch.finfo(dtype).eps)


# -- behind a cache -------------------------------------------------------------------------------


@pytest.mark.parametrize("name", EDITS)
@pytest.mark.parametrize("family", INSIDE)
def test_behind_a_cached_prompt_keys_keep_their_positions(family: str, name: str) -> None:
    """The prompt is longer than the window, so a sliding layer holds only a part of it."""
    model, edit, tokens = plain.model_of(family), EDITS[name], IDS[0].tolist()
    prompt, one = model.prefill(tokens[:9]), model.batch([tokens])
    held = [(layer.keys.clone(), layer.values.clone()) for layer in prompt.cache.layers]
    z = by_formula(edit, *scores(model, family, 1, one))[:, :, [3, 0]]
    with model.intervene([Edit("set", HEADS, z, positions=(9, 10), phase="prefill")]):
        want = model.logits(one)[0, 9:]
    with model.intervene([edit]):
        got = model.suffix_logits(prompt, tokens[9:])[0]
    close(got, want, plain.SINGLE)
    assert (got - model.logits(one)[0, 9:]).abs().max() > 1e-4
    for layer, (keys, values) in zip(prompt.cache.layers, held, strict=True):
        assert torch.equal(layer.keys, keys)
        assert torch.equal(layer.values, values)


@pytest.mark.parametrize("chunk", [1, 4, 11])
@pytest.mark.parametrize("family", ["llama", "gemma3", "opt"])
def test_in_pieces_or_at_once(family: str, chunk: int) -> None:
    model, tokens = plain.model_of(family), IDS[0].tolist()
    edits = [*EDITS.values(), mean_query([HeadId(2, 1)], noise(1, model.anatomy.d_v))]
    for edit in edits:
        with model.intervene([edit]):
            want = model.logits(model.batch([tokens]), at="end")[0]
            got = model.suffix_logits(model.prefill(tokens[:-1], chunk=chunk), tokens[-1:])[0]
        close(got, want, plain.SINGLE)


def test_rows_of_one_suffix_differ_by_their_edits() -> None:
    model, tokens = plain.model_of("llama"), IDS[0].tolist()
    prompt = model.prefill(tokens[:8])
    sets = [[HeadId(0, 1)], [HeadId(0, 1), HeadId(2, 3)], [HeadId(1, 2)]]
    hidden = [TokenSpan(2, 5)]
    with model.intervene([knock_out(heads, hidden, rows=[i]) for i, heads in enumerate(sets)]):
        together = model.suffix_logits(prompt, tokens[8:], rows=4)
    for i, heads in enumerate(sets):
        with model.intervene([knock_out(heads, hidden)]):
            close(together[i], model.suffix_logits(prompt, tokens[8:])[0])
    close(together[3], model.suffix_logits(prompt, tokens[8:])[0])


# -- mean queries ---------------------------------------------------------------------------------

FUSED = {"gpt2": "c_attn", "neox": "query_key_value", "neox-sequential": "query_key_value"}
FUSED["phi3"] = "qkv_proj"


@pytest.mark.parametrize("family", [family for family in INSIDE if family != "olmo2"])
def test_a_mean_query_stands_before_norm_and_rotary(family: str) -> None:
    model = plain.model_of(family)
    width = model.anatomy.d_v
    value = noise(2, width)
    attn = plain.block(model.module, family, 1).get_submodule(plain.parts_of(family).attn)

    def by_hand(out: Tensor) -> Tensor:
        out = out.clone()
        for head, mean in zip((3, 0), value, strict=True):
            first = head * width * (3 if "neox" in family else 1)
            out[..., first : first + width] = mean
        return out

    with plain.output_changed(getattr(attn, FUSED.get(family, "q_proj")), by_hand):
        want = model.capture(FULL, (Site.ROT_Q, Site.ROT_K, Site.Z))
    with model.intervene([mean_query(HEADS, value)]) as installed:
        got = model.capture(FULL, (Site.ROT_Q, Site.ROT_K, Site.Z))
    close(got.logits, want.logits)
    for key, x in want.values.items():
        close(got[key], x)
    assert installed[0].fired == IDS.numel()
    assert (got.logits - model.logits(FULL)).abs().max() > 1e-6


def test_a_norm_over_all_heads_leaves_the_others_their_own() -> None:
    model, value = plain.model_of("olmo2"), noise(2, 8)
    block = plain.block(model.module, "olmo2", 1)
    given, _ = plain.inputs_and_outputs(model.module, {"norm": block.self_attn.q_norm}, IDS)
    asked = given["norm"].clone()
    asked[..., 24:], asked[..., :8] = value[0], value[1]
    normed = block.self_attn.q_norm(asked).detach()

    def by_hand(out: Tensor) -> Tensor:
        return torch.cat([normed[..., :8], out[..., 8:24], normed[..., 24:]], dim=-1)

    with plain.output_changed(block.self_attn.q_norm, by_hand):
        want = model.capture(FULL, (Site.ROT_Q,))
    with model.intervene([mean_query(HEADS, value)]):
        got = model.capture(FULL, (Site.ROT_Q,))
    before = model.capture(FULL, (Site.ROT_Q,))[Site.ROT_Q, 1]
    close(got.logits, want.logits)
    assert torch.equal(got[Site.ROT_Q, 1][:, :, 1:3], before[:, :, 1:3])
    assert (got[Site.ROT_Q, 1][:, :, 0] - before[:, :, 0]).abs().min() > 0


# -- the computation itself -----------------------------------------------------------------------

RULES = {
    engine.Rule("uniform", (), 0, 0): torch.tensor([[True, False, False, False]] * 2),
    engine.Rule("knock_out", (TokenSpan(1, 3),), 0, 0): torch.tensor(
        [[False, False, True, False], [False, True, True, False]]
    ),
}


def one_call(mask: Tensor | None, last: int = 7, **options: Any) -> AttentionCall:
    q, k, v = noise(2, 4, 7, 6), noise(2, 2, 7, 6, seed=4), noise(2, 2, 7, 5, seed=5)
    return AttentionCall(0, q[:, :, -last:], k, v, mask, {"scaling": 0.4, **options})


def at_zero(past: int = 0) -> engine.Columns:
    return engine.Columns(past, torch.zeros(2, dtype=torch.long))


def test_a_learned_sink_takes_weight_but_not_from_an_even_head() -> None:
    sinks = torch.tensor([0.5, -1.0, 2.0, 0.0])
    call = one_call(None, s_aux=sinks)
    new, _ = engine.edited_outputs(call, torch.zeros(2, 7, 4, 5).double(), RULES, at_zero())
    s = call.query @ call.key.repeat_interleave(2, 1).mT * 0.4
    v = call.value.repeat_interleave(2, 1)
    s = s.masked_fill(~torch.ones(7, 7, dtype=torch.bool).tril(), -torch.inf)
    close(new[:, :, 0], mean_of_seen(s, v)[:, :, 0])
    s[..., 1:3] = -torch.inf
    weights = s.exp() / (s.exp().sum(-1, keepdim=True) + sinks.double().exp()[:, None, None])
    close(new[:, :, 2], (weights @ v).transpose(1, 2)[:, :, 2])
    close(new[1, :, 1], (weights @ v).transpose(1, 2)[1, :, 1])
    assert (new[0, :, 1] == 0).all()  # not edited: what was given
    assert (new[:, :, 3] == 0).all()


@pytest.mark.parametrize("sinks", [None, noise(4, seed=7)])
def test_gradients_are_those_of_the_formula(sinks: Tensor | None) -> None:
    """Also where a query is left without a key, whose softmax would be NaN."""
    rules = {**RULES, engine.Rule("knock_out", (TokenSpan(0, 2),), 0, 0): torch.ones(2, 4) > 0}

    def outputs(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        call = AttentionCall(0, q, k, v, None, {"softcap": 5.0, "s_aux": sinks})
        return engine.edited_outputs(call, torch.zeros(2, 4, 4, 2).double(), rules, at_zero())[0]

    inputs = noise(2, 4, 4, 3), noise(2, 2, 4, 3, seed=4), noise(2, 2, 4, 2, seed=5)
    assert torch.autograd.gradcheck(outputs, [x.requires_grad_() for x in inputs])


def test_a_learned_sink_is_that_of_its_head() -> None:
    sinks, rule = torch.tensor([0.5, -1.0, 2.0, 0.0]), engine.Rule("streaming", (), 0, 2)
    every, old = torch.ones(2, 4, dtype=torch.bool), torch.zeros(2, 7, 4, 5).double()
    only = every & torch.tensor([False, False, True, False])
    call = one_call(None, s_aux=sinks)
    want, _ = engine.edited_outputs(call, old, {rule: every}, at_zero())
    got, _ = engine.edited_outputs(call, old, {rule: only}, at_zero())
    close(got[:, :, 2], want[:, :, 2])
    assert (got[:, :, [0, 1, 3]] == 0).all()


def test_a_query_that_the_model_hides_everything_from_keeps_what_it_has() -> None:
    mask = torch.ones(7, 7, dtype=torch.bool).tril()[None, None].repeat(2, 1, 1, 1)
    mask[1, :, :2] = False  # two columns of padding: nothing to see from there
    old = noise(2, 7, 4, 5, seed=6)
    new, counts = engine.edited_outputs(one_call(mask), old, RULES, at_zero())
    assert torch.equal(new[1, :2], old[1, :2])
    assert not torch.isclose(new[0, :2, 0], old[0, :2, 0]).any()
    assert counts[next(iter(RULES))].tolist() == [7, 5]


@pytest.mark.parametrize("kind", ["none", "boolean", "additive", "of keys"])
def test_every_form_of_mask_says_the_same(kind: str) -> None:
    causal = torch.ones(7, 7, dtype=torch.bool).tril()[None, None]
    real = torch.ones(2, 7, dtype=torch.bool)
    additive = noise(7, 7)[None, None].mul(0).masked_fill(~causal, torch.finfo(torch.float64).min)
    masks = {"none": None, "boolean": causal, "additive": additive, "of keys": real}
    old = torch.zeros(2, 7, 4, 5).double()
    want, counts = engine.edited_outputs(one_call(None), old, RULES, at_zero())
    got, same = engine.edited_outputs(one_call(masks[kind]), old, RULES, at_zero())
    close(got, want)
    for rule in RULES:
        assert counts[rule].tolist() == same[rule].tolist()


def test_the_last_queries_alone_are_the_last_of_all() -> None:
    old = torch.zeros(2, 7, 4, 5).double()
    want, _ = engine.edited_outputs(one_call(None), old, RULES, at_zero())
    got, _ = engine.edited_outputs(one_call(None, last=3), old[:, 4:], RULES, at_zero(past=4))
    close(got, want[:, 4:])


@pytest.mark.parametrize("numbers", [1, 3, 40, 400])
def test_blocks_of_any_size_give_the_same(numbers: int, monkeypatch: pytest.MonkeyPatch) -> None:
    old = torch.zeros(2, 7, 4, 5).double()
    want, counts = engine.edited_outputs(one_call(None), old, RULES, at_zero())
    monkeypatch.setattr(engine, "WORKING_BYTES", numbers * 4 * 8)
    got, again = engine.edited_outputs(one_call(None), old, RULES, at_zero())
    close(got, want, 1e-14)
    assert [c.tolist() for c in again.values()] == [c.tolist() for c in counts.values()]


class Largest(TorchDispatchMode):
    """The bytes of the largest tensor that is made."""

    found = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        made = func(*args, **(kwargs or {}))
        for x in made if isinstance(made, tuple | list) else [made]:
            if isinstance(x, Tensor):
                self.found = max(self.found, x.numel() * x.element_size())
        return made


def test_a_long_prompt_is_never_a_square() -> None:
    length = 2048
    q, k = (torch.randn(1, heads, length, 8) for heads in (4, 2))
    call = AttentionCall(0, q, k, k, None, {"scaling": 0.1})
    cells = {engine.Rule("streaming", (), 4, 64): torch.ones(1, 4, dtype=torch.bool)}
    with Largest() as largest:
        engine.edited_outputs(
            call, torch.zeros(1, length, 4, 8), cells, engine.Columns(0, torch.zeros(1).long())
        )
    assert largest.found <= engine.WORKING_BYTES // 4 < 4 * length * length


# -- nothing is silent, nothing is left -----------------------------------------------------------


@pytest.mark.parametrize(
    "edit",
    [
        knock_out(HEADS, [TokenSpan(11, 14)]),
        streaming(HEADS, 4, 7),
    ],
)
def test_an_edit_that_hides_nothing_raises(edit: AttentionEdit) -> None:
    model = plain.model_of("llama")
    with pytest.raises(EditNeverFiredError, match=edit.op), model.intervene([edit]):
        model.logits(FULL)


def test_a_span_behind_every_window_hides_nothing() -> None:
    model, tokens = plain.model_of("mistral"), IDS[0].tolist()
    prompt = model.prefill(tokens[:9])
    with pytest.raises(EditNeverFiredError), model.intervene([knock_out(HEADS, [TokenSpan(0, 3)])]):
        model.suffix_logits(prompt, tokens[9:])


def test_nothing_is_left_behind() -> None:
    model = plain.model_of("llama")
    before, table = model.logits(FULL), sorted(ALL_ATTENTION_FUNCTIONS)
    hooks, own = plain.hook_count(model.module), model.module.config._attn_implementation
    with pytest.raises(IndexError), model.intervene([*EDITS.values(), zero(HEADS)]):
        model.module(IDS + 61)
    assert plain.hook_count(model.module) == hooks
    assert sorted(ALL_ATTENTION_FUNCTIONS) == table
    assert model.module.config._attn_implementation == own
    assert torch.equal(model.logits(FULL), before)


def test_both_kinds_of_edit_are_yielded_in_order() -> None:
    model = plain.model_of("llama")
    edits = [zero([HeadId(0, 0)]), EDITS["uniform"], zero([StreamId(2, Site.MLP_OUT)])]
    with model.intervene(edits) as installed:
        model.logits(FULL)
    assert [one.edit for one in installed] == edits
    assert all(one.fired == IDS.numel() for one in installed)


def test_rows_are_read_of_what_the_other_heads_have() -> None:
    """A knocked out head changes the rows of later layers, and its own not."""
    model = plain.model_of("llama")
    before = model.rows(FULL, "all")
    with model.intervene([EDITS["knock_out"]]):
        after = model.rows(FULL, "all")
    assert torch.equal(after[:2], before[:2])
    assert (after[2] - before[2]).abs().max() > 1e-3


# -- bad input ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("edit", "why"),
    [
        (AttentionEdit("blur", HEADS), "know no 'blur'"),  # type: ignore[arg-type]
        (uniform([]), "at least one head"),
        (uniform([HeadId(0, 1), HeadId(0, 1)]), "named twice"),
        (uniform(HEADS, rows=[]), "batch rows"),
        (uniform(HEADS, rows=[1, 1]), "batch rows"),
        (uniform(HEADS, rows=[-1]), "batch rows"),
        (knock_out(HEADS, []), "need spans"),
        (AttentionEdit("uniform", HEADS, spans=(TokenSpan(0, 1),)), "take no spans"),
        (reweigh(HEADS, [], 2.0), "need spans"),
        (reweigh(HEADS, [TokenSpan(0, 1)], 0.0), "hide keys with 'knock_out'"),
        (AttentionEdit("uniform", HEADS, factor=2.0), "only 'reweigh' takes one"),
        (AttentionEdit("knock_out", HEADS, (TokenSpan(0, 1),), recent=3), "take no sink"),
        (streaming(HEADS, 0, 0), "need sink and recent"),
        (streaming(HEADS, 4, 0), "own key"),
        (streaming(HEADS, -1, 4), "own key"),
        (AttentionEdit("mean_query", HEADS), "need value"),
        (mean_query(HEADS, noise(1, 8)), "for 2 heads"),
        (mean_query(HEADS, noise(2, 7)), "d_head = 8"),
    ],
)
def test_wrong_edits_are_refused_before_they_run(edit: AttentionEdit, why: str) -> None:
    model = plain.model_of("llama")
    with pytest.raises(MnemoscopeError, match=why), model.intervene([edit]):
        pytest.fail("the block must not be entered")


def test_heads_and_rows_that_are_not_there() -> None:
    model = plain.model_of("llama")
    with pytest.raises(UnitOutOfRangeError), model.intervene([uniform([HeadId(0, 4)])]):
        pass
    late = pytest.raises(MnemoscopeError, match="batch row 3, but 3 rows ran")
    with late, model.intervene([uniform(HEADS, rows=[3])]):
        model.logits(FULL)


def test_attention_outside_the_interface_is_refused() -> None:
    model = plain.model_of("gptj")
    refused = pytest.raises(UnsupportedModelError, match="attention interface")
    with refused, model.intervene([uniform(HEADS)]):
        pass


def test_an_edit_is_data() -> None:
    text = json.dumps(
        [edit.describe() for edit in (*EDITS.values(), mean_query(HEADS, noise(2, 8)))]
    )
    assert '"L1.H3"' in text
    assert json.loads(text)[1]["spans"] == [[2, 4], [8, 9]]
    assert json.loads(text)[5]["value"]["shape"] == [2, 8]
