"""Many checkpoints with many head sets: a ledger row for each unit, none of which stops the rest.

The ledger is a run. A unit that is done is not done again; when all have been tried the run is
finished with a summary table. The same command then tries the units that failed once more.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import polars

from ..interventions.prune_manifest import raw_manifest
from ..models.errors import MnemoscopeError
from ..results.errors import RunFolderError
from ..results.provenance import JSON, collect_provenance
from ..results.run import Run
from ..results.run_folder import open_run
from .prune_checks import verify
from .prune_config import Evaluate, PruneBatch, PruneConfig
from .prune_run import Loaded, plan_of, prune

KIND = "prune-batch"
_SHOWN = ("closed", "agree", "memory_rate.substitution", "context_rate.substitution", "ppl")

_SCHEMA = {
    "unit": polars.String,
    "status": polars.String,
    "heads": polars.Int64,
    "out": polars.String,
    "seconds": polars.Float64,
    "error": polars.String,
    **{f"{name} change": polars.Float64 for name in _SHOWN},
}


@dataclass(frozen=True)
class BatchResult:
    """A finished batch."""

    run: Path
    table: polars.DataFrame

    @property
    def failed(self) -> tuple[str, ...]:
        """The units that failed."""
        return tuple(self.table.filter(polars.col("status") == "failed")["unit"])

    def document(self) -> dict[str, Any]:
        """The result as JSON."""
        return {"run": str(self.run), "units": self.table.to_dicts(), "failed": list(self.failed)}


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


def prune_batch(
    batch: PruneBatch,
    runs: Path,
    *,
    force: bool,
    say: Callable[[str], None],
    tell: Callable[[int, int], None],
) -> BatchResult:
    """Prune every unit, or go on where an earlier attempt stopped.

    `force` starts over and replaces folders that were written. Raises only what concerns the whole
    batch (`RunFolderError`, an interruption); errors of a unit are in its row.
    """
    units = batch.units()
    with _ledger(batch, runs, force) as run:
        if run.finished:
            say(f"{run.id} is done already (use --force to prune again).")
        else:
            _work(units, run, runs, force, say, tell)
            table = _table(run.done)
            run.finish(table, {"seconds": table["seconds"].to_numpy()}, _provenance(batch))
        return BatchResult(run.folder, _table(run.done))


def _ledger(batch: PruneBatch, runs: Path, force: bool) -> Run:
    """The batch's run; of a finished one with failed units, a new one that keeps the others."""
    config = batch.document()
    run = open_run(runs, KIND, config, force=force)
    failed = [name for name, row in run.done.items() if row["status"] == "failed"]
    if not (run.finished and failed):
        return run
    kept = {name: dict(row) for name, row in run.done.items() if name not in failed}
    run.close()
    again = open_run(runs, KIND, config, force=True)
    try:
        for name, row in kept.items():
            again.append(name, row)
    except BaseException:
        again.close()
        raise
    return again


def _work(
    units: Mapping[str, PruneConfig],
    run: Run,
    runs: Path,
    force: bool,
    say: Callable[[str], None],
    tell: Callable[[int, int], None],
) -> None:
    loaded: Loaded | None = None
    for number, (name, config) in enumerate(units.items(), 1):
        if name not in run.done:
            run.check_cancelled()
            if loaded is None or loaded.source != config.source:
                loaded = Loaded(config.source, config.evaluate or Evaluate())
            row = _unit(config, loaded, runs, force, say)
            run.append(name, row)
            say(f"{name}: {row['status']}{': ' + str(row['error']) if row['error'] else ''}")
        run.progress(number, len(units), name)
        tell(number, len(units))


def _unit(
    config: PruneConfig, loaded: Loaded, runs: Path, force: bool, say: Callable[[str], None]
) -> dict[str, JSON]:
    """One ledger row. Whatever goes wrong in a unit is its row's error, not the batch's."""
    started = time.monotonic()
    row: dict[str, JSON] = {"out": config.output.path, "heads": [], "changes": {}, "error": ""}
    try:
        found = None if force else _already_written(config)
        if found is None:
            done = prune(
                plan_of(config), runs=runs, force=force, say=say, tell=_nobody, loaded=loaded
            )
            found = done.document()
        row |= {"status": "done", "heads": found["heads"], "changes": _changes(found)}
    except RunFolderError:
        raise  # a full disk or a ledger that cannot be written concerns every unit
    except MnemoscopeError as error:
        row |= {"status": "failed", "error": str(error)}
    except Exception as error:  # anything else, an error of torch for example, spares the rest too
        row |= {"status": "failed", "error": f"{type(error).__name__}: {error}"}
    return {**row, "seconds": round(time.monotonic() - started, 3)}


def _already_written(config: PruneConfig) -> dict[str, Any] | None:
    """The result of an intact folder that this very unit wrote before it could be logged."""
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


def _changes(found: Mapping[str, Any]) -> dict[str, JSON]:
    metrics = (found.get("evaluation") or {}).get("metrics", ())
    return {metric["name"]: metric["change"] for metric in metrics}


def _table(rows: Mapping[str, Mapping[str, Any]]) -> polars.DataFrame:
    told = [
        {
            "unit": name,
            "heads": len(row["heads"]),
            **{field: row[field] for field in ("status", "out", "seconds", "error")},
            **{f"{metric} change": row["changes"].get(metric) for metric in _SHOWN},
        }
        for name, row in rows.items()
    ]
    return polars.DataFrame(told, schema=_SCHEMA)


def _provenance(batch: PruneBatch) -> Any:
    return collect_provenance(
        model_id=", ".join(source.name for source in batch.checkpoints),
        weights_sha256=None,
        tokenizer_sha256=None,
        data_sha256=None,
        prompt_template=None,
        bos_rule=None,
        seed=batch.controls.seed,
        estimand=f"pruned checkpoints, mode {batch.method.mode}",
        device="each unit's own",
        dtype="each checkpoint's own",
        attention=None,
    )


def _nobody(done: int, total: int) -> None:
    """The batch shows its own progress, not that of a unit."""
