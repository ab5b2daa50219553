"""What the readers of HeadVis trees ask of the files, as types and rules.

The types are those that the reference pipeline of HeadVis states for each file ("the data-format
contract", `data_pipeline.py` of safety-research/headvis, Apache-2.0), the rules what its viewer
(`App.svelte`, `lib/data.js`) and the loaders of Neuronpedia (`headvis/load-head-metrics.py`,
`load-head-sequences.py`) do with them. Written from reading those; no code of theirs is here.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict

NEEDED_BY_NEURONPEDIA = (
    "model_name",
    "dataset_name",
    "n_sequences",
    "seq_len",
    "dtype",
    "attn_implementation",
)
"""Keys of `pipeline_config` (or of the configuration itself), none of them null."""


class Strict(BaseModel):
    """No key that the contract does not name, no value of another type."""

    model_config = ConfigDict(extra="forbid", strict=True)


class Panel(Strict):
    key: str
    label: str


class Shown(Strict):
    label: str
    format: str


class Config(Strict):
    model_name: str
    heads: list[list[int]]
    n_layers: int
    n_heads: int
    n_intervals: int
    metrics: list[str]
    metric_descriptions: dict[str, str]
    head_data_pattern: Literal["L{layer}H{head}.json"]
    has_umap: bool
    umap_heads: list[list[int]]
    custom_plots: list[Panel]
    custom_tables: list[Panel]
    statistics_display: dict[str, Shown]
    pipeline_config: dict[str, Any]  # Neuronpedia's; the viewer passes it over


class Sequence(Strict):
    sequence_id: int
    interval: int
    tokens: list[str]
    attention_indices: list[int]
    attention_values: list[float]
    seq_len: int
    max_activation: float


class Histogram(Strict):
    bin_edges: list[float]
    bin_values: list[float]


class Weighted(Strict):
    token: str
    weight: float


class NoHistogram(Strict):
    pass


class Head(Strict):
    sequences: list[Sequence]
    qk_distance_histogram: Histogram
    top_query_tokens: list[Weighted]
    top_key_tokens: list[Weighted]
    histogram: Histogram | NoHistogram
    statistics: dict[str, float]


def check_tree(files: Mapping[str, bytes]) -> None:
    """Fail where a reader of the tree would: `files` maps a path in the tree to its content."""
    config = Config.model_validate_json(files["config.json"])
    assert len(config.heads) == config.n_layers * config.n_heads
    assert set(config.metric_descriptions) <= set(config.metrics)
    assert json.loads(files["server_config.json"]) == {}
    assert json.loads(files["attributions/manifest.json"]) == {}
    _check_scatter(json.loads(files["scatter_data.json"]), config)
    for layer, head in config.heads:
        _check_head(Head.model_validate_json(files[f"heads/L{layer}H{head}.json"]), config)
    for name in NEEDED_BY_NEURONPEDIA:
        assert {**json.loads(files["config.json"]), **config.pipeline_config}[name] is not None


def _check_scatter(rows: list[dict[str, Any]], config: Config) -> None:
    """One flat row a head. The viewer offers the columns that are numbers in the first row."""
    assert sorted([row["layer"], row["head"]] for row in rows) == sorted(config.heads)
    for row in rows:
        assert set(row) == {"layer", "head", *config.metrics}
        assert all(value is None or math.isfinite(value) for value in row.values())
    complete = [row for row in rows if None not in row.values()]
    assert not complete or rows[0] in complete, "a score that the first row lacks is not offered"


def _check_head(head: Head, config: Config) -> None:
    for plot in config.custom_plots:
        drawn = getattr(head, plot.key)
        assert len(drawn.bin_values) == len(drawn.bin_edges) - 1
        assert drawn.bin_edges == sorted(drawn.bin_edges)
    for table in config.custom_tables:
        weights = [row.weight for row in getattr(head, table.key)]
        assert weights == sorted(weights, reverse=True)
    assert set(head.statistics) <= {*config.statistics_display, "n_samples"}
    for sequence in head.sequences:
        n = sequence.seq_len
        assert n == len(sequence.tokens)
        assert 1 <= sequence.interval <= config.n_intervals
        assert len(sequence.attention_indices) == len(sequence.attention_values)
        places = [divmod(index, n) for index in sequence.attention_indices]
        assert all(0 <= key <= query < n for query, key in places)
        strongest = [
            value
            for (query, key), value in zip(places, sequence.attention_values, strict=True)
            if query and key  # the viewer skips the first row and column
        ]
        assert sequence.max_activation == max(strongest, default=0.0)
