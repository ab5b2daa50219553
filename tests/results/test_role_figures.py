"""The figure draws what the table holds, and its words name the peak."""

from __future__ import annotations

import polars
import pytest
from mnemoscope.results.errors import FigureError
from mnemoscope.results.role_figures import CURVE_COLUMNS, role_curves_alt, role_curves_figure

LAYERS = 4


def curve(roles: str, values: list[float], stratum: str = "all") -> polars.DataFrame:
    flat = {name: [0.1 * i for i in range(1, LAYERS + 1)] for name in CURVE_COLUMNS[4:]}
    return polars.DataFrame(
        {
            **flat,
            "quantity": ["mrr"] * LAYERS,
            "roles": [roles] * LAYERS,
            "stratum": [stratum] * LAYERS,
            "layer": range(LAYERS),
            "value": values,
        }
    ).select(CURVE_COLUMNS)


@pytest.fixture
def table() -> polars.DataFrame:
    return polars.concat(
        [
            curve("S-P", [0.1, 0.4, 0.2, 0.0]),
            curve("S-P", [0.2, 0.3, 0.5, 0.1], "both ways"),
        ]
    )


def test_every_curve_stands_between_ceiling_and_floor(table: polars.DataFrame) -> None:
    figure = role_curves_figure(table, "mrr", title="roles", axis_label="MRR")
    names = [trace.name for trace in figure.data if trace.name]
    assert names == ["ceiling", "floor", "random initialised", "S-P", "S-P, both ways"]
    drawn = next(trace for trace in figure.data if trace.name == "S-P")
    assert list(drawn.y) == [0.1, 0.4, 0.2, 0.0]
    assert list(drawn.x) == [0, 1, 2, 3]


def test_what_was_not_measured_is_not_drawn(table: polars.DataFrame) -> None:
    bare = table.with_columns(
        [
            polars.lit(None, dtype=polars.Float64).alias(name)
            for name in CURVE_COLUMNS
            if name.startswith(("ceiling", "null"))
        ]
    )
    figure = role_curves_figure(bare, "mrr", title="roles", axis_label="MRR")
    names = [trace.name for trace in figure.data if trace.name]
    assert names == ["floor", "S-P", "S-P, both ways"]


def test_the_words_name_the_peak_and_what_stands_beside_it(table: polars.DataFrame) -> None:
    words = role_curves_alt(table, "mrr")
    assert (
        "mrr, S-P: highest 0.4 (0.2 to 0.2) at layer 1; ceiling 0.2, floor 0.2, null 0.2." in words
    )
    assert "S-P, both ways: highest 0.5" in words


def test_a_table_without_the_quantity_or_a_column_is_refused(table: polars.DataFrame) -> None:
    with pytest.raises(FigureError, match="choose one of mrr"):
        role_curves_figure(table, "cka", title="", axis_label="")
    with pytest.raises(FigureError, match="no column null"):
        role_curves_alt(table.drop("null"), "mrr")
