"""Pooled maps are the eager softmax pooled afterwards, whatever the family, chunks and edges."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch
from families import FAMILIES, ids, tiny
from mnemoscope.models import pooled_maps as engine
from mnemoscope.models.errors import PromptError, UnitOutOfRangeError, UnsupportedModelError
from mnemoscope.models.hooked import HookedModel, wrap
from mnemoscope.models.pooled_maps import (
    PooledMap,
    bin_edges,
    held_bytes,
    hold_scores,
    pooled_maps,
)
from torch import Tensor

TOKENS = 23
PROMPT = [int(i) for i in ids(1, TOKENS)[0]]
QUERIES, KEYS = (0, 4, 5, 11, 23), (0, 2, 9, 10, 23)


def eager(model: HookedModel) -> Tensor:
    """`[layer, head, query, key]`, the whole softmax."""
    return model.rows(model.batch([PROMPT]), "all")[:, 0]


def pooled_afterwards(rows: Tensor, queries: tuple[int, ...], keys: tuple[int, ...]) -> PooledMap:
    """By the definition, cell by cell; cells that nothing sees hold zeros only."""
    cells = [
        [
            (rows[:, a:b, c:d].amax((1, 2)), rows[:, a:b, c:d].sum(2).mean(1))
            for c, d in pairwise(keys)
        ]
        for a, b in pairwise(queries)
    ]
    peak, mass = (
        torch.stack([torch.stack([cell[i] for cell in row], -1) for row in cells], 1)
        for i in (0, 1)
    )
    return PooledMap(queries, keys, peak, mass)


def assert_same(found: PooledMap, expected: PooledMap) -> None:
    for one, other in ((found.peak, expected.peak), (found.mass, expected.mass)):
        assert one.shape == other.shape
        assert torch.allclose(one.nan_to_num(0.0), other.float(), atol=1e-6)


@pytest.mark.parametrize("family", sorted(FAMILIES))
def test_maps_are_the_eager_softmax_pooled(family: str) -> None:
    model = wrap(tiny(family))
    rows = eager(model)
    maps = pooled_maps(model, PROMPT, QUERIES, KEYS)
    assert list(maps) == list(range(model.anatomy.n_layers))
    for layer, found in maps.items():
        assert_same(found, pooled_afterwards(rows[layer], QUERIES, KEYS))


@pytest.mark.parametrize("family", ["llama", "mistral", "gemma2", "gemma3", "neox", "gptj"])
def test_held_scores_of_a_prefill_and_what_follows_give_the_same_maps(family: str) -> None:
    model = wrap(tiny(family))
    with hold_scores(model) as held:
        prompt = model.prefill(PROMPT[:15], chunk=7)
        model.read_suffix(prompt, PROMPT[15:])
    rows = eager(model)
    for layer, scores in held.items():
        assert len(scores) == TOKENS
        assert_same(scores.pooled(QUERIES, KEYS), pooled_afterwards(rows[layer], QUERIES, KEYS))


def test_suffixes_held_apart_go_behind_the_same_prompt() -> None:
    model = wrap(tiny("gemma3"))
    with hold_scores(model) as prompt_scores:
        prompt = model.prefill(PROMPT[:15])
    for suffix in ([3, 4], PROMPT[15:]):
        with hold_scores(model) as behind:
            model.read_suffix(prompt, suffix)
    for layer, rows in enumerate(eager(model)):
        whole = prompt_scores[layer].followed_by(behind[layer])
        one = prompt_scores[layer].head(1).followed_by(behind[layer].head(1))
        assert_same(whole.pooled(QUERIES, KEYS), pooled_afterwards(rows, QUERIES, KEYS))
        assert_same(one.pooled(QUERIES, KEYS), pooled_afterwards(rows[[1]], QUERIES, KEYS))


def test_one_head_and_a_part_of_its_map() -> None:
    model = wrap(tiny("qwen3"))
    with hold_scores(model, [1]) as held:
        model.prefill(PROMPT)
    rows = eager(model)[1]
    for head in range(model.anatomy.n_heads):
        part = held[1].head(head).pooled((8, 10, 19), (3, 4, 12, 20))
        assert_same(part, pooled_afterwards(rows[[head]], (8, 10, 19), (3, 4, 12, 20)))
        single = held[1].head(head).pooled(tuple(range(TOKENS + 1)), tuple(range(TOKENS + 1)))
        assert torch.allclose(single.peak[0].nan_to_num(0.0), rows[head].float(), atol=1e-6)


def test_what_nobody_can_see_is_not_a_number_and_a_row_of_mass_sums_to_one() -> None:
    maps = pooled_maps(wrap(tiny("mistral")), PROMPT, QUERIES, KEYS)[0]
    future = torch.tensor([[c >= b for c, _ in pairwise(KEYS)] for _, b in pairwise(QUERIES)])
    # The window of 6 hides keys 0 and 1 from the queries from 11 on.
    behind = torch.tensor([[d <= a - 5 for _, d in pairwise(KEYS)] for a, _ in pairwise(QUERIES)])
    assert behind.any()
    assert torch.equal(maps.peak[0].isnan(), future | behind)
    assert torch.equal(maps.peak.isnan(), maps.mass.isnan())
    assert maps.mass.nansum(-1) == pytest.approx(torch.ones(4, len(QUERIES) - 1), abs=1e-5)
    assert (maps.peak.nan_to_num(0) <= 1 + 1e-6).all()


def test_learned_sinks_take_their_share() -> None:
    model = wrap(tiny("llama"))
    with hold_scores(model, [0]) as held:
        model.prefill(PROMPT)
    plain = held[0].pooled(QUERIES, KEYS)
    sinks = torch.tensor([0.0, 1.0, 2.0, -1.0])
    with_sinks = engine.HeldScores(held[0].q, held[0].k, {**held[0].options, "s_aux": sinks})
    assert (with_sinks.pooled(QUERIES, KEYS).mass.nansum(-1) < plain.mass.nansum(-1)).all()
    rows = held[0].rows(0, TOKENS).logsumexp(-1)
    kept = torch.sigmoid(-sinks)  # of row 0, whose only score is moved to 0 below
    alone = engine.HeldScores(held[0].q * 0, held[0].k, {**held[0].options, "s_aux": sinks})
    assert alone.pooled((0, 1), (0, 1)).mass.flatten() == pytest.approx(kept, abs=1e-6)
    for head in range(4):
        one = with_sinks.head(head).pooled(QUERIES, KEYS)
        whole = with_sinks.pooled(QUERIES, KEYS)
        assert torch.allclose(one.mass[0], whole.mass[head], atol=1e-6, equal_nan=True)
    assert rows == pytest.approx(torch.zeros_like(rows), abs=1e-5)


def test_few_queries_at_once_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    model = wrap(tiny("gemma2"))
    whole = pooled_maps(model, PROMPT, QUERIES, KEYS)
    monkeypatch.setattr(engine, "WORKING_BYTES", 1)
    for layer, maps in pooled_maps(model, PROMPT, QUERIES, KEYS).items():
        assert torch.allclose(maps.peak, whole[layer].peak, atol=1e-6, equal_nan=True)
        assert torch.allclose(maps.mass, whole[layer].mass, atol=1e-6, equal_nan=True)


def test_bytes_held_are_as_told() -> None:
    model = wrap(tiny("llama"))
    with hold_scores(model) as held:
        model.prefill(PROMPT)
    tensors = [tensor for scores in held.values() for tensor in (scores.q, scores.k)]
    assert sum(t.numel() * t.itemsize for t in tensors) == held_bytes(model, TOKENS)


# -- edges ----------------------------------------------------------------------------------------


def test_edges_are_even_and_snap_to_the_borders_of_spans() -> None:
    assert bin_edges(0, 12, 4) == (0, 3, 6, 9, 12)
    assert bin_edges(0, 12, 4, [4, 8]) == (0, 4, 6, 8, 12)
    assert bin_edges(0, 12, 2, [4, 8]) == (0, 4, 8, 12), "more borders than bins: more bins"
    assert bin_edges(5, 8, 64) == (5, 6, 7, 8)
    assert bin_edges(0, 10, 2, [0, 10, 99]) == (0, 5, 10), "outer borders are edges already"


@pytest.mark.parametrize("snap", [(), (3, 4), (17, 29, 30, 63)])
@pytest.mark.parametrize("bins", [1, 2, 7, 64])
def test_edges_rise_and_hold_every_border(bins: int, snap: tuple[int, ...]) -> None:
    edges = bin_edges(0, 100, bins, snap)
    assert all(a < b for a, b in pairwise(edges))
    assert (edges[0], edges[-1]) == (0, 100)
    assert {0, *snap, 100} <= set(edges)
    assert len(edges) - 1 <= max(bins, len(snap) + 1)


# -- bad input ------------------------------------------------------------------------------------


@pytest.mark.parametrize("edges", [(0,), (0, 5, 5), (0, 5, 3), (0, TOKENS + 1), (-1, 4)])
def test_edges_that_do_not_fit_are_refused(edges: tuple[int, ...]) -> None:
    with pytest.raises(PromptError, match="bin_edges"):
        pooled_maps(wrap(tiny("llama")), PROMPT, edges, KEYS)
    with pytest.raises(PromptError, match="bin_edges"):
        pooled_maps(wrap(tiny("llama")), PROMPT, QUERIES, edges)


def test_ranges_without_room_are_refused() -> None:
    for start, stop, bins in ((4, 4, 3), (-1, 4, 3), (0, 4, 0)):
        with pytest.raises(PromptError):
            bin_edges(start, stop, bins)


def test_wrong_layers_too_long_prompts_and_batches_are_refused() -> None:
    model = wrap(tiny("llama"))
    with pytest.raises(UnitOutOfRangeError):
        pooled_maps(model, PROMPT, QUERIES, KEYS, layers=[9])
    with pytest.raises(PromptError, match="64"):
        pooled_maps(model, PROMPT * 3, QUERIES, KEYS)
    with pytest.raises(UnsupportedModelError, match="one prompt"), hold_scores(model):
        model.logits(model.batch([PROMPT, PROMPT]))
    with pytest.raises(UnsupportedModelError, match="one prompt"), hold_scores(model):
        model.logits(model.batch([PROMPT, PROMPT[3:]]))
    with pytest.raises(UnsupportedModelError), hold_scores(model):
        pass  # nothing ran
