"""Per-layer curves of a role-consistency measurement, from this page or from a finished run."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import polars

from ..cli.binding_probe_report import CLAIM, figures_of, notes_of, tables_of
from ..cli.binding_probing import KIND
from ..cli.binding_runs import read_binding
from ..data.facts.pairs import WAYS
from ..models.errors import MnemoscopeError
from ..models.hooked import HookedModel
from ..probes.role_consistency import role_consistency
from ..probes.role_report import RoleConfig, RoleConsistency
from ..probes.vocabulary_readout import VocabularyReadout
from ..results.report import render_report
from ..results.run_reading import RunInfo, list_runs, load_run
from ..results.run_state import RunStatus
from .binding_pairs import FEWEST, PairSet

READOUT = "vocabulary read-out rank"
QUANTITIES: Mapping[str, tuple[str, str]] = {
    "raw MRR": ("mrr", "mean reciprocal rank of the entity among all"),
    "mapped MRR": ("mapped_mrr", "mean reciprocal rank through a linear map of other pairs"),
    "centred cosine": ("cos_same", "centred cosine of the same entity in both roles"),
    "CKA": ("cka", "de-biased linear CKA of the two roles"),
    READOUT: ("", "rank of the answer's first token in the vocabulary"),
}
"""What is offered: column of the table, and what it is in words."""
ROLES: Mapping[str, str] = {
    "S-P": "read (S) and about to be said (P)",
    "S-O": "read as subject (S) and as object (O)",
}


@dataclass(frozen=True, eq=False)
class RoleCurves:
    """What the section draws: `table` with the columns of `results.role_figures`, `readout` with
    `way`, `layer`, `log10_rank`, `low`, `high`, `null`, the summary and the notes of the run."""

    table: polars.DataFrame
    readout: polars.DataFrame
    summary: Mapping[str, Any]
    notes: tuple[str, ...]
    report: str
    """The whole measurement as a page."""
    source: str

    def rows(self, quantity: str, roles: str, strata: tuple[str, ...] = ()) -> polars.DataFrame:
        """Rows of one quantity and pair of roles: all pairs, and these strata."""
        return self.table.filter(
            polars.col("quantity") == quantity,
            polars.col("roles") == roles,
            polars.col("stratum").is_in(["all", *strata]),
        )

    def strata(self, quantity: str, roles: str) -> tuple[str, ...]:
        """Strata that this quantity was measured in, besides all pairs."""
        rows = self.table.filter(polars.col("quantity") == quantity, polars.col("roles") == roles)
        names = rows["stratum"].unique(maintain_order=True).to_list()
        return tuple(name for name in names if name != "all")


def measured_curves(model: HookedModel, pairs: PairSet) -> RoleCurves:
    """Measure the pairs on show. Raises what `role_consistency` raises."""
    found = role_consistency(model, pairs.relation, RoleConfig(least_pairs=FEWEST))
    return curves_of(found, model.name)


def curves_of(found: RoleConsistency, model: str) -> RoleCurves:
    """A measurement as the section draws it."""
    notes = tuple(notes_of(found))
    report = render_report(
        title=f"Binding of {found.relation} in {model}",
        claim=CLAIM,
        tables=tables_of(found),
        figures=figures_of(found),
        provenance=found.provenance,
        notes=notes,
    )
    readout = found.readout.table()
    return RoleCurves(found.table(), readout, found.summary(), notes, report, "measured here")


def finished_probe_runs(root: Path, model_id: str) -> tuple[RunInfo, ...]:
    """Finished runs of `binding probe` under the root that are about this model, latest first."""
    return tuple(
        info
        for info in list_runs(root)
        if (info.kind, info.status, info.model_id) == (KIND, RunStatus.FINISHED, model_id)
    )


def run_curves(folder: Path) -> RoleCurves:
    """The curves of a finished run. Raises `MnemoscopeError` when it is damaged or of another
    kind."""
    found, arrays = read_binding(folder, KIND), load_run(folder).arrays
    try:
        readout = VocabularyReadout(
            {way: arrays[f"rank/{way}"] for way in WAYS},
            {way: arrays[f"null_rank/{way}"] for way in WAYS},
            0,
        ).table()
        report = (folder / "report.html").read_text("utf-8")
    except (KeyError, OSError) as error:
        raise MnemoscopeError(
            f"{folder} lacks {error}: run `mnemoscope binding probe` with --force to write it anew."
        ) from error
    notes = tuple(found.notes)
    return RoleCurves(found.table, readout, found.summary, notes, report, folder.name)
