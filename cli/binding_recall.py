"""The work behind `binding recall`: what a model gives in both directions."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import polars

from ..data.facts.pairs import WAYS
from ..probes.elicitation import Progress
from ..probes.reversal_recall import MEASURES, RATES, ReversalRecall, reversal_recall
from ..results.figures import dose_figure
from ..results.run import Run
from .binding_pairs import Asked, Chosen, PairsConfig, asked_pairs, chosen_pairs, told_counts
from .binding_runs import BindingResult, Findings, Phases, binding_run

KIND = "binding-recall"
GAP = "forward - reverse"
_CLAIM = (
    "Whole names only: the second half of a name is easy once the first is given, so a mean over "
    "tokens would hide failure. Ranks are among the names of all pairs; chance is that of a random "
    "order."
)


@dataclass(frozen=True)
class RecallConfig:
    """Everything that decides the numbers of a `binding recall` run, and nothing else."""

    pairs: PairsConfig
    draws: int = 1000


def recall_binding(
    config: RecallConfig,
    root: Path,
    *,
    force: bool,
    say: Callable[[str], None],
    tell: Progress,
) -> BindingResult:
    """Ask all pairs both ways and save."""
    asked = asked_pairs(config.pairs)

    def measure(run: Run, phase: Phases) -> Findings:
        chosen = chosen_pairs(asked, run=run, progress=phase("pairs known"))
        relation = chosen.prompts.relation
        shared = min(len(relation.wordings(way)) for way in WAYS)
        say(f"{len(relation.pairs)} pairs of {relation.name}, {shared} wordings each way")
        found = reversal_recall(
            asked.model,
            relation,
            wordings=range(shared),
            draws=config.draws,
            seed=config.pairs.seed,
            progress=phase("prompts"),
        )
        return _findings(asked, chosen, found)

    key = {**asdict(config), **asked.identity}
    return binding_run(KIND, key, root, measure, force=force, say=say, tell=tell)


def recall_rows(table: polars.DataFrame) -> list[dict[str, Any]]:
    """One row a direction and stratum, over all wordings, measures side by side."""
    whole = table.filter(polars.col("wording") == _whole(table))
    rows = []
    for part in whole.partition_by("way", "stratum", maintain_order=True):
        row = {"way": part["way"][0], "stratum": part["stratum"][0], "pairs": part["n"][0]}
        for one in part.filter(polars.col("measure").is_in(MEASURES)).iter_rows(named=True):
            row |= {
                one["measure"]: one["value"],
                **{f"{one['measure']} {end}": one[end] for end in ("low", "high", "chance", "p")},
            }
        rows.append(row)
    return rows


def _findings(asked: Asked, chosen: Chosen, found: ReversalRecall) -> Findings:
    table = found.table()
    rows, dropped = recall_rows(table), {**chosen.dropped, **found.dropped}
    return Findings(
        title=f"Recall of {found.relation.name} both ways by {asked.model.name}",
        claim=_CLAIM,
        summary={
            "model": asked.model.name,
            "relation": found.relation.name,
            "n_pairs": len(found.relation.pairs),
            "wordings": len(found.wordings),
            "dropped": dropped,
            "told": told_counts(found.relation),
            "rows": rows,
        },
        table=table,
        provenance=found.provenance,
        tables={
            "Both directions, all wordings together": polars.DataFrame(
                [{k: v for k, v in row.items() if " " not in k or k[-1] != "p"} for row in rows],
                infer_schema_length=None,
            ),
            "Every wording and measure": table,
        },
        figures={
            measure: dose_figure(
                _by_stratum(table, measure),
                title=f"{measure} by direction",
                dose_label="pairs",
                axis_label="share" if measure in RATES else "mean reciprocal rank",
            )
            for measure in ("exact", "mrr")
        },
        notes=_notes(rows),
    )


def _by_stratum(table: polars.DataFrame, measure: str) -> polars.DataFrame:
    return table.filter(
        (polars.col("wording") == _whole(table))
        & (polars.col("measure") == measure)
        & polars.col("way").is_in(WAYS)
    ).rename({"way": "series", "stratum": "dose"})


def _notes(rows: list[dict[str, Any]]) -> list[str]:
    said = []
    for row in rows:
        if row["way"] != GAP or not (row["stratum"] == "all" or _plain_told(row["stratum"])):
            continue
        said.append(
            f"{row['stratum']} ({row['pairs']} pairs): forward less reverse, whole answers "
            f"{row['exact']:+.2f} ({row['exact low']:+.2f} to {row['exact high']:+.2f}), MRR "
            f"{row['mrr']:+.2f} ({row['mrr low']:+.2f} to {row['mrr high']:+.2f}; p = "
            f"{row['mrr p']:.3g})."
        )
    return said


def _plain_told(stratum: str) -> bool:
    return stratum.startswith("told ") and "," not in stratum


def _whole(table: polars.DataFrame) -> str:
    """The reading of all wordings: "all", or the only one."""
    named = table["wording"].unique(maintain_order=True).to_list()
    return "all" if "all" in named else str(named[0])
