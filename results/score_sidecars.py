"""What score files of other projects have no place for: where the numbers come from.

A file that must keep a foreign form gets a second one beside it, `<name>.provenance.json`, with the
provenance record, the trials in the order of the scores, and the SHA-256 of the file it belongs to,
so that a sidecar is never believed of scores it was not written for.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

from .errors import RunFolderError, UnitSetError
from .provenance import JSON, Provenance
from .storage import write_new
from .unit_set_files import expect_fields, text

SIDECAR_SCHEMA = "mnemoscope/score-sidecar/1"
_FIELDS = ("schema", "file", "sha256", "provenance", "trials", "notes")


@dataclass(frozen=True)
class Sidecar:
    """Provenance of a score file; `trials` one record a trial (needle, length, depth, ...), in the
    order of the scores, empty where there are none; `notes` are sentences for its reader."""

    provenance: Provenance
    trials: tuple[Mapping[str, JSON], ...] = ()
    notes: tuple[str, ...] = ()


def sidecar_path(path: Path | str) -> Path:
    """Where the sidecar of a score file lies."""
    path = Path(path)
    return path.with_name(f"{path.name}.provenance.json")


def write_with_sidecar(
    path: Path | str, content: str, sidecar: Sidecar | None, *, force: bool = False
) -> None:
    """Write a score file, and its sidecar if one is given.

    Raises `RunFolderError` when one of the two exists and `force` is not given: then neither is
    written. A sidecar that is there for scores that come without one is removed under `force`.
    """
    path, beside = Path(path), sidecar_path(path)
    if beside.exists() and not force:
        raise RunFolderError(
            f"{beside} exists already: choose another name for the scores, or use force to replace."
        )
    record = None if sidecar is None else _record(path, content, sidecar)
    write_new(path, content, force=force)
    if record is None:
        beside.unlink(missing_ok=True)
    else:
        write_new(beside, json.dumps(record, indent=1, allow_nan=False) + "\n", force=True)


def load_sidecar(path: Path | str) -> Sidecar | None:
    """The sidecar of a score file; None where there is none.

    Raises `UnitSetError` for a damaged one, or when the scores have changed since it was written.
    """
    beside = sidecar_path(path)
    if not beside.exists():
        return None
    try:
        record = expect_fields(json.loads(beside.read_bytes()), _FIELDS, "a score sidecar")
        provenance = Provenance.from_json(json.dumps(record["provenance"]))
        content = Path(path).read_bytes()
    except (OSError, ValueError, RunFolderError, UnitSetError) as error:
        raise UnitSetError(f"{beside} is damaged ({error}).") from error
    if text(record, "schema") != SIDECAR_SCHEMA:
        raise UnitSetError(f"{beside} is no {SIDECAR_SCHEMA} file.")
    if hashlib.sha256(content).hexdigest() != record["sha256"]:
        raise UnitSetError(
            f"{beside} belongs to other scores than {path} holds now: remove it, or restore them."
        )
    return Sidecar(provenance, tuple(record["trials"]), tuple(record["notes"]))


def _record(path: Path, content: str, sidecar: Sidecar) -> dict[str, object]:
    return {
        "schema": SIDECAR_SCHEMA,
        "file": path.name,
        "sha256": hashlib.sha256(content.encode()).hexdigest(),
        "provenance": asdict(sidecar.provenance),
        "trials": [dict(trial) for trial in sidecar.trials],
        "notes": list(sidecar.notes),
    }
