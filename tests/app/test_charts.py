"""Charts are checked as specifications: what is encoded, where zero is, what is faded."""

from __future__ import annotations

import polars
import pytest
from mnemoscope.app.charts import before_after_chart, next_token_chart, pattern_chart
from mnemoscope.app.head_grid import TESTED, grid_chart
from mnemoscope.models.types import HeadId

FRAME = polars.DataFrame(
    {
        "layer": [0, 0, 1, 1],
        "head": [0, 1, 0, 1],
        "score": [0.5, -2.0, 0.0, 1.0],
        "low": [0.4, -3.0, -1.0, 0.9],
        "high": [0.6, -1.0, 1.0, 1.1],
        "q": [0.01, 0.05, 0.9, None],
    }
)
UNTESTED = FRAME.with_columns(polars.lit(None).cast(polars.Float64).alias("q"))


def rows_of(chart) -> list[dict]:
    (rows,) = chart.to_dict()["datasets"].values()
    return rows


def test_colours_are_centred_on_zero_whatever_the_scores() -> None:
    scale = grid_chart(FRAME, title="t").to_dict()["encoding"]["color"]["scale"]
    assert scale["domain"] == [-2.0, -1.0, 0.0, 1.0, 2.0]
    nothing = FRAME.with_columns(polars.lit(0.0).alias("score"))
    flat = grid_chart(nothing, title="t").to_dict()["encoding"]["color"]["scale"]
    assert flat["domain"][0] == -1.0


def test_cells_that_failed_their_test_are_faded_and_the_legend_says_so() -> None:
    chart = grid_chart(FRAME, title="t")
    opacity = chart.to_dict()["encoding"]["opacity"]
    assert opacity["scale"]["domain"] == list(TESTED)
    assert opacity["scale"]["range"][1] < 0.5
    assert [row["tested"] for row in rows_of(chart)] == [TESTED[0], TESTED[0], TESTED[1], TESTED[1]]
    assert "opacity" not in grid_chart(UNTESTED, title="t").to_dict()["encoding"]


def test_a_click_returns_layer_and_head_and_shift_adds() -> None:
    spec = grid_chart(FRAME, title="t", start=[HeadId(1, 0)]).to_dict()
    (param,) = spec["params"]
    assert param["select"]["fields"] == ["layer", "head"]
    assert param["select"]["toggle"] == "event.shiftKey"
    assert param["value"] == [{"layer": 1, "head": 0}]


def test_every_cell_says_its_head_and_score_to_a_screen_reader() -> None:
    assert rows_of(grid_chart(FRAME, title="t"))[1]["spoken"] == "L0.H1 score -2.0"


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_both_themes_have_colours(theme: str) -> None:
    grid_chart(FRAME, title="t", theme=theme).to_dict()
    table = polars.DataFrame(
        {
            "query": [0],
            "key": [0],
            "query_token": ["0 <b>"],
            "key_token": ["0 <b>"],
            "weight": [1.0],
        }
    )
    assert rows_of(pattern_chart(table, theme))[0]["key_token"] == "0 <b>"


def test_the_answers_are_marked_among_the_next_tokens() -> None:
    table = polars.DataFrame(
        {"rank": [1, 2], "token": ["a", "a"], "id": [7, 8], "probability": [0.6, 0.4]}
    )
    rows = rows_of(next_token_chart(table, {"memory": 8}))
    assert [row["answer"] for row in rows] == ["other", "memory answer"]
    assert rows[0]["label"] != rows[1]["label"]


def test_the_range_of_random_heads_spans_their_extremes() -> None:
    spec = before_after_chart(
        {"memory": 0.9}, {"memory": 0.1}, {"memory": (0.5, 0.7, 0.6)}
    ).to_dict()
    (span,) = spec["layer"][1]["data"]["values"]
    assert (span["low"], span["high"]) == (0.5, 0.7)
