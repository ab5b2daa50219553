"""Compute a unit of a run, or read it back: the loop body of a measurement that can be resumed."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np

from .run import Run


def kept_arrays(
    run: Run | None, key: str, compute: Callable[[], Mapping[str, np.ndarray]]
) -> Mapping[str, np.ndarray]:
    """The arrays of the run's unit `key`, computed and kept unless an earlier start did so.

    Without a run they are computed. Raises what `compute` raises, `RunFolderError` for a full disk,
    and the run's cancellation before anything is computed.
    """
    if run is None:
        return compute()
    if key in run.done:
        return run.load_unit_arrays(key)
    run.check_cancelled()
    arrays = compute()
    run.save_unit_arrays(key, arrays)
    run.append(key, {})
    return arrays
