"""Charts and tables as files: PNG and SVG drawn on this machine, CSV and parquet of the numbers.

An Altair chart is drawn by vl-convert, a renderer inside this process: no browser and no request.
"""

from __future__ import annotations

import importlib
import importlib.util
import io
import json
from collections.abc import Iterator
from typing import Any

import altair as alt
import numpy as np
import polars
from jaxtyping import UInt8
from PIL import Image

from ..models.errors import MnemoscopeError
from ..results.bundle import csv_of
from .charts import WEIGHT_COLOURS

WIDTH = 640
"""Pixels of a chart that takes the width of its place on the page."""
SCALE = 2.0
_PAGE = {"light": ("#ffffff", "#31333f", "#e3e5ea"), "dark": ("#0e1117", "#fafafa", "#3a3c45")}
"""Ground, ink and lines of the page's two themes."""
_NOTHING = {"light": "#dcdee3", "dark": "#3a3c45"}
"""Cells of a map that no query can see, as on the canvas."""
_FRAME = 1
"""The level that gives its place in a picture's palette to the frame's colour."""
_INNER = ("layer", "hconcat", "vconcat", "concat")


class ExportError(MnemoscopeError):
    """A file cannot be made here."""


def can_draw() -> bool:
    """Whether vl-convert is installed."""
    return importlib.util.find_spec("vl_convert") is not None


def svg_of(chart: Any, theme: str = "light") -> str:
    """The chart as SVG. Raises `ExportError` without vl-convert."""
    return str(_renderer().vegalite_to_svg(spec_of(chart, theme), allowed_base_urls=[]))


def png_of(chart: Any, theme: str = "light") -> bytes:
    """The chart as PNG, two pixels for one. Raises `ExportError` without vl-convert."""
    drawn = _renderer().vegalite_to_png(spec_of(chart, theme), scale=SCALE, allowed_base_urls=[])
    return bytes(drawn)


def spec_of(chart: Any, theme: str) -> dict[str, Any]:
    """The chart as Vega-Lite with its data inside, in the page's colours and at a fixed width.

    Data are put in by hand: Altair's own way goes through a switch of the whole process, which
    Streamlit turns while other sessions draw, and takes seconds for thousands of rows.
    """
    datasets: dict[str, Any] = {}
    spec: dict[str, Any] = _with_names(chart, datasets).to_dict(validate=False)
    spec["datasets"] = {**spec.get("datasets", {}), **datasets}
    joined = any(name in spec for name in _INNER[1:])
    if not joined and "width" not in spec:
        spec["width"] = WIDTH
    ground, ink, line = _PAGE[theme]
    axis = {"labelColor": ink, "titleColor": ink, "gridColor": line, "domainColor": line}
    axis |= {"tickColor": line, "titleFontWeight": "normal"}
    words = {"labelColor": ink, "titleColor": ink}
    spec["background"] = ground
    spec["padding"] = 12
    spec["config"] = {
        "font": "sans-serif",
        "axis": axis,
        "legend": words,
        "header": words,
        "title": {"color": ink},
        "view": {"stroke": None},
        "text": {"color": ink},
    }
    return spec


def rows_of(chart: Any) -> polars.DataFrame:
    """The data of a chart as one table; those of its layers stand below one another."""
    frames: list[polars.DataFrame] = []
    for frame in _frames(chart):
        if not any(frame is other or frame.equals(other) for other in frames):
            frames.append(frame)
    return polars.concat(frames, how="diagonal_relaxed") if frames else polars.DataFrame()


def csv_bytes(rows: polars.DataFrame) -> bytes:
    """The table as CSV."""
    return csv_of(rows).encode()


def parquet_bytes(rows: polars.DataFrame) -> bytes:
    """The table as parquet."""
    file = io.BytesIO()
    rows.write_parquet(file)
    return file.getvalue()


def map_png(
    levels: UInt8[np.ndarray, "y x"],
    theme: str,
    *,
    frame: tuple[int, int, int, int] | None = None,
    enlarge: int = 1,
) -> bytes:
    """A map of `atlas_maps.levels` in the colours of the page; `frame` is (top, left, height,
    width) of what is chosen, `enlarge` the pixels of a cell."""
    cells = np.where(levels == _FRAME, _FRAME + 1, levels)  # no eye tells these two apart
    cells = np.pad(cells.repeat(enlarge, 0).repeat(enlarge, 1), 2)
    if frame is not None:
        top, left, height, width = (value * enlarge for value in frame)
        area = cells[top : top + height + 4, left : left + width + 4]
        for edge in (area[:2], area[-2:], area[:, :2], area[:, -2:]):
            edge[:] = _FRAME
    picture = Image.fromarray(np.ascontiguousarray(cells, np.uint8))
    picture.putpalette(_palette(theme).tobytes())
    file = io.BytesIO()
    picture.save(file, "png", optimize=True)
    return file.getvalue()


def lighter(png: bytes, most: int = 1_500_000) -> bytes:
    """The picture, halved in size as often as it takes to be at most this many bytes."""
    while len(png) > most:
        small = Image.open(io.BytesIO(png)).convert("RGB").reduce(2).quantize(256)
        file = io.BytesIO()
        small.save(file, "png", optimize=True)
        png = file.getvalue()
    return png


def _palette(theme: str) -> UInt8[np.ndarray, "256 3"]:
    """The colours of the canvas: nothing, then the three stops with straight lines between."""
    stops = np.array([_rgb(colour) for colour in WEIGHT_COLOURS[theme]], np.float64)
    places = np.linspace(0, len(stops) - 1, 255)
    shades = [np.interp(places, range(len(stops)), stops[:, c]) for c in range(3)]
    colours = np.vstack([[_rgb(_NOTHING[theme])], np.stack(shades, 1)]).astype(np.uint8)
    colours[_FRAME] = _rgb("#d55e00")
    return colours


def _rgb(colour: str) -> list[int]:
    return [int(colour[i : i + 2], 16) for i in (1, 3, 5)]


def _renderer() -> Any:
    if not can_draw():
        raise ExportError("PNG and SVG need vl-convert: pip install vl-convert-python.")
    return importlib.import_module("vl_convert")


def _with_names(chart: Any, datasets: dict[str, Any]) -> Any:
    """A copy of the chart whose data have names; `datasets` takes the records of each."""
    copied = chart.copy(deep=False)
    frame = _frame(copied)
    if frame is not None:
        name = f"rows-{len(datasets)}"
        datasets[name] = json.loads(frame.write_json())
        copied.data = alt.NamedData(name=name)
    for place in _INNER:
        inner = _attribute(copied, place)
        if inner is not None:
            setattr(copied, place, [_with_names(one, datasets) for one in inner])
    return copied


def _frames(chart: Any) -> Iterator[polars.DataFrame]:
    frame = _frame(chart)
    if frame is not None:
        yield frame
    for name in _INNER:
        for one in _attribute(chart, name) or ():
            yield from _frames(one)


def _frame(chart: Any) -> polars.DataFrame | None:
    data = _attribute(chart, "data")
    if data is None:
        return None
    if isinstance(data, polars.DataFrame):
        return data
    values = _attribute(data, "values")
    if isinstance(values, list):
        return polars.DataFrame(values, infer_schema_length=None)
    return polars.from_pandas(data) if hasattr(data, "iloc") else None


def _attribute(owner: Any, name: str) -> Any:
    """An attribute of an Altair object, None where it is not set."""
    try:
        value = getattr(owner, name)
    except AttributeError:
        return None
    return None if value is alt.Undefined else value
