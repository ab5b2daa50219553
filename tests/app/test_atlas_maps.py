"""Maps as pictures: what a byte means, where a head stands, that no needle is split."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
from mnemoscope.app.atlas_maps import (
    THUMBNAIL,
    WINDOW,
    Window,
    atlas,
    atlas_picture,
    borders,
    levels,
    packed,
    sheet_of,
    unpacked,
    window_map,
)
from mnemoscope.app.needle_charts import BINS, strip_table
from mnemoscope.app.needle_trial import Asked, NeedleTrial, answer_weights, run_trial
from mnemoscope.models.errors import MnemoscopeError
from mnemoscope.models.hooked import HookedModel
from mnemoscope.models.load import load_model
from mnemoscope.models.types import HeadId

HEAD = HeadId(4, 6)
TOKENS = 256


@pytest.fixture(scope="module")
def engram() -> HookedModel:
    return load_model("engram")


@pytest.fixture(scope="module")
def found(engram: HookedModel) -> NeedleTrial:
    return run_trial(engram, Asked(TOKENS, 1, "literal", "password", 1, True))


@pytest.fixture(scope="module")
def rows(engram: HookedModel, found: NeedleTrial) -> np.ndarray:
    """The head's whole map, from the model itself."""
    batch = engram.batch([found.forced.asked.ids])
    return engram.rows(batch, "all", heads=[HEAD])[0, 0, 0].numpy()


def test_bytes_are_logarithmic_and_zero_is_out_of_sight() -> None:
    weights = np.array([np.nan, 0.0, 1e-9, 1e-5, 10**-2.5, 1.0, 1.1])
    assert levels(weights).tolist() == [0, 1, 1, 1, 128, 255, 255]
    rising = levels(np.geomspace(1e-5, 1, 500))
    assert (np.diff(rising.astype(int)) >= 0).all()


def test_the_atlas_is_the_model_s_attention_pooled(found: NeedleTrial, rows: np.ndarray) -> None:
    shown = atlas(found, "forced")
    assert shown.peak.shape[:2] == (6, 8)
    assert shown.peak.shape[2] <= THUMBNAIL
    cells = list(pairwise(shown.query_edges))
    for i, (a, b) in enumerate(cells):
        for j, (c, d) in list(enumerate(pairwise(shown.key_edges)))[: i + 1]:
            block = rows[a:b, c:d]
            assert shown.peak[4, 6, i, j] == pytest.approx(block.max(), rel=2e-3, abs=1e-6)
            assert shown.mass[4, 6, i, j] == pytest.approx(block.sum(1).mean(), rel=2e-3, abs=1e-6)
    assert np.isnan(shown.peak[4, 6, 0, 1:]).all(), "nobody sees the future"
    assert shown.sink[4, 6] == pytest.approx(rows[:, :4].sum(1).mean(), abs=2e-3)


def test_no_needle_and_no_sink_is_split(engram: HookedModel, found: NeedleTrial) -> None:
    shown = atlas(found, "forced")
    maps = window_map(engram, found, "forced", HEAD, Window(0, 10**6, 0, 10**6), sink=True)
    for edges in (shown.key_edges, shown.query_edges, maps.key_edges, maps.query_edges):
        assert set(borders(found)) <= set(edges)
        assert edges[-1] == len(found.forced.asked.ids)
    assert len(maps.key_edges) - 1 <= WINDOW


def test_a_window_holds_the_weights_of_its_part(
    engram: HookedModel, found: NeedleTrial, rows: np.ndarray
) -> None:
    start, stop = found.spans["needle"]
    part = Window(TOKENS, len(rows), start - 5, stop + 5)
    maps = window_map(engram, found, "forced", HEAD, part, sink=True)
    assert maps.query_edges == tuple(range(TOKENS, len(rows) + 1)), "a token a cell"
    expected = rows[TOKENS:, start - 5 : stop + 5]
    assert np.allclose(maps.peak, expected, atol=1e-5)
    assert np.allclose(maps.mass, expected, atol=1e-5)
    pieces = engram.pieces(found.forced.asked.ids[start - 5 : stop + 5])
    assert maps.key_text == [piece.replace("\n", "⏎").strip() for piece in pieces]


def test_without_the_sink_keys_begin_behind_it(engram: HookedModel, found: NeedleTrial) -> None:
    whole = Window(0, 10**6, 0, 10**6)
    assert window_map(engram, found, "forced", HEAD, whole, sink=False).key_edges[0] == 4
    shown = atlas(found, "forced")
    assert 4 in shown.key_edges
    (kept, with_sink), (cut, without) = (
        atlas_picture(shown, "peak", sink=sink) for sink in (True, False)
    )
    sinks = shown.key_edges.index(4)
    assert kept.step_x - cut.step_x == sinks
    top, left = kept.place(HEAD)
    other_top, other_left = cut.place(HEAD)
    rows, columns = shown.peak.shape[2:]
    assert np.array_equal(
        with_sink[top : top + rows, left + sinks : left + columns],
        without[other_top : other_top + rows, other_left : other_left + columns - sinks],
    )


@pytest.mark.parametrize(("layers", "heads"), [(6, 8), (30, 9), (32, 32), (1, 1), (2, 8)])
def test_every_head_has_a_place_of_its_own(layers: int, heads: int) -> None:
    sheet = sheet_of(layers, heads, 3, 4)
    taken = np.zeros(sheet.size, int)
    for layer in range(layers):
        for head in range(heads):
            top, left = sheet.place(HeadId(layer, head))
            part = taken[top : top + 3, left : left + 4]
            assert part.shape == (3, 4)
            part += 1
    assert taken.max() == 1
    assert taken.sum() == layers * heads * 12


def test_windows_are_kept_within_the_prompt() -> None:
    assert Window(0, 10**6, 3, 7).within(50) == Window(0, 50, 3, 7)
    assert Window(60, 70, 9, 4).within(50) == Window(0, 50, 0, 50)


def test_pictures_travel_as_bytes() -> None:
    picture = np.arange(6, dtype=np.uint8).reshape(2, 3)
    header, back = unpacked(packed(picture, {"alt": "“Ḱ”"}))
    assert header == {"alt": "“Ḱ”", "height": 2, "width": 3}
    assert np.array_equal(back, picture)
    with pytest.raises(MnemoscopeError, match="do not fit"):
        unpacked(packed(picture, {}) + b"x")


def test_the_strip_shows_the_highest_weight_of_each_stretch(found: NeedleTrial) -> None:
    weights = answer_weights(found, "forced", HEAD)
    tokens = ["a", "b", "c", "d"][: len(weights)]
    pieces = [f"t{i}" for i in range(weights.shape[1])]
    table = strip_table(weights, tokens, pieces, borders(found))
    assert table.height <= len(weights) * (BINS + 8)
    for row in table.iter_rows(named=True):
        part = weights[row["step"], row["start"] : row["stop"]]
        assert row["peak"] == pytest.approx(part.max())
        assert row["position"] == row["start"] + part.argmax()
        assert row["key"] == f"t{row['position']}"
        assert row["token"] == f"{row['step']} {tokens[row['step']]}"
    shown = {(row["step"], row["position"]) for row in table.iter_rows(named=True)}
    assert {(i, int(k)) for i, k in enumerate(weights.argmax(1))} <= shown
