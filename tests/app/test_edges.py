"""The strongest edges are the largest weights of the model's own attention, sink or not."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from families import tiny
from mnemoscope.app import edges
from mnemoscope.app.atlas_maps import levels, unpacked
from mnemoscope.app.edges import (
    NO_KEY,
    edge_table,
    head_scores,
    packed_edges,
    token_labels,
    top_edges,
)
from mnemoscope.models.errors import MnemoscopeError
from mnemoscope.models.hooked import HookedModel, wrap
from mnemoscope.models.pooled_maps import hold_scores
from mnemoscope.models.types import HeadId
from planted_ground import CLAIM, CONTEXT, CONTEXT_HEAD, PROMPT

TEXT = f"{CONTEXT} {PROMPT}"
COPY = HeadId.parse(CONTEXT_HEAD)


@pytest.fixture(params=[7, 512], ids=["in pieces", "at once"])
def scores(request: pytest.FixtureRequest, model: HookedModel, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(edges, "_AT_ONCE", request.param)
    return head_scores(model, TEXT, COPY)


@pytest.mark.parametrize("sinks", [0, 1, 3])
def test_edges_are_the_largest_weights_of_each_row(model: HookedModel, scores, sinks: int) -> None:
    rows = model.rows(model.tokens(TEXT), "all", heads=[COPY])[0, 0, 0].numpy().copy()
    found = top_edges(scores, sinks=sinks, k=3)
    assert found.sink == pytest.approx(rows[:, :sinks].sum(1), abs=1e-6)
    rows[:, :sinks] = 0
    wanted = -np.sort(-rows, axis=1)[:, :3]
    assert found.weights == pytest.approx(wanted, abs=1e-6)
    assert found.kept == pytest.approx(wanted.sum(1), abs=1e-6)
    for query, keys in enumerate(found.keys):
        assert (keys <= query).all(), "nobody sees the future"
        assert sum(keys >= 0) == min(3, max(0, query + 1 - sinks))
        there = keys[keys >= 0]
        assert found.weights[query][keys >= 0] == pytest.approx(rows[query, there], abs=1e-6)


def test_the_baseline_is_the_same_weight_for_every_key_in_sight(scores) -> None:
    found = top_edges(scores, sinks=1, k=2)
    tokens = len(scores)
    assert found.seen.tolist() == list(range(1, tokens + 1)), "this model sees all that was"
    table = edge_table(found, [str(i) for i in range(tokens)])
    for row in table.iter_rows(named=True):
        assert row["times_even"] == pytest.approx(row["weight"] * (row["query"] + 1))
    edges_of = [0, 1, *[2] * (tokens - 2)]
    assert found.even_kept == pytest.approx(np.mean([n / (i + 1) for i, n in enumerate(edges_of)]))
    assert found.even_sink == pytest.approx(np.mean([1 / (i + 1) for i in range(tokens)]))


def test_a_sliding_window_hides_keys_from_the_baseline_too() -> None:
    model = wrap(tiny("mistral", dtype=torch.float32).requires_grad_(False))
    batch = model.batch([list(range(5, 14))])
    with hold_scores(model, [0]) as held:
        model.forward(batch, batch.ends[:, None])
    assert top_edges(held[0].head(0), sinks=1).seen.tolist() == [1, 2, 3, 4, 5, 6, 6, 6, 6]


def test_with_the_sink_it_is_a_key_like_others(scores) -> None:
    found = top_edges(scores, sinks=1, without_sink=False, k=100)
    assert found.kept == pytest.approx(np.ones(len(scores)), abs=1e-5)


def test_the_table_names_the_planted_edge_first(model: HookedModel, scores) -> None:
    labels = token_labels(model, model.tokens(TEXT).ids[0].tolist())
    end = len(labels) - 1
    table = edge_table(top_edges(scores, sinks=1), labels, (end, end + 1))
    assert CLAIM in table["key_token"][0]
    assert set(table["query"]) == {end}
    assert table["weight"].is_sorted(descending=True)
    every = edge_table(top_edges(scores, sinks=1), labels)
    assert every.height > table.height


def test_the_bytes_of_edges_are_their_levels_and_keys(scores) -> None:
    found = top_edges(scores, sinks=1, k=4)
    header, body = unpacked(packed_edges(found, {"name": "x"}))
    assert header["k"] == 4
    keys = np.ascontiguousarray(body[:, 4:]).view("<u2").astype(int)
    assert np.where(keys == NO_KEY, -1, keys).tolist() == found.keys.tolist()
    there = found.keys >= 0
    assert body[:, :4][there].tolist() == levels(found.weights[there]).tolist()


def test_several_heads_are_refused(model: HookedModel, scores) -> None:
    with pytest.raises(MnemoscopeError, match="0 edges"):
        top_edges(scores, sinks=1, k=0)
