"""Attention maps as small images: all heads as thumbnails, one head window by window.

A picture is bytes, one a cell: 0 where no query can look, 1 to 255 for weights from 1e-5 (and less)
to 1 on a logarithmic scale. The page sends these bytes and nothing else of the size of a matrix.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Literal

import numpy as np
from jaxtyping import Float, UInt8

from ..models.errors import MnemoscopeError
from ..models.hooked import HookedModel
from ..models.pooled_maps import PooledMap, bin_edges
from ..models.types import HeadId
from ..probes.retrieval_readings import SINK
from .answers import token_label
from .background import Tell, silent
from .needle_trial import Mode, NeedleTrial

Pool = Literal["peak", "mass"]
POOLS: tuple[Pool, ...] = ("peak", "mass")

THUMBNAIL, SMALLER = 64, 48
"""Bins on each side of a thumbnail; fewer where there are more than `MANY` heads, each of which
has a few dozen pixels on a screen."""
MANY = 512
WINDOW = 256
"""Bins on each side of a window, at the most."""
GAP = 2
SHOWN = 40
"""Letters of a bin's text."""
DECADES = 5


@dataclass(frozen=True)
class Window:
    """Queries `q0 <= i < q1` and keys `k0 <= i < k1` of a map."""

    q0: int
    q1: int
    k0: int
    k1: int

    def within(self, tokens: int) -> Window:
        """The part of the window that lies in a prompt; the whole prompt where none does."""
        q0, q1 = max(0, self.q0), min(self.q1, tokens)
        k0, k1 = max(0, self.k0), min(self.k1, tokens)
        return Window(q0 if q0 < q1 else 0, q1 if q0 < q1 else tokens, *_or(k0, k1, tokens))


@dataclass(frozen=True, eq=False)
class Atlas:
    """Pooled maps of all heads, `[layer, head, query_bin, key_bin]`, float16; the first bin of
    keys is the sink. `sink` is the mean share of all queries' attention on it, `[layer, head]`."""

    query_edges: tuple[int, ...]
    key_edges: tuple[int, ...]
    peak: Float[np.ndarray, "layer head query_bin key_bin"]
    mass: Float[np.ndarray, "layer head query_bin key_bin"]
    sink: Float[np.ndarray, "layer head"]


@dataclass(frozen=True, eq=False)
class WindowMap:
    """One head's map in a window, and what stands in each bin, cut short. `span` is how many keys
    a query sees at the most, its own and those before it; None without such a limit."""

    query_edges: tuple[int, ...]
    key_edges: tuple[int, ...]
    peak: Float[np.ndarray, "query_bin key_bin"]
    mass: Float[np.ndarray, "query_bin key_bin"]
    query_text: list[str]
    key_text: list[str]
    span: int | None


@dataclass(frozen=True)
class Sheet:
    """How thumbnails stand on their sheet: `blocks` side by side, each of `rows` layers."""

    layers: int
    heads: int
    blocks: int
    rows: int
    step_x: int
    step_y: int
    block_gap: int = 28

    @property
    def size(self) -> tuple[int, int]:
        """Height and width in pixels."""
        width = self.blocks * self.heads * self.step_x + (self.blocks - 1) * self.block_gap
        return self.rows * self.step_y, width

    def place(self, head: HeadId) -> tuple[int, int]:
        """Top and left of a head's thumbnail."""
        block, row = divmod(head.layer, self.rows)
        left = block * (self.heads * self.step_x + self.block_gap) + head.head * self.step_x
        return row * self.step_y, left


def atlas(found: NeedleTrial, mode: Mode, tell: Tell = silent) -> Atlas:
    """Pool the maps of all heads, layer by layer; `tell` hears how far it is, and may end it."""
    tokens = len(found.followed(mode).asked.ids)
    heads = sum(scores.q.shape[1] for scores in found.held.values())
    edges = bin_edges(0, tokens, SMALLER if heads > MANY else THUMBNAIL, borders(found))
    maps = []
    for layer, scores in enumerate(found.layer_scores(mode)):
        tell(layer / len(found.held), f"layer {layer} of {len(found.held)}")
        maps.append(_numpy(scores.pooled(edges, edges)))
    peak, mass = (np.stack([one[i] for one in maps]) for i in (0, 1))
    sinks = sum(edge <= SINK for edge in edges[1:])  # SINK is an edge: `borders` holds it
    widths = np.diff(edges) / tokens
    shares = np.nansum(mass[..., :sinks].astype(np.float32), axis=-1)
    return Atlas(edges, edges, peak, mass, (shares * widths).sum(-1))


def borders(found: NeedleTrial) -> tuple[int, ...]:
    """Where edges of bins must lie: the sink's end and the borders of all spans."""
    return (SINK, *(place for span in found.spans.values() for place in span))


def window_map(
    model: HookedModel, found: NeedleTrial, mode: Mode, head: HeadId, window: Window, *, sink: bool
) -> WindowMap:
    """One head's map in a window; without the `sink` the keys begin behind it."""
    scores, snap = found.head_scores(mode, head), borders(found)
    inside = window.within(len(scores))
    first = inside.k0 if sink else min(max(inside.k0, SINK), inside.k1 - 1)
    queries = bin_edges(inside.q0, inside.q1, WINDOW, snap)
    keys = bin_edges(first, inside.k1, WINDOW, snap)
    maps = scores.pooled(queries, keys)
    pieces = [token_label(piece) for piece in model.pieces(found.followed(mode).asked.ids)]
    peak, mass = (map[0].cpu().numpy() for map in (maps.peak, maps.mass))
    texts = _texts(pieces, queries), _texts(pieces, keys)
    return WindowMap(queries, keys, peak, mass, *texts, scores.options.get("sliding_window"))


def levels(weights: Float[np.ndarray, "*cells"]) -> UInt8[np.ndarray, "*cells"]:
    """Weights as bytes: 0 for NaN, 1 for 1e-5 and below, 255 for 1, logarithmic between."""
    with np.errstate(divide="ignore", invalid="ignore"):
        place = (np.log10(weights.astype(np.float32)) + DECADES) / DECADES
    shown = 1 + np.round(254 * np.clip(place, 0, 1))
    return np.where(np.isnan(weights), 0, shown).astype(np.uint8)


def sheet_of(layers: int, heads: int, rows: int, columns: int) -> Sheet:
    """Blocks of layers side by side, so that the sheet is about as wide as it is high."""
    blocks = max(1, round((layers / heads / 0.6) ** 0.5))
    return Sheet(layers, heads, blocks, -(-layers // blocks), columns + GAP, rows + GAP)


def atlas_picture(
    shown: Atlas, pool: Pool, *, sink: bool
) -> tuple[Sheet, UInt8[np.ndarray, "y x"]]:
    """All thumbnails on one sheet; without the `sink` its bins of keys are left out."""
    sinks = 0 if sink else sum(edge <= SINK for edge in shown.key_edges[1:])
    cells = levels((shown.peak if pool == "peak" else shown.mass)[..., sinks:])
    layers, heads, rows, columns = cells.shape
    sheet = sheet_of(layers, heads, rows, columns)
    picture = np.zeros(sheet.size, np.uint8)
    for head in (HeadId(layer, h) for layer in range(layers) for h in range(heads)):
        top, left = sheet.place(head)
        picture[top : top + rows, left : left + columns] = cells[head.layer, head.head]
    return sheet, picture


def packed(picture: UInt8[np.ndarray, "y x"], header: Mapping[str, Any]) -> bytes:
    """Length of the header (four bytes, little-endian), the header as JSON, then the picture."""
    height, width = picture.shape
    text = json.dumps({**header, "height": height, "width": width}).encode()
    return struct.pack("<I", len(text)) + text + np.ascontiguousarray(picture).tobytes()


def unpacked(data: bytes) -> tuple[dict[str, Any], UInt8[np.ndarray, "y x"]]:
    """The inverse of `packed`. Raises `MnemoscopeError` for bytes that do not fit their header."""
    (length,) = struct.unpack_from("<I", data)
    header = json.loads(data[4 : 4 + length])
    body = np.frombuffer(data, np.uint8, offset=4 + length)
    if body.size != header["height"] * header["width"]:
        raise MnemoscopeError("the picture's bytes do not fit its header: make it again.")
    return header, body.reshape(header["height"], header["width"])


def _numpy(maps: PooledMap) -> tuple[np.ndarray, np.ndarray]:
    peak, mass = (map.half().cpu().numpy() for map in (maps.peak, maps.mass))
    return peak, mass


def _texts(pieces: Sequence[str], edges: Sequence[int]) -> list[str]:
    whole = ("".join(pieces[a:b]).replace("␣", " ").strip() for a, b in pairwise(edges))
    return [text if len(text) <= SHOWN else f"{text[: SHOWN - 1]}…" for text in whole]


def _or(first: int, stop: int, tokens: int) -> tuple[int, int]:
    return (first, stop) if first < stop else (0, tokens)
