"""What is known of a written folder, masked or sliced: is it intact, is it ours, and undoing it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..interventions.checkpoint_undo import undo_pruning
from ..interventions.checkpoint_verify import verify_pruned
from ..interventions.head_slicing import SLICE_SCHEMA, verify_sliced
from ..interventions.prune_manifest import raw_manifest
from ..models.errors import CheckpointError, MnemoscopeError
from ..models.load import checkpoint_folder
from .prune_config import PruneConfig


@dataclass(frozen=True)
class Verified:
    """A folder that is what its manifest says, in words and as JSON."""

    text: str
    document: dict[str, Any]


def verify(folder: Path, source: Path | None) -> Verified:
    """Check a pruned or sliced folder; `source` may be a packaged name or a GGUF file too.

    Raises `CheckpointError` saying what is wrong.
    """
    source = None if source is None else checkpoint_folder(source)
    if not _sliced(folder):
        report = verify_pruned(folder, source)
        document = {
            "folder": str(report.folder),
            "mode": report.mode,
            "heads": [str(head) for head in report.heads],
            "files": report.files,
            "unhashed": list(report.unhashed),
            "declared_bytes": report.declared_bytes,
            "source": None if report.source is None else str(report.source),
            "differing_bytes": report.differing_bytes,
        }
        return Verified(report.describe(), document)
    verify_sliced(folder, source)
    compared = "its source was not compared" if source is None else f"cut from {source} as declared"
    document = {
        "folder": str(folder),
        "mode": "slice",
        "source": None if source is None else str(source),
    }
    return Verified(f"{folder}: every file has the manifest's hash; {compared}", document)


def undo(folder: Path, out: Path, *, force: bool) -> Path:
    """Restore a pruned folder's source. Raises `CheckpointError` for a sliced one, among others."""
    if _sliced(folder):
        raise CheckpointError(
            f"{folder} is sliced: what was cut out is not in it, so use the original checkpoint "
            "(its path and hashes are in the manifest)."
        )
    return undo_pruning(folder, out, force=force)


def written_before(config: PruneConfig) -> dict[str, Any] | None:
    """`heads` and `evaluation` of an intact folder that this very pruning wrote before it could be
    logged; None where there is none."""
    folder = Path(config.output.path)
    try:
        record = raw_manifest(folder)
        if record is None or record["extra"]["recipe"] != config.document():
            return None
        verify(folder, None)
        heads = [f"L{entry['layer']}.H{entry['head']}" for entry in record["heads"]]
        return {"heads": heads, "evaluation": record["extra"].get("evaluation")}
    except (MnemoscopeError, OSError, KeyError, TypeError, AttributeError):
        return None  # not there or not ours: pruning says what is wrong with it


def _sliced(folder: Path) -> bool:
    record = raw_manifest(folder)
    return record is not None and record.get("schema") == SLICE_SCHEMA
