"""Many checkpoints with many head sets: one ledger that any number of workers share.

A unit that is done is not done again; a failed one stops nothing, and is tried again on demand.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import polars

from ..models.errors import MnemoscopeError
from ..probes.elicitation import silent
from ..results.ledger import Attempt
from ..results.provenance import JSON, Provenance, provenance_beyond_a_model
from ..results.shards import WHOLE, Shard, Unit
from .prune_checks import written_before
from .prune_config import Evaluate, PruneBatch
from .prune_run import Loaded, plan_of, prune
from .sweep_batch import Batch, BatchResult, sized_units, work_on_batch

KIND = "prune-batch"
_SHOWN = ("closed", "agree", "memory_rate.substitution", "context_rate.substitution", "ppl")

_SCHEMA = {
    "unit": polars.String,
    "status": polars.String,
    "heads": polars.Int64,
    "out": polars.String,
    "error": polars.String,
    **{f"{name} change": polars.Float64 for name in _SHOWN},
}


def describe_batch(batch: PruneBatch) -> list[tuple[str, str, dict[str, Any] | None]]:
    """(unit, plan or error in words, plan as JSON if there is one) of every unit; headers only."""
    described: list[tuple[str, str, dict[str, Any] | None]] = []
    for name, config in batch.units().items():
        try:
            planned = plan_of(config)
            described.append((name, planned.describe(), planned.document()))
        except MnemoscopeError as error:
            described.append((name, f"error: {error}", None))
    return described


def units_of(batch: PruneBatch) -> tuple[Unit, ...]:
    """The units, those of a checkpoint together, with the bytes of its weights where known."""
    return sized_units({name: config.source.path for name, config in batch.units().items()})


def prune_batch(
    batch: PruneBatch,
    runs: Path,
    *,
    force: bool,
    say: Callable[[str], None],
    tell: Callable[[int, int], None],
    shard: Shard = WHOLE,
    retry: bool = False,
) -> BatchResult:
    """Prune every unit of the shard, or go on where an earlier attempt stopped.

    `retry` tries failed units again; `force` starts over and replaces folders that were written.
    Raises only what concerns the whole batch (`RunFolderError`, an interruption); errors of a unit
    are in its row.
    """
    work = Batch(
        kind=KIND,
        config=batch.document(),
        units=units_of(batch),
        do=_Pruner(batch, runs, force, say),
        table=_table_of(batch),
        provenance=lambda: _provenance(batch),
        title="Pruned checkpoints",
    )
    return work_on_batch(work, runs, shard=shard, retry=retry, force=force, say=say, tell=tell)


class _Pruner:
    """Prunes one unit after the other; units of one checkpoint share the loaded model."""

    def __init__(
        self, batch: PruneBatch, runs: Path, force: bool, say: Callable[[str], None]
    ) -> None:
        self._units = batch.units()
        self._runs, self._force, self._say = runs, force, say
        self._loaded: Loaded | None = None

    def __call__(self, name: str) -> dict[str, JSON]:
        """The unit's row."""
        config = self._units[name]
        found = None if self._force else written_before(config)
        if found is None:
            if self._loaded is None or self._loaded.source != config.source:
                self._loaded = Loaded(config.source, config.evaluate or Evaluate())
            done = prune(
                plan_of(config),
                runs=self._runs,
                force=self._force,
                say=self._say,
                tell=silent,
                loaded=self._loaded,
            )
            found = done.document()
        return {"heads": found["heads"], "changes": _changes(found)}


def _changes(found: Mapping[str, Any]) -> dict[str, JSON]:
    metrics = (found.get("evaluation") or {}).get("metrics", ())
    return {metric["name"]: metric["change"] for metric in metrics}


def _table_of(batch: PruneBatch) -> Callable[[Sequence[Attempt]], polars.DataFrame]:
    outs = {name: config.output.path for name, config in batch.units().items()}

    def table(attempts: Sequence[Attempt]) -> polars.DataFrame:
        return polars.DataFrame([_cells(one, outs[one.unit]) for one in attempts], schema=_SCHEMA)

    return table


def _cells(attempt: Attempt, out: str) -> dict[str, Any]:
    row = attempt.row or {"heads": [], "changes": {}}
    return {
        "unit": attempt.unit,
        "status": str(attempt.outcome),
        "heads": len(row["heads"]),
        "out": out,
        "error": attempt.error,
        **{f"{metric} change": row["changes"].get(metric) for metric in _SHOWN},
    }


def _provenance(batch: PruneBatch) -> Provenance:
    return provenance_beyond_a_model(
        model_id=", ".join(source.name for source in batch.checkpoints),
        seed=batch.controls.seed,
        estimand=f"pruned checkpoints, mode {batch.method.mode}",
        device="each unit's own",
        dtype="each checkpoint's own",
    )
