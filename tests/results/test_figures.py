"""Figures and reports: the right numbers in them, nothing asked of the network."""

import re

import numpy as np
import polars
import pytest
from mnemoscope.models.types import HeadId
from mnemoscope.results.errors import FigureError
from mnemoscope.results.figures import (
    can_write_png,
    dose_figure,
    figure_png,
    head_grid_figure,
    rates_figure,
)
from mnemoscope.results.report import figure_html, render_report

SCORES = np.array([[0.1, -0.5, np.nan], [0.2, 0.0, 0.3]])
RATES = polars.DataFrame(
    {
        "condition": ["before", "before", "after", "after"],
        "answer": ["memory", "context", "memory", "context"],
        "rate": [0.2, 0.7, 0.5, 0.4],
        "low": [0.1, 0.6, 0.4, 0.35],
        "high": [0.4, 0.8, 0.6, 0.5],
    }
)
EVIL = "</script><script>alert(1)</script>"


def grid(title="heads"):
    return head_grid_figure(
        SCORES,
        title=title,
        axis_label="change in memory logit; negative: helps memory",
        selected=[HeadId(1, 2)],
        significant=np.array([[False, True, False], [False, False, True]]),
    )


def test_the_head_grid_is_centred_on_zero_with_layer_0_on_top():
    figure = grid()
    heat, dots, frames = figure.data
    np.testing.assert_array_equal(heat.z, SCORES)
    assert (heat.zmin, heat.zmax) == (-0.5, 0.5)
    assert "helps memory" in heat.colorbar.title.text
    assert figure.layout.yaxis.range[0] > figure.layout.yaxis.range[1]
    assert list(zip(dots.y, dots.x, strict=True)) == [(0, 1), (1, 2)]
    assert list(zip(frames.y, frames.x, strict=True)) == [(1, 2)]


def test_scores_that_are_all_zero_or_missing_still_draw():
    for scores in (np.zeros((2, 2)), np.full((2, 2), np.nan)):
        assert head_grid_figure(scores, title="", axis_label="").data[0].zmax == 1.0


def test_a_grid_of_the_wrong_shape_is_refused():
    with pytest.raises(FigureError, match=r"\[layers, heads\]"):
        head_grid_figure(np.zeros(3), title="", axis_label="")
    with pytest.raises(FigureError, match="significant"):
        head_grid_figure(SCORES, title="", axis_label="", significant=np.zeros((3, 2), dtype=bool))


def test_rates_are_bars_with_their_intervals():
    memory, context = rates_figure(RATES, title="rates").data
    assert (memory.name, list(memory.x), list(memory.y)) == (
        "memory",
        ["before", "after"],
        [0.2, 0.5],
    )
    np.testing.assert_allclose(memory.error_y.array, [0.2, 0.1])
    np.testing.assert_allclose(memory.error_y.arrayminus, [0.1, 0.1])
    assert context.marker.color != memory.marker.color
    with pytest.raises(FigureError, match="no column low"):
        rates_figure(RATES.drop("low"), title="")


def test_doses_are_sorted_lines():
    table = polars.DataFrame(
        {"series": ["top"] * 3, "dose": [10, 1, 3], "value": [0.9, 0.1, 0.3]}
    ).with_columns(low=polars.col("value") - 0.05, high=polars.col("value") + 0.1)
    (line,) = dose_figure(table, title="", dose_label="heads", axis_label="rate").data
    assert (list(line.x), list(line.y)) == ([1, 3, 10], [0.1, 0.3, 0.9])
    np.testing.assert_allclose(line.error_y.array, 0.1)


def report(provenance, **changes):
    return render_report(
        **{
            "title": f"Memory heads {EVIL}",
            "claim": "Ten heads carry <b>memory</b>.",
            "tables": {"rates": RATES.with_columns(note=polars.lit(EVIL))},
            "figures": {"grid": grid(EVIL), "rates": rates_figure(RATES, title="rates")},
            "provenance": provenance,
            "notes": ["not better than random"],
            **changes,
        }
    )


def test_the_report_holds_everything_once_and_escapes_it(provenance):
    html = report(provenance)
    assert "<script>alert" not in html
    assert "&lt;b&gt;memory&lt;/b&gt;" in html
    assert "END total effect" in html
    assert "not better than random" in html
    assert html.count("plotly.js v") == report(provenance, figures={"g": grid()}).count(
        "plotly.js v"
    )


def test_the_report_loads_nothing_from_elsewhere(provenance):
    for html in (report(provenance), figure_html(grid(), title=EVIL)):
        without_plotly = re.sub(r"<script>/\*\*.*?</script>", "", html, flags=re.DOTALL)
        assert len(without_plotly) < 100_000
        assert not re.search(r"""(src|href)\s*=\s*["'](https?:)?//""", without_plotly)
        assert "default-src 'none'" in without_plotly.replace("&#39;", "'")


def test_long_tables_say_what_they_leave_out(provenance):
    html = report(provenance, tables={"t": polars.DataFrame({"i": range(500)})}, figures={})
    assert re.search(r"first\s+200 rows of 500", html)
    assert html.count('<td class="number">') == 200
    assert len(html) < 100_000  # no figure, no Plotly


@pytest.mark.browser
def test_the_report_draws_with_the_network_blocked(tmp_path, provenance):
    playwright = pytest.importorskip("playwright.sync_api")
    (tmp_path / "report.html").write_text(report(provenance), "utf-8")
    asked, trouble = [], []
    with playwright.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=chromium(), args=["--no-sandbox"])
        page = browser.new_context(offline=True).new_page()
        page.on("request", lambda request: asked.append(request.url))
        page.on("pageerror", lambda error: trouble.append(str(error)))
        page.on("console", lambda message: trouble.append(message.text))
        page.on("dialog", lambda dialog: (trouble.append(dialog.message), dialog.dismiss()))
        page.goto((tmp_path / "report.html").as_uri())
        page.wait_for_function("document.querySelectorAll('.js-plotly-plot .main-svg').length >= 2")
        browser.close()
    assert [url for url in asked if not url.startswith(("file:", "data:", "blob:"))] == []
    assert trouble == []


@pytest.mark.browser
def test_png_where_kaleido_and_a_browser_are_there():
    if not can_write_png():
        pytest.skip("no kaleido or no Chromium")
    assert figure_png(grid(), scale=1).startswith(b"\x89PNG")


def test_png_without_a_browser_is_a_clear_error(monkeypatch):
    monkeypatch.setattr("shutil.which", lambda name: None)
    with pytest.raises(FigureError, match="save HTML"):
        figure_png(grid())


def chromium():
    import shutil

    path = shutil.which("chromium") or shutil.which("google-chrome")
    if path is None:
        pytest.skip("no Chromium")
    return path
