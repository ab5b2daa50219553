"""`row_summaries`: what the full rows would say, without the rows.

Two references: `rows`, and what the eager attention of transformers hands to its softmax, which
gives the logsumexp and the order of the keys in the model's own arithmetic.
"""

from __future__ import annotations

import copy
from functools import cache
from types import SimpleNamespace
from typing import Any

import plain
import pytest
import torch
from families import FAMILIES, ids, tiny
from mnemoscope.models import HookedModel, MnemoscopeError, TokenBatch, TokenSpan, wrap, zero
from mnemoscope.models import row_folding as folding
from mnemoscope.models.errors import PromptError, UnitOutOfRangeError, UnsupportedModelError
from mnemoscope.models.row_folding import FoldedRows, fold_rows
from mnemoscope.models.row_summaries import RowSummaries, row_summaries, span_masks
from mnemoscope.models.types import HeadId
from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from transformers.models.gpt_oss.modeling_gpt_oss import eager_attention_forward

SIDES = ["none", "left", "right"]
WINDOWED = {"mistral": (0, 1, 2), "gemma2": (0, 2), "gemma3": (0, 2)}  # layers that see 6 keys


@cache
def single(family: str) -> HookedModel:
    """The float32 model."""
    return wrap(tiny(family, dtype=torch.float32), name=family)


@cache
def setting(family: str, side: str) -> tuple[HookedModel, TokenBatch]:
    """A model and a batch; padded ones in float32, see `test_attention_rows.setting`."""
    if side == "none":
        return plain.model_of(family), TokenBatch(ids(), torch.ones(3, 9, dtype=torch.bool))
    tokens, mask = plain.padded(side)
    return single(family), TokenBatch(tokens, mask.bool())


@cache
def eager_scores(family: str, side: str) -> Tensor:
    """Scores as they enter the softmax of eager attention `[layer, batch, head, query, key]`."""
    model, batch = setting(family, side)
    module = copy.deepcopy(tiny(family, dtype=model.dtype))
    module.set_attn_implementation("eager")
    seen: list[Tensor] = []
    softmax = torch.nn.functional.softmax

    def recording(x: Tensor, *args: Any, **options: Any) -> Tensor:
        if x.ndim == 4:  # not the router of experts
            seen.append(x.double())
        return softmax(x, *args, **options)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.nn.functional, "softmax", recording)
        plain.forward(module, batch.ids, batch.mask.long())
    return torch.stack(seen)


def queries_of(batch: TokenBatch) -> Tensor:
    """END, the first token and one in between of every prompt."""
    return torch.stack([batch.ends, batch.starts, (batch.starts + batch.ends) // 2], dim=1)


def spans_of(batch: TokenBatch) -> Tensor:
    """Masks of the first token, every other key, all keys and no key."""
    masks = torch.zeros(*batch.ids.shape, 4, dtype=torch.long).transpose(1, 2)
    masks[torch.arange(len(batch)), 0, batch.starts] = 1
    masks[:, 1, ::2] = 1
    masks[:, 2] = 1
    return masks


def at_queries(full: Tensor, columns: Tensor) -> Tensor:
    """`[layer, batch, head, query, key]` at the query columns of each prompt."""
    return torch.stack([full[:, i][:, :, columns[i]] for i in range(len(columns))], dim=1)


def close(got: Tensor, want: Tensor, atol: float = 1e-5, rtol: float = 0) -> None:
    torch.testing.assert_close(got, want.to(got.dtype), atol=atol, rtol=rtol, equal_nan=True)


def same(one: RowSummaries, other: RowSummaries) -> None:
    """Keys and visibility exactly, floats to rounding."""
    assert torch.equal(one.top_key, other.top_key)
    assert torch.equal(one.visible, other.visible)
    for got, want in (
        (one.top_weight, other.top_weight),
        (one.logsumexp, other.logsumexp),
        (one.mass, other.mass),
    ):
        close(got, want, rtol=1e-6)


# -- equal to the full softmax --------------------------------------------------------------------


@pytest.mark.parametrize("side", SIDES)
@pytest.mark.parametrize("family", list(FAMILIES))
def test_summaries_are_those_of_the_full_rows(family: str, side: str) -> None:
    model, batch = setting(family, side)
    columns, spans = queries_of(batch), spans_of(batch)
    rows = model.rows(batch, columns)
    read = model.row_summaries(batch, columns, spans, top=9)
    assert torch.equal(read.key, rows.argmax(-1))
    values, keys = rows.sort(dim=-1, descending=True, stable=True)
    close(read.top_weight, values)
    # Below about 1e-7 weights round to 0 or to one another, in the rows too.
    known = values > 1e-5
    assert torch.equal(read.top_key[known], keys[known])
    mass = torch.einsum("lbhqk,bsk->lbhqs", rows, spans.float())
    close(read.mass[read.visible], mass[read.visible])
    assert (mass[~read.visible] == 0).all()
    assert read.mass[~read.visible].isnan().all()


@pytest.mark.parametrize("side", SIDES)
@pytest.mark.parametrize("family", list(FAMILIES))
def test_logsumexp_and_order_are_those_of_the_eager_scores(family: str, side: str) -> None:
    model, batch = setting(family, side)
    columns = queries_of(batch)
    scores = at_queries(eager_scores(family, side), columns)
    read = model.row_summaries(batch, columns)
    close(read.logsumexp, scores.logsumexp(-1), rtol=1e-6)
    assert torch.equal(read.key, scores.argmax(-1))
    assert read.logsumexp.abs().max() > 0.1


@pytest.mark.parametrize("side", SIDES)
@pytest.mark.parametrize("family", list(FAMILIES))
def test_chunk_size_does_not_matter(family: str, side: str) -> None:
    model, batch = setting(family, side)
    columns, spans = queries_of(batch), spans_of(batch)
    whole = row_summaries(model, batch, columns, spans, [0, 1, 2], top=3)
    for chunk in (1, 2, 4, 100):
        same(row_summaries(model, batch, columns, spans, [0, 1, 2], top=3, chunk=chunk), whole)


def test_prompts_and_queries_in_turn_give_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    model, batch = setting("llama", "left")
    whole = model.row_summaries(batch, "all", spans_of(batch), top=2)
    calls: list[int] = []
    fold = folding._fold
    monkeypatch.setattr(
        folding, "_fold", lambda *args: (calls.append(len(args[0])), fold(*args))[1]
    )
    for working, pieces in ((2**25, 1), (8 * 9 * (16 + 4 * 4), 3 * 3), (1, 3 * 9)):
        monkeypatch.setattr(folding, "WORKING_BYTES", working)
        calls.clear()
        same(model.row_summaries(batch, "all", spans_of(batch), top=2), whole)
        assert len(calls) == 3 * pieces  # layers


def test_padded_prompts_say_what_they_say_alone() -> None:
    for family in FAMILIES:
        model = single(family)
        for side in ("left", "right"):
            tokens, mask = plain.padded(side)
            batch = TokenBatch(tokens, mask.bool())
            spans = [[TokenSpan(0, 1), TokenSpan(1, 2)]] * 3
            read = model.row_summaries(batch, queries_of(batch), spans, top=2)
            for i in range(3):
                alone = model.batch([batch.row(i).tolist()])
                want = model.row_summaries(alone, queries_of(alone), spans[:1], top=2)
                shift = int(batch.starts[i]) * (want.top_key[:, 0] >= 0)
                assert torch.equal(read.top_key[:, i], want.top_key[:, 0] + shift)
                assert torch.equal(read.visible[:, i], want.visible[:, 0])
                close(read.top_weight[:, i], want.top_weight[:, 0])
                close(read.logsumexp[:, i], want.logsumexp[:, 0], atol=2e-5, rtol=1e-6)
                close(read.mass[:, i], want.mass[:, 0])


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_summed_in_float32(dtype: torch.dtype) -> None:
    model = wrap(tiny("llama", dtype=dtype), self_test=False)
    batch = model.batch(ids().tolist())
    rows = model.rows(batch, "all")
    read = model.row_summaries(batch, "all", spans_of(batch))
    assert read.mass.dtype == read.logsumexp.dtype == torch.float32
    assert torch.equal(read.key, rows.argmax(-1))
    close(read.mass[..., 2], torch.ones(read.mass.shape[:-1]))


# -- what a head can see --------------------------------------------------------------------------


@pytest.mark.parametrize("family", list(FAMILIES))
def test_a_span_behind_the_window_or_in_the_future_is_no_zero(family: str) -> None:
    model, batch = setting(family, "none")
    spans = [[TokenSpan(0, 2), TokenSpan(2, 4), TokenSpan(7, 9)]] * 3
    columns = torch.tensor([[8, 6]] * 3)  # with a window of 6: they see 3..8 and 1..6
    read = model.row_summaries(batch, columns, spans)
    for layer in range(plain.LAYERS):
        windowed = layer in WINDOWED.get(family, ())
        want = torch.tensor([[not windowed, True, True], [True, True, False]])
        assert torch.equal(read.visible[layer], want.expand(3, plain.HEADS, 2, 3))
    assert torch.equal(read.mass.isnan(), ~read.visible)


def test_spans_are_tokens_of_the_prompt_and_never_padding() -> None:
    tokens, mask = plain.padded("left")
    batch = TokenBatch(tokens, mask.bool())
    masks = span_masks(batch, [[TokenSpan(0, 2)], [TokenSpan(1, 5)], [TokenSpan(0, 1)]])
    assert [row[0].nonzero().flatten().tolist() for row in masks] == [[0, 1], [5, 6, 7, 8], [7]]
    everything = span_masks(batch, torch.ones(3, 1, 9, dtype=torch.bool))
    assert torch.equal(everything[:, 0], batch.mask)


def test_a_query_on_padding_has_no_row() -> None:
    for side in ("left", "right"):
        model, batch = setting("llama", side)
        read = model.row_summaries(batch, "all", spans_of(batch), top=2)
        rows = (~batch.mask)[None, :, None].expand(read.key.shape)
        for floats in (read.top_weight[..., 0], read.logsumexp, read.mass[..., 2]):
            assert torch.equal(floats.isnan(), rows)
        assert torch.equal(read.key == -1, rows)
        assert not read.visible[rows].any()


def test_only_the_layers_asked_for_are_read() -> None:
    model, batch = setting("qwen3", "none")
    every, some = model.row_summaries(batch), model.row_summaries(batch, layers=[2, 0])
    assert some.layers == (2, 0)
    assert every.logsumexp.shape == (3, 3, plain.HEADS, 1)
    assert every.mass.shape == (3, 3, plain.HEADS, 1, 0)
    assert torch.equal(some.key, every.key[[2, 0]])


# -- one attention call ---------------------------------------------------------------------------


def folded(q: Tensor, k: Tensor, mask: Tensor | None = None, **how: Any) -> FoldedRows:
    """All rows of one call, in one piece."""
    positions = q.shape[2]
    columns = torch.arange(positions).expand(len(q), -1)
    spans = torch.ones(len(q), 1, k.shape[2], dtype=torch.bool)
    kept = {key: how.pop(key) for key in ("top", "chunk") if key in how}
    ((_, rows),) = fold_rows(q, k, mask, columns, spans, how, **kept)
    return rows


@pytest.mark.parametrize("chunk", [1, 2, 3, 7])
def test_of_equal_scores_the_earliest_key_comes_first(chunk: int) -> None:
    """Keys 1, 3, 5 are equal and highest, 0 and 4 equal and next: exact in any arithmetic."""
    k = torch.tensor([2.0, 3, 1, 3, 2, 3, 0])[None, None, :, None]
    rows = folded(torch.ones(1, 1, 7, 1), k, top=7, chunk=chunk)
    assert rows.key[0, 0, -1].tolist() == [1, 3, 5, 0, 4, 2, 6]
    assert rows.key[0, 0, 2].tolist() == [1, 0, 2, -1, -1, -1, -1]
    assert torch.equal(rows.logsumexp[0, 0, -1], k.flatten().logsumexp(0))


def test_scores_that_overflow_exp_are_no_trouble() -> None:
    k = torch.tensor([-300.0, 500, 499, -1e4, 200])[None, None, :, None]
    for chunk in (1, 2, 5):
        rows = folded(torch.ones(1, 1, 5, 1), k, chunk=chunk)
        close(rows.logsumexp[0, 0], k.flatten().double().logcumsumexp(0), rtol=1e-6)


@pytest.mark.parametrize("chunk", [1, 4, 9])
@pytest.mark.parametrize("level", [-3.0, 0.0, 60.0])
def test_learned_sinks_take_their_share(chunk: int, level: float) -> None:
    """gpt-oss: its own eager function is the reference."""
    q, k, v = (plain.noise(2, heads, 9, 8, seed=heads).float() for heads in (4, 2, 2))
    sinks = level + plain.noise(4).float()
    module = SimpleNamespace(num_key_value_groups=2, sinks=sinks, training=False)
    hides = torch.triu(torch.full((9, 9), torch.finfo(torch.float32).min), 1)[None, None]
    _, weights = eager_attention_forward(module, q, k, v, hides, scaling=0.5)
    rows = folded(q, k, scaling=0.5, s_aux=sinks, chunk=chunk)
    close(rows.mass[..., 0] / rows.total, weights.sum(-1))
    assert torch.equal(rows.key[..., 0], weights.argmax(-1)) or level > 0  # all weights may be 0
    scores = (q @ k.repeat_interleave(2, dim=1).mT * 0.5 + hides).double()
    with_sink = torch.cat([scores, sinks.double()[None, :, None, None].expand(2, 4, 9, 1)], -1)
    close(rows.logsumexp, with_sink.logsumexp(-1), rtol=1e-6)


@pytest.mark.parametrize("window", [None, 3])
def test_masks_of_flash_attention_are_masks_of_real_keys(window: int | None) -> None:
    """No mask or `[batch, key]`, and the window as an option: equal to the full Boolean mask."""
    q, k = plain.noise(2, 4, 9, 8).float(), plain.noise(2, 2, 9, 8, seed=5).float()
    real = torch.ones(2, 9, dtype=torch.long)
    real[1, :4] = 0
    far = torch.arange(9)[:, None] - torch.arange(9)
    near = (far >= 0) & (far < (window or 9))
    got = folded(q, k, real, sliding_window=window, chunk=4)
    want = folded(q, k, near & real[:, None, None].bool())
    unpadded = folded(q[:1], k[:1], sliding_window=window)
    close(got.logsumexp, want.logsumexp)
    close(unpadded.logsumexp, want.logsumexp[:1])
    assert torch.equal(got.key, want.key)
    if window is None:
        assert (got.key[1, :, 3] == -1).all()  # it sees padding only


def test_a_mask_may_add_a_bias_of_each_head() -> None:
    q, k = plain.noise(1, 4, 6, 8).float(), plain.noise(1, 4, 6, 8, seed=5).float()
    bias = plain.noise(1, 4, 6, 6, seed=6).float().masked_fill(torch.ones(6, 6).triu(1) > 0, -1e38)
    bias = bias.masked_fill(bias < -1e30, torch.finfo(torch.float32).min)
    scores = q @ k.mT * 8**-0.5 + bias
    rows = folded(q, k, bias, chunk=4)
    close(rows.logsumexp, scores.logsumexp(-1))
    assert torch.equal(rows.key[..., 0], scores.argmax(-1))


# -- the model goes on as if nobody looked --------------------------------------------------------


@pytest.mark.parametrize("family", list(FAMILIES))
def test_logits_do_not_change_and_nothing_is_left_behind(family: str) -> None:
    model, batch = setting(family, "none")
    before = [dict(module.__dict__) for module in model.module.modules()]
    hooks = plain.hook_count(model.module)
    kept: list[Tensor] = []
    handle = model.module.register_forward_hook(lambda _, __, out: kept.append(out.logits))
    model.row_summaries(batch, "all", spans_of(batch))
    handle.remove()
    assert len(kept) == 1  # one pass
    assert torch.equal(kept[0], model.logits(batch, at="end"))
    with pytest.raises(IndexError):
        model.row_summaries(model.batch([[10**6]]))  # no such token
    assert plain.hook_count(model.module) == hooks
    after = [module.__dict__ for module in model.module.modules()]
    assert [set(names) for names in before] == [set(names) for names in after]


@pytest.mark.parametrize("family", ["llama", "gptj"])
def test_rows_of_an_edited_run_are_read(family: str) -> None:
    model, batch = setting(family, "none")
    with model.intervene([zero([HeadId(0, 1)])]):
        edited = model.row_summaries(batch).logsumexp
        rows = model.rows(batch)
        assert torch.equal(model.row_summaries(batch).key, rows.argmax(-1))
    untouched = model.row_summaries(batch).logsumexp
    close(edited[0], untouched[0])
    assert (edited[1:] - untouched[1:]).abs().max() > 1e-3


# -- memory ---------------------------------------------------------------------------------------


class LiveBytes(TorchDispatchMode):
    """Bytes of all tensors made inside the block that are alive at once, at their most."""

    def __init__(self) -> None:
        super().__init__()
        self.peak = 0
        self._alive: dict[int, tuple[StorageWeakRef, int]] = {}

    def __torch_dispatch__(self, func: Any, _: Any, args: Any = (), kwargs: Any = None) -> Any:
        known = {a.untyped_storage()._cdata for a in args if isinstance(a, Tensor)}
        made = func(*args, **(kwargs or {}))
        for x in made if isinstance(made, (tuple, list)) else [made]:
            if isinstance(x, Tensor) and x.untyped_storage()._cdata not in known:
                storage = x.untyped_storage()
                self._alive[storage._cdata] = (StorageWeakRef(storage), storage.nbytes())
        gone = [address for address, (ref, _) in self._alive.items() if ref.expired()]
        for address in gone:
            del self._alive[address]
        self.peak = max(self.peak, sum(size for _, size in self._alive.values()))
        return made


@pytest.mark.parametrize("heads", [(32, 8, 64), (32, 32, 128), (9, 3, 64)])
@pytest.mark.parametrize(("batch", "queries"), [(1, 32), (4, 32), (1, 600)])
def test_a_call_of_8192_tokens_takes_less_than_64_mib(
    heads: tuple[int, int, int], batch: int, queries: int
) -> None:
    """The shapes of Llama-3.2-1B, Llama-2-7B and SmolLM2-135M, and 12 spans; all dimensions that a
    tensor may grow with are as large as there. bfloat16 keys, so that converting them counts."""
    query_heads, kv_heads, width = heads
    q = torch.randn(batch, query_heads, 1, width).expand(-1, -1, 8192, -1)
    k = torch.randn(batch, kv_heads, 1, width).bfloat16().expand(-1, -1, 8192, -1)
    columns = torch.arange(8192 - queries, 8192).expand(batch, -1)
    spans = torch.zeros(batch, 12, 8192, dtype=torch.bool)
    with LiveBytes() as live, torch.no_grad():
        pieces = fold_rows(q, k, None, columns, spans, {"softcap": 30.0}, top=8)
        next(pieces)
    assert 2**20 < live.peak < 64 * 2**20


def test_a_pass_over_8192_tokens_adds_no_more_than_its_chunks() -> None:
    config = copy.deepcopy(FAMILIES["llama"])
    config.max_position_embeddings = 8192
    torch.manual_seed(0)
    model = wrap(type(tiny("llama"))(config).eval())
    batch = model.batch(ids(1, 8192).tolist())
    columns = torch.arange(8192 - 32, 8192)[None]
    with LiveBytes() as pass_alone:
        model.logits(batch, at="end")
    with LiveBytes() as with_rows:
        model.row_summaries(batch, columns, spans_of(batch))
    rows = plain.LAYERS * plain.HEADS * 32 * 8192 * 4  # what `rows` would hold
    assert with_rows.peak - pass_alone.peak < 64 * 2**20 * plain.HEADS / 32 < rows


# -- errors ---------------------------------------------------------------------------------------


def test_what_does_not_fit_is_refused() -> None:
    model, batch = setting("llama", "left")
    with pytest.raises(UnitOutOfRangeError, match="layers 0 to 2"):
        model.row_summaries(batch, layers=[3])
    with pytest.raises(MnemoscopeError, match="at least one, and each once"):
        model.row_summaries(batch, layers=[])
    with pytest.raises(MnemoscopeError, match="each once"):
        model.row_summaries(batch, layers=[0, 0])
    with pytest.raises(MnemoscopeError, match=r"lie in 0\.\.8"):
        model.row_summaries(batch, torch.tensor([[9], [0], [0]]))
    for top in (0, 10):
        with pytest.raises(MnemoscopeError, match="use 1 to 9"):
            model.row_summaries(batch, top=top)
    with pytest.raises(MnemoscopeError, match="1 or more"):
        row_summaries(model, batch, batch.ends[:, None], None, [0], chunk=0)


def test_spans_that_do_not_fit_are_refused() -> None:
    model, batch = setting("llama", "left")
    for wrong in (torch.ones(3, 9), torch.ones(2, 1, 9), torch.ones(3, 1, 8)):
        with pytest.raises(MnemoscopeError, match=r"\[3, any, 9\]"):
            model.row_summaries(batch, "end", wrong.bool())
    with pytest.raises(MnemoscopeError, match="0 and 1"):
        model.row_summaries(batch, "end", torch.full((3, 1, 9), 2))
    with pytest.raises(MnemoscopeError, match="Booleans"):
        model.row_summaries(batch, "end", torch.ones(3, 1, 9))
    one = [TokenSpan(0, 1)]
    with pytest.raises(PromptError, match="all of one length"):
        model.row_summaries(batch, "end", [one, one])
    with pytest.raises(PromptError, match=r"lengths \[1, 2, 1\]"):
        model.row_summaries(batch, "end", [one, one * 2, one])
    with pytest.raises(PromptError, match="prompt 2, which has 2 tokens"):
        model.row_summaries(batch, "end", [one, one, [TokenSpan(1, 3)]])


def test_attention_that_cannot_be_read_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    q = torch.zeros(1, 1, 2, 4)
    columns, spans = torch.tensor([[1]]), torch.ones(1, 1, 2, dtype=torch.bool)
    with pytest.raises(UnsupportedModelError, match="'sdpa' or 'eager'"):
        next(fold_rows(q, q, object(), columns, spans, {}))  # type: ignore[arg-type]
    model, batch = setting("llama", "none")
    monkeypatch.setattr(type(model), "forward", lambda *_: None)
    with pytest.raises(UnsupportedModelError, match="another attention implementation"):
        model.row_summaries(batch)
