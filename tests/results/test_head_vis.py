"""HeadVis trees: the files that HeadVis reads, and scores read back from others' trees."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from head_vis_contract import check_tree
from mnemoscope.models.types import HeadId
from mnemoscope.results.errors import RunFolderError, UnitSetError
from mnemoscope.results.head_vis import (
    HeadVisTree,
    head_vis_files,
    holds_head_vis,
    load_head_vis,
    save_head_vis,
)
from mnemoscope.results.head_vis_sequences import (
    METRICS,
    attention_metrics,
    head_payload,
    in_intervals,
    sparse_sequence,
)

GRID = np.array([[0.25, np.nan, -1.5], [3.0, 0.1234567, 0.0]])


def causal(weights: list[list[float]]) -> np.ndarray:
    return np.array(weights, dtype=np.float64)


NAMED = {
    "dataset_name": "none",
    "n_sequences": 1,
    "seq_len": 4,
    "dtype": "float32",
    "attn_implementation": "none",
}
ROWS = causal([[1, 0, 0, 0], [0.4, 0.6, 0, 0], [0.1, 0.7, 0.2, 0], [0.004, 0.5, 0.3, 0.196]])


def tree(**changed) -> HeadVisTree:
    sampled = (sparse_sequence(ROWS, ["a", "b", "a", "c"], 7),)
    given = {
        "model_name": "tiny",
        "metrics": {"memory": GRID, "copy": GRID * 2},
        "descriptions": {"memory": "speaks for the weights"},
        "sequences": {HeadId(1, 2): sampled},
        "pipeline": {"sources": ["run-1"]},
    }
    return HeadVisTree(**{**given, **changed})


def test_every_file_that_the_viewer_reads_is_there() -> None:
    files = {path: json.loads(content) for path, content in head_vis_files(tree()).items()}
    names = [f"heads/L{layer}H{head}.json" for layer in range(2) for head in range(3)]
    told = {"config.json", "scatter_data.json", "server_config.json", "attributions/manifest.json"}
    assert set(files) == told | set(names)
    config = files["config.json"]
    assert (config["model_name"], config["n_layers"], config["n_heads"]) == ("tiny", 2, 3)
    assert config["heads"] == [[0, 0], [0, 1], [0, 2], [1, 0], [1, 1], [1, 2]]
    assert config["metrics"] == ["memory", "copy"]
    assert config["head_data_pattern"] == "L{layer}H{head}.json"
    assert config["has_umap"] is False
    assert files["server_config.json"] == {}
    rows = files["scatter_data.json"]
    assert rows[-1] == {"layer": 0, "head": 1, "memory": None, "copy": None}
    assert [row["memory"] for row in rows] == [0.25, -1.5, 3.0, 0.123457, 0.0, None]
    assert files["heads/L0H0.json"]["sequences"] == []
    (sampled,) = files["heads/L1H2.json"]["sequences"]
    assert (sampled["sequence_id"], sampled["seq_len"], sampled["interval"]) == (7, 4, 1)


def test_the_tree_keeps_the_contract_of_its_readers() -> None:
    check_tree(head_vis_files(tree(pipeline=NAMED)))
    first_head_unscored = np.array([[np.nan, 1.0], [2.0, 3.0]])
    check_tree(head_vis_files(HeadVisTree("tiny", {"copy": first_head_unscored}, pipeline=NAMED)))


def test_sparse_attention_is_flat_and_leaves_out_what_is_weak() -> None:
    found = sparse_sequence(ROWS, ["a", "b", "a", "c"], 0)
    dense = np.zeros(16)
    dense[list(found.indices)] = found.values
    assert np.array_equal(dense.reshape(4, 4), np.where(ROWS >= 0.005, ROWS, 0))
    assert found.max_activation == 0.7  # the first row and column hold 1.0, but do not count


def test_only_the_strongest_keys_of_a_row_are_kept() -> None:
    even = np.tril(np.ones((20, 20))) / np.arange(1, 21)[:, None]
    found = sparse_sequence(even, ["x"] * 20, 0)
    rows = np.array(found.indices) // 20
    assert np.bincount(rows).tolist() == [min(i + 1, 8) for i in range(20)]


def test_intervals_hold_as_many_texts_each_the_strongest_last() -> None:
    texts = [sparse_sequence(ROWS * scale, "abcd", i) for i, scale in enumerate((0.5, 1, 0.2, 0.8))]
    assert [s.interval for s in in_intervals(texts, 2)] == [1, 2, 1, 2]


def test_metrics_by_hand() -> None:
    found = attention_metrics(ROWS, np.array([5, 6, 5, 7]))
    assert set(found) == set(METRICS)
    assert found["self_attention_score"] == pytest.approx((1 + 0.6 + 0.2 + 0.196) / 4)
    assert found["prev_token_score"] == pytest.approx((0.4 + 0.7 + 0.3) / 3)
    distance = 0.4 + 0.1 * 2 + 0.7 + 0.004 * 3 + 0.5 * 2 + 0.3
    assert found["qk_distance"] == pytest.approx(distance / ROWS.sum())
    # Only the third token comes a second time; what followed its first occurrence is the second.
    assert found["induction_score"] == pytest.approx(0.7 / 4)
    kept = ROWS[ROWS > 0]
    assert found["pattern_entropy"] == pytest.approx(-(kept * np.log(kept)).sum() / 4)


def test_a_heads_panels_are_sums_over_its_texts() -> None:
    payload = head_payload([sparse_sequence(ROWS, ["a", "b", "a", "c"], 0)])
    keys = {row["token"]: row["weight"] for row in payload["top_key_tokens"]}
    assert keys == pytest.approx({"a": 1 + 0.4 + 0.1 + 0.2 + 0.3, "b": 0.6 + 0.7 + 0.5, "c": 0.196})
    histogram = payload["qk_distance_histogram"]
    assert len(histogram["bin_values"]) == len(histogram["bin_edges"]) - 1
    assert sum(histogram["bin_values"]) == pytest.approx(ROWS.sum() - 0.004)
    assert payload["statistics"]["mean_max_activation"] == 0.7


def test_scores_come_back_from_the_written_tree(tmp_path: Path) -> None:
    save_head_vis(tmp_path / "tree", tree())
    assert holds_head_vis(tmp_path / "tree")
    back = load_head_vis(tmp_path / "tree")
    assert back.model_name == "tiny"
    assert list(back.metrics) == ["memory", "copy"]
    np.testing.assert_allclose(back.metrics["memory"], GRID, rtol=1e-5)
    assert back.descriptions == {"memory": "speaks for the weights"}
    assert back.pipeline == {"sources": ["run-1"]}
    with pytest.raises(RunFolderError, match="not empty"):
        save_head_vis(tmp_path / "tree", tree())
    save_head_vis(tmp_path / "tree", tree(), force=True)


def written(folder: Path, config: object, rows: object) -> Path:
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "scatter_data.json").write_text(json.dumps(rows))
    return folder


def test_others_trees_may_cover_some_heads_and_more_than_scores(tmp_path: Path) -> None:
    rows = [
        {"layer": 5, "head": 1, "induction_score": 0.5, "note": "x", "flag": True},
        {"layer": 8, "head": 0, "induction_score": float("nan"), "other": 2},
    ]
    found = load_head_vis(written(tmp_path / "t", {"n_layers": 12, "n_heads": 12}, rows))
    assert found.shape == (12, 12)
    assert set(found.metrics) == {"induction_score", "other"}
    assert np.isfinite(found.metrics["induction_score"]).sum() == 1
    assert found.metrics["other"][8, 0] == 2
    only = {"metrics": ["other", "absent"]}
    assert set(load_head_vis(written(tmp_path / "t", only, rows)).metrics) == {"other"}


@pytest.mark.parametrize(
    ("config", "rows", "reason"),
    [
        ([], [{"layer": 0, "head": 0, "a": 1}], "no HeadVis tree"),
        ({}, [], "no HeadVis tree"),
        ({}, [{"layer": 0, "a": 1}], "layer and head"),
        ({}, [{"layer": -1, "head": 0, "a": 1}], "layer must be a whole number"),
        ({}, [{"layer": 0, "head": 0, "a": 1}] * 2, "comes twice"),
        ({}, [{"layer": 0, "head": 0, "a": "much"}], "no head has a number"),
        ({}, [{"layer": 0, "head": 0, "a": float("inf")}], "finite"),
        ({"n_layers": 1, "n_heads": 1}, [{"layer": 3, "head": 0, "a": 1}], "tells of 1 layers"),
    ],
)
def test_damaged_trees_say_what_is_wrong(
    config: object, rows: object, reason: str, tmp_path: Path
) -> None:
    with pytest.raises(UnitSetError, match=reason):
        load_head_vis(written(tmp_path / "t", config, rows))


def test_missing_and_broken_files_are_named(tmp_path: Path) -> None:
    with pytest.raises(UnitSetError, match=r"config\.json cannot be read"):
        load_head_vis(tmp_path)
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(UnitSetError, match="is not JSON"):
        load_head_vis(tmp_path)
    assert not holds_head_vis(tmp_path)


def test_grids_of_two_sizes_and_heads_outside_are_refused() -> None:
    with pytest.raises(UnitSetError, match="one size"):
        tree(metrics={"a": GRID, "b": GRID[:1]})
    with pytest.raises(UnitSetError, match="is no head of"):
        tree(sequences={HeadId(2, 0): ()})
    with pytest.raises(UnitSetError, match="rename"):
        tree(metrics={"layer": GRID})
