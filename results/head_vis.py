"""HeadVis trees: folders of JSON that HeadVis and Neuronpedia's attention-head pages read.

The form is that of the reference pipeline of HeadVis (Luger, Kamath et al. 2026): `config.json`
(model, heads, metrics), `scatter_data.json` (one flat row a head, any named scores) and
`heads/L{layer}H{head}.json` (sampled texts with sparse attention). Scores of ours become further
metrics there; metrics of others' trees become scores here. What HeadVis computes itself (clouds of
queries and keys, attributions) is neither written nor read.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float

from ..models.types import HeadId
from .errors import RunFolderError, UnitSetError
from .head_vis_sequences import HeadVisSequence, head_payload
from .provenance import JSON
from .storage import storage_errors, write_atomic, write_new
from .unit_set_files import number, whole

CONFIG, SCATTER = "config.json", "scatter_data.json"
_PLACES = ("layer", "head")
_DIGITS = 6


@dataclass(frozen=True, eq=False)
class HeadVisTree:
    """Named scores of a model's heads, and texts with attention where they were sampled.

    `metrics` maps a name to a grid, NaN where a head has no score; `descriptions` say what a name
    means; `pipeline` is provenance, which HeadVis passes over. Raises `UnitSetError` for no metric,
    grids of different sizes, or texts of a head that the model does not have.
    """

    model_name: str
    metrics: Mapping[str, Float[np.ndarray, "layer head"]]
    descriptions: Mapping[str, str] = field(default_factory=dict)
    sequences: Mapping[HeadId, tuple[HeadVisSequence, ...]] = field(default_factory=dict)
    pipeline: Mapping[str, JSON] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Check names and sizes."""
        shapes = {np.shape(grid) for grid in self.metrics.values()}
        if len(shapes) != 1 or len(next(iter(shapes))) != 2:
            raise UnitSetError(f"a HeadVis tree needs grids of one size, got {sorted(shapes)}.")
        if set(_PLACES) & set(self.metrics):
            raise UnitSetError("a metric cannot be called layer or head: rename it.")
        layers, heads = next(iter(shapes))
        outside = [h for h in self.sequences if not (h.layer < layers and h.head < heads)]
        if outside:
            raise UnitSetError(f"{outside[0]} is no head of {layers} layers by {heads}.")

    @property
    def shape(self) -> tuple[int, int]:
        """Layers, and query heads a layer."""
        layers, heads = next(iter(self.metrics.values())).shape
        return layers, heads


def head_vis_files(tree: HeadVisTree) -> dict[str, bytes]:
    """Relative path to content of every file of the tree.

    Heads with the most scores come first in `scatter_data.json`: HeadVis offers as metrics what is
    a number in the first row.
    """
    n_layers, n_heads = tree.shape
    heads = [HeadId(layer, head) for layer in range(n_layers) for head in range(n_heads)]
    missing = np.sum([~np.isfinite(grid) for grid in tree.metrics.values()], axis=0)
    fullest_first = sorted(heads, key=lambda head: int(missing[head.layer, head.head]))
    files: dict[str, JSON] = {
        CONFIG: _config(tree, heads),
        SCATTER: [_scatter_row(tree, head) for head in fullest_first],
        "server_config.json": {},
        "attributions/manifest.json": {},
    }
    for head in heads:
        files[f"heads/{_name(head)}.json"] = head_payload(tree.sequences.get(head, ()))
    return {path: json.dumps(value, allow_nan=False).encode() for path, value in files.items()}


def save_head_vis(folder: Path | str, tree: HeadVisTree, *, force: bool = False) -> None:
    """Write the tree; `config.json`, which viewers read first, comes last.

    Raises `RunFolderError` when the folder holds anything and `force` is not given.
    """
    folder = Path(folder)
    if folder.is_dir() and any(folder.iterdir()) and not force:
        raise RunFolderError(f"{folder} is not empty: choose another name, or use force.")
    files = head_vis_files(tree)
    for path in sorted(files, key=lambda path: path == CONFIG):
        with storage_errors(folder):
            (folder / path).parent.mkdir(parents=True, exist_ok=True)
        if path == CONFIG:
            write_new(folder / path, files[path], force=force)
        else:
            write_atomic(folder / path, files[path], durable=False)


def holds_head_vis(folder: Path | str) -> bool:
    """Whether `load_head_vis` would find a tree here."""
    return (Path(folder) / CONFIG).is_file() and (Path(folder) / SCATTER).is_file()


def load_head_vis(folder: Path | str) -> HeadVisTree:
    """Read scores and descriptions of a tree; sampled texts stay in their files.

    A score that is null or missing is NaN. Raises `UnitSetError` naming the file that is missing,
    damaged or of another form.
    """
    folder = Path(folder)
    config, rows = _read(folder / CONFIG), _read(folder / SCATTER)
    if not isinstance(config, dict) or not isinstance(rows, list) or not rows:
        raise UnitSetError(
            f"{folder} is no HeadVis tree: {CONFIG} must be an object and {SCATTER} a list."
        )
    try:
        scores = _scores(rows)
        metrics = _metrics(scores, _names(config, scores), *_size(config, scores))
        return HeadVisTree(
            str(config.get("model_name", "")),
            metrics,
            _texts(config.get("metric_descriptions")),
            pipeline=_object(config.get("pipeline_config")),
        )
    except UnitSetError as error:
        raise UnitSetError(f"{folder / SCATTER}: {error}") from error


def _config(tree: HeadVisTree, heads: list[HeadId]) -> JSON:
    intervals = [s.interval for chosen in tree.sequences.values() for s in chosen]
    return {
        "model_name": tree.model_name,
        "heads": [[int(head.layer), int(head.head)] for head in heads],
        "n_layers": tree.shape[0],
        "n_heads": tree.shape[1],
        "n_intervals": max(intervals, default=1),
        "metrics": list(tree.metrics),
        "metric_descriptions": dict(tree.descriptions),
        "head_data_pattern": "L{layer}H{head}.json",
        "has_umap": False,
        "umap_heads": [],
        "custom_plots": [{"key": "qk_distance_histogram", "label": "Q-K distance"}],
        "custom_tables": [
            {"key": "top_query_tokens", "label": "Top query tokens"},
            {"key": "top_key_tokens", "label": "Top key tokens"},
        ],
        "statistics_display": {
            "mean_max_activation": {"label": "Mean max activation", "format": "default"}
        },
        "pipeline_config": dict(tree.pipeline),
    }


def _scatter_row(tree: HeadVisTree, head: HeadId) -> JSON:
    row: dict[str, JSON] = {"layer": int(head.layer), "head": int(head.head)}
    for name, grid in tree.metrics.items():
        value = float(grid[head.layer, head.head])
        row[name] = float(f"{value:.{_DIGITS}g}") if np.isfinite(value) else None
    return row


def _scores(rows: list[Any]) -> dict[HeadId, dict[str, float]]:
    """Head to its numbers; texts and lists in a row are no scores and are passed over."""
    found: dict[HeadId, dict[str, float]] = {}
    for row in rows:
        if not isinstance(row, dict) or not set(_PLACES) <= set(row):
            raise UnitSetError(f"every row names layer and head, got {str(row)[:80]}.")
        head = HeadId(whole(row, "layer"), whole(row, "head"))
        if head in found:
            raise UnitSetError(f"{head} comes twice.")
        found[head] = {
            name: number(value, f"{name} of {head}")
            for name, value in row.items()
            if name not in _PLACES
            and isinstance(value, int | float)
            and not isinstance(value, bool)
            and value == value
        }
    return found


def _names(config: dict[str, Any], scores: Mapping[HeadId, Mapping[str, float]]) -> list[str]:
    """Metrics that the configuration lists, or else all, that some head has a number for."""
    present = dict.fromkeys(name for row in scores.values() for name in row)
    listed = config.get("metrics")
    names = [n for n in listed if n in present] if isinstance(listed, list) else list(present)
    if not names:
        raise UnitSetError("no head has a number for any metric.")
    return names


def _size(config: dict[str, Any], scores: Mapping[HeadId, Mapping[str, float]]) -> tuple[int, int]:
    """Layers and heads: what the configuration says (it may be left out), and room for all rows."""
    told = [whole(config, name) if name in config else 0 for name in ("n_layers", "n_heads")]
    seen = [max(h.layer for h in scores) + 1, max(h.head for h in scores) + 1]
    if any(told) and (seen[0] > told[0] or seen[1] > told[1]):
        raise UnitSetError(
            f"it names L{seen[0] - 1} and H{seen[1] - 1}, but {CONFIG} tells of {told[0]} layers "
            f"of {told[1]} heads."
        )
    return max(told[0], seen[0]), max(told[1], seen[1])


def _metrics(
    scores: Mapping[HeadId, Mapping[str, float]], names: list[str], n_layers: int, n_heads: int
) -> dict[str, Float[np.ndarray, "layer head"]]:
    grids = {name: np.full((n_layers, n_heads), np.nan) for name in names}
    for head, row in scores.items():
        for name in names:
            grids[name][head.layer, head.head] = row.get(name, np.nan)
    return grids


def _read(path: Path) -> Any:
    try:
        return json.loads(path.read_bytes())
    except OSError as error:
        raise UnitSetError(
            f"{path} cannot be read ({error.strerror}): a HeadVis tree holds {CONFIG} and "
            f"{SCATTER}."
        ) from error
    except ValueError as error:
        raise UnitSetError(f"{path} is not JSON ({error}).") from error


def _texts(value: Any) -> dict[str, str]:
    return {str(name): str(text) for name, text in _object(value).items()}


def _object(value: Any) -> dict[str, Any]:
    return dict(value) if isinstance(value, dict) else {}


def _name(head: HeadId) -> str:
    return f"L{int(head.layer)}H{int(head.head)}"
