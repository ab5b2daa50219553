"""Files of what a canvas shows: the numbers as tables, the picture as SVG with its axes in words.

The cells of a map stand in its SVG as one picture of pixels: ten thousands of them as shapes would
be megabytes that few programs open. Axes and words are shapes and text.
"""

from __future__ import annotations

import base64
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from html import escape
from itertools import pairwise

import numpy as np
import polars

from .atlas_canvas import INK
from .atlas_maps import Atlas, Sheet, WindowMap
from .charts import OTHER
from .edges import Edges

GROUND = {"light": "#ffffff", "dark": "#0e1117"}
READ = {"light": "#0072b2", "dark": "#56b4e9"}
TICKS = 8
EDGE = 2
"""Pixels round the cells in a `map_png`."""
ARCS = 1_000
"""Arcs of a strip, the strongest ones; files of the list hold all edges."""
_LEFT, _TOP, _REST = 60, 46, 10
_WIDTH, _HIGHEST, _LETTERS = 960, 240, 12


@dataclass(frozen=True)
class Axis:
    """What stands along one side of a picture: its name, and labels by their place in pixels."""

    name: str
    labels: tuple[tuple[float, str], ...]


def atlas_table(shown: Atlas) -> polars.DataFrame:
    """A row for each cell of each head that some query sees.

    `layer`, `head`, the first and last position of its queries and keys (`query`, `query_last`,
    `key`, `key_last`), `peak` and `mass`: 28 bytes a row.
    """
    layers, heads, *_ = shown.peak.shape
    layer, head = (part.ravel() for part in np.indices((layers, heads), np.uint16))
    cells = _cells(shown.query_edges, shown.key_edges)
    table = polars.DataFrame(
        {
            "layer": np.repeat(layer, len(cells["query"])),
            "head": np.repeat(head, len(cells["query"])),
            **{name: np.tile(places, len(layer)) for name, places in cells.items()},
            "peak": shown.peak.astype(np.float32).ravel(),
            "mass": shown.mass.astype(np.float32).ravel(),
        }
    )
    return table.filter(polars.col("peak").is_not_nan())


def window_table(maps: WindowMap) -> polars.DataFrame:
    """A row for each cell that some query sees: the columns of `atlas_table` behind the head."""
    cells = _cells(maps.query_edges, maps.key_edges)
    table = polars.DataFrame({**cells, "peak": maps.peak.ravel(), "mass": maps.mass.ravel()})
    return table.filter(polars.col("peak").is_not_nan())


def window_axes(maps: WindowMap, enlarge: int) -> tuple[Axis, Axis]:
    """Keys across and queries down: some positions where their bins begin."""
    return tuple(  # type: ignore[return-value]
        Axis(name, tuple((i * enlarge, str(edges[i])) for i in _some(len(edges) - 1)))
        for name, edges in (("key", maps.key_edges), ("query", maps.query_edges))
    )


def atlas_axes(sheet: Sheet) -> tuple[Axis, Axis]:
    """Heads across, in each block, and layers down, those of the first block."""
    block = sheet.heads * sheet.step_x + sheet.block_gap
    heads = [
        (b * block + (head + 0.5) * sheet.step_x, str(head))
        for b in range(sheet.blocks)
        for head in _some(sheet.heads)
    ]
    layers = [((row + 0.5) * sheet.step_y, str(row)) for row in _some(sheet.rows)]
    name = "layer" if sheet.blocks == 1 else f"layer (of the next block {sheet.rows} more)"
    return Axis("head", tuple(heads)), Axis(name, tuple(layers))


def map_svg(png: bytes, size: tuple[int, int], across: Axis, down: Axis, theme: str) -> str:
    """A picture of `chart_files.map_png` for cells of this size (height, width), with its axes."""
    height, width = size
    source = f"data:image/png;base64,{base64.b64encode(png).decode()}"
    names = [
        _text(_LEFT + width / 2, 16, across.name, "middle"),
        _text(16, _TOP + height / 2, down.name, "middle", turned=True),
        *(_text(_LEFT + at, _TOP - 8, label, "middle") for at, label in across.labels),
        *(_text(_LEFT - 8, _TOP + at + 4, label, "end") for at, label in down.labels),
    ]
    image = (
        f'<image x="{_LEFT - EDGE}" y="{_TOP - EDGE}" width="{width + 2 * EDGE}" '
        f'height="{height + 2 * EDGE}" href="{source}" '
        'style="image-rendering:pixelated"/>'
    )
    return _svg(_LEFT + width + _REST, _TOP + height + _REST, [image, *names], theme)


def edges_svg(found: Edges, tokens: Sequence[str], theme: str) -> str:
    """The strongest edges as arcs from the key to the query; those of the last token in blue.

    The width of an arc goes by the square root of its weight. Tokens are written while they fit,
    some positions where they do not.
    """
    count, end = len(tokens), len(tokens) - 1
    step = (_WIDTH - 2 * _REST) / count
    query, place = np.nonzero(found.keys >= 0)
    weight = found.weights[query, place]
    order = np.argsort(-weight, kind="stable")[:ARCS][::-1]
    arcs = [
        _arc(
            _REST + (found.keys[query[i], place[i]] + 0.5) * step,
            _REST + (query[i] + 0.5) * step,
            float(weight[i]),
            READ[theme] if query[i] == end else OTHER,
        )
        for i in sorted(order, key=lambda i: query[i] == end)
    ]
    if step >= _LETTERS:
        below, words = (
            110,
            [
                _text(_REST + (i + 0.5) * step + 4, _HIGHEST + 8, token, "end", turned=True)
                for i, token in enumerate(tokens)
            ],
        )
    else:
        below, words = (
            24,
            [
                _text(_REST + (i + 0.5) * step, _HIGHEST + 16, str(i), "middle")
                for i in _some(count)
            ],
        )
    return _svg(_WIDTH, _HIGHEST + below, [*arcs, *words], theme)


def _arc(left: float, right: float, weight: float, colour: str) -> str:
    top = _HIGHEST - min(_HIGHEST - 10, 10 + (right - left) / 2)
    size = max(0.05, weight**0.5)
    return (
        f'<path d="M{left:.1f} {_HIGHEST}C{left:.1f} {top:.1f} {right:.1f} {top:.1f} {right:.1f} '
        f'{_HIGHEST}" fill="none" stroke="{colour}" stroke-width="{2 * size:.2f}" '
        f'stroke-opacity="{size:.2f}"/>'
    )


def _text(x: float, y: float, words: str, anchor: str, *, turned: bool = False) -> str:
    turn = f' transform="rotate(-90 {x:.1f} {y:.1f})"' if turned else ""
    # XML has no place for what a byte of a token may spell: control characters, half a letter.
    shown = escape("".join(letter if letter.isprintable() else "□" for letter in words))
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}"{turn}>{shown}</text>'


def _svg(width: float, height: float, parts: Iterable[str], theme: str) -> str:
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{width:.0f}" height="{height:.0f}" '
        f'font-family="sans-serif" font-size="11" fill="{INK[theme]}">'
        f'<rect width="100%" height="100%" fill="{GROUND[theme]}"/>{"".join(parts)}</svg>'
    )


def _some(count: int) -> range:
    """Places of at most about `TICKS` labels."""
    return range(0, count, -(-count // TICKS))


def _cells(query_edges: Sequence[int], key_edges: Sequence[int]) -> dict[str, np.ndarray]:
    """First and last positions of each cell, row by row."""
    queries, keys = (
        np.array(list(pairwise(edges)), np.uint32) - [0, 1] for edges in (query_edges, key_edges)
    )
    row, column = (part.ravel() for part in np.indices((len(queries), len(keys))))
    places = {"query": queries[row], "key": keys[column]}
    return {
        name + end: found[:, i].astype(np.uint32)
        for name, found in places.items()
        for i, end in enumerate(("", "_last"))
    }
