"""Pattern folders and tables: round trips, ties, thresholds, and files that are refused."""

from __future__ import annotations

import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays
from mnemoscope.results.attention_patterns import (
    CONFIG,
    TABLE,
    AttentionPattern,
    full_above,
    full_at_sparsity,
    load_pattern_folder,
    load_prulong_table,
    save_pattern_folder,
    save_prulong_table,
)
from mnemoscope.results.errors import RunFolderError, UnitSetError
from mnemoscope.results.provenance import collect_provenance
from mnemoscope.results.score_sidecars import Sidecar, load_sidecar

GATES = np.array([[0.0, 1.0, 0.25], [0.123456789012345678, 1 / 3, 5e-324]])
some_gates = arrays(
    np.float64, array_shapes(min_dims=2, max_dims=2), elements=st.floats(0, 1, width=64)
)


def sidecar() -> Sidecar:
    made = collect_provenance(
        model_id="m",
        weights_sha256="0",
        tokenizer_sha256="0",
        data_sha256="0",
        prompt_template=None,
        bos_rule="none",
        seed=0,
        estimand="streaming gates",
        device="cpu",
        dtype="float32",
        attention="sdpa",
    )
    return Sidecar(made)


def test_a_folder_round_trips_with_every_digit_and_all_settings(tmp_path):
    pattern = AttentionPattern(GATES, 128, 256, {"lr": 0.02, "model_name": "x"})
    beside = sidecar()
    save_pattern_folder(tmp_path / "p", pattern, sidecar=beside)
    assert json.loads((tmp_path / "p" / CONFIG).read_text()) == {
        "lr": 0.02,
        "model_name": "x",
        "sink_size": 128,
        "recent_size": 256,
    }
    lines = (tmp_path / "p" / TABLE).read_text().splitlines()
    assert [line.count("\t") for line in lines] == [2, 2]  # no header: one row a layer
    assert np.array_equal(np.loadtxt(tmp_path / "p" / TABLE, delimiter="\t"), GATES)
    read = load_pattern_folder(tmp_path / "p")
    assert np.array_equal(read.gates, GATES)
    assert (read.sink, read.recent, read.settings) == (128, 256, {"lr": 0.02, "model_name": "x"})
    assert load_sidecar(tmp_path / "p" / TABLE) == beside


@settings(deadline=None, max_examples=30)
@given(some_gates)
def test_any_gates_round_trip(tmp_path_factory, gates):
    path = tmp_path_factory.getbasetemp() / "masks.tsv"
    save_prulong_table(path, AttentionPattern(gates, 1, 2), force=True)
    assert np.array_equal(load_prulong_table(path).gates, gates)


def test_a_prulong_table_has_its_windows_from_the_caller(tmp_path):
    save_prulong_table(tmp_path / "m.tsv", AttentionPattern(GATES, 4, 64))
    assert load_prulong_table(tmp_path / "m.tsv").recent == 1024
    read = load_prulong_table(tmp_path / "m.tsv", sink=4, recent=64)
    assert (read.sink, read.recent) == (4, 64)


def test_released_gates_that_leave_the_interval_by_rounding_are_clipped(tmp_path):
    (tmp_path / "m.tsv").write_text("-1.0e-03\t1.002e+00\n5.0e-01\t2.5e-01\n")
    assert load_prulong_table(tmp_path / "m.tsv").gates.tolist() == [[0, 1], [0.5, 0.25]]


def test_nothing_is_replaced_without_force(tmp_path):
    folder = tmp_path / "p"
    save_pattern_folder(folder, AttentionPattern(GATES, 1, 2))
    (folder / CONFIG).unlink()
    other = AttentionPattern(1 - GATES, 3, 4)
    with pytest.raises(RunFolderError, match="exists already"):
        save_pattern_folder(folder, other)
    assert not (folder / CONFIG).exists()  # nothing is half written
    save_pattern_folder(folder, other, force=True)
    assert np.array_equal(load_pattern_folder(folder).gates, 1 - GATES)
    with pytest.raises(RunFolderError, match="exists already"):
        save_prulong_table(folder / TABLE, other)


@given(some_gates, st.floats(0, 1))
def test_a_quantile_never_streams_more_than_asked_and_ties_stay_together(gates, sparsity):
    full = full_at_sparsity(gates, sparsity)
    assert (~full).mean() <= sparsity + 1 / gates.size
    if full.any() and not full.all():
        assert gates[full].min() > gates[~full].max()


def test_quantile_of_distinct_gates_and_of_ties():
    gates = np.array([[0.1, 0.2], [0.3, 0.4]])
    kept = [int(full_at_sparsity(gates, s).sum()) for s in (0, 0.25, 0.5, 0.75, 1)]
    assert kept == [4, 3, 2, 1, 0]
    mostly_full = np.array([[1.0, 1.0], [1.0, 0.2]])
    assert full_at_sparsity(mostly_full, 0.5).tolist() == [[True, True], [True, False]]


def test_threshold_keeps_what_reaches_it():
    assert full_above(np.array([[0.5, 0.49], [0.0, 1.0]])).tolist() == [
        [True, False],
        [False, True],
    ]
    assert full_above(GATES, 0.0).all()


@pytest.mark.parametrize("wrong", [-0.1, 1.1, float("nan")])
def test_shares_outside_the_interval_are_refused(wrong):
    with pytest.raises(UnitSetError, match="between 0 and 1"):
        full_at_sparsity(GATES, wrong)
    with pytest.raises(UnitSetError, match="between 0 and 1"):
        full_above(GATES, wrong)


@pytest.mark.parametrize(
    ("table", "message"),
    [
        ("", "one row a layer"),
        ("0.5\t0.5\n0.5\n", "one row a layer"),
        ("0.5\tfull\n", "no number"),
        ("0.5\tnan\n", "finite"),
        ("4.5\t4.6\n", "log-alphas"),
        ("\x00\x01", "no number"),
    ],
)
def test_damaged_tables_are_refused_by_name(tmp_path, table, message):
    (tmp_path / TABLE).write_text(table)
    (tmp_path / CONFIG).write_text('{"sink_size": 1, "recent_size": 2}')
    with pytest.raises(UnitSetError, match=message) as folder_error:
        load_pattern_folder(tmp_path)
    assert str(tmp_path) in str(folder_error.value)
    with pytest.raises(UnitSetError, match=message):
        load_prulong_table(tmp_path / TABLE)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (None, "cannot be read"),
        ("{", "not JSON"),
        ("[]", "sink_size"),
        ('{"sink_size": 4}', "sink_size and recent_size"),
        ('{"sink_size": 4.5, "recent_size": 2}', "whole number"),
        ('{"sink_size": 4, "recent_size": 0}', "recent >= 1"),
    ],
)
def test_damaged_configurations_are_refused_by_name(tmp_path, config, message):
    (tmp_path / TABLE).write_text("0.5\t0.5\n")
    if config is not None:
        (tmp_path / CONFIG).write_text(config)
    with pytest.raises(UnitSetError, match=message) as error:
        load_pattern_folder(tmp_path)
    assert str(tmp_path) in str(error.value)


def test_a_folder_without_its_table_and_a_binary_one(tmp_path):
    (tmp_path / CONFIG).write_text('{"sink_size": 1, "recent_size": 2}')
    with pytest.raises(UnitSetError, match="cannot be read"):
        load_pattern_folder(tmp_path)
    (tmp_path / TABLE).write_bytes(b"\xff\xfe\x00")
    with pytest.raises(UnitSetError, match="no text"):
        load_pattern_folder(tmp_path)


def test_a_pattern_of_another_model_is_refused():
    pattern = AttentionPattern(GATES, 1, 2)
    pattern.check(2, 3)
    with pytest.raises(UnitSetError, match="2 layers of 3"):
        pattern.check(3, 2)
