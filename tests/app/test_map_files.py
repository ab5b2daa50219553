"""Files of maps and edges: every cell that is in sight, pictures with axes, tokens as text."""

from __future__ import annotations

from itertools import pairwise
from xml.etree import ElementTree

import numpy as np
import polars
import pytest
from mnemoscope.app import chart_files
from mnemoscope.app.atlas_maps import Atlas, WindowMap, atlas_picture
from mnemoscope.app.edges import Edges
from mnemoscope.app.map_files import (
    EDGE,
    atlas_axes,
    atlas_table,
    edges_svg,
    map_svg,
    window_axes,
    window_table,
)

EDGES = (0, 4, 6, 9)
SVG = "{http://www.w3.org/2000/svg}"


@pytest.fixture
def shown() -> Atlas:
    """2 layers x 3 heads; no query sees the keys behind it."""
    random = np.random.default_rng(0)
    peak, mass = (random.random((2, 3, 3, 3)).astype(np.float16) for _ in range(2))
    unseen = np.triu(np.ones((3, 3), bool), 1)
    peak[..., unseen] = mass[..., unseen] = np.nan
    return Atlas(EDGES, EDGES, peak, mass, np.zeros((2, 3)))


@pytest.fixture
def maps(shown: Atlas) -> WindowMap:
    texts = ["a", "b", "c"]
    peak, mass = (part[1, 2].astype(np.float32) for part in (shown.peak, shown.mass))
    return WindowMap(EDGES, EDGES, peak, mass, texts, texts, None)


def test_the_table_of_the_atlas_holds_every_cell_in_sight(shown: Atlas, maps: WindowMap) -> None:
    table = atlas_table(shown)
    assert table.height == 2 * 3 * 6
    assert table.schema["query"] == polars.UInt32
    bins = list(pairwise(EDGES))
    for row in table.iter_rows(named=True):
        query = bins.index((row["query"], row["query_last"] + 1))
        key = bins.index((row["key"], row["key_last"] + 1))
        place = row["layer"], row["head"], query, key
        assert (row["peak"], row["mass"]) == (shown.peak[place], shown.mass[place])
    one = table.filter(layer=1, head=2).drop("layer", "head")
    assert window_table(maps).equals(one)


def drawn(svg: str) -> tuple[ElementTree.Element, list[str]]:
    """The picture, and its words."""
    root = ElementTree.fromstring(svg)
    return root, [text.text or "" for text in root.iter(f"{SVG}text")]


def test_a_map_has_its_axes_beside_the_pixels(shown: Atlas, maps: WindowMap) -> None:
    png = chart_files.map_png(np.ones((30, 30), np.uint8), "light")
    root, words = drawn(map_svg(png, (30, 30), *window_axes(maps, 10), "light"))
    (image,) = root.iter(f"{SVG}image")
    assert float(image.get("width", 0)) == 30 + 2 * EDGE
    assert image.get("href", "").startswith("data:image/png;base64,")
    assert words == ["key", "query", "0", "4", "6", "0", "4", "6"]
    sheet, picture = atlas_picture(shown, "peak", sink=True)
    _, words = drawn(map_svg(png, picture.shape, *atlas_axes(sheet), "dark"))
    assert words == ["head", "layer", "0", "1", "2", "0", "1"]


def test_arcs_go_from_key_to_query_and_tokens_are_text() -> None:
    tokens = ["<b>", "&", "\x00\ud800", "d"]
    keys = np.array([[-1, -1], [0, -1], [1, 0], [2, 0]], np.int32)
    weights = np.array([[0, 0], [0.5, 0], [0.4, 0.3], [0.04, 0.01]], np.float32)
    found = Edges(keys, weights, weights.sum(1), weights[:, 0], np.arange(1, 5), 1, True)
    root, words = drawn(edges_svg(found, tokens, "light"))
    assert words == ["<b>", "&", "□□", "d"]
    arcs = list(root.iter(f"{SVG}path"))
    assert len(arcs) == 5
    ours = [arc for arc in arcs if arc.get("stroke") == "#0072b2"]
    assert ours == arcs[-2:], "those of the last token, on top"
    assert [arc.get("stroke-opacity") for arc in ours] == ["0.10", "0.20"]


def test_of_many_tokens_some_positions_are_written() -> None:
    none = np.full((200, 1), -1, np.int32)
    ones = np.ones(200, np.float32)
    found = Edges(none, np.zeros((200, 1), np.float32), ones, ones, ones.astype(int), 1, True)
    _, words = drawn(edges_svg(found, ["x"] * 200, "dark"))
    assert words == [str(25 * i) for i in range(8)]
