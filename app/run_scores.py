"""Runs that hold head scores, found under the runs root and turned into grid frames."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import polars

from ..results.errors import RunFolderError
from ..results.run_reading import list_runs, load_run
from ..results.run_state import RunStatus

SCORE_COLUMNS = frozenset(
    f"{role}{part}" for role in ("memory", "context") for part in ("", "_low", "_high", "_q")
) | {"layer", "head"}


@dataclass(frozen=True, eq=False)
class RunScores:
    """The table of one finished run that scored heads, and what it measured."""

    id: str
    folder: Path
    model_id: str
    estimand: str
    table: polars.DataFrame


def runs_with_scores(root: Path, model_id: str | None = None) -> tuple[RunScores, ...]:
    """Finished runs under the root whose table scores heads, the latest first.

    With `model_id` those of this model only. Damaged runs are left out here; the page of runs
    shows them with the reason.
    """
    found = []
    for info in list_runs(root):
        if info.status != RunStatus.FINISHED or model_id not in (None, info.model_id):
            continue
        try:
            scores = run_scores(info.folder)
        except RunFolderError:
            continue
        if scores is not None:
            found.append(scores)
    return tuple(found)


def run_scores(folder: Path) -> RunScores | None:
    """The scores of one finished run; None when its table is of another kind.

    Raises `RunFolderError` when the run is unfinished or damaged.
    """
    run = load_run(folder)
    if not set(run.table.columns) >= SCORE_COLUMNS:
        return None
    provenance = run.provenance
    return RunScores(run.id, folder, provenance.model_id, provenance.estimand, run.table)


def grid_frame(table: polars.DataFrame, role: str) -> polars.DataFrame:
    """One role of a score table as the grid takes it: `layer`, `head`, `score`, `low`, `high`, `q`.

    Columns that the table lacks (one prompt has no interval and no test) become null.
    """
    parts = {"score": role, "low": f"{role}_low", "high": f"{role}_high", "q": f"{role}_q"}
    return table.select(
        "layer",
        "head",
        *[
            (polars.col(name) if name in table.columns else polars.lit(None))
            .cast(polars.Float64)
            .alias(column)
            for column, name in parts.items()
        ],
    )
