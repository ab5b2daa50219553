"""The pattern is the model's own attention, whole for short texts and END's row for long ones."""

from __future__ import annotations

import numpy as np
import pytest
from families import tiny
from mnemoscope.app import patterns
from mnemoscope.app.patterns import end_row_table, pattern, pattern_table, sharing
from mnemoscope.models import wrap
from mnemoscope.models.hooked import HookedModel
from mnemoscope.models.types import HeadId
from planted_ground import CARRIER, MEMORY_HEAD, PROMPT, SUBJECT


def test_the_planted_heads_look_where_they_were_made_to_look(model: HookedModel) -> None:
    found = pattern(model, PROMPT, HeadId.parse(MEMORY_HEAD))
    assert end_row_table(found)["token"][0] == f"3 {SUBJECT}"
    assert found.end_row[3] > 0.9
    carrier = pattern(model, PROMPT, HeadId.parse(CARRIER))
    assert np.argmax(carrier.weights, axis=1)[1:].tolist() == [0, 1, 2, 3]


def test_rows_sum_to_one_and_the_table_is_the_lower_triangle(model: HookedModel) -> None:
    found = pattern(model, PROMPT, HeadId(0, 0))
    n = len(found.labels)
    assert found.weights.sum(axis=1) == pytest.approx(np.ones(n), abs=1e-5)
    assert found.sink == pytest.approx(found.weights[-1, 0])
    table = pattern_table(found)
    assert table.height == n * (n + 1) // 2
    assert table["weight"].sum() == pytest.approx(n, abs=1e-4)
    assert (table["key"] <= table["query"]).all()


def test_the_same_token_twice_has_two_labels(model: HookedModel) -> None:
    found = pattern(model, f"{SUBJECT} {SUBJECT}", HeadId(0, 0))
    assert found.labels == (f"0 {SUBJECT}", f"1 {SUBJECT}")


def test_long_texts_give_the_row_of_end_only(
    model: HookedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = pattern(model, PROMPT, HeadId(1, 2))
    monkeypatch.setattr(patterns, "MOST_TOKENS", 4)
    short = pattern(model, PROMPT, HeadId(1, 2))
    assert short.weights is None
    assert pattern_table(short).is_empty()
    assert short.end_row == pytest.approx(whole.end_row, abs=1e-5)


def test_shared_key_heads_are_named(model: HookedModel) -> None:
    assert sharing(model.anatomy, HeadId(1, 2)) == (
        "reads kv head 2, which no other query head reads"
    )
    grouped = wrap(tiny("llama"), None).anatomy
    first = [str(head.head) for head in grouped.sharing(HeadId(0, 0))]
    assert sharing(grouped, HeadId(0, 0)) == (
        f"reads kv head 0 with query heads {', '.join(first)}"
    )
