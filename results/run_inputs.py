"""`inputs.json`: what a run was given beside its configuration, so that its id is enough to go on.

The configuration names a run by content (the hash of a neuron set, say); where that content lies is
noted here. Options that do not decide numbers may stand here too. It is no part of the run's id.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from .errors import RunFolderError
from .provenance import JSON
from .storage import write_atomic

INPUTS = "inputs.json"


def note_inputs(folder: Path, inputs: Mapping[str, JSON]) -> None:
    """Write `folder/inputs.json`; a run that is started again notes its inputs anew."""
    write_atomic(folder / INPUTS, json.dumps(inputs, indent=2, allow_nan=False) + "\n")


def read_inputs(folder: Path) -> dict[str, Any]:
    """What `note_inputs` wrote; empty where there is nothing.

    Raises `RunFolderError` for a damaged file.
    """
    path = folder / INPUTS
    try:
        record = json.loads(path.read_bytes())
        if not isinstance(record, dict):
            raise ValueError("it is no object")
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as error:
        raise RunFolderError(
            f"{path} cannot be read ({error}): run the command that started the run again."
        ) from error
    return record
