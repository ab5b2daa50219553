"""Probes over many checkpoints: each unit is a run of its own, and the tables are laid together."""

from __future__ import annotations

import io
from collections.abc import Callable, Mapping, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

import polars

from ..probes.elicitation import silent
from ..results.errors import LedgerError, RunFolderError
from ..results.ledger import Attempt, Outcome
from ..results.provenance import JSON, Provenance, provenance_beyond_a_model
from ..results.run import Run
from ..results.run_reading import LoadedRun, load_run
from ..results.shards import WHOLE, Shard, Unit, parts
from ..results.storage import write_atomic
from .sweep_batch import Batch, BatchResult, sized_units, work_on_batch
from .sweep_config import Checkpoint, Probe, Sweep

KIND = "probe-sweep"
Places = Mapping[str, Mapping[str, str]]
"""The first cells of each unit's rows."""


def run_sweep(
    sweep: Sweep,
    root: Path,
    *,
    force: bool,
    say: Callable[[str], None],
    tell: Callable[[int, int], None],
    shard: Shard = WHOLE,
    retry: bool = False,
) -> BatchResult:
    """Measure every unit of the shard, or go on where an earlier attempt stopped.

    A unit goes on with the run that a dead worker left. The merged run holds `table.parquet`, a
    row for each unit, `numbers.parquet`, the numbers of the units' summaries, and for each probe
    `PROBE.parquet`, the tables of all checkpoints. Raises only what concerns the whole sweep.
    """
    units = sweep.units()
    places = {
        name: {"unit": name, "checkpoint": checkpoint.name, "probe": probe.name}
        for name, (checkpoint, probe) in units.items()
    }
    work = Batch(
        kind=KIND,
        config=sweep.document(),
        units=units_of(sweep),
        do=lambda name: _measure(*units[name], root, force, say),
        table=lambda settled: _table(places, settled),
        provenance=lambda: _provenance(sweep),
        title="Sweep over checkpoints",
        extra=lambda run, settled: _write_tables(places, root, run, settled),
    )
    return work_on_batch(work, root, shard=shard, retry=retry, force=force, say=say, tell=tell)


def units_of(sweep: Sweep) -> tuple[Unit, ...]:
    """The units, those of a checkpoint together, with the bytes of its weights where known."""
    return sized_units({name: one.path for name, (one, _) in sweep.units().items()})


def describe_sweep(sweep: Sweep, shard: Shard) -> list[dict[str, Any]]:
    """Every unit with its size in bytes and the shard, of as many, that would do it."""
    units = units_of(sweep)
    return [
        {"unit": unit.name, "size": unit.size, "shard": f"{part}/{shard.count}"}
        for unit, part in zip(units, parts(units, shard.count), strict=True)
    ]


def _measure(
    checkpoint: Checkpoint, probe: Probe, root: Path, force: bool, say: Callable[[str], None]
) -> dict[str, JSON]:
    module = import_module(f".{probe.work.module}", __package__)
    measure: Any = getattr(module, probe.work.function)
    config = probe.config_for(checkpoint.path)
    result = measure(config, root, force=force, say=say, tell=silent, **probe.more)
    folder = Path(result.folder)
    return {"run": folder.name, "numbers": _numbers(load_run(folder).rows.get("summary", {}))}


def _numbers(summary: Mapping[str, Any]) -> dict[str, JSON]:
    """The plain numbers of a run's summary, times left out; those one level down under
    `outer.inner`."""
    found: dict[str, JSON] = {}
    for name, value in summary.items():
        inner = value if isinstance(value, dict) else {"": value}
        for key, number in inner.items():
            plain = isinstance(number, int | float) and not isinstance(number, bool)
            if plain and "seconds" not in (name, key):
                found[f"{name}.{key}" if key else name] = float(number)
    return found


def _table(places: Places, settled: Sequence[Attempt]) -> polars.DataFrame:
    cells = [
        {
            **places[one.unit],
            "status": str(one.outcome),
            "run": (one.row or {}).get("run"),
            "error": one.error,
        }
        for one in settled
    ]
    columns = ("unit", "checkpoint", "probe", "status", "run", "error")
    return polars.DataFrame(cells, schema=dict.fromkeys(columns, polars.String))


def _write_tables(places: Places, root: Path, run: Run, settled: Sequence[Attempt]) -> None:
    """`numbers.parquet`, and for each probe that any checkpoint has `PROBE.parquet`: its tables,
    the checkpoint first."""
    done = [one for one in settled if one.outcome is Outcome.DONE]
    numbers = [
        {**places[one.unit], "name": name, "value": value}
        for one in done
        for name, value in (one.row or {})["numbers"].items()
    ]
    columns = dict.fromkeys(("unit", "checkpoint", "probe", "name"), polars.String)
    schema = {**columns, "value": polars.Float64}
    _write_parquet(run.folder / "numbers.parquet", polars.DataFrame(numbers, schema=schema))
    for probe in dict.fromkeys(place["probe"] for place in places.values()):
        tables = [
            _unit_run(root, one)
            .table.rechunk()
            .select(polars.lit(places[one.unit]["checkpoint"]).alias("checkpoint"), polars.all())
            for one in done
            if places[one.unit]["probe"] == probe
        ]
        if tables:
            both = polars.concat(tables, how="diagonal_relaxed", rechunk=True)
            _write_parquet(run.folder / f"{probe}.parquet", both)


def _write_parquet(path: Path, table: polars.DataFrame) -> None:
    content = io.BytesIO()
    table.write_parquet(content)
    write_atomic(path, content.getvalue())


def _unit_run(root: Path, attempt: Attempt) -> LoadedRun:
    try:
        return load_run(root / (attempt.row or {})["run"])
    except (RunFolderError, KeyError) as error:
        raise LedgerError(
            f"the run of {attempt.unit}, which is done, is gone ({error}): delete the ledger and "
            "run the same command again, which finds what is finished."
        ) from error


def _provenance(sweep: Sweep) -> Provenance:
    return provenance_beyond_a_model(
        model_id=", ".join(one.name for one in sweep.checkpoints),
        estimand=", ".join(dict.fromkeys(one.probe for one in sweep.probes)),
        device="each unit's own",
        dtype="each unit's own",
    )
