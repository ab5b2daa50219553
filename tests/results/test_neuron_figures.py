"""Figures of neuron sets: the right numbers in the right cells, readable at every scale."""

import numpy as np
import pytest
from mnemoscope.results.errors import FigureError
from mnemoscope.results.neuron_figures import layer_histogram_figure, matrix_figure

LABELS = {"title": "t", "row_label": "ablated", "column_label": "asked", "axis_label": "drop"}


def matrix(values, rows=("a", "b"), columns=("x", "y"), **more):
    return matrix_figure(np.array(values), rows, columns, **LABELS, **more)


def test_a_layer_histogram_has_a_row_a_relation_and_a_column_a_layer():
    counts = np.array([[3, 0, 1], [0, 4, 0]])
    figure = layer_histogram_figure(counts, ["capital", "currency"], title="units")
    (heat,) = figure.data
    np.testing.assert_array_equal(heat.z, counts)
    assert (list(heat.y), list(heat.x)) == (["capital", "currency"], ["0", "1", "2"])
    assert heat.zmin == 0
    assert figure.layout.yaxis.autorange == "reversed"  # the first relation on top


def test_counts_that_do_not_fit_the_relations_are_refused():
    with pytest.raises(FigureError, match="2 rows of counts do not fit 1 relations"):
        layer_histogram_figure(np.zeros((2, 3)), ["capital"], title="")


def test_a_matrix_writes_its_numbers_into_the_cells_and_marks_some():
    figure = matrix([[1.25, -0.5], [np.nan, 0.0]], marked=np.array([[1, 0], [0, 1]], dtype=bool))
    (heat,) = figure.data
    assert [list(row) for row in heat.text] == [["1.25*", "-0.50"], ["", "0.00*"]]
    assert (list(heat.y), list(heat.x)) == (["a", "b"], ["x", "y"])
    assert figure.layout.yaxis.title.text == "ablated"
    assert figure.layout.xaxis.title.text == "asked"


@pytest.mark.parametrize(
    ("values", "text"),
    [
        ([[100.0, 3.14159], [-1e-9, 25.0]], ["100", "3", "0", "25"]),
        ([[12.34, -0.01], [1.0, 2.0]], ["12.3", "0.0", "1.0", "2.0"]),
        ([[0.0321, 1e-7], [0.01, -0.002]], ["0.0321", "0.0000", "0.0100", "-0.0020"]),
        ([[0.0, 0.0], [0.0, 0.0]], ["0.00"] * 4),
    ],
)
def test_cells_have_as_many_digits_as_the_scale_needs_and_no_powers_of_ten(values, text):
    (heat,) = matrix(values).data
    assert [cell for row in heat.text for cell in row] == text


def test_a_centred_matrix_has_zero_in_the_middle_of_its_colours():
    (heat,) = matrix([[-6.0, 2.0], [1.0, np.nan]], centred=True).data
    assert (heat.zmin, heat.zmid, heat.zmax) == (-6, 0, 6)
    (plain,) = matrix([[1.0, 2.0], [3.0, 4.0]]).data
    assert plain.zmin == 0


def test_matrices_that_are_all_zero_or_missing_still_draw():
    for values in (np.zeros((2, 2)), np.full((2, 2), np.nan)):
        (heat,) = matrix(values, centred=True).data
        assert (heat.zmin, heat.zmax) == (-1, 1)


def test_a_matrix_of_another_shape_than_its_names_is_refused():
    with pytest.raises(FigureError, match=r"\(2, 2\) does not fit 3 by 2"):
        matrix([[1, 2], [3, 4]], rows=("a", "b", "c"))
