"""Files of charts and tables, and the view that a page keeps to be saved as one file."""

from __future__ import annotations

import io
import socket
from typing import Any

import altair as alt
import numpy as np
import polars
import pytest
from mnemoscope.app import chart_files
from mnemoscope.app.charts import before_after_chart, pattern_chart
from mnemoscope.app.exports import plain_text
from mnemoscope.app.head_grid import grid_chart
from mnemoscope.app.plain import as_text
from mnemoscope.models.types import HeadId
from mnemoscope.results.bundle import Marked, Picture, Table, Words, render_bundle
from page_at import page_at
from PIL import Image
from planted_ground import CLAIM, CONTEXT, PROMPT, STORED
from streamlit.testing.v1 import AppTest

HOSTILE = "</text><script>alert(1)</script>"
drawn = pytest.mark.skipif(not chart_files.can_draw(), reason="vl-convert is not installed")


def grid(size: int) -> Any:
    rows = [
        {"layer": i, "head": j, "score": (i * j % 7 - 3) / 3, "low": 0.0, "high": 1.0, "q": 0.01}
        for i in range(size)
        for j in range(size)
    ]
    return grid_chart(polars.DataFrame(rows), title="memory", start=(HeadId(1, 2),))


@pytest.fixture
def no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise AssertionError("a drawing asked for the network")

    monkeypatch.setattr(socket.socket, "connect", refuse)


@drawn
@pytest.mark.usefixtures("no_network")
def test_a_chart_becomes_svg_and_png_with_its_words_as_text() -> None:
    rows = polars.DataFrame({"token": ["Rome", HOSTILE], "p": [0.7, 0.3]})
    chart = alt.Chart(rows).mark_bar().encode(x="p:Q", y="token:N")
    svg = chart_files.svg_of(chart)
    assert svg.startswith("<svg")
    assert "Rome" in svg
    assert "<script" not in svg
    picture = Image.open(io.BytesIO(chart_files.png_of(chart)))
    assert picture.width > 2 * chart_files.WIDTH


@drawn
def test_a_drawing_has_the_ground_of_the_page() -> None:
    for theme, ground in (("light", (255, 255, 255)), ("dark", (14, 17, 23))):
        picture = Image.open(io.BytesIO(chart_files.png_of(grid(3), theme))).convert("RGB")
        assert picture.getpixel((2, 2)) == ground


@drawn
def test_charts_of_many_rows_are_drawn() -> None:
    tokens = 80  # more cells than the 5,000 rows that Altair takes by itself
    rows = [
        {"query": q, "key": k, "query_token": f"{q}", "key_token": f"{k}", "weight": 0.5}
        for q in range(tokens)
        for k in range(tokens)
    ]
    svg = chart_files.svg_of(pattern_chart(polars.DataFrame(rows)))
    assert svg.count('fill="#') > 5_000 or svg.count("fill=") > 5_000


def test_the_table_of_a_chart_holds_the_rows_of_all_its_layers() -> None:
    chart = before_after_chart({"memory": 0.8}, {"memory": 0.2}, {"memory": [0.7, 0.9]})
    rows = chart_files.rows_of(chart)
    assert rows["probability"].to_list() == [0.8, 0.2, None]
    assert rows["high"].to_list() == [None, None, 0.9]
    kept = polars.read_parquet(io.BytesIO(chart_files.parquet_bytes(rows)))
    assert kept.equals(rows)
    assert polars.read_csv(chart_files.csv_bytes(rows)).height == 3


def test_a_chart_is_not_changed_by_being_saved() -> None:
    chart = grid(4)
    before = chart.to_dict()
    chart_files.spec_of(chart, "dark")
    assert chart.to_dict() == before


def test_a_map_becomes_a_picture_in_the_colours_of_the_canvas() -> None:
    levels = np.array([[0, 255], [128, 2]], np.uint8)
    picture = Image.open(io.BytesIO(chart_files.map_png(levels, "light", enlarge=3)))
    seen = np.asarray(picture.convert("RGB"))[2:-2:3, 2:-2:3]
    assert seen[0, 0].tolist() == [0xDC, 0xDE, 0xE3]  # what no query sees
    assert seen[0, 1].tolist() == [0x08, 0x30, 0x6B]  # weight 1
    framed = chart_files.map_png(levels, "light", frame=(0, 0, 2, 2))
    colours = np.asarray(Image.open(io.BytesIO(framed)).convert("RGB")).reshape(-1, 3)
    assert [0xD5, 0x5E, 0x00] in colours.tolist()


def test_the_maps_of_1024_heads_fit_into_a_saved_view() -> None:
    size = 32 * 66  # thumbnails of 64 cells
    noise = np.random.default_rng(0).integers(0, 256, (size, size)).astype(np.uint8)
    whole = chart_files.map_png(noise, "light", frame=(66, 132, 66, 66))
    small = chart_files.lighter(whole)
    assert len(small) <= 1_500_000 < len(whole)
    assert Image.open(io.BytesIO(small)).width >= size // 4
    assert chart_files.lighter(small) == small


@pytest.mark.parametrize("said", ["a *b* `c` **d**", "x_y [link](http://e.org) :red[no]", "\\*"])
def test_escaped_text_comes_back_as_it_was(said: str) -> None:
    assert plain_text(as_text(said)) == said


def test_marks_of_our_own_go() -> None:
    assert plain_text("**P** is :blue-badge[Ro\\*me] &nbsp; *so*, `run`") == "P is Ro*me   so, run"


@pytest.mark.usefixtures("settings")
def test_the_first_page_keeps_all_that_it_shows() -> None:
    app = page_at("explore", prompt=PROMPT, context=CONTEXT, layer="1", head="2")
    bundle = app.session_state["kept_view"].bundle()
    assert bundle.title == "Memory or context?"
    assert bundle.question["prompt"] == PROMPT
    assert bundle.question["memory answer"] == STORED
    assert bundle.settings["layer"] == "1"
    assert bundle.provenance.weights_sha256
    words = [part.text for part in bundle.parts if isinstance(part, Words)]
    for code in app.code:
        if code.value.split()[0] in (STORED, CLAIM):
            assert code.value in words
    for metric in app.metric:
        assert metric.value in words
    for header in app.header:
        assert header.value in words or header.value in ("Head set", "As a job")  # forms
    pictures = [
        part for part in bundle.parts if isinstance(part, Picture) and part.rows is not None
    ]
    charts = app.get("vega_lite_chart") + app.get("arrow_vega_lite_chart")
    assert len(pictures) == len(charts) >= 4
    assert len({part.name for part in pictures}) == len(pictures)
    assert all(part.alt and part.rows is not None and part.rows.height for part in pictures)
    assert len(render_bundle(bundle).encode()) < 5_000_000


@pytest.mark.usefixtures("settings")
def test_every_chart_and_table_has_its_menu_of_files() -> None:
    app = page_at("explore", prompt=PROMPT, context=CONTEXT)
    bundle = app.session_state["kept_view"].bundle()
    pictures = [part for part in bundle.parts if isinstance(part, Picture)]
    charts = [part for part in pictures if part.rows is not None]
    tables = [part for part in bundle.parts if isinstance(part, Table)]
    labels = [button.label for button in app.get("download_button")]
    assert labels.count("CSV") == labels.count("Parquet") == len(charts) + len(tables) >= 4
    if chart_files.can_draw():
        assert labels.count("PNG") == len(charts)
        assert labels.count("SVG") == len(pictures) == len(charts) + 1, "the arcs are shapes alone"
    assert labels.count("Save this view (HTML)") == 1


@pytest.mark.usefixtures("settings")
def test_the_strongest_edges_are_part_of_the_saved_view() -> None:
    app = page_at("explore", prompt=PROMPT, context=CONTEXT, layer="1", head="5")
    parts = app.session_state["kept_view"].bundle().parts
    (arcs,) = [part for part in parts if isinstance(part, Picture) and part.name == "arcs of L1.H5"]
    assert arcs.svg.count("<path") > 10
    (text,) = [part for part in parts if isinstance(part, Marked) and "edges of L1.H5" in part.name]
    assert [token for token, kind in text.pieces if kind] == [CLAIM]


@pytest.mark.usefixtures("settings")
def test_a_page_begins_its_view_anew_each_time() -> None:
    app = page_at("explore", prompt=PROMPT, context=CONTEXT)
    many = len(app.session_state["kept_view"].bundle().parts)
    app.run()
    assert len(app.session_state["kept_view"].bundle().parts) == many
    app.switch_page("views/about.py").run()
    assert app.session_state["kept_view"].bundle().parts == []
    assert not [b for b in app.get("download_button") if b.label.startswith("Save this view")]


def sections() -> None:
    from mnemoscope.app import exports

    exports.begin("Two cards")
    exports.reserve("first", "second")
    with exports.section("second"):
        exports.caption("said second")
    with exports.section("first"):
        exports.caption("said first")
    with exports.section("second"):  # the fragment runs again
        exports.caption("said again")
    exports.caption("the end")


def test_a_fragment_that_runs_again_replaces_what_it_showed() -> None:
    app = AppTest.from_function(sections).run()
    parts = app.session_state["kept_view"].bundle().parts
    assert [part.text for part in parts] == ["said first", "said again", "the end"]
