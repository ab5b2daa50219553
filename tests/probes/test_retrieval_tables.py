"""The table of all scores, and head sets made from it."""

from __future__ import annotations

import numpy as np
import pytest
from families import tiny
from mnemoscope.models import HookedModel, MnemoscopeError, wrap
from mnemoscope.models.types import HeadId
from mnemoscope.probes.retrieval_statistics import HeadStatistics, summarise_scores
from mnemoscope.probes.retrieval_tables import column_grid, retrieval_head_set, table

NEEDLES = [f"needle {i // 2}" for i in range(24)]


@pytest.fixture(scope="module")
def model() -> HookedModel:
    """Three layers of four query heads and two key/value heads."""
    return wrap(tiny("llama"), name="llama")


@pytest.fixture(scope="module")
def scores() -> HeadStatistics:
    """L0.H1 scores 0.8, L2.H3 0.3, L1.H0 0.05 (all surely), L1.H2 cannot see; others nothing."""
    truth = np.zeros((3, 4))
    truth[0, 1], truth[2, 3], truth[1, 0] = 0.8, 0.3, 0.05
    noise = np.random.default_rng(0).normal(scale=0.01, size=(24, 3, 4))
    values = truth + noise
    values[:, 1, 2] = np.nan
    return summarise_scores(values, NEEDLES)


def test_the_table_has_a_row_a_head_with_null_where_it_cannot_see(
    model: HookedModel, scores: HeadStatistics
) -> None:
    roles = np.full((3, 4), "inert", dtype=object)
    found = table(model.anatomy, {"copy": scores}, {"gate": scores.mean * 2}, {"role": roles})
    assert len(found) == 12
    row = found.filter((found["layer"] == 2) & (found["head"] == 3)).row(0, named=True)
    assert row["kv_head"] == 1
    assert row["copy"] == pytest.approx(scores.mean[2, 3])
    assert row["copy_low"] < row["copy"] < row["copy_high"]
    assert row["gate"] == pytest.approx(2 * row["copy"])
    assert row["role"] == "inert"
    hidden = found.filter((found["layer"] == 1) & (found["head"] == 2)).row(0, named=True)
    assert [hidden[name] for name in ("copy", "copy_low", "copy_q", "copy_shrunk")] == [None] * 4


def test_a_column_comes_back_as_a_grid(model: HookedModel, scores: HeadStatistics) -> None:
    found = table(model.anatomy, {"copy": scores}).sample(fraction=1, shuffle=True, seed=1)
    np.testing.assert_array_equal(column_grid(found, "copy", 3, 4), scores.mean)
    with pytest.raises(MnemoscopeError, match="no column 'first'"):
        column_grid(found, "first", 3, 4)
    with pytest.raises(MnemoscopeError, match="12 rows are not 3 layers of 5 heads"):
        column_grid(found, "copy", 3, 5)


def test_a_head_set_holds_the_heads_above_the_threshold(
    model: HookedModel, scores: HeadStatistics
) -> None:
    found = retrieval_head_set(model, scores, "retrieval", method="copy score", least=0.1)
    assert found.ids == (HeadId(0, 1), HeadId(2, 3))
    assert found.heads[0].role == "retrieval"
    assert found.heads[0].ci == (scores.interval.low[0, 1], scores.interval.high[0, 1])
    assert found.heads[0].p == scores.q[0, 1]
    best = retrieval_head_set(model, scores, "retrieval", method="copy score", k=1)
    assert best.ids == (HeadId(0, 1),)


def test_heads_of_another_role_can_be_barred(model: HookedModel, scores: HeadStatistics) -> None:
    among = np.ones((3, 4), dtype=bool)
    among[0, 1] = False
    found = retrieval_head_set(model, scores, "emit", method="mass", least=0.1, among=among)
    assert found.ids == (HeadId(2, 3),)


def test_no_head_at_all_is_said_with_the_counts(model: HookedModel, scores: HeadStatistics) -> None:
    with pytest.raises(MnemoscopeError, match=r"no retrieval heads: 0 of 11 heads score 0\.9"):
        retrieval_head_set(model, scores, "retrieval", method="copy score", least=0.9)
