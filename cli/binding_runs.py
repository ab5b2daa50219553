"""What the `binding` commands share: a run that is found again, and its result on disk."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import plotly.graph_objects as go
import polars

from ..models.errors import MnemoscopeError
from ..probes.elicitation import Progress
from ..results.provenance import JSON, Provenance
from ..results.report import figure_html, render_report
from ..results.run import Run
from ..results.run_folder import open_run
from ..results.run_reading import load_run

Phases = Callable[[str], Progress]
"""The progress of a named part of the work."""


@dataclass(frozen=True, eq=False)
class Findings:
    """What a measurement leaves: the summary for JSON, the whole table, and the report's parts."""

    title: str
    claim: str
    summary: Mapping[str, Any]
    table: polars.DataFrame
    provenance: Provenance
    tables: Mapping[str, polars.DataFrame]
    figures: Mapping[str, go.Figure]
    arrays: Mapping[str, np.ndarray] = field(default_factory=dict)
    notes: Sequence[str] = ()
    captions: Sequence[str] = ()
    """The figures in words, for the report."""


@dataclass(frozen=True)
class BindingResult:
    """A finished run of a `binding` command."""

    folder: Path
    table: polars.DataFrame
    summary: Mapping[str, Any]

    @property
    def notes(self) -> Sequence[str]:
        """The findings in words."""
        return list(self.summary["notes"])

    @property
    def figures(self) -> list[Path]:
        """The figures' pages."""
        return sorted((self.folder / "figures").iterdir())

    def document(self) -> dict[str, Any]:
        """The result as JSON."""
        return {"run": str(self.folder), **self.summary, "table": finite(self.table.to_dicts())}


def binding_run(
    kind: str,
    key: Mapping[str, JSON],
    root: Path,
    measure: Callable[[Run, Phases], Findings],
    *,
    force: bool,
    say: Callable[[str], None],
    tell: Progress,
) -> BindingResult:
    """Measure and save, go on with an interrupted run of the same key, or find it finished."""
    with open_run(root, kind, key, force=force) as run:
        if run.finished:
            say(f"{run.id} is done already (use --force to measure again).")
        else:
            save(measure(run, phases_of(run, tell)), run)
        return read_binding(run.folder, kind)


def read_binding(folder: Path, kind: str) -> BindingResult:
    """A finished run of this kind. Raises `MnemoscopeError` for a run of another kind."""
    loaded = load_run(folder)
    summary = loaded.rows.get("summary")
    if summary is None or not loaded.id.startswith(kind):
        raise MnemoscopeError(f"{folder} is no run of kind {kind!r}: name one of its folders.")
    return BindingResult(folder, loaded.table, dict(summary))


def phases_of(run: Run, tell: Progress) -> Phases:
    """Tell both the run's watchers and the terminal."""

    def phase(name: str) -> Progress:
        def both(done: int, total: int) -> None:
            run.progress(done, total, name)
            tell(done, total)

        return both

    return phase


def save(found: Findings, run: Run) -> None:
    """Write table, arrays, figures, report and provenance, and finish the run."""
    if "summary" not in run.done:
        run.append("summary", finite({**found.summary, "notes": list(found.notes)}))
    report = render_report(
        title=found.title,
        claim=found.claim,
        tables=found.tables,
        figures=found.figures,
        provenance=found.provenance,
        notes=[*found.notes, *found.captions],
    )
    pages = {
        f"{name}.html": figure_html(figure, title=name) for name, figure in found.figures.items()
    }
    run.finish(found.table, found.arrays, found.provenance, pages, report)


def finite(value: Any) -> Any:
    """The same with None for numbers that are not finite, which JSON has not."""
    if isinstance(value, Mapping):
        return {str(name): finite(inner) for name, inner in value.items()}
    if isinstance(value, list | tuple):
        return [finite(inner) for inner in value]
    if isinstance(value, float | np.floating):
        return float(value) if np.isfinite(value) else None
    return value.item() if isinstance(value, np.generic) else value
