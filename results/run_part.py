"""A part of a run: units under a name of their own, so that a study may measure alike things twice.

A measurement names its units by what it works on (`haystack-00000`). Two measurements of one kind
in one run, on other prompts or with other edits, would take each other's units for their own.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np

from .provenance import JSON
from .row_log import Row
from .run import Run
from .run_state import RunState


class RunPart(Run):
    """The units of `run` whose keys begin with `name`, under the rest of their keys.

    All else is the run's: folder, progress, cancellation, and the finishing, which is left to it.
    """

    def __init__(self, run: Run, name: str) -> None:
        self._whole, self._prefix = run, f"{name}: "

    @property
    def id(self) -> str:
        """The run's."""
        return self._whole.id

    @property
    def folder(self) -> Path:
        """The run's."""
        return self._whole.folder

    @property
    def finished(self) -> bool:
        """Whether the run is complete."""
        return self._whole.finished

    @property
    def state(self) -> RunState:
        """The run's."""
        return self._whole.state

    @property
    def done(self) -> Mapping[str, Row]:
        """The part's finished units."""
        length = len(self._prefix)
        return {
            key[length:]: row
            for key, row in self._whole.done.items()
            if key.startswith(self._prefix)
        }

    def append(self, key: str, row: Mapping[str, JSON]) -> None:
        """As `Run.append`."""
        self._whole.append(self._prefix + key, row)

    def save_unit_arrays(self, key: str, arrays: Mapping[str, np.ndarray]) -> None:
        """As `Run.save_unit_arrays`."""
        self._whole.save_unit_arrays(self._prefix + key, arrays)

    def load_unit_arrays(self, key: str) -> dict[str, np.ndarray]:
        """As `Run.load_unit_arrays`."""
        return self._whole.load_unit_arrays(self._prefix + key)

    def progress(self, done: int, total: int | None, message: str = "") -> None:
        """As `Run.progress`."""
        self._whole.progress(done, total, message)

    def check_cancelled(self) -> None:
        """As `Run.check_cancelled`."""
        self._whole.check_cancelled()
