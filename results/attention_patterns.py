"""Gates of key/value heads in files: pattern folders of DuoAttention, tables of PruLong.

DuoAttention (Xiao et al. 2024, arXiv 2410.10819) keeps a model's gates in a folder: one row a layer
and one tab-separated number a key/value head in `full_attention_heads.tsv`, and the settings of the
training in `config.json`, of which `sink_size` and `recent_size` are used. PruLong (arXiv
2506.17121) writes the same table alone. Provenance goes into a sidecar beside the table
(`score_sidecars`), which others' readers do not see.

Released gates leave [0, 1] by rounding; they are clipped when read. Larger values are refused: they
are no gates (log-alphas, perhaps).
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from jaxtyping import Bool, Float

from .errors import RunFolderError, UnitSetError
from .provenance import JSON
from .score_sidecars import Sidecar, sidecar_path, write_with_sidecar
from .storage import write_new
from .unit_set_files import whole

TABLE, CONFIG = "full_attention_heads.tsv", "config.json"
PRULONG_SINK, PRULONG_RECENT = 128, 1024
"""What PruLong trains with; its tables do not say."""

_ROUNDING = 0.01


@dataclass(frozen=True, eq=False)
class AttentionPattern:
    """Gates of all key/value heads, 1 for the whole context, 0 for `sink` and `recent` keys.

    `settings` is what else the folder's `config.json` says. Raises `UnitSetError` for gates outside
    [0, 1] (beyond rounding, which is clipped) and windows without the query's own key.
    """

    gates: Float[np.ndarray, "layer kv_head"]
    sink: int
    recent: int
    settings: Mapping[str, JSON] = field(default_factory=dict)

    def __post_init__(self) -> None:
        gates = np.asarray(self.gates, dtype=np.float64)
        if gates.ndim != 2 or gates.size == 0 or not np.isfinite(gates).all():
            raise UnitSetError(
                f"gates must be finite numbers [layer, kv_head], got {list(gates.shape)}."
            )
        if gates.min() < -_ROUNDING or gates.max() > 1 + _ROUNDING:
            raise UnitSetError(
                f"gates lie between 0 and 1, these between {gates.min():.3g} and "
                f"{gates.max():.3g}: turn them into gates first (log-alphas by their sigmoid)."
            )
        if self.sink < 0 or self.recent < 1:
            raise UnitSetError(
                f"a pattern needs sink >= 0 and recent >= 1, got {self.sink} and {self.recent}."
            )
        object.__setattr__(self, "gates", gates.clip(0, 1))

    def check(self, n_layers: int, n_kv_heads: int) -> None:
        """Raises `UnitSetError` when the pattern is of a model of another size."""
        if self.gates.shape != (n_layers, n_kv_heads):
            raise UnitSetError(
                f"the pattern is for {self.gates.shape[0]} layers of {self.gates.shape[1]} "
                f"key/value heads, this model has {n_layers} of {n_kv_heads}."
            )


def full_at_sparsity(
    gates: Float[np.ndarray, "layer kv_head"], sparsity: float
) -> Bool[np.ndarray, "layer kv_head"]:
    """Which heads stay full when the share `sparsity` of all heads is to stream.

    The threshold is the quantile of all gates at `sparsity` (linear between two gates); heads at or
    above it stay full, and at sparsity 1 none does. No noise is added: heads of one gate are
    treated alike, so a tie at the threshold stays full as a whole and *fewer* heads may stream than
    asked. Where most gates are near 1 the budget decides, not the gate: look at the threshold.
    Raises `UnitSetError` unless 0 <= sparsity <= 1.
    """
    if not 0 <= sparsity <= 1:
        raise UnitSetError(f"the share of streaming heads lies between 0 and 1, got {sparsity}.")
    gates = np.asarray(gates)
    if sparsity == 1:
        return np.zeros(gates.shape, dtype=bool)
    return gates >= np.quantile(gates, sparsity)


def full_above(
    gates: Float[np.ndarray, "layer kv_head"], threshold: float = 0.5
) -> Bool[np.ndarray, "layer kv_head"]:
    """Which heads stay full: those whose gate is at least `threshold`, whatever their number.

    Raises `UnitSetError` unless 0 <= threshold <= 1.
    """
    if not 0 <= threshold <= 1:
        raise UnitSetError(f"a threshold of gates lies between 0 and 1, got {threshold}.")
    return np.asarray(gates) >= threshold


def load_pattern_folder(folder: Path | str) -> AttentionPattern:
    """Read a pattern folder. Raises `UnitSetError` naming the file that is missing or damaged."""
    folder = Path(folder)
    config = folder / CONFIG
    try:
        record = json.loads(config.read_bytes())
    except OSError as error:
        raise UnitSetError(
            f"{config} cannot be read ({error.strerror}): a pattern folder holds {CONFIG} and "
            f"{TABLE}."
        ) from error
    except ValueError as error:
        raise UnitSetError(f"{config} is not JSON ({error}).") from error
    if not isinstance(record, dict) or not {"sink_size", "recent_size"} <= set(record):
        raise UnitSetError(f"{config} does not tell sink_size and recent_size: it is damaged.")
    gates = _table(folder / TABLE)
    try:
        sink, recent = whole(record, "sink_size"), whole(record, "recent_size")
        rest = {k: v for k, v in record.items() if k not in ("sink_size", "recent_size")}
        return AttentionPattern(gates, sink, recent, rest)
    except UnitSetError as error:
        raise UnitSetError(f"{folder}: {error}") from error


def save_pattern_folder(
    folder: Path | str,
    pattern: AttentionPattern,
    *,
    sidecar: Sidecar | None = None,
    force: bool = False,
) -> None:
    """Write a pattern folder that DuoAttention reads, and the sidecar if one is given.

    Raises `RunFolderError` when a file of it exists and `force` is not given; none is then written.
    """
    folder = Path(folder)
    for path in (folder / TABLE, folder / CONFIG, sidecar_path(folder / TABLE)):
        if path.exists() and not force:
            raise RunFolderError(
                f"{path} exists already: choose another folder, or use force to replace."
            )
    record = {
        **pattern.settings,
        "sink_size": int(pattern.sink),
        "recent_size": int(pattern.recent),
    }
    try:
        text = json.dumps(record, indent=4, allow_nan=False)
    except (TypeError, ValueError) as error:
        raise UnitSetError(f"the pattern's settings are not plain JSON ({error}).") from error
    write_new(folder / CONFIG, text + "\n", force=force)
    write_with_sidecar(folder / TABLE, _as_table(pattern), sidecar, force=force)


def load_prulong_table(
    path: Path | str, *, sink: int = PRULONG_SINK, recent: int = PRULONG_RECENT
) -> AttentionPattern:
    """Read a table of PruLong; it does not tell its window, so say what it was trained with.

    Raises `UnitSetError` naming the file when it is missing or damaged.
    """
    gates = _table(Path(path))
    try:
        return AttentionPattern(gates, sink, recent)
    except UnitSetError as error:
        raise UnitSetError(f"{path}: {error}") from error


def save_prulong_table(
    path: Path | str,
    pattern: AttentionPattern,
    *,
    sidecar: Sidecar | None = None,
    force: bool = False,
) -> None:
    """Write the gates as a table alone: sink and recent are lost unless the sidecar's notes say.

    Raises `RunFolderError` when the file exists and `force` is not given.
    """
    write_with_sidecar(path, _as_table(pattern), sidecar, force=force)


def _as_table(pattern: AttentionPattern) -> str:
    """Rows of numbers with all digits that a float64 has, so that reading gives the same gates."""
    return "".join("\t".join(f"{gate:.18e}" for gate in row) + "\n" for row in pattern.gates)


def _table(path: Path) -> Float[np.ndarray, "layer kv_head"]:
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except OSError as error:
        raise UnitSetError(f"{path} cannot be read ({error.strerror}).") from error
    except UnicodeDecodeError as error:
        raise UnitSetError(f"{path} is no text: it is damaged.") from error
    rows = [line.split("\t") for line in lines if line.strip()]
    if not rows or len({len(row) for row in rows}) > 1:
        raise UnitSetError(
            f"{path} must hold one row a layer and as many tab-separated numbers in each."
        )
    try:
        return np.array([[float(cell) for cell in row] for row in rows])
    except ValueError as error:
        raise UnitSetError(f"{path} holds something that is no number ({error}).") from error
